"""Namespaces: the zygotes live in some of their own, and each kernel is the first process of its own PID namespace, with
mounts and a network of its own.

Rules: when a kernel ends, everything in its namespace ends, and it can't see or signal anything outside. They are entered
together or not at all, and only after a throw-away child has shown that all of it works. Of the machine's files only
the system's own directories, the interpreter and the packages are in sight: sockets of the machine's services lie
elsewhere, and no other layer holds back a connection to one by its path."""

import os
import stat

import harness_linux as linux

_NEW_MOUNT = 0x00020000
_NEW_UTS = 0x04000000
_NEW_IPC = 0x08000000
_NEW_USER = 0x10000000
_NEW_PID = 0x20000000
_NEW_NETWORK = 0x40000000

_MOUNT_READ_ONLY = 0x01
_MOUNT_NOSUID_NODEV_NOEXEC = 0x0E
_MOUNT_NOSUID_NODEV = 0x06
_MOUNT_REMOUNT = 0x20
_MOUNT_BIND = 0x1000
_MOUNT_BIND_RECURSIVE = 0x5000
_MOUNT_PRIVATE_RECURSIVE = 0x44000
_SHARED_MEMORY = b"/dev/shm"
# What stays in sight below the root; /nix and /gnu are the system's own where there is nothing in /usr.
_SYSTEM_DIRECTORIES = frozenset(("bin", "dev", "etc", "gnu", "lib", "lib32", "lib64", "libx32", "nix", "proc", "sbin", "sys", "usr"))
# The directory of a call, for its own code: where other interpreters have it, too.
_WORK_DIRECTORY = "/mnt/data"

_own_pid_namespace = None
_view = None


class View:
    """What of the machine's files the zygotes and kernels see."""

    def __init__(self, visible, state_directory, shared_memory_bytes, network):
        self._state_directory = state_directory
        self._visible = [path for path in dict.fromkeys(visible) if os.path.exists(path)]
        self._written = os.path.join(state_directory, "matplotlib")
        resolver = os.path.realpath("/etc/resolv.conf")
        if network and os.path.isfile(resolver):
            self._visible.append(resolver)
        self._shared_memory_options = b"mode=1777,nr_inodes=4096,size=%d" % shared_memory_bytes
        self.network = network
        self.work = _WORK_DIRECTORY
        inside = self.work + "/"
        if not os.path.isdir("/mnt") or any((path + "/").startswith(inside) for path in self._visible):
            self.work = os.path.join(state_directory, "data")

    def hide_the_rest(self):
        """Lays empty directories over the machine's own; gives the errno of what was refused."""
        try:
            kept = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in self._visible]
            kept.append((self.work, os.open(self._state_directory, os.O_PATH | os.O_CLOEXEC)))
            hidden = [entry.path for entry in os.scandir("/") if _is_hidden(entry)]
            for path in hidden:
                _mount(b"hidden", path, b"tmpfs", _MOUNT_NOSUID_NODEV_NOEXEC, b"mode=0111,size=1m")
            for path, fd in kept:
                if not path.startswith(tuple(directory + "/" for directory in hidden)):
                    continue  # in sight as it is
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    os.makedirs(path, 0o755, exist_ok=True)
                else:
                    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
                _mount(f"/proc/self/fd/{fd}", path, None, _MOUNT_BIND_RECURSIVE)
                if path not in (self.work, self._written):
                    _mount(None, path, None, _MOUNT_REMOUNT | _MOUNT_BIND | _MOUNT_READ_ONLY | _flags_of(path))
            for path in hidden:
                _mount(None, path, None, _MOUNT_REMOUNT | _MOUNT_BIND | _MOUNT_READ_ONLY | _MOUNT_NOSUID_NODEV_NOEXEC)
            for entry in os.scandir("/dev"):
                if not entry.is_symlink() and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                    _mount("/dev/null", entry.path, None, _MOUNT_BIND)
            for _, fd in kept:
                os.close(fd)
        except OSError as error:
            return error.errno
        return 0

    def narrow(self, name):
        """In a kernel: of all calls' directories only its own, of all processes its own, and memory to share of its own."""
        flags = _NEW_MOUNT if self.network else _NEW_MOUNT | _NEW_NETWORK
        os.chdir(os.path.join(self.work, name))
        refused = linux.unshare(flags)
        if refused:
            raise OSError(refused, "namespaces of its own are refused to a kernel")
        _mount(b".", self.work, None, _MOUNT_BIND)
        os.chdir(self.work)
        _mount(b"proc", b"/proc", b"proc", _MOUNT_NOSUID_NODEV_NOEXEC)
        if os.path.isdir(_SHARED_MEMORY):
            _mount(b"shm", _SHARED_MEMORY, b"tmpfs", _MOUNT_NOSUID_NODEV, self._shared_memory_options)


def _is_hidden(entry):
    return entry.name not in _SYSTEM_DIRECTORIES and entry.is_dir(follow_symlinks=False)


def _flags_of(path):
    """What a mount has, as it must be given again with all that may not be taken away."""
    flags = os.statvfs(path).f_flag
    kept = ((os.ST_NOSUID, 0x2), (os.ST_NODEV, 0x4), (os.ST_NOEXEC, 0x8), (os.ST_NOATIME, 0x400), (os.ST_RELATIME, 0x200000))
    return sum(flag for bit, flag in kept if flags & bit)


def _mount(source, target, kind, flags, options=None):
    source = os.fsencode(source) if source is not None else None
    refused = linux.mount(source, os.fsencode(target), kind, flags, options)
    if refused:
        raise OSError(refused, "a mount is refused", os.fsdecode(target))


def wanted(network):
    flags = _NEW_MOUNT | _NEW_UTS | _NEW_IPC | _NEW_PID
    if not network:
        flags |= _NEW_NETWORK
    # Root needs none, and keeps its right to become other users outside of one.
    return flags if os.geteuid() == 0 else flags | _NEW_USER


def try_all(flags, view):
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
                os._exit(_settle(view) or _try_kernel())
            refused = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    finally:
        os._exit(refused)


def enter(flags, view):
    """Comes back in a child that is the first process of the new namespaces; this process only waits for its end."""
    refused = _unshare_and_map(flags)
    if refused:
        raise OSError(refused, "namespaces could be made in a trial and are refused now")
    descriptors = linux.open_descriptors()  # before the child lays a /proc of its own over this one
    pid = os.fork()
    if pid:
        linux.set_title("code-interpreter: stub around the holder")
        # Of the zygote's descriptors none may stay open here: their ends are how a death is noticed.
        linux.close_all(descriptors)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    linux.prctl(linux.PR_SET_PDEATHSIG, 9)
    refused = _settle(view)
    if refused:
        raise OSError(refused, "the namespaces could be used in a trial and can't be now")


def before_zygote():
    """The next fork makes a process of the holder's PID namespace, whatever the one before was for."""
    if _own_pid_namespace is None:
        return
    refused = linux.setns(_own_pid_namespace, _NEW_PID)
    if refused:
        raise OSError(refused, "the holder's PID namespace is refused")


def before_kernel():
    """The next fork makes the first process of a new PID namespace."""
    if _own_pid_namespace is None:
        return
    before_zygote()  # the next step is refused after the first kernel without it
    refused = linux.unshare(_NEW_PID)
    if refused:
        raise OSError(refused, "a kernel's PID namespace is refused")


def narrow(directory):
    """In a kernel: leaves in sight what is its own, and gives the path that its directory has from here on."""
    if _view is None:
        os.chdir(directory)
        return directory
    _view.narrow(os.path.basename(directory))
    return _view.work


def own_mounts():
    """The kernel's own, which no rule made outside of it can name."""
    return [path for path in ("/proc", "/dev/shm") if in_use() and os.path.isdir(path)]


def state_directory(outside):
    """Where the zygotes find what is at this path of the machine."""
    return _view.work if in_use() else outside


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


def _settle(view):
    """In the first process of the namespaces: its own view of mounts and processes."""
    global _own_pid_namespace, _view
    refused = linux.mount(b"none", b"/", None, _MOUNT_PRIVATE_RECURSIVE) or linux.mount(
        b"proc", b"/proc", b"proc", _MOUNT_NOSUID_NODEV_NOEXEC
    )
    refused = refused or view.hide_the_rest()
    if refused:
        return refused
    _view = view
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
            try:
                _view.narrow("matplotlib")  # a directory that is there before any kernel's
                os._exit(0 if os.getpid() == 1 and os.readlink("/proc/self") == "1" else 1)
            except OSError as error:
                os._exit(error.errno)
        refused = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if refused:
            return refused
    return 0
