"""Namespaces: the zygotes live in some of their own, below a root of their own, and each call is alone in its own PID
namespace, with mounts and a network of its own.

Rules: when a kernel ends, everything in its namespace ends, and it can't see or signal anything outside. They are entered
together or not at all, and only after a throw-away child has shown that all of it works. In the root (see `root.py`) the
interpreter is started anew, so that nothing in it knows where it was outside."""

import fcntl
import json
import os
import socket
import struct
import sys

import harness_linux as linux
import harness_root as root

_NEW_MOUNT = 0x00020000
_NEW_UTS = 0x04000000
_NEW_IPC = 0x08000000
_NEW_USER = 0x10000000
_NEW_PID = 0x20000000
_NEW_NETWORK = 0x40000000

_SET_INTERFACE_FLAGS = 0x8914
_INTERFACE_UP = 0x1
_LOOPBACK_UP = struct.pack("16sH14x", b"lo", _INTERFACE_UP)
# As `bootstrap.py` and its caller have it.
_SOURCES_FD = 3
_TRIAL = "trial"

_own_pid_namespace = None
_view = None


class View:
    """What the zygotes and kernels see of the machine, and by which names."""

    def __init__(self, config):
        self.network = config["allow_network"]
        self._places = config["places"]
        self._users = config["users"] or [os.geteuid()]
        self.first_process = bytes.fromhex(config["first_process"])
        self._shared_memory_options = f"mode=1777,nr_inodes=4096,size={config['shared_memory_bytes']}"

    def inside(self, path):
        """The name in here of what has this one outside."""
        for outside, inside in self._places:
            if path == outside or path.startswith(outside + "/"):
                return inside + path[len(outside) :]
        return path

    def settle(self, state_directory):
        """In the first process of the namespaces."""
        socket.sethostname(root.HOST_NAME)
        root.enter(state_directory, self._places, self._users, self.network)

    def start_again(self, start, inherited):
        """Starts the interpreter in here, with what it needs. Never returns."""
        config = start["config"]
        config = {
            **config,
            "held": {"namespaces": 0},
            "site": self.inside(config["site"]),
            "matplotlib": os.path.join(root.TEMPORARY, "matplotlib"),
            "state_directory": root.WORK,
            "first_process": self.first_process.hex(),
        }
        sources = os.memfd_create("code-interpreter-start")
        with open(sources, "w", closefd=False) as file:
            file.write(json.dumps({**start, "config": config}))
        os.lseek(sources, 0, os.SEEK_SET)
        os.dup2(sources, _SOURCES_FD)
        for fd in (_SOURCES_FD, *inherited):
            os.set_inheritable(fd, True)
        # What everything forked from it is found by; where that directory is, is nobody's business in here.
        self._become_interpreter(*sys.orig_argv[1:-1], os.path.basename(sys.orig_argv[-1]))

    def try_interpreter(self):
        """Whether it starts in here: ends this process."""
        self._become_interpreter("-I", "-S", "-B", "-c", "pass")

    def _become_interpreter(self, *arguments):
        program = self.inside(sys.orig_argv[0])
        environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:{os.path.dirname(program)}",
            "MPLCONFIGDIR": self.inside(os.environ["MPLCONFIGDIR"]),
        }
        linux.keep_capabilities()
        os.execve(program, [program, *arguments], environment)

    def narrow(self, name):
        """In a kernel: of all calls' directories only its own, of all processes its own, and memory to share of its own."""
        flags = _NEW_MOUNT if self.network else _NEW_MOUNT | _NEW_NETWORK
        os.chdir(os.path.join(root.WORK, name))
        refused = linux.unshare(flags)
        if refused:
            raise OSError(refused, "namespaces of its own are refused to a kernel")
        root.mount("tmp", root.TEMPORARY, None, root.MOUNT_BIND)
        root.mount("data", root.WORK, None, root.MOUNT_BIND)
        os.chdir(root.WORK)
        root.mount("proc", "/proc", "proc", root.MOUNT_NOSUID_NODEV_NOEXEC)
        root.mount("shm", root.SHARED_MEMORY, "tmpfs", root.MOUNT_NOSUID_NODEV, self._shared_memory_options)
        if not self.network:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, _SET_INTERFACE_FLAGS, _LOOPBACK_UP)


def enter(start):
    """In the process that is to be the holder. Never returns where namespaces are to be had: then the interpreter is started
    again in there. Else it gives what there is to tell of them."""
    config = start["config"]
    linux.die_with_parent(config["supervisor"])
    # Never preempts another process when it wakes: the end of a kernel must not hold up the answer it belongs to.
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        pass
    linux.be_killed_early(500)  # before the supervisor
    if not config["namespaces"]:
        return {}
    view = View(config)
    # In a PID namespace a number means nothing to the supervisor: its handles must be descriptors.
    refused = _handles_refused() or _try_all(view, config["state_directory"])
    if not refused:
        inherited = [config["control_fd"], config["root_ruleset_fd"]]
        _enter(view, start, [fd for fd in inherited if fd is not None])
    return {"namespaces": refused}


def _handles_refused():
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return error.errno
    return 0


def _try_all(view, state_directory):
    """Does everything in throw-away children; gives the errno of what was refused, 0 when nothing was."""
    linux.load_first_process(view.first_process)
    refused = _try_once(view, state_directory)
    if refused and linux.has_first_process():
        view.first_process = b""
        linux.forget_first_process()
        refused = _try_once(view, state_directory)
    return refused


def _try_once(view, state_directory):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    refused = 255
    try:
        refused = _unshare_and_map(view)
        if not refused:
            inner = os.fork()
            if inner == 0:
                os._exit(_errno_of(lambda: _try_in_here(view, state_directory)))
            refused = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    finally:
        os._exit(refused)


def _enter(view, start, inherited):
    """Never returns: this process only waits for the end of its child, which is the first one of the new namespaces, and
    becomes an interpreter with these descriptors in the root."""
    refused = _unshare_and_map(view)
    if refused:
        raise OSError(refused, "namespaces could be made in a trial and are refused now")
    descriptors = linux.open_descriptors()
    # Before the child enters the root, which is this process's, too, from then on: there it is in no `/proc`.
    linux.set_title("code-interpreter: stub around the holder")
    pid = os.fork()
    if pid:
        # Of the zygote's descriptors none may stay open here: their ends are how a death is noticed.
        linux.close_all(descriptors)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)
    view.settle(start["config"]["state_directory"])
    view.start_again(start, inherited)


def arrive(view):
    """In the interpreter that was started in the root."""
    global _own_pid_namespace, _view
    linux.load_first_process(view.first_process)
    _own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    _view = view


def before_zygote():
    """The next fork makes a process of the holder's PID namespace, whatever the one before was for."""
    if _own_pid_namespace is None:
        return
    refused = linux.setns(_own_pid_namespace, _NEW_PID)
    if refused:
        raise OSError(refused, "the holder's PID namespace is refused")


def before_kernel():
    """The next fork makes a process of a new PID namespace; gives the number of the first one there, where that is another.
    Linux keeps signals from the first one: code that aborts, or sends itself SIGTERM, must not be it."""
    if _own_pid_namespace is None:
        return None
    before_zygote()  # the next step is refused after the first kernel without it
    refused = linux.unshare(_NEW_PID)
    if refused:
        raise OSError(refused, "a kernel's PID namespace is refused")
    return linux.start_first_process() if linux.has_first_process() else None


def narrow(directory):
    """In a kernel: leaves in sight what is its own, and gives the paths that its work directory and its temporary one have
    from here on."""
    if _view is None:
        os.chdir(directory)
        return directory, directory
    _view.narrow(os.path.basename(directory))
    return root.WORK, "/tmp"


def temporary_directory(state_directory):
    """Of each call, or of all."""
    return "/tmp" if in_use() else state_directory


def inside(path):
    """The name that something of the server's has for kernels."""
    return _view.inside(path) if in_use() else path


def in_use():
    return _own_pid_namespace is not None


def has_own_network():
    return in_use() and not _view.network


def _wanted(view):
    flags = _NEW_MOUNT | _NEW_UTS | _NEW_IPC | _NEW_PID
    if not view.network:
        flags |= _NEW_NETWORK
    # Root needs none, and keeps its right to become other users outside of one.
    return flags if os.geteuid() == 0 else flags | _NEW_USER


def _unshare_and_map(view):
    uid, gid, flags = os.geteuid(), os.getegid(), _wanted(view)
    refused = linux.unshare(flags)
    if refused or not flags & _NEW_USER:
        return refused
    # The files belong to root while this process can't be looked into; the zygote closes itself later.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        return error.errno
    return 0


def _try_in_here(view, state_directory):
    view.settle(state_directory)
    arrive(view)
    home = os.path.join(root.WORK, _TRIAL)
    for directory in (home, os.path.join(home, "data"), os.path.join(home, "tmp")):
        os.makedirs(directory, exist_ok=True)
    try:
        for last in (False, True):
            first = before_kernel()
            _try_kernel(view, last)
            if first is not None:
                os.kill(first, 9)
                os.waitpid(first, linux.ALSO_SILENT)
    finally:
        for directory in (os.path.join(home, "data"), os.path.join(home, "tmp"), home):
            os.rmdir(directory)


def _try_kernel(view, starts_interpreter):
    def become():
        view.narrow(_TRIAL)
        number = 2 if linux.has_first_process() else 1
        if os.getpid() != number or os.readlink("/proc/self") != str(number):
            raise OSError(1, "a kernel is not alone")
        if starts_interpreter:
            view.try_interpreter()

    pid = os.fork()
    if pid == 0:
        os._exit(_errno_of(become))
    refused = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if refused:
        raise OSError(refused if refused > 0 else 1, "a kernel can't be made")


def _errno_of(action):
    try:
        action()
    except OSError as error:
        return error.errno or 255
    return 0
