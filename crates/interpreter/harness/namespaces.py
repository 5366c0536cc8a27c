"""Namespaces: the zygotes live in some of their own, and each kernel is the first process of its own PID namespace.

Rule: when a kernel ends, everything in its namespace ends, and it can't see or signal anything outside. They are entered
together or not at all, and only after a throw-away child has shown that all of it works."""

import os

import harness_linux as linux

_NEW_MOUNT = 0x00020000
_NEW_UTS = 0x04000000
_NEW_IPC = 0x08000000
_NEW_USER = 0x10000000
_NEW_PID = 0x20000000
_NEW_NETWORK = 0x40000000

_MOUNT_PRIVATE_RECURSIVE = 0x44000
_MOUNT_NOSUID_NODEV_NOEXEC = 0x0E
_MOUNT_NOSUID_NODEV = 0x06
_SHARED_MEMORY_OPTIONS = b"mode=1777,size=256m"

_own_pid_namespace = None


def wanted(network):
    flags = _NEW_MOUNT | _NEW_UTS | _NEW_IPC | _NEW_PID
    if not network:
        flags |= _NEW_NETWORK
    # Root needs none, and keeps its right to become other users outside of one.
    return flags if os.geteuid() == 0 else flags | _NEW_USER


def try_all(flags):
    """Does everything in a throw-away child; gives the errno of what was refused, 0 when nothing was."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    refused = 255
    try:
        refused = _unshare_and_map(flags)
        if not refused:
            inner = os.fork()
            if inner == 0:
                os._exit(_settle() or _try_kernel())
            refused = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    finally:
        os._exit(refused)


def enter(flags):
    """Comes back in a child that is the first process of the new namespaces; this process only waits for its end."""
    refused = _unshare_and_map(flags)
    if refused:
        raise OSError(refused, "namespaces could be made in a trial and are refused now")
    pid = os.fork()
    if pid:
        # Of the zygote's descriptors none may stay open here: their ends are how a death is noticed.
        os.closerange(3, 1 << 16)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)
    refused = _settle()
    if refused:
        raise OSError(refused, "the namespaces could be used in a trial and can't be now")


def before_kernel():
    """The next fork makes the first process of a new PID namespace."""
    if _own_pid_namespace is None:
        return
    # Without the first step the second is refused after the first kernel.
    refused = linux.setns(_own_pid_namespace, _NEW_PID) or linux.unshare(_NEW_PID)
    if refused:
        raise OSError(refused, "a kernel's PID namespace is refused")


def private_shared_memory():
    """Gives this kernel a /dev/shm of its own, for where all kernels are one user; true when it did."""
    if not in_use() or not os.path.isdir("/dev/shm"):
        return False
    refused = _mount_shared_memory()
    if refused:
        raise OSError(refused, "a private /dev/shm is refused")
    return True


def _mount_shared_memory():
    return linux.unshare(_NEW_MOUNT) or linux.mount(
        b"shm", b"/dev/shm", b"tmpfs", _MOUNT_NOSUID_NODEV, _SHARED_MEMORY_OPTIONS
    )


def in_use():
    return _own_pid_namespace is not None


def _unshare_and_map(flags):
    uid, gid = os.geteuid(), os.getegid()
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


def _settle():
    """In the first process of the namespaces: its own view of mounts and processes."""
    global _own_pid_namespace
    refused = linux.mount(b"none", b"/", None, _MOUNT_PRIVATE_RECURSIVE) or linux.mount(
        b"proc", b"/proc", b"proc", _MOUNT_NOSUID_NODEV_NOEXEC
    )
    if refused:
        return refused
    try:
        _own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno
    return 0


def _try_kernel():
    for _ in range(2):
        try:
            before_kernel()
        except OSError as error:
            return error.errno
        pid = os.fork()
        if pid == 0:
            refused = 0 if os.getpid() == 1 else 1
            os._exit(refused or (_mount_shared_memory() if os.path.isdir("/dev/shm") else 0))
        if os.waitpid(pid, 0)[1]:
            return 1
    return 0
