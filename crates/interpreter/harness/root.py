"""The root that zygotes and kernels live in: a small file system in memory, with what every program needs of the machine and
nothing else of it.

Rules: what is the machine's own is bound read-only under its own name, what is the server's under names of ours, and what
would say who and where the machine is, is made up. So there is nothing to hide: no home, no socket, no directory of the
server's. What belongs to one call is laid over three empty places by its kernel (see `namespaces.py`). The layout is one
with a reason: Landlock knows a place by the directory that it is mounted in, so one rule set serves all kernels."""

import os
import re
import stat

import harness_linux as linux

WORK = "/mnt/data"  # where other interpreters have it, too
TEMPORARY = "/var/tmp"
SHARED_MEMORY = "/dev/shm"
HOST_NAME = "sandbox"
USER = "sandbox"

MOUNT_READ_ONLY = 0x01
MOUNT_NOSUID_NODEV_NOEXEC = 0x0E
MOUNT_NOSUID_NODEV = 0x06
MOUNT_REMOUNT = 0x20
MOUNT_BIND = 0x1000
_MOUNT_BIND_RECURSIVE = 0x5000
_MOUNT_PRIVATE_RECURSIVE = 0x44000

# /nix and /gnu are the system's own where there is nothing in /usr.
_OF_THE_SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/bin",
    "/sbin",
    "/nix",
    "/gnu",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/fonts",
    "/etc/pki",
    "/etc/ssl",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
)
_COPIED = ("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/protocols", "/etc/services")
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/tmp": TEMPORARY.lstrip("/"),
}
_PLACES = ("/dev", "/etc", "/proc", "/sys", WORK, TEMPORARY, SHARED_MEMORY)
_NAMES = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"
_TIME_ZONES = "/usr/share/zoneinfo/"


def enter(state_directory, places, users, network):
    """In the first process of the namespaces: builds the root, and leaves the machine's behind. `places`: what is the
    server's, with the names that it has here."""
    mount("none", "/", None, _MOUNT_PRIVATE_RECURSIVE)
    if network:
        resolver = os.path.realpath("/etc/resolv.conf")
        places = [*places, (resolver, "/etc/resolv.conf")]
    # Held before anything is laid over it.
    held = [(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC), path) for path in _OF_THE_SYSTEM if os.path.exists(path)]
    held += [(os.open(path, os.O_PATH | os.O_CLOEXEC), name) for path, name in places if os.path.exists(path)]
    state = os.open(state_directory, os.O_PATH | os.O_CLOEXEC)
    made_up = {**_copies(), **_made_up(users, network)}
    root = state_directory
    mount("root", root, "tmpfs", MOUNT_NOSUID_NODEV, "mode=0755,size=16m,nr_inodes=8192")
    for path in _PLACES:
        os.makedirs(root + path, 0o755, exist_ok=True)
    for fd, name in held:
        _bring(fd, root + name)
    for path, target in _LINKS.items():
        os.symlink(target, root + path)
    for path, content in made_up.items():
        if isinstance(content, str):
            os.symlink(content, root + path)
        else:
            with open(root + path, "xb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(content)
    _close(root)
    mount("proc", root + "/proc", "proc", MOUNT_NOSUID_NODEV_NOEXEC)
    # The zygotes' own: each kernel lays its own over these.
    mount(f"/proc/self/fd/{state}", root + WORK, None, MOUNT_BIND)
    mount(None, root + WORK, None, MOUNT_REMOUNT | MOUNT_BIND | MOUNT_NOSUID_NODEV | _flags_of(root + WORK))
    mount("temporary", root + TEMPORARY, "tmpfs", MOUNT_NOSUID_NODEV, "mode=1777,size=64m,nr_inodes=4096")
    os.chdir(root)
    for refused in (linux.pivot_root(b".", b"."), linux.detach(b".")):
        if refused:
            raise OSError(refused, "a root of its own is refused")
    os.chdir("/")
    mount(None, "/", None, MOUNT_REMOUNT | MOUNT_BIND | MOUNT_READ_ONLY | MOUNT_NOSUID_NODEV)
    for fd in (state, *(fd for fd, _ in held)):
        os.close(fd)


def mount(source, target, kind, flags, options=None):
    encoded = [part if part is None else os.fsencode(part) for part in (source, target, kind, options)]
    source, name, kind, options = encoded
    refused = linux.mount(source, name, kind, flags, options)
    if refused:
        raise OSError(refused, "a mount is refused", target)


def _bring(fd, target):
    kind = os.fstat(fd).st_mode
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if stat.S_ISLNK(kind):
        return os.symlink(os.readlink("", dir_fd=fd), target)
    if stat.S_ISDIR(kind):
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    mount(f"/proc/self/fd/{fd}", target, None, _MOUNT_BIND_RECURSIVE)


def _close(root):
    """Makes all that is mounted below read-only, also what came along with something else."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        paths = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in file]
    for path in paths:
        if path.startswith(root + "/"):
            try:
                mount(None, path, None, MOUNT_REMOUNT | MOUNT_BIND | MOUNT_READ_ONLY | _flags_of(path))
            except PermissionError:
                # In a folder that is closed to us, and so to all kernels: nothing leads there. All else must be closed.
                if _is_reachable(path):
                    raise


def _is_reachable(path):
    try:
        os.lstat(path)
    except PermissionError:
        return False
    return True


def _flags_of(path):
    """What a mount has, as it must be given again with all that may not be taken away."""
    flags = os.statvfs(path).f_flag
    kept = ((os.ST_NOSUID, 0x2), (os.ST_NODEV, 0x4), (os.ST_NOEXEC, 0x8), (os.ST_NOATIME, 0x400), (os.ST_NODIRATIME, 0x800), (os.ST_RELATIME, 0x200000))
    return sum(flag for bit, flag in kept if flags & bit)


def _copies():
    """Links as they are, where what they lead to is in sight."""
    copies = {}
    for path in _COPIED:
        try:
            link = os.readlink(path) if os.path.islink(path) else ""
            if link.startswith(_TIME_ZONES):
                copies[path] = link
                continue
            with open(path, "rb") as file:
                copies[path] = file.read(4 << 20)
        except OSError:  # not every machine has them
            pass
    return copies


def _made_up(users, network):
    hosts = f"127.0.0.1 localhost {HOST_NAME}\n::1 localhost ip6-localhost\n"
    if network:
        try:
            with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
                hosts = file.read().rstrip("\n") + f"\n127.0.0.1 {HOST_NAME}\n"
        except OSError:  # not every machine has one
            pass
    # All that kernels run as have one name; which of them asks does not matter.
    others = [line for line in (("root", 0), ("nobody", 65534)) if line[1] not in users]
    people = "".join(f"{USER}:x:{user}:{user}:{USER}:{WORK}:/bin/sh\n" for user in users)
    people += "".join(f"{name}:x:{user}:{user}:{name}:/:/usr/sbin/nologin\n" for name, user in others)
    groups = "".join(f"{USER}:x:{user}:\n" for user in users) + "".join(f"{name}:x:{user}:\n" for name, user in others)
    made_up = {
        "/etc/passwd": people,
        "/etc/group": groups,
        "/etc/hosts": hosts,
        "/etc/hostname": HOST_NAME + "\n",
        "/etc/nsswitch.conf": _NAMES,
    }
    if not network:
        made_up["/etc/resolv.conf"] = ""
    return {path: text.encode() for path, text in made_up.items()}
