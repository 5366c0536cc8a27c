"""The few system calls Python has no function for. Each answers False where the kernel refuses, and never raises:
inside a Lambda function prctl is denied altogether."""

import os

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

try:
    import ctypes

    _libc = ctypes.CDLL(None)
except (ImportError, OSError):  # a CPython built without libffi
    _libc = None


def prctl(option, value):
    return _libc is not None and _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0


def die_with_parent(parent):
    """Asks for SIGKILL when the parent dies, and exits if it already has."""
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(0)
