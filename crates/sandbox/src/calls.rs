//! Which system calls the kernel refuses, of those that this program has a second way for or that a function's owner must
//! know of.

use std::io;

/// Each with arguments that make it fail, or do nothing, where it is granted.
const TRIED: [(&str, libc::c_long, [libc::c_long; 5]); 18] = [
    ("memfd_create", libc::SYS_memfd_create, [0; 5]),
    ("pidfd_open", libc::SYS_pidfd_open, [0; 5]),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [-1, 0, 0, 0, 0]),
    ("close_range", libc::SYS_close_range, [1, 0, 0, 0, 0]),
    ("openat2", libc::SYS_openat2, [-1, 0, 0, 0, 0]),
    ("statx", libc::SYS_statx, [-1, 0, 0, 0, 0]),
    ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0]),
    ("copy_file_range", libc::SYS_copy_file_range, [-1, 0, -1, 0, 0]),
    ("preadv2", libc::SYS_preadv2, [-1, 0, 0, 0, 0]),
    ("pwritev2", libc::SYS_pwritev2, [-1, 0, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [0; 5]),
    ("sched_setscheduler", libc::SYS_sched_setscheduler, [0, -1, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 5]),
    ("prctl", libc::SYS_prctl, [libc::PR_GET_DUMPABLE as libc::c_long, 0, 0, 0, 0]),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset, [0, 0, 1, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [-1, 0, 0, 0, 0]),
    ("shmctl", libc::SYS_shmctl, [-1, 0, 0, 0, 0]),
    ("mq_open", libc::SYS_mq_open, [0; 5]),
];

/// Names of those that are refused, with the errno.
pub fn refused_calls() -> Vec<(&'static str, i32)> {
    let refused = |(name, number, arguments)| Some((name, errno(number, arguments).filter(|errno| is_refusal(*errno))?));
    TRIED.into_iter().filter_map(refused).collect()
}

fn is_refusal(errno: i32) -> bool {
    [libc::EPERM, libc::ENOSYS, libc::EACCES].contains(&errno)
}

#[expect(unsafe_code, reason = "any system call, by its number")]
fn errno(number: libc::c_long, with: [libc::c_long; 5]) -> Option<i32> {
    // SAFETY: every pointer among the arguments in `TRIED` is null and every descriptor is none: nothing is read, written,
    // opened, closed or started.
    let answer = unsafe { libc::syscall(number, with[0], with[1], with[2], with[3], with[4], 0 as libc::c_long) };
    if answer < 0 { io::Error::last_os_error().raw_os_error() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No machine refuses these to a program.
    #[test]
    fn a_call_that_is_granted_is_not_taken_for_a_refused_one() {
        let names = refused_calls().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        for name in ["memfd_create", "statx", "prctl"] {
            assert!(!names.contains(&name), "{names:?}");
        }
        assert_eq!(errno(-1, [0; 5]), Some(libc::ENOSYS));
    }
}
