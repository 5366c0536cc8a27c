//! `lambda_jail lambda PROGRAM …` starts a program under the system call rules of a Lambda function, as far as they are
//! known: `prctl`, `ptrace`, `seccomp`, `unshare`, `setns`, `mount`, `chroot` and `bpf` fail with EPERM, Landlock with
//! ENOSYS. `lambda_jail no-landlock PROGRAM …` takes Landlock away and nothing else, as an older kernel does.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

#[cfg(target_arch = "x86_64")]
const REFUSED: [i64; 8] = [157, 101, 317, 272, 308, 165, 161, 321];
#[cfg(target_arch = "aarch64")]
const REFUSED: [i64; 8] = [167, 117, 277, 97, 268, 40, 51, 280];
const LANDLOCK: [i64; 3] = [444, 445, 446];
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

fn main() {
    let arch: TargetArch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let mut arguments = std::env::args_os().skip(1);
    let refused = match arguments.next().expect("lambda or no-landlock").to_str() {
        Some("lambda") => &REFUSED[..],
        _ => &[],
    };
    for (calls, errno) in [(&LANDLOCK[..], ENOSYS), (refused, EPERM)] {
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
