//! Every rule on both architectures, by evaluating the programs, and on the running kernel.

use super::rules::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX};
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
            ([38, 40, 41].map(|value| with(index, value)).to_vec(), values.last().map(|value| with(index, *value)))
        }
        When::IsOne(index, values) => (values.iter().map(|value| with(index, *value)).collect(), Some(with(index, 1))),
        When::Are(values) => {
            let mut all = [0; 6];
            for (index, _, value) in values {
                all[usize::from(*index)] = *value;
            }
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
        for (allowed, own_root) in ALL_SETTINGS.into_iter().flat_map(|allowed| [(allowed, true), (allowed, false)]) {
            // Each alone: what one lets through another may refuse.
            for rule in sockets(allowed, own_root) {
                check(&[compile([&rule].into_iter(), EACCES, arch).expect("a program")], &[rule], arch);
            }
        }
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
fn what_multiprocessing_and_asyncio_need_is_allowed_without_a_root_of_its_own() {
    const STREAM_WITHOUT_INHERITANCE: u64 = 0x8_0001;
    for arch in BOTH {
        let program = [sockets_program(Allowed::default(), arch, false).expect("a program")];
        let pair = [AF_UNIX, STREAM_WITHOUT_INHERITANCE, 0, 0, 0, 0];
        assert_eq!(answer(&program, arch, number("socketpair", arch), pair), ALLOW);
        assert_ne!(answer(&program, arch, number("socketpair", arch), [AF_UNIX, 0x8_0002, 0, 0, 0, 0]), ALLOW);
        for open in [Allowed { network: true, ..Allowed::default() }, Allowed { unix_sockets: true, ..Allowed::default() }] {
            let program = [sockets_program(open, arch, false).expect("a program")];
            assert_eq!(answer(&program, arch, number("connect", arch), [3, 0, 0, 0, 0, 0]), ALLOW);
        }
    }
}

#[test]
fn a_network_of_its_own_has_the_plain_protocols_of_the_internet() {
    for arch in BOTH {
        let program = [sockets_program(Allowed::default(), arch, true).expect("a program")];
        let ask = |arguments| answer(&program, arch, number("socket", arch), arguments) == ALLOW;
        let [stream, datagram, sctp] = [1, 2, 132];
        assert!(
            ask([AF_INET, stream, 0, 0, 0, 0]) && ask([AF_INET6, datagram, 17, 0, 0, 0]) && ask([AF_UNIX, stream, 0, 0, 0, 0])
        );
        assert!(!ask([AF_NETLINK, datagram, 0, 0, 0, 0]) && !ask([AF_INET, stream, sctp, 0, 0, 0]));
    }
}

#[test]
fn settings_open_what_they_name_and_no_more() {
    for arch in BOTH {
        let mut open = programs(ALL_SETTINGS[1], arch).expect("programs");
        open.push(sockets_program(ALL_SETTINGS[1], arch, true).expect("a program"));
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
        programs.push(sockets_program(Allowed::default(), arch, false).expect("a program"));
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
        for rule in rules(Allowed::default()).iter().chain(OWN_SIGNALS).chain(&sockets(Allowed::default(), false)) {
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
