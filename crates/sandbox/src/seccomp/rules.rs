//! What is refused, and why: each rule with its reason.

use seccompiler::TargetArch;

use super::{Allowed, OWN_PID};

pub(super) const EPERM: u32 = libc::EPERM.cast_unsigned();
pub(super) const EACCES: u32 = libc::EACCES.cast_unsigned();
pub(super) const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();
/// The call does nothing and says that it did.
pub(super) const IGNORED: u32 = 0;

/// Some system calls, what they answer, and why.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Their names.
    pub(super) calls: &'static [&'static str],
    /// Which architecture has them; `None` for both.
    pub(super) only_on: Option<TargetArch>,
    /// When the rule holds.
    pub(super) when: When,
    /// What the call answers.
    pub(super) errno: u32,
    /// Why.
    pub(super) reason: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Always,
    /// The first argument has one of these bits.
    FirstHasBit(&'static [u64]),
    /// The argument with this index is none of these.
    IsNone(u8, &'static [u64]),
    /// The argument with this index is one of these.
    IsOne(u8, &'static [u64]),
    /// Each argument with this index has, under this mask, this value.
    Are(&'static [(u8, u64, u64)]),
    /// The argument with this index points to something.
    Points(u8),
    /// Programs may not be started.
    WithoutSubprocess,
}

/// Flags of `clone` that make a namespace: mount, cgroup, UTS, IPC, user, PID, network.
pub(super) const NAMESPACE_FLAGS: &[u64] =
    &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
pub(super) const SHARE_PARENT: u64 = 0x8000;
pub(super) const NEW_MOUNT: u64 = 0x0002_0000;
pub(super) const NEW_MOUNT_AND_NETWORK: u64 = 0x4002_0000;
pub(super) const NOSUID_NODEV: u64 = 6;
pub(super) const NOSUID_NODEV_NOEXEC: u64 = 14;
pub(super) const BIND: u64 = 0x1000;
pub(super) const SET_DUMPABLE: u64 = 4;
pub(super) const SET_SUBREAPER: u64 = 36;
pub(super) const THREAD: u64 = 0x1_0000;
pub(super) const SHARE_FILES: u64 = 0x400;
pub(super) const WHOLE: u64 = 0xFFFF_FFFF;
pub(super) const SOL_SOCKET: u64 = 1;
pub(super) const SO_SNDBUF: u64 = 7;
pub(super) const SO_RCVBUF: u64 = 8;
pub(super) const SOCKET_TYPE: u64 = 0xF;
pub(super) const SOCK_DGRAM: u64 = 2;
pub(super) const SOCK_RAW: u64 = 3;
pub(super) const NEW_PID: u64 = 0x2000_0000;
/// `F_SETLEASE` and `F_NOTIFY`.
pub(super) const SET_LEASE: u64 = 1024;
pub(super) const NOTIFY: u64 = 1026;
pub(super) const SET_OWNER: u64 = 8;
pub(super) const SET_OWNER_EXTENDED: u64 = 15;
pub(super) const SOCKET_SET_OWNER: u64 = 0x8901;
pub(super) const SOCKET_SET_GROUP: u64 = 0x8902;
pub(super) const AF_UNIX: u64 = 1;
pub(super) const AF_INET: u64 = 2;
pub(super) const AF_INET6: u64 = 10;
pub(super) const AF_NETLINK: u64 = 16;
const TCP: u64 = 6;
const UDP: u64 = 17;

const fn always(calls: &'static [&'static str], reason: &'static str) -> Rule {
    Rule { calls, only_on: None, when: When::Always, errno: EPERM, reason }
}

/// Every rule but those for sockets, which depend on settings and on what surrounds the kernel.
pub(super) const RULES: &[Rule] = &[
    always(
        &["ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd"],
        "reads or steers other processes",
    ),
    always(
        &["bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register"],
        "large parts of the kernel that exploits start from; io_uring also goes around this filter",
    ),
    always(&["add_key", "request_key", "keyctl"], "key rings are shared by all processes of a user"),
    always(
        &["inotify_init1", "fanotify_init"],
        "watches show what the machine and other calls do with the files that all see; their number is the user's",
    ),
    Rule { calls: &["inotify_init"], only_on: Some(TargetArch::x86_64), when: When::Always, errno: EPERM, reason: "as above" },
    Rule {
        calls: &["fcntl"],
        only_on: None,
        when: When::IsOne(1, &[SET_LEASE, NOTIFY]),
        errno: EPERM,
        reason: "as above, and a lease holds up whoever opens the file",
    },
    always(
        &[
            "umount2",
            "pivot_root",
            "chroot",
            "move_mount",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "open_tree",
            "mount_setattr",
        ],
        "changes what the file system looks like",
    ),
    Rule {
        calls: &["mount"],
        only_on: None,
        when: When::IsNone(3, &[NOSUID_NODEV, NOSUID_NODEV_NOEXEC, BIND]),
        errno: EPERM,
        reason: "changes what the file system looks like; new file systems without devices and set-user-id, and binds, need a \
                 capability, which kernels give up after they have made their own /proc and /dev/shm",
    },
    Rule {
        calls: &["unshare"],
        only_on: None,
        when: When::IsNone(0, &[NEW_PID, NEW_MOUNT, NEW_MOUNT_AND_NETWORK]),
        errno: EPERM,
        reason: "makes namespaces, in which a process has every capability; PID, mount and network namespaces without one of \
                 users need one, which zygotes have and kernels give up",
    },
    Rule {
        calls: &["setns"],
        only_on: None,
        when: When::IsNone(1, &[NEW_PID]),
        errno: EPERM,
        reason: "enters namespaces; as above",
    },
    Rule { calls: &["clone"], only_on: None, when: When::FirstHasBit(NAMESPACE_FLAGS), errno: EPERM, reason: "makes namespaces" },
    Rule {
        calls: &["clone"],
        only_on: None,
        when: When::FirstHasBit(&[SHARE_PARENT]),
        errno: EPERM,
        reason: "makes a child of the zygote, which is not below the kernel and outlives it",
    },
    Rule {
        calls: &["clone"],
        only_on: None,
        when: When::Are(&[(0, THREAD | SHARE_FILES, THREAD)]),
        errno: EPERM,
        reason: "makes a thread with descriptors of its own, which the supervisor does not see",
    },
    always(&["vmsplice"], "keeps pages in a pipe that no process has any more"),
    Rule {
        calls: &["prctl"],
        only_on: None,
        when: When::Are(&[(0, WHOLE, SET_SUBREAPER), (1, WHOLE, 0)]),
        errno: EPERM,
        reason: "lets orphans leave the kernel's tree, in which they are counted",
    },
    Rule {
        calls: &["prctl"],
        only_on: None,
        when: When::Are(&[(0, WHOLE, SET_DUMPABLE), (1, WHOLE, 0)]),
        errno: EPERM,
        reason: "hides from the supervisor what the process keeps in files without a name",
    },
    Rule {
        calls: &["setsockopt"],
        only_on: None,
        when: When::Are(&[(1, WHOLE, SOL_SOCKET), (2, WHOLE, SO_SNDBUF)]),
        errno: IGNORED,
        reason: "memory in buffers of sockets is nobody's: each keeps the usual size, as the kernel may decide anyway",
    },
    Rule {
        calls: &["setsockopt"],
        only_on: None,
        when: When::Are(&[(1, WHOLE, SOL_SOCKET), (2, WHOLE, SO_RCVBUF)]),
        errno: IGNORED,
        reason: "as above",
    },
    Rule {
        calls: &["clone3"],
        only_on: None,
        when: When::Always,
        errno: ENOSYS,
        reason: "its flags are out of a filter's sight; the C library falls back to clone",
    },
    always(&["name_to_handle_at", "open_by_handle_at"], "opens files without a path that could be checked"),
    always(
        &[
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "reboot",
            "swapon",
            "swapoff",
            "acct",
            "quotactl",
            "quotactl_fd",
            "syslog",
            "sethostname",
            "setdomainname",
            "settimeofday",
            "clock_settime",
            "clock_adjtime",
            "adjtimex",
            "vhangup",
            "lookup_dcookie",
            "nfsservctl",
        ],
        "administers the machine",
    ),
    Rule {
        calls: &["iopl", "ioperm", "modify_ldt", "uselib", "ustat", "sysfs", "_sysctl"],
        only_on: Some(TargetArch::x86_64),
        when: When::Always,
        errno: EPERM,
        reason: "hardware ports and relics",
    },
    always(&["shmget", "semget", "msgget", "mq_open"], "System V and message queue objects outlive the process that made them"),
    Rule {
        calls: &["prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"],
        only_on: None,
        when: When::IsNone(0, &[0]),
        errno: EPERM,
        reason: "limits or starves other processes of the same user, such as the server; 0 is the caller itself",
    },
    Rule { calls: &["setpriority", "ioprio_set"], only_on: None, when: When::IsNone(1, &[0]), errno: EPERM, reason: "as above" },
    Rule {
        calls: &["setpriority"],
        only_on: None,
        when: When::IsNone(0, &[0]),
        errno: EPERM,
        reason: "as above, of a whole user",
    },
    Rule {
        calls: &["ioprio_set"],
        only_on: None,
        when: When::IsOne(0, &[2, 3]),
        errno: EPERM,
        reason: "as above, of a whole user",
    },
    always(&["personality"], "switches off address randomisation"),
    always(&["move_pages", "migrate_pages", "mbind", "set_mempolicy"], "moves memory, also that of other processes"),
    Rule {
        calls: &["execve", "execveat"],
        only_on: None,
        when: When::WithoutSubprocess,
        errno: EPERM,
        reason: "ALLOW_SUBPROCESS is off",
    },
];

/// The rules for a kernel that shares its user and its PIDs with the server, where Landlock does not hold signals back
/// either. Processes that the code forks can't be signalled by number: the numbers of the server's threads, which are as
/// good as its own, change all the time, so that no list of them would be complete.
pub(super) const OWN_SIGNALS: &[Rule] = &[
    Rule {
        calls: &["kill"],
        only_on: None,
        when: When::IsNone(0, &[OWN_PID as u64, 0]),
        errno: EPERM,
        reason: "signals another process than itself and, by 0, those it has forked",
    },
    Rule {
        calls: &["tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"],
        only_on: None,
        when: When::IsNone(0, &[OWN_PID as u64]),
        errno: EPERM,
        reason: "signals a thread of another process",
    },
    always(&["pidfd_send_signal"], "signals a process that a filter can't see the number of"),
    Rule {
        calls: &["fcntl", "ioctl"],
        only_on: None,
        when: When::IsOne(1, &[SET_OWNER, SET_OWNER_EXTENDED, SOCKET_SET_OWNER, SOCKET_SET_GROUP]),
        errno: EPERM,
        reason: "lets the kernel send a signal to whom it names when a descriptor becomes ready",
    },
];

/// The rules where no root of its own hides the sockets of the machine's services and of other calls. A filter can't read an
/// address, so there are no connections at all. What is sent to an address by `sendmsg` is out of its sight, too: so there
/// are no sockets that take one, which are those for datagrams.
const WITHOUT_OWN_ROOT: &[Rule] = &[
    Rule {
        calls: &["connect"],
        only_on: None,
        when: When::Always,
        errno: EACCES,
        reason: "reaches services of the machine by their sockets' paths",
    },
    Rule { calls: &["sendto"], only_on: None, when: When::Points(4), errno: EACCES, reason: "as above" },
    unix_sockets_of(&[(0, WHOLE, AF_UNIX), (1, SOCKET_TYPE, SOCK_DGRAM)]),
    // Raw ones are for datagrams, too.
    unix_sockets_of(&[(0, WHOLE, AF_UNIX), (1, SOCKET_TYPE, SOCK_RAW)]),
];

const fn unix_sockets_of(kind: &'static [(u8, u64, u64)]) -> Rule {
    let reason = "a socket that can send to any address";
    Rule { calls: &["socket", "socketpair"], only_on: None, when: When::Are(kind), errno: EACCES, reason }
}

/// The rules for these settings, without those for sockets.
pub(super) fn rules(allowed: Allowed) -> Vec<Rule> {
    let needed = |rule: &&Rule| !(allowed.subprocess && matches!(rule.when, When::WithoutSubprocess));
    RULES.iter().filter(needed).copied().collect()
}

/// Those for sockets. `own_root`: and so a network of its own, with nothing in it, unless there is the machine's.
pub(super) fn sockets(allowed: Allowed, own_root: bool) -> Vec<Rule> {
    let socket = |index, values, reason| Rule {
        calls: &["socket"],
        only_on: None,
        when: When::IsNone(index, values),
        errno: EACCES,
        reason,
    };
    if allowed.network {
        return vec![socket(0, &[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK], "socket families beyond the internet's")];
    }
    if own_root {
        return vec![
            socket(0, &[AF_UNIX, AF_INET, AF_INET6], "ALLOW_NETWORK is off, and one's own network has no other families"),
            socket(2, &[0, TCP, UDP], "further protocols of the internet, which the kernel would load modules for"),
        ];
    }
    let closed = if allowed.unix_sockets { &[][..] } else { WITHOUT_OWN_ROOT };
    closed.iter().copied().chain([socket(0, &[AF_UNIX], "ALLOW_NETWORK is off")]).collect()
}

/// What an installer is refused on top of what kernels are. It needs the network and, when it is uv, the tree's Python.
pub(super) const INSTALLER: &[Rule] = &[
    always(&["mount", "unshare", "setns"], "changes what the file system looks like, and makes or enters namespaces"),
    always(&["mknodat"], "makes devices, pipes and sockets; regular files are made by opening them"),
    Rule { calls: &["mknod"], only_on: Some(TargetArch::x86_64), when: When::Always, errno: EPERM, reason: "as above" },
    always(&["listen"], "it asks, and answers nobody"),
    Rule {
        calls: &["socket"],
        only_on: None,
        when: When::IsNone(0, &[AF_INET, AF_INET6, AF_NETLINK]),
        errno: EACCES,
        reason: "a daemon of the machine would take it for the server",
    },
];
/// What an installer is refused that starts nothing once it runs.
pub(super) const NO_PROGRAMS: &[Rule] =
    &[always(&["execve", "execveat"], "nothing is built, and nothing fetched by other programs")];
