//! `lambda_jail MODE PROGRAM …` starts a program on a kernel that refuses system calls.
//!
//! - `lambda`: the rules of a Lambda function, as far as they are known: `prctl`, `ptrace`, `seccomp`, `unshare`, `setns`,
//!   `mount`, `chroot` and `bpf` fail with EPERM, Landlock with ENOSYS.
//! - `strict`: what was never confirmed there fails too, in the way that is harder to bear: EPERM, for which libraries that
//!   know older kernels have no second way. Only `clone3` fails with ENOSYS, as glibc wants it from a filter.
//! - `no-landlock`: takes Landlock away and nothing else, as an older kernel does.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

#[cfg(target_arch = "x86_64")]
const REFUSED: [i64; 8] = [157, 101, 317, 272, 308, 165, 161, 321];
#[cfg(target_arch = "aarch64")]
const REFUSED: [i64; 8] = [167, 117, 277, 97, 268, 40, 51, 280];
/// `memfd_create`, `process_vm_readv`, `process_vm_writev`, `execveat`, `copy_file_range`, `preadv2`, `pwritev2`, `statx`,
/// `sched_setscheduler`, `inotify_init1`.
#[cfg(target_arch = "x86_64")]
const UNCONFIRMED: [i64; 10] = [319, 310, 311, 322, 326, 327, 328, 332, 144, 294];
#[cfg(target_arch = "aarch64")]
const UNCONFIRMED: [i64; 10] = [279, 270, 271, 281, 285, 286, 287, 291, 119, 26];
/// `pidfd_send_signal`, `pidfd_open`, `close_range`, `openat2`, `pidfd_getfd`, `faccessat2`: numbers are the same everywhere.
const UNCONFIRMED_NEW: [i64; 6] = [424, 434, 436, 437, 438, 439];
const CLONE3: [i64; 1] = [435];
const LANDLOCK: [i64; 3] = [444, 445, 446];
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn main() {
    let arch: TargetArch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let mut arguments = std::env::args_os().skip(1);
    let (denied, missing) = match arguments.next().expect("a mode").to_str() {
        Some("lambda") => (REFUSED.to_vec(), LANDLOCK.to_vec()),
        Some("strict") => ([&REFUSED[..], &UNCONFIRMED, &UNCONFIRMED_NEW].concat(), [&LANDLOCK[..], &CLONE3].concat()),
        Some("no-landlock") => (Vec::new(), LANDLOCK.to_vec()),
        other => panic!("lambda, strict or no-landlock, not {other:?}"),
    };
    for (calls, errno) in [(missing, ENOSYS), (denied, EPERM)] {
        let rules = calls.iter().map(|call| (*call, vec![])).collect::<BTreeMap<_, _>>();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch).expect("a valid filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        if let Err(error) = install(&program) {
            panic!("the filter was refused: {error}");
        }
    }
    let program = arguments.next().expect("a program to run");
    panic!("{}", Command::new(program).args(arguments).exec());
}

fn install(program: &BpfProgram) -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(program)
}
