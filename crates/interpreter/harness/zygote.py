"""The holder, and the zygotes: one warm process for each stage of the stack.

Rule: none of them ever sees user code, each has one thread, and does nothing but fork, reap and report. The holder is the
first process of the namespaces, if there are any: it imports nothing, so that it outlives every zygote. A zygote is forked
from that of the stage before it, or from the holder, and each is replaced alone. A kernel is forked from the smallest
stage that has what its code imports, because the price of a fork follows the size of the process."""

import builtins
import gc
import json
import linecache
import os
import select
import signal
import socket
import sys
import warnings

import harness_figures as figures
import harness_kernel as kernel
import harness_linux as linux
import harness_namespaces as namespaces
from harness_cage import Cage

_DESCRIPTORS_OF_A_KERNEL = 5  # the last one, a rule set, only where there is Landlock
_MAX_REASON = 4000


def main(config):
    """`held`: what `namespaces.enter` has found."""
    linux.set_title("code-interpreter: holder")
    held = config["held"]
    if held.get("namespaces") == 0:
        namespaces.arrive(namespaces.View(config))
    held |= {
        "no_new_privileges": linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1),
        "non_dumpable_kernels": _close_memory(),
    }
    heir = _heir_of_orphans() if config["find_heir"] and not namespaces.in_use() else None
    cage = Cage(config)
    probe_paths = [config["site"], config["state_directory"]]
    held.update(cage.probe(config["probe_user"], probe_paths))
    _prepare_interpreter(config)
    _freeze()
    control = socket.socket(fileno=config["control_fd"])
    try:
        no_shared_memory = held.pop("no_shared_memory", None)
        directory = namespaces.temporary_directory(config["state_directory"])
        _announce(control, "holder", probes=held, no_shared_memory=no_shared_memory, heir=heir, directory=directory)
        _serve(control, cage)
    except ConnectionError:  # the supervisor has ended
        os._exit(0)


def _be_zygote(control, cage, stages):
    """In a process that was forked for it: imports what the stages have that its parent has not. Never returns."""
    last = stages[-1]
    linux.set_title(f"code-interpreter: zygote {last['name']}")
    try:
        missing = []
        for stage in stages:
            missing += _import_all(control, stage["imports"])
            _warm(stage["warm"])
        _freeze()
        cage.close_zygote()
        _announce(control, "ready", stage=last["name"], missing=missing)
        _serve(control, cage, last["name"], last["kernel_warm"])
    except ConnectionError:
        os._exit(0)
    except BaseException as error:  # a library can raise whatever it likes while it is imported
        name, message = type(error).__name__, str(error)
        control.send(_message("broken", reason=f"{name}: {message[:_MAX_REASON]}"))
        os._exit(1)


def _freeze():
    """What is here now is never looked at again by the garbage collector, which would copy its pages."""
    gc.collect()
    gc.freeze()


def _close_memory():
    """Nobody of this user can look into this process and what it forks; gives the errno when somebody can."""
    refused = linux.prctl(linux.PR_SET_DUMPABLE, 0)
    if refused:
        try:
            # Readable for root only, when the interpreter's own file can't be read: so it is in a layer.
            open("/proc/self/environ").close()
        except PermissionError:
            return 0
    return refused


def _heir_of_orphans():
    """Makes an orphan and asks it whose child it is then."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                select.select([], [], [], 0.0005)
            os.write(write, b"%d" % os.getppid())
        os._exit(0)
    os.close(write)
    os.waitpid(parent, 0)
    with os.fdopen(read, "rb") as answer:
        return int(answer.read())


def _announce(control, kind, **fields):
    """Says that this process serves, with a handle on it."""
    _send_with_handle(control, os.getpid(), None, kind, **fields)


def _send_with_handle(control, pid, first, kind, **fields):
    """`first`: the first process of its PID namespace, where that is another."""
    fds, number = _handle(pid)
    if first is not None:
        fds.append(os.pidfd_open(first))
    socket.send_fds(control, [_message(kind, number=number, **fields)], fds)
    _close_all(fds)


def _handle(pid):
    """A descriptor that stands for the process, or where the kernel refuses those, its number and start time."""
    try:
        return [os.pidfd_open(pid)], None
    except OSError:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return [], (pid, int(file.read().rpartition(b")")[2].split()[19]))


def _prepare_interpreter(config):
    global _parent_of_fork
    sys.path.append(config["site"])
    sys.path.append("")  # the kernel's work directory, last: it can't shadow anything
    sys.argv = ["<cell>"]
    figures.use_own_configuration(config["matplotlib"])
    # `-S` leaves these out; people and models expect them.
    import _sitebuiltins

    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D")
    builtins.help = _sitebuiltins._Helper()
    if sys.version_info >= (3, 14):
        import multiprocessing

        # The default from here on runs a new interpreter that would look for the cell's source.
        multiprocessing.set_start_method("fork")
    _parent_of_fork = os.getpid()
    os.register_at_fork(before=_remember_parent)


def _remember_parent():
    global _parent_of_fork
    _parent_of_fork = os.getpid()


def _import_all(control, names):
    """Gives what the tree does not have; anything else that goes wrong is raised."""
    missing = []
    for name in names:
        control.send(_message("importing", name=name))  # the last word of a process that a library ends
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            missing.append(f"{name}: {error}")
    return missing


def _warm(source):
    """Runs what makes the stage's libraries finish their lazy imports, and leaves nothing of it behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exec(source, {"__name__": "warm"})
        except Exception as error:
            print(f"warming a zygote failed: {error!r}", file=sys.stderr)
    linecache.clearcache()


def _serve(control, cage, name="", kernel_warm=""):
    children, firsts = {}, _Firsts()
    wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake[1], warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake[0], select.POLLIN)
    while True:
        ready = poll.poll(firsts.patience())
        if not ready:
            _reap(control, children, firsts)
        for fd, _ in ready:
            if fd == wake[0]:
                os.read(fd, 4096)
                _reap(control, children, firsts)
                continue
            data, fds, _, _ = socket.recv_fds(control, 65536, _DESCRIPTORS_OF_A_KERNEL)
            if not data:
                os._exit(0)
            request = json.loads(data)
            if not _fork(control, request, fds, children, firsts):
                continue
            if request["fork"] == "kernel":
                linux.set_title(f"code-interpreter: kernel {name}")
                kernel.main(fds, cage, None if namespaces.in_use() else _parent_of_fork, request, kernel_warm)
            signal.set_wakeup_fd(-1)
            control.close()
            _close_all(wake)
            if not namespaces.in_use():
                linux.die_with_parent(_parent_of_fork)
            _be_zygote(socket.socket(fileno=fds[0]), cage, request["stages"])


class _Firsts:
    """The first processes of kernels' PID namespaces. They are ended after their kernels, and tell nobody: so they are looked for a
    moment later, off every call's way."""

    _PATIENCE_MS = 20

    def __init__(self):
        self._of_kernels, self._left = {}, set()

    def patience(self):
        return self._PATIENCE_MS if self._left else None

    def begin(self, kernel, first):
        if first is not None:
            self._of_kernels[kernel] = first

    def end(self, pid):
        self._left.discard(pid)
        first = self._of_kernels.pop(pid, None)
        if first is not None:
            # Whatever the supervisor was told of it: what is left in the namespace ends with it. It can't be gone before.
            os.kill(first, signal.SIGKILL)
            self._left.add(first)


def _fork(control, request, fds, children, firsts):
    """True in the child."""
    first = None
    try:
        if request["fork"] == "zygote":
            namespaces.before_zygote()
        else:
            first = namespaces.before_kernel()
        pid = os.fork()
    except OSError as error:
        if first is not None:
            os.kill(first, signal.SIGKILL)
        _close_all(fds)
        control.send(_message("failed", id=request["id"], reason=str(error)))
        return False
    if pid:
        _close_all(fds)
        children[pid] = request["id"]
        firsts.begin(pid, first)
        _send_with_handle(control, pid, first, "spawned", id=request["id"])
    return pid == 0


def _reap(control, children, firsts):
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG | linux.ALSO_SILENT)
        except ChildProcessError:
            return
        if pid == 0:
            return
        firsts.end(pid)
        identity = children.pop(pid, None)
        if identity is not None:
            told = _message(
                "exited",
                id=identity,
                status=os.waitstatus_to_exitcode(status),
                cpu_seconds=usage.ru_utime + usage.ru_stime,
                peak_memory_kb=usage.ru_maxrss,
            )
            control.send(told)


def _close_all(fds):
    for fd in fds:
        os.close(fd)


def _message(kind, **fields):
    return json.dumps({"kind": kind, **fields}).encode()
