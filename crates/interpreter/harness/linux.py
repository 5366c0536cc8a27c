"""The few system calls Python has no function for. Each answers an errno, 0 when it held, and never raises: inside a
Lambda function prctl is denied altogether."""

import errno
import mmap
import os
import struct

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
# `__WALL`, to wait for those, too, that send no signal when they end.
ALSO_SILENT = 0x40000000

_SECCOMP_MODE_FILTER = 2
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CLOSE_RANGE = 436
_NO_DESCRIPTOR = 0x7FFFFFF0
_CLONE_MEMORY = 0x100
_STACK_BYTES = 4096
_BLOCK, _SET = 0, 2
_DETACH = 2
_PR_CAP_AMBIENT = 47
_AMBIENT_RAISE = 2
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21

_first_process = None  # its instructions and its stack, and what holds that
_arguments = None  # where they are in memory, their size, and the last one

try:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)
    _NO_CAPABILITIES = (ctypes.c_uint32 * 6)()
    _ALL_SIGNALS, _signals_before = ctypes.create_string_buffer(b"\xff" * 128), ctypes.create_string_buffer(128)

    class _Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
except (ImportError, OSError):  # a CPython built without libffi
    _libc = None


def _call(function, *arguments):
    if _libc is None:
        return errno.ENOSYS
    return 0 if getattr(_libc, function)(*arguments) == 0 else ctypes.get_errno()


def prctl(option, value):
    if _libc is None:
        return errno.ENOSYS
    return _call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def unshare(flags):
    return _call("unshare", flags)


def setns(fd, kind):
    return _call("setns", fd, kind)


def mount(source, target, kind, flags, options=None):
    if _libc is None:
        return errno.ENOSYS
    return _call("mount", source, target, kind, ctypes.c_ulong(flags), options)


def detach(target):
    return _call("umount2", target, ctypes.c_int(_DETACH))


def pivot_root(new, old):
    number = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine)
    if number is None or _libc is None:
        return errno.ENOSYS
    return _call("syscall", ctypes.c_long(number), new, old)


def keep_capabilities():
    """Over the start of a program as an ordinary user: those that namespaces and a network for each kernel need."""
    if _libc is None or os.geteuid() == 0:
        return
    kept = 1 << _CAP_NET_ADMIN | 1 << _CAP_SYS_ADMIN
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    refused = _call("capset", header, (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0))
    for capability in (_CAP_NET_ADMIN, _CAP_SYS_ADMIN):
        raised = (ctypes.c_ulong(number) for number in (_AMBIENT_RAISE, capability, 0, 0))
        refused = refused or _call("prctl", _PR_CAP_AMBIENT, *raised)
    if refused:
        raise OSError(refused, "capabilities can't be kept")


def load_first_process(program):
    """Takes what the first process of a PID namespace runs; gives the errno of what was refused."""
    global _first_process
    if _libc is None or not program:
        return errno.ENOSYS
    refused = _call("syscall", *map(ctypes.c_long, (_CLOSE_RANGE, _NO_DESCRIPTOR, _NO_DESCRIPTOR, 0)))
    if refused:
        return refused
    try:
        fd = os.memfd_create("code-interpreter-first")
        os.write(fd, program)
    except OSError as error:
        return error.errno
    _libc.mmap.restype = ctypes.c_void_p
    flags = (len(program), mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, ctypes.c_long(0))
    place = _libc.mmap(None, ctypes.c_size_t(flags[0]), *flags[1:])
    os.close(fd)
    if place in (None, ctypes.c_void_p(-1).value):
        return ctypes.get_errno()
    # It writes only where it came from, and never goes back there: one piece of stack is enough for all.
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    top = (ctypes.addressof(stack) + _STACK_BYTES) & ~0xFF
    _first_process = ctypes.c_void_p(place), ctypes.c_void_p(top), stack
    return 0


def has_first_process():
    return _first_process is not None


def forget_first_process():
    global _first_process
    _first_process = None


def start_first_process():
    """Makes a process that does nothing in memory of this one, and hears no signal; gives its number. Its end is told to nobody:
    it is reaped with others. Raises what refuses it."""
    place, stack, _ = _first_process
    _libc.pthread_sigmask(_BLOCK, _ALL_SIGNALS, _signals_before)
    pid = _libc.clone(place, stack, _CLONE_MEMORY, None)
    _libc.pthread_sigmask(_SET, _signals_before, None)
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid


def install_seccomp(programs):
    """Puts filter programs in force, for this process and all it starts."""
    for program in programs:
        if _libc is None:
            return errno.ENOSYS
        filters = _Program(len(program) // 8, program)
        refused = _call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(filters))
        if refused:
            return refused
    return 0


def allow_beneath(ruleset, directory, rights):
    """Adds a directory to a Landlock rule set that is not in force yet."""
    if _libc is None:
        return errno.ENOSYS
    rule = struct.pack("=Qi", rights, directory)
    return _call(
        "syscall", ctypes.c_long(_LANDLOCK_ADD_RULE), ctypes.c_long(ruleset), ctypes.c_long(1), rule, ctypes.c_long(0)
    )


def restrict_to_ruleset(fd):
    """Puts a Landlock rule set in force, for this process and all it starts."""
    if _libc is None:
        return errno.ENOSYS
    return _call("syscall", ctypes.c_long(_LANDLOCK_RESTRICT_SELF), ctypes.c_long(fd), ctypes.c_long(0))


def drop_capabilities():
    if _libc is None:
        return errno.ENOSYS
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    return _call("capset", header, _NO_CAPABILITIES)


def open_descriptors():
    """All from 3 on, and one that is closed already. `os.closerange` would try a million numbers one by one where the kernel
    refuses `close_range`."""
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2]


def close_all(fds):
    for fd in fds:
        try:
            os.close(fd)
        except OSError:  # the list's own
            pass


def leave_session_keyring():
    """Keys that this process adds to its session's key ring end with it, whatever ring its parent was given."""
    number = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine)
    if number is None or _libc is None:
        return errno.ENOSYS
    joined = _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)
    return 0 if joined >= 0 else ctypes.get_errno()


def set_title(title):
    """What `ps` shows instead of the interpreter and its arguments. The last argument stays, as a word of its own: what a
    killed server leaves running is found by it. Where nothing can be written over, all stays as it is."""
    global _arguments
    if _libc is None:
        return
    if _arguments is None:
        with open("/proc/self/stat", "rb") as file:
            start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
        _arguments = start, end - start, ctypes.string_at(start, end - start).rstrip(b"\0").rpartition(b"\0")[2]
    start, size, last = _arguments
    text = title.encode() + b"\0" + last
    if len(text) < size:
        ctypes.memmove(start, text.ljust(size, b"\0"), size)


def be_killed_early(score):
    """When the machine or the server's control group runs out of memory, the choice falls on the highest score first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError:
        pass


def die_with_parent(parent):
    """Asks for SIGKILL when the parent dies, and exits if it already has."""
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(0)
