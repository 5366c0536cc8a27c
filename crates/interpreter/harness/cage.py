"""The layers around user code, and the probe that tries them. What is the same for all kernels is put on by their zygote
once, the rest by each kernel before it sees user code.

Rule: a layer that held in the probe must hold in every kernel, or the kernel does not start."""

import errno
import json
import os
import socket
import sys

import harness_linux as linux
import harness_namespaces as namespaces

_NETWORK_EVENTS = frozenset(("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"))
_PROGRAM_EVENTS = frozenset(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"))
# Of a /proc that shows all of the machine's processes: facts about the machine, and what a process reads about itself. Not
# its directories: they lead to the sockets and the threads of others.
_FACTS = ("cpuinfo", "filesystems", "loadavg", "meminfo", "stat", "uptime", "version", "vmstat")
_OWN_FACTS = ("cgroup", "cmdline", "comm", "io", "limits", "maps", "oom_score_adj", "smaps", "smaps_rollup", "stat", "statm", "status")
_AF_UNIX = 1
_OWN_NAMES = frozenset(("", "localhost", "ip6-localhost", "sandbox", "0.0.0.0", "::", "::1"))
_BEYOND_THE_MACHINE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # RFC 5737, 3849: nobody's


class Cage:
    """What is constant for all kernels of a family."""

    def __init__(self, config):
        seccomp = config["seccomp"]
        # Where no root of its own hides the machine's sockets, nobody may be connected to.
        programs = seccomp["all"] + (seccomp["in_own_root"] if namespaces.in_use() else seccomp["without_own_root"])
        self._programs = [bytes.fromhex(program) for program in programs]
        self._connections = namespaces.in_use() or seccomp["connections"]
        self._own_signals, self._own_pid = seccomp["own_signals"], seccomp["own_pid"]
        self._network, self._subprocess = config["allow_network"], config["allow_subprocess"]
        self._landlock_scopes_signals = config["landlock_scopes_signals"]
        self._proc_file_rights = config["proc_file_rights"]
        self.ruleset_fd = config["root_ruleset_fd"] if namespaces.in_use() else config["ruleset_fd"]
        if namespaces.in_use() and self.ruleset_fd is not None:
            self._allow_in_root(config["root_rights"])
        self.held = {}
        self._zygote_is_closed = False

    def _allow_in_root(self, rights):
        """Once for all kernels: what each mounts for itself lies in directories that all of them have."""
        for path, right in rights.items():
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            refused = linux.allow_beneath(self.ruleset_fd, fd, right)
            os.close(fd)
            if refused:
                raise OSError(refused, "a rule of Landlock's is refused", path)

    def close_zygote(self):
        """For this process, which only forks from here on, and every kernel and zygote it forks."""
        if self._programs and not self._zygote_is_closed:
            self._hold("seccomp", linux.install_seccomp(self._programs))
            self._zygote_is_closed = True

    def close_kernel(self, own_ruleset, own_user):
        """Locks this process in. `own_ruleset`: of this kernel alone, where it has no root of its own. `own_user`: whether no
        other kernel is the same user."""
        if own_ruleset is not None:
            self._allow_facts(own_ruleset)
        ruleset = self.ruleset_fd if own_ruleset is None else own_ruleset
        self._hold("no_capabilities", linux.drop_capabilities())
        if ruleset is not None:
            self._hold("landlock", linux.restrict_to_ruleset(ruleset))
            os.close(ruleset)
        scoped = self._landlock_scopes_signals and self.held.get("landlock") == 0
        if self._own_signals and not (own_user or scoped or namespaces.in_use()):
            self._hold("seccomp", linux.install_seccomp([self._own_signals_program()]))
        if not (self._network and self._subprocess and self._connections):
            sys.addaudithook(self._explain)

    def _allow_facts(self, ruleset):
        """What no rule made outside of this process could name."""
        paths = [f"/proc/{name}" for name in _FACTS] + [f"/proc/self/{name}" for name in _OWN_FACTS]
        for path in filter(os.path.exists, paths):
            fd = os.open(path, os.O_PATH)
            self._hold("landlock", linux.allow_beneath(ruleset, fd, self._proc_file_rights))
            os.close(fd)

    def let_the_supervisor_look(self, own_user):
        """What a process keeps in open files that have no name is seen through its /proc entries only, and those of a process
        that is not dumpable are closed to its own user, the supervisor. So kernels are, where something else keeps them from
        one another; seccomp then keeps the code from taking it back."""
        if not own_user and (namespaces.in_use() or self.held.get("landlock") == 0):
            linux.prctl(linux.PR_SET_DUMPABLE, 1)

    def _own_signals_program(self):
        own, mark = (pid.to_bytes(4, sys.byteorder) for pid in (os.getpid(), self._own_pid))
        return bytes.fromhex(self._own_signals).replace(mark, own)

    def _hold(self, name, refused):
        if refused and self.held.get(name) == 0:
            raise OSError(refused, f"the layer {name} held at start and is refused now")

    def _explain(self, event, args):
        """Says which setting is off, before the system says no more than "not permitted"."""
        if event in _PROGRAM_EVENTS and not self._subprocess:
            raise PermissionError(errno.EPERM, "programs can't be started here: ALLOW_SUBPROCESS is off")
        if event == "socket.connect" and not self._connections:
            raise PermissionError(errno.EACCES, "sockets can't be connected here: ALLOW_UNIX_SOCKETS is off")
        if not self._network and self._leads_out(event, args):
            raise PermissionError(errno.EACCES, "there is no network here: ALLOW_NETWORK is off")

    def _leads_out(self, event, args):
        if event == "socket.__new__":
            return args[1] not in ((_AF_UNIX, -1, *_BEYOND_THE_MACHINE) if namespaces.has_own_network() else (_AF_UNIX, -1))
        if not namespaces.has_own_network():
            return event in _NETWORK_EVENTS
        if event in _NETWORK_EVENTS:
            return not _is_own(args[0] if event != "socket.getnameinfo" else args[0][0])
        # An address is a path, or begins with a host.
        is_sent = event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple) and args[1]
        return bool(is_sent) and isinstance(args[1][0], str) and not _is_own(args[1][0])

    def probe(self, drop_user, probe_paths):
        """Tries every layer in a throw-away child; gives the errno of each, 0 where it held."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                held = self._try_layers(drop_user, probe_paths)
                os.write(write, json.dumps(held).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            held = json.loads(answer.read())  # none at all ends the holder: nothing is known of any layer
        os.waitpid(pid, 0)
        if self.ruleset_fd is not None and not namespaces.in_use():
            os.close(self.ruleset_fd)  # it was for this; each kernel gets one
            self.ruleset_fd = None
        self.held = held
        return held

    def _try_layers(self, drop_user, probe_paths):
        held = {}
        if drop_user is not None:
            held["user_per_call"] = _error_of(lambda: _become(drop_user, probe_paths))
        held["no_capabilities"] = linux.drop_capabilities()
        if self.ruleset_fd is not None:
            held["landlock"] = linux.restrict_to_ruleset(self.ruleset_fd)
        if self._programs:
            held["seccomp"] = linux.install_seccomp(self._programs)
        if not self._network:
            held["network_unreachable"] = errno.EISCONN if _network_is_reachable() else 0
        held["no_shared_memory"] = errno.EEXIST if os.access("/dev/shm", os.W_OK) else 0
        return held


def _is_own(host):
    """Whether a name or an address is one of the call's own network, or none at all."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    return not isinstance(host, str) or host in _OWN_NAMES or host.startswith("127.")


def _network_is_reachable():
    """Whether there is a way out; a datagram socket asks the routing table and sends nothing."""
    for family, address in _BEYOND_THE_MACHINE.items():
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 53))
        except OSError:
            continue
        return True
    return False


def _become(uid, paths):
    drop_user(uid)
    for path in paths:
        os.stat(os.path.join(path, "."))


def drop_user(uid):
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _error_of(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0
