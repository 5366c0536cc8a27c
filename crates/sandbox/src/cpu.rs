//! The processor time of a process, by its own clock.
//!
//! Rule: read from outside, in nanoseconds: the ticks of `/proc` are longer than a short cell.

use std::time::Duration;

/// What a process's threads have run, those that have ended included; none when there is no such process.
#[expect(unsafe_code, reason = "no safe wrapper reads another process's clock")]
pub(crate) fn time_of(pid: i32) -> Option<Duration> {
    // As `clock_getcpuclockid` makes it (clock_getcpuclockid(3), include/linux/posix-timers.h: CPUCLOCK_SCHED is 2).
    let clock = (!pid << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of ours that lives through the call.
    let refused = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (refused == 0).then(|| Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_run() {
        let pid = crate::process_id();
        let before = time_of(pid).expect("this process");
        let until = std::time::Instant::now() + Duration::from_millis(20);
        while std::time::Instant::now() < until {}
        let ran = time_of(pid).expect("this process").checked_sub(before).expect("time goes on");
        assert!(ran > Duration::from_millis(1), "{ran:?}");
        assert_eq!(time_of(i32::MAX - 1), None);
    }
}
