"""The few system calls Python has no function for. Each answers an errno, 0 when it held, and never raises: inside a
Lambda function prctl is denied altogether."""

import errno
import os
import struct

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_SECCOMP_MODE_FILTER = 2
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1

_arguments = None  # where they are in memory, their size, and the last one

try:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)
    _NO_CAPABILITIES = (ctypes.c_uint32 * 6)()

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
