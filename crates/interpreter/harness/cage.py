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
_BEYOND_THE_MACHINE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # RFC 5737, 3849: nobody's


class Cage:
    """What is constant for all kernels of a family."""

    def __init__(self, config):
        seccomp = config["seccomp"]
        # Where no mount namespace hides the machine's sockets, nobody may be connected to.
        programs = seccomp["all"] if namespaces.in_use() else seccomp["all"] + seccomp["without_mounts"]
        self._programs = [bytes.fromhex(program) for program in programs]
        self._connections = namespaces.in_use() or not seccomp["without_mounts"]
        self._own_signals, self._own_pid = seccomp["own_signals"], seccomp["own_pid"]
        self._network, self._subprocess = config["allow_network"], config["allow_subprocess"]
        self._landlock_scopes_signals = config["landlock_scopes_signals"]
        self._own_mount_rights, self._proc_file_rights = config["own_mount_rights"], config["proc_file_rights"]
        self.held = {}
        self._zygote_is_closed = False

    def close_zygote(self):
        """For this process, which only forks from here on, and every kernel and zygote it forks."""
        if self._programs and not self._zygote_is_closed:
            self._hold("seccomp", linux.install_seccomp(self._programs))
            self._zygote_is_closed = True

    def close_kernel(self, ruleset, own_user):
        """Locks this process in. `own_user`: whether no other kernel is the same user."""
        if ruleset is not None:
            self._allow_own(ruleset)
        self._hold("no_capabilities", linux.drop_capabilities())
        if ruleset is not None:
            self._hold("landlock", linux.restrict_to_ruleset(ruleset))
        scoped = self._landlock_scopes_signals and self.held.get("landlock") == 0
        if self._own_signals and not (own_user or scoped or namespaces.in_use()):
            self._hold("seccomp", linux.install_seccomp([self._own_signals_program()]))
        if not (self._network and self._subprocess and self._connections):
            sys.addaudithook(self._explain)

    def _allow_own(self, ruleset):
        """What no rule made outside of this process could name."""
        rights = {path: self._own_mount_rights[path] for path in namespaces.own_mounts()}
        if not rights:
            paths = [f"/proc/{name}" for name in _FACTS] + [f"/proc/self/{name}" for name in _OWN_FACTS]
            rights = dict.fromkeys(filter(os.path.exists, paths), self._proc_file_rights)
        for path, right in rights.items():
            fd = os.open(path, os.O_PATH)
            self._hold("landlock", linux.allow_beneath(ruleset, fd, right))
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
        if not self._network and (event in _NETWORK_EVENTS or event == "socket.__new__" and args[1] not in (_AF_UNIX, -1)):
            raise PermissionError(errno.EACCES, "there is no network here: ALLOW_NETWORK is off")

    def probe(self, drop_user, probe_paths, ruleset):
        """Tries every layer in a throw-away child; gives the errno of each, 0 where it held."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                held = self._try_layers(drop_user, probe_paths, ruleset)
                os.write(write, json.dumps(held).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            held = json.loads(answer.read() or b"{}")
        os.waitpid(pid, 0)
        self.held = held
        return held

    def _try_layers(self, drop_user, probe_paths, ruleset):
        held = {}
        if drop_user is not None:
            held["user_per_call"] = _error_of(lambda: _become(drop_user, probe_paths))
        held["no_capabilities"] = linux.drop_capabilities()
        if ruleset is not None:
            held["landlock"] = linux.restrict_to_ruleset(ruleset)
        if self._programs:
            held["seccomp"] = linux.install_seccomp(self._programs)
        if not self._network:
            held["network_unreachable"] = errno.EISCONN if _network_is_reachable() else 0
        held["no_shared_memory"] = errno.EEXIST if os.access("/dev/shm", os.W_OK) else 0
        return held


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
