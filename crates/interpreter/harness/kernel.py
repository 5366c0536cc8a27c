"""A kernel: the forked process that runs a cell. It builds its own cage before it can see any user code, says it is
ready, and waits for its job. While it waits it warms itself, so that the first page faults are off the call's path; a
kernel whose call already waits for it skips that, because it would do the work twice."""

import faulthandler
import fcntl
import os
import resource
import select
import signal
import sys
import time
from json import dumps, loads

import harness_cell as cell
import harness_linux as linux
import harness_namespaces as namespaces
from harness_cage import drop_user
from harness_channel import BEGUN, END, READY, REPORT, Channel
from harness_figures import Figures
from harness_policy import Restricted
from harness_streams import Output

# User code may scan low descriptors; the channel sits out of the way of honest code's own.
_CHANNEL_FD = 500
_MAX_FDS = 1024
# As the supervisor knows it.
HARNESS_FAULT = 70
# How long a spare stays idle before it runs a dummy cell, and then its stage's dummy workload.
_IDLE_SECONDS = 0.001
_LONG_IDLE_SECONDS = 0.02

_WARM_CELL = "def f(x):\n    return x + 1\nclass C: pass\nprint(f(2), 'a')\n[f(1), {'a': 1.5}, (None,)]"


class _Muted:
    """Stands in for the channel while the kernel warms itself."""

    def send(self, kind, payload=b""):
        pass

    def sync(self):
        pass


def main(job_fds, cage, parent, spawn, kernel_warm):
    """Never returns. `parent`: the zygote, where nothing but its end would end this process with the server."""
    try:
        _serve(job_fds, cage, parent, spawn, kernel_warm)
    except BaseException:
        # Ours, not the cell's (its errors are in its report): the supervisor sees the exit code and stderr.
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        os._exit(HARNESS_FAULT)


def _serve(job_fds, cage, parent, spawn, kernel_warm):
    channel_fd, shared_fd, ruleset_fd = _take_descriptors(cage.ruleset_fd, *job_fds)
    _reset_signals()
    channel = Channel(channel_fd)
    _confine(cage, parent, spawn, ruleset_fd, channel)
    output = Output(channel, shared_fd)
    os.close(shared_fd)
    output.install()
    figures = Figures(output)
    figures.watch()
    data_baseline = _data_bytes()
    channel.send(READY)
    if not _job_comes(channel_fd, _IDLE_SECONDS):
        _warm(output, _WARM_CELL)
        if kernel_warm and not _job_comes(channel_fd, _LONG_IDLE_SECONDS):
            _warm(output, kernel_warm)
    _reseed()
    cells = _Cells(channel, output, figures, data_baseline, namespaces.inside(spawn["site"]))
    while True:
        job = channel.receive()
        if job is None:  # the supervisor has gone, or ends this process
            os._exit(0)
        cells.run(job)


class _Cells:
    """Runs one cell after the other, each in what those before it have left."""

    def __init__(self, channel, output, figures, data_baseline, site):
        self._channel, self._output, self._figures = channel, output, figures
        self._data_baseline, self._site = data_baseline, site
        self._namespace = self._policy = None
        self._number = 0

    def run(self, job):
        self._bound(job["memory_bytes"], job["cpu_seconds"], job["is_kept"])
        if job["packages"] is not None:
            _use_packages(**job["packages"], stack=self._site)
        if self._namespace is None:
            self._namespace = cell.new_main_module()
        if job["input_data"] is not None:
            self._namespace["input_data"] = job["input_data"]
        if job["authorized_imports"] is not None and self._policy is None:
            self._policy = Restricted(job["authorized_imports"])
        if self._policy is not None:
            self._policy.begin()
        self._number += 1
        self._figures.begin(job["images_bytes"])
        self._output.begin()
        process = os.getpid()
        self._channel.send(BEGUN)
        report = cell.run_cell(job["code"], self._namespace, self._figures, self._output, self._policy, self._number)
        if os.getpid() != process:
            _end_fork(report, self._output)
        self._output.finish()
        if job["is_kept"]:
            self._end(report)
            return
        # Known from here on, however long threads and exit handlers may go on.
        _send_settled(self._output, REPORT, report)
        self._end(cell.finish_process())

    def _end(self, report):
        # The policy has no files, and its hook refuses to look for them.
        if self._output.wrote_files and self._policy is None:
            cell.flush_files()
        self._output.finish()
        _send_settled(self._output, END, report)

    def _bound(self, memory_bytes, cpu_seconds, is_kept):
        """Set anew for each cell. A hard limit could never be raised again, so only the last cell has one on its time; that on
        memory leaves room to report a MemoryError."""
        memory, hard = self._data_baseline + memory_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]
        if self._number == 0:
            hard = memory + cell.REPORT_ROOM_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))
        seconds = int(time.process_time()) + cpu_seconds
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1] if is_kept else seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def _end_fork(report, output):
    """A fork that the cell has made came out of it: it ends as a program of Python's does."""
    error = report.get("error")
    if error is not None:
        print(error["traceback"], end="", file=sys.stderr)
    amended = cell.finish_process()
    output.finish()
    failed = error is not None or "error" in amended
    os._exit(1 if failed else amended.get("exit", report.get("exit", 0)))


def _hand_over_shared_memory(channel):
    """What is in it is seen from here only. Before the limit on descriptors falls, which also bounds those that are under way
    from any process of the same user."""
    if namespaces.in_use():
        fd = os.open("/dev/shm", os.O_PATH)
        channel.hand_over(fd)
        os.close(fd)


def _send_settled(output, kind, report):
    """Behind all that was printed before, with no other thread's output in between."""
    with output.lock:
        output.settle()
        output.channel.send_json(kind, report)


def _use_packages(directory, separate, stack):
    """Behind the stack, or in its place: then nothing of it may have been imported."""
    directory = namespaces.inside(directory)
    if separate:
        mixed = [name for name, module in sys.modules.items() if (getattr(module, "__file__", None) or "").startswith(stack)]
        if mixed:
            raise RuntimeError(f"the stack is imported already: {mixed[:5]}")
        sys.path.remove(stack)
    # The work directory stays last. No cache knows the folder, and invalidating them would import a lot.
    sys.path.insert(len(sys.path) - 1, directory)


def _take_descriptors(kept, channel, out, err, shared, ruleset=None):
    # Of its own: flags that are set on an open file are seen by all who have it.
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    channel = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, _CHANNEL_FD)
    shared = fcntl.fcntl(shared, fcntl.F_DUPFD_CLOEXEC, channel + 1)
    if ruleset is not None:
        ruleset = fcntl.fcntl(ruleset, fcntl.F_DUPFD_CLOEXEC, shared + 1)
    linux.close_all(fd for fd in linux.open_descriptors() if fd not in (channel, shared, ruleset, kept))
    return channel, shared, ruleset


def _reset_signals():
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable(file=2, all_threads=False)


def _confine(cage, parent, spawn, ruleset_fd, channel):
    os.setsid()
    directory, temporary = namespaces.narrow(spawn["dir"])
    _hand_over_shared_memory(channel)
    os.umask(0o077)
    cage.let_the_supervisor_look(own_user=spawn["uid"] is not None)
    linux.be_killed_early(1000)  # before a zygote
    uid = spawn["uid"]
    if uid is not None:
        for fd in (1, 2):
            os.fchown(fd, uid, uid)  # /dev/stdout opens the pipe anew
        drop_user(uid)
    # After the change of user, which undoes the first and the third.
    if parent is not None:
        linux.die_with_parent(parent)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_FDS)
    _limit(resource.RLIMIT_FSIZE, spawn["file_size_bytes"])
    _limit(resource.RLIMIT_NPROC, spawn["processes"])
    _limit(resource.RLIMIT_MSGQUEUE, 0)  # POSIX message queues outlive who made them, and can't be listed
    linux.leave_session_keyring()
    cage.close_kernel(ruleset_fd, own_user=uid is not None)
    os.environ.update(HOME=directory, PWD=directory, TMPDIR=temporary)


def _limit(kind, value):
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _job_comes(channel_fd, seconds):
    return bool(select.select([channel_fd], [], [], seconds)[0])


def _warm(output, code):
    """Runs a dummy cell with its output thrown away, and leaves nothing of it behind."""
    channel, output.channel = output.channel, _Muted()
    figures = Figures(output)
    report = cell.run_cell(code, cell.new_main_module(), figures, output)
    output.finish()
    loads(dumps({"code": code, "input_data": None, "report": report, "seconds": 1.5}))
    output.begin()
    output.channel = channel


def _reseed():
    """Every kernel is a copy of one process: what is random in it would be the same in all (Python's own generator reseeds
    itself). With one key for all, code of one call could speak to the managers of another."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed(int.from_bytes(os.urandom(4), "little"))


def _data_bytes():
    """What RLIMIT_DATA counts now, in bytes; a little more, as the stack is in it."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
