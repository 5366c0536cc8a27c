//! The system calls that user code is refused.
//!
//! Rule: a deny list with a reason beside each rule. numpy, pandas and BLAS use too many calls to list what is allowed;
//! what is denied here is what no data analysis needs and what exploits of the Linux kernel and escapes from a sandbox
//! have used. Calls of another architecture's numbering end the process.

use seccompiler::TargetArch;
use serde_json::{Value, json};

const EPERM: u32 = libc::EPERM.cast_unsigned();
const EACCES: u32 = libc::EACCES.cast_unsigned();
const ENOSYS: u32 = libc::ENOSYS.cast_unsigned();
/// The call does nothing and says that it did.
const IGNORED: u32 = 0;

/// Where [`own_signals_program`] has the pid of the process that installs it: above every pid Linux gives out.
pub const OWN_PID: u32 = 0x7FFF_FF01;

/// What the operator allows user code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Sockets that reach beyond the machine, and DNS.
    pub network: bool,
    /// Starting programs.
    pub subprocess: bool,
    /// Connections to sockets by their path where nothing hides those of the machine.
    pub unix_sockets: bool,
}

/// Some system calls, what they answer, and why.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// Their names.
    calls: &'static [&'static str],
    /// Which architecture has them; `None` for both.
    only_on: Option<TargetArch>,
    /// When the rule holds.
    when: When,
    /// What the call answers.
    errno: u32,
    /// Why.
    reason: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum When {
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
const NAMESPACE_FLAGS: &[u64] = &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
const SHARE_PARENT: u64 = 0x8000;
const NEW_MOUNT: u64 = 0x0002_0000;
const NEW_MOUNT_AND_NETWORK: u64 = 0x4002_0000;
const NOSUID_NODEV: u64 = 6;
const NOSUID_NODEV_NOEXEC: u64 = 14;
const BIND: u64 = 0x1000;
const SET_DUMPABLE: u64 = 4;
const WHOLE: u64 = 0xFFFF_FFFF;
const SOL_SOCKET: u64 = 1;
const SO_SNDBUF: u64 = 7;
const SO_RCVBUF: u64 = 8;
const SOCKET_TYPE: u64 = 0xF;
const SOCK_DGRAM: u64 = 2;
const SOCK_RAW: u64 = 3;
const NEW_PID: u64 = 0x2000_0000;
const SET_OWNER: u64 = 8;
const SET_OWNER_EXTENDED: u64 = 15;
const SOCKET_SET_OWNER: u64 = 0x8901;
const SOCKET_SET_GROUP: u64 = 0x8902;
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;

const fn always(calls: &'static [&'static str], reason: &'static str) -> Rule {
    Rule { calls, only_on: None, when: When::Always, errno: EPERM, reason }
}

/// Every rule but the one for sockets, which depends on a setting.
const RULES: &[Rule] = &[
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
const OWN_SIGNALS: &[Rule] = &[
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

/// The rules where no mount namespace hides the sockets of the machine's services and of other calls. A filter can't read an
/// address, so there are no connections at all. What is sent to an address by `sendmsg` is out of its sight, too: so there
/// are no sockets that take one, which are those for datagrams.
const WITHOUT_MOUNTS: &[Rule] = &[
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

/// The rules for these settings.
fn rules(allowed: Allowed) -> Vec<Rule> {
    let (domains, reason): (&'static [u64], _) = if allowed.network {
        (&[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK], "socket families beyond the internet's")
    } else {
        (&[AF_UNIX], "ALLOW_NETWORK is off")
    };
    let socket = Rule { calls: &["socket"], only_on: None, when: When::IsNone(0, domains), errno: EACCES, reason };
    let needed = |rule: &&Rule| !(allowed.subprocess && matches!(rule.when, When::WithoutSubprocess));
    RULES.iter().filter(needed).copied().chain([socket]).collect()
}

impl Rule {
    /// As filters of seccompiler's JSON.
    fn filters(&self, arch: TargetArch) -> Vec<Value> {
        if self.only_on.is_some_and(|only| only != arch) {
            return Vec::new();
        }
        let argument = |index: u8, op: Value, val: u64| json!({"index": index, "type": "dword", "op": op, "val": val});
        let none_of = |index, values: &[u64]| values.iter().map(|value| argument(index, json!("ne"), *value)).collect();
        let conditions: Vec<Option<Value>> = match self.when {
            When::Always | When::WithoutSubprocess => vec![None],
            When::FirstHasBit(bits) => {
                bits.iter().map(|bit| Some(json!([argument(0, json!({"masked_eq": bit}), *bit)]))).collect()
            }
            When::IsNone(index, values) => vec![Some(none_of(index, values))],
            When::IsOne(index, values) => {
                values.iter().map(|value| Some(json!([argument(index, json!("eq"), *value)]))).collect()
            }
            When::Are(values) => {
                let each = values.iter().map(|(index, mask, value)| argument(*index, json!({"masked_eq": mask}), *value));
                vec![Some(each.collect())]
            }
            When::Points(index) => vec![Some(json!([{"index": index, "type": "qword", "op": "ne", "val": 0}]))],
        };
        let filter = |call: &str, condition: &Option<Value>| match condition {
            None => json!({"syscall": call, "comment": self.reason}),
            Some(args) => json!({"syscall": call, "comment": self.reason, "args": args}),
        };
        self.calls.iter().flat_map(|call| conditions.iter().map(move |condition| filter(call, condition))).collect()
    }
}

/// The filter programs, one for each errno, as the bytes `PR_SET_SECCOMP` takes.
///
/// # Errors
/// When a rule names a call the architecture does not have: a mistake here, found by the tests.
pub fn programs(allowed: Allowed, arch: TargetArch) -> Result<Vec<Vec<u8>>, String> {
    let rules = rules(allowed);
    let mut programs = vec![bytes(&other_numbering(arch))];
    for errno in [EPERM, EACCES, ENOSYS, IGNORED] {
        programs.push(compile(rules.iter().filter(|rule| rule.errno == errno), errno, arch)?);
    }
    Ok(programs)
}

/// The filter program that keeps a process from signalling others. [`OWN_PID`] stands in it for the process's own number.
///
/// # Errors
/// As [`programs`].
pub fn own_signals_program(arch: TargetArch) -> Result<Vec<u8>, String> {
    compile(OWN_SIGNALS.iter(), EPERM, arch)
}

/// The filter program for kernels that no mount namespace surrounds; none where they may connect to the machine's sockets.
///
/// # Errors
/// As [`programs`].
pub fn without_mounts_program(allowed: Allowed, arch: TargetArch) -> Result<Option<Vec<u8>>, String> {
    let open = allowed.network || allowed.unix_sockets;
    (!open).then(|| compile(WITHOUT_MOUNTS.iter(), EACCES, arch)).transpose()
}

fn compile<'a>(rules: impl Iterator<Item = &'a Rule>, errno: u32, arch: TargetArch) -> Result<Vec<u8>, String> {
    let filter = rules.flat_map(|rule| rule.filters(arch)).collect::<Vec<_>>();
    let source = json!({"deny": {"mismatch_action": "allow", "match_action": {"errno": errno}, "filter": filter}});
    let compiled = seccompiler::compile_from_json(source.to_string().as_bytes(), arch).map_err(|error| error.to_string())?;
    Ok(bytes(compiled.get("deny").ok_or("no program was made")?))
}

/// The architecture this program was built for.
pub fn native_arch() -> Option<TargetArch> {
    std::env::consts::ARCH.try_into().ok()
}

/// x86-64 kernels may have a second numbering (x32), past every rule above: it answers ENOSYS, as if it was not built in.
fn other_numbering(arch: TargetArch) -> Vec<seccompiler::sock_filter> {
    const X32_BIT: u32 = 0x4000_0000;
    let statement = |code: u32, jt, jf, k| seccompiler::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let allow = statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
    if arch != TargetArch::x86_64 {
        return vec![allow];
    }
    vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32_BIT),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | ENOSYS),
        allow,
    ]
}

fn bytes(program: &[seccompiler::sock_filter]) -> Vec<u8> {
    let instruction = |filter: &seccompiler::sock_filter| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&filter.code.to_ne_bytes());
        (bytes[2], bytes[3]) = (filter.jt, filter.jf);
        bytes[4..].copy_from_slice(&filter.k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(instruction).collect()
}

/// What an installer is refused on top of what kernels are. It needs the network and, when it is uv, the tree's Python.
const INSTALLER: &[Rule] = &[
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
const NO_PROGRAMS: &[Rule] = &[always(&["execve", "execveat"], "nothing is built, and nothing fetched by other programs")];

fn installer_rules() -> Vec<Rule> {
    let allowed = Allowed { network: true, subprocess: true, unix_sockets: true };
    let replaced = |rule: &Rule| rule.calls.iter().any(|call| INSTALLER.iter().any(|own| own.calls.contains(call)));
    rules(allowed).into_iter().filter(|rule| !replaced(rule)).chain(INSTALLER.iter().copied()).collect()
}

/// The filter programs of an installer.
///
/// # Errors
/// As [`programs`].
pub(crate) fn installer_programs(arch: TargetArch) -> Result<Vec<Vec<u8>>, String> {
    let rules = installer_rules();
    let compiled = [EPERM, EACCES, ENOSYS].map(|errno| compile(rules.iter().filter(|rule| rule.errno == errno), errno, arch));
    std::iter::once(Ok(bytes(&other_numbering(arch)))).chain(compiled).collect()
}

/// The filter program of an installer that has started and starts nothing more.
///
/// # Errors
/// As [`programs`].
pub(crate) fn no_programs_program(arch: TargetArch) -> Result<Vec<u8>, String> {
    compile(NO_PROGRAMS.iter(), EPERM, arch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [TargetArch; 2] = [TargetArch::x86_64, TargetArch::aarch64];
    const ALL_SETTINGS: [Allowed; 2] = [
        Allowed { network: false, subprocess: false, unix_sockets: false },
        Allowed { network: true, subprocess: true, unix_sockets: true },
    ];
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn audit_arch(arch: TargetArch) -> u32 {
        if arch == TargetArch::x86_64 { 0xC000_003E } else { 0xC000_00B7 }
    }

    /// What a program answers to a call: the classic BPF that the kernel runs, as far as filters use it.
    fn evaluate(program: &[u8], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (index, argument) in arguments.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&argument.to_le_bytes());
        }
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let instruction = &program[at * 8..at * 8 + 8];
            let code = u32::from(u16::from_ne_bytes([instruction[0], instruction[1]]));
            let (jump_true, jump_false) = (usize::from(instruction[2]), usize::from(instruction[3]));
            let k = u32::from_ne_bytes(instruction[4..].try_into().expect("four bytes"));
            at += 1;
            let test = match code & 0xF7 {
                0x20 => {
                    let from = k as usize;
                    accumulator = u32::from_le_bytes(data[from..from + 4].try_into().expect("four bytes"));
                    continue;
                }
                0x54 => {
                    accumulator &= k;
                    continue;
                }
                0x05 => {
                    at += k as usize;
                    continue;
                }
                0x06 => return k,
                0x15 => accumulator == k,
                0x25 => accumulator > k,
                0x35 => accumulator >= k,
                other => panic!("an instruction that filters don't use: {other:#x}"),
            };
            at += if test { jump_true } else { jump_false };
        }
    }

    /// The strongest answer of all programs: an errno, or that the call is allowed.
    fn answer(programs: &[Vec<u8>], arch: TargetArch, number: u32, arguments: [u64; 6]) -> u32 {
        programs.iter().map(|program| evaluate(program, audit_arch(arch), number, arguments)).min().expect("a program")
    }

    /// A call's number, out of a filter for it alone.
    fn number(call: &str, arch: TargetArch) -> u32 {
        let source = json!({"one": {"mismatch_action": "allow", "match_action": "trap", "filter": [{"syscall": call}]}});
        let compiled = seccompiler::compile_from_json(source.to_string().as_bytes(), arch).expect("a known call");
        let program = bytes(&compiled["one"]);
        let found = (0..2000).find(|number| evaluate(&program, audit_arch(arch), *number, [0; 6]) != ALLOW);
        found.expect("the filter matches something")
    }

    /// Arguments for which the rule holds, and some for which it does not.
    fn arguments(rule: &Rule) -> (Vec<[u64; 6]>, Option<[u64; 6]>) {
        let with = |index: u8, value: u64| {
            let mut arguments = [0; 6];
            arguments[usize::from(index)] = value;
            arguments
        };
        match rule.when {
            When::Always | When::WithoutSubprocess => (vec![[u64::from(u32::MAX); 6]], None),
            When::FirstHasBit(bits) => {
                (bits.iter().map(|bit| with(0, *bit)).collect(), Some(with(0, libc::SIGCHLD.cast_unsigned().into())))
            }
            When::IsNone(index, values) => {
                ([38, 40, 17].map(|value| with(index, value)).to_vec(), values.last().map(|value| with(index, *value)))
            }
            When::IsOne(index, values) => (values.iter().map(|value| with(index, *value)).collect(), Some(with(index, 1))),
            When::Are(values) => {
                let mut all = [0; 6];
                values.iter().for_each(|(index, _, value)| all[usize::from(*index)] = *value);
                // With any one of them otherwise it is another matter.
                let (index, ..) = values[0];
                (vec![all], Some(with(index, 1000)).filter(|_| index > 0))
            }
            // Also one whose lower half is nothing.
            When::Points(index) => (vec![with(index, 1), with(index, 1 << 32)], Some([0; 6])),
        }
    }

    fn calls(rule: &Rule, arch: TargetArch) -> Vec<&'static str> {
        let has_it = rule.only_on.is_none_or(|only| only == arch);
        rule.calls.iter().copied().filter(|_| has_it).collect()
    }

    #[test]
    fn every_rule_denies_and_allows_on_both_architectures() {
        for arch in BOTH {
            for allowed in ALL_SETTINGS {
                check(&programs(allowed, arch).expect("programs"), &rules(allowed), arch);
            }
            check(&[own_signals_program(arch).expect("a program")], OWN_SIGNALS, arch);
            let without_mounts = without_mounts_program(Allowed::default(), arch).expect("a program").expect("it is needed");
            check(&[without_mounts], WITHOUT_MOUNTS, arch);
            check(&installer_programs(arch).expect("programs"), &installer_rules(), arch);
            check(&[no_programs_program(arch).expect("a program")], NO_PROGRAMS, arch);
        }
    }

    fn check(programs: &[Vec<u8>], rules: &[Rule], arch: TargetArch) {
        for rule in rules {
            let (denied, let_through) = arguments(rule);
            for call in calls(rule, arch) {
                let number = number(call, arch);
                for denied in &denied {
                    let expected = libc::SECCOMP_RET_ERRNO | rule.errno;
                    assert_eq!(answer(programs, arch, number, *denied), expected, "{arch:?} {call} {denied:x?}");
                }
                if let Some(allowed) = let_through {
                    assert_eq!(answer(programs, arch, number, allowed), ALLOW, "{arch:?} {call} {allowed:x?}");
                }
            }
        }
    }

    #[test]
    fn a_process_may_signal_itself_under_its_own_number_only() {
        for arch in BOTH {
            let own = 4711_u32;
            let program = own_signals_program(arch).expect("a program");
            let marks = program.chunks(8).filter(|instruction| instruction[4..] == OWN_PID.to_ne_bytes()).count();
            assert_eq!(marks, 5, "one for each call that takes a number");
            let program = program.chunks(8).flat_map(|instruction| {
                let k = if instruction[4..] == OWN_PID.to_ne_bytes() {
                    own.to_ne_bytes()
                } else {
                    instruction[4..].try_into().expect("four bytes")
                };
                [&instruction[..4], &k].concat()
            });
            let program = [program.collect::<Vec<_>>()];
            for (target, allowed) in
                [(i64::from(own), true), (0, true), (1, false), (-1, false), (-i64::from(own), false), (4712, false)]
            {
                let answer = answer(&program, arch, number("kill", arch), [target.cast_unsigned(), 9, 0, 0, 0, 0]);
                assert_eq!(answer == ALLOW, allowed, "{arch:?} kill {target}");
            }
            for call in ["read", "futex", "clone", "rt_sigprocmask"] {
                assert_eq!(answer(&program, arch, number(call, arch), [0; 6]), ALLOW, "{call}");
            }
        }
    }

    #[test]
    fn what_data_analysis_needs_is_allowed() {
        for arch in BOTH {
            let programs = programs(Allowed::default(), arch).expect("programs");
            for call in ["read", "write", "openat", "mmap", "mprotect", "futex", "clone", "socketpair", "prlimit64", "kill"] {
                assert_eq!(answer(&programs, arch, number(call, arch), [0; 6]), ALLOW, "{call}");
            }
        }
    }

    #[test]
    fn what_multiprocessing_and_asyncio_need_is_allowed_without_mounts() {
        const STREAM_WITHOUT_INHERITANCE: u64 = 0x8_0001;
        for arch in BOTH {
            let program = [without_mounts_program(Allowed::default(), arch).expect("a program").expect("it is needed")];
            let pair = [AF_UNIX, STREAM_WITHOUT_INHERITANCE, 0, 0, 0, 0];
            assert_eq!(answer(&program, arch, number("socketpair", arch), pair), ALLOW);
            assert_ne!(answer(&program, arch, number("socketpair", arch), [AF_UNIX, 0x8_0002, 0, 0, 0, 0]), ALLOW);
            for open in [Allowed { network: true, ..Allowed::default() }, Allowed { unix_sockets: true, ..Allowed::default() }] {
                assert_eq!(without_mounts_program(open, arch), Ok(None));
            }
        }
    }

    #[test]
    fn settings_open_what_they_name_and_no_more() {
        for arch in BOTH {
            let open = programs(ALL_SETTINGS[1], arch).expect("programs");
            let socket = number("socket", arch);
            for domain in [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK] {
                assert_eq!(answer(&open, arch, socket, [domain, 0, 0, 0, 0, 0]), ALLOW);
            }
            assert_eq!(answer(&open, arch, number("execve", arch), [0; 6]), ALLOW);
            assert_ne!(answer(&open, arch, number("ptrace", arch), [0; 6]), ALLOW);
        }
    }

    #[test]
    fn another_numbering_is_refused() {
        let programs = programs(Allowed::default(), TargetArch::x86_64).expect("programs");
        assert_eq!(answer(&programs, TargetArch::x86_64, 0x4000_0000 + 39, [0; 6]), libc::SECCOMP_RET_ERRNO | ENOSYS);
        let i386 = programs.iter().map(|program| evaluate(program, 0x4000_0003, 11, [0; 6])).max();
        assert_eq!(i386, Some(libc::SECCOMP_RET_KILL_PROCESS));
    }

    /// On the running kernel: each call of each rule answers the rule's errno.
    #[test]
    #[expect(unsafe_code, reason = "the calls are made by number")]
    fn the_kernel_refuses_every_call_of_every_rule() {
        let arch = native_arch().expect("an architecture with rules");
        // A filter is the thread's own: the other tests go on without it.
        let thread = std::thread::spawn(move || {
            let mut programs = programs(Allowed::default(), arch).expect("programs");
            programs.push(own_signals_program(arch).expect("a program"));
            programs.extend(without_mounts_program(Allowed::default(), arch).expect("a program"));
            // SAFETY: plain numbers.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
            for program in &programs {
                let filter = libc::sock_fprog {
                    len: u16::try_from(program.len() / 8).expect("a short program"),
                    filter: program.as_ptr().cast_mut().cast(),
                };
                // SAFETY: the program outlives the call, which copies it; the kernel checks it.
                let installed = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
                assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
            }
            for rule in rules(Allowed::default()).iter().chain(OWN_SIGNALS).chain(WITHOUT_MOUNTS) {
                for call in calls(rule, arch) {
                    for [first, second, third, fourth, fifth, sixth] in arguments(rule).0 {
                        let number = libc::c_long::from(number(call, arch));
                        // SAFETY: the filter answers before the call can act; no pointer among the arguments is followed.
                        let result = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
                        let errno = std::io::Error::last_os_error().raw_os_error().map(i32::cast_unsigned);
                        if rule.errno == IGNORED {
                            assert_eq!(result, 0, "{call}");
                        } else {
                            assert_eq!((result, errno), (-1, Some(rule.errno)), "{call}");
                        }
                    }
                }
            }
            // SAFETY: two numbers.
            let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
            assert!(socket >= 0, "sockets of the machine itself are allowed");
            // SAFETY: the descriptor was just made and is used by nothing else.
            unsafe { libc::close(socket) };
        });
        thread.join().expect("every call is refused");
    }
}
