//! Handles on processes.
//!
//! Rule: a handle never comes to mean another process. Where the kernel refuses descriptors of processes (whether Lambda's
//! does was never confirmed), a handle is the number and the start time, and both are compared before each signal.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{LazyLock, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::proc;

/// How often processes without a descriptor are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A handle on a process that can't come to mean another one.
#[derive(Debug)]
pub struct Pidfd(Handle);

#[derive(Debug)]
enum Handle {
    Descriptor(OwnedFd),
    Number(Number),
}

#[derive(Clone, Copy, Debug)]
struct Number {
    pid: i32,
    /// Clock ticks after boot.
    started: u64,
}

impl Number {
    /// Whether it is still this process's; a zombie's still is.
    fn is_valid(self) -> bool {
        proc::stat(self.pid).is_some_and(|stat| stat.started == self.started)
    }

    fn is_dead(self) -> bool {
        proc::stat(self.pid).is_none_or(|stat| stat.started != self.started || stat.zombie)
    }
}

impl Pidfd {
    /// Wraps a descriptor made by `pidfd_open`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(Handle::Descriptor(fd))
    }

    /// The process that was started at `started` (clock ticks after boot), where there is no descriptor of it.
    pub fn of_number(pid: i32, started: u64) -> Self {
        Self(Handle::Number(Number { pid, started }))
    }

    /// Opens a handle on a process; `None` when there is none.
    pub fn open(pid: i32) -> Option<Self> {
        match rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()) {
            Ok(fd) => Some(Self::new(fd)),
            Err(rustix::io::Errno::SRCH) => None,
            Err(_) => proc::stat(pid).map(|stat| Self::of_number(pid, stat.started)),
        }
    }

    /// The process's id as this process counts, whatever namespace it lives in; `None` when it has gone.
    pub fn pid(&self) -> Option<i32> {
        match &self.0 {
            Handle::Descriptor(fd) => {
                let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
                let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
                (pid > 0).then_some(pid)
            }
            Handle::Number(number) => number.is_valid().then_some(number.pid),
        }
    }

    /// A descriptor that is readable, or at its end, when the process has ended.
    ///
    /// # Errors
    /// When the system is out of descriptors.
    pub fn death(&self) -> io::Result<OwnedFd> {
        match &self.0 {
            Handle::Descriptor(fd) => fd.try_clone(),
            Handle::Number(number) => watch(*number),
        }
    }

    /// Ends the process at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Lets the process go on, if somebody has stopped it.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Handle::Descriptor(fd) = &self.0
            && matches!(rustix::process::pidfd_send_signal(fd, signal), Ok(()) | Err(rustix::io::Errno::SRCH))
        {
            return;
        }
        // Refused: by number, right after it was seen to be this process's still.
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits until the process has ended (it may be a zombie), at most `milliseconds`.
    pub(crate) fn wait_dead(&self, milliseconds: i64) -> bool {
        match &self.0 {
            Handle::Descriptor(fd) => {
                let timeout = Timespec { tv_sec: milliseconds / 1000, tv_nsec: (milliseconds % 1000) * 1_000_000 };
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1..))
            }
            Handle::Number(number) => {
                let until = Instant::now() + Duration::from_millis(milliseconds.try_into().unwrap_or(0));
                while !number.is_dead() {
                    if Instant::now() >= until {
                        return false;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                true
            }
        }
    }
}

/// One end of a pipe whose other end this process keeps until the other process is dead: user code has no part in it.
fn watch(number: Number) -> io::Result<OwnedFd> {
    static WATCHED: LazyLock<mpsc::Sender<(Number, OwnedFd)>> = LazyLock::new(|| {
        let (sender, receiver) = mpsc::channel();
        // Where no thread can be started nothing is watched, and every death is told at once.
        let _ = std::thread::Builder::new().name("deaths".to_owned()).spawn(move || look_for_deaths(&receiver));
        sender
    });
    let (death, kept) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let _ = WATCHED.send((number, kept));
    Ok(death)
}

fn look_for_deaths(new: &mpsc::Receiver<(Number, OwnedFd)>) {
    let mut watched = Vec::new();
    loop {
        let next = if watched.is_empty() {
            new.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
        } else {
            new.recv_timeout(LOOK)
        };
        match next {
            Ok(one) => watched.push(one),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        watched.retain(|(number, _)| !number.is_dead());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> (std::process::Child, i32) {
        let child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        (child, pid)
    }

    fn is_readable(fd: &OwnedFd, seconds: i64) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })), Ok(1..))
    }

    #[test]
    fn both_kinds_of_handle_signal_and_tell_of_the_end() {
        for by_number in [false, true] {
            let (mut child, pid) = sleeper();
            let handle = if by_number {
                Pidfd::of_number(pid, proc::stat(pid).expect("alive").started)
            } else {
                Pidfd::open(pid).expect("alive")
            };
            let death = handle.death().expect("a descriptor");
            assert_eq!(handle.pid(), Some(pid));
            assert!(!handle.wait_dead(20) && !is_readable(&death, 0));
            handle.kill();
            assert!(handle.wait_dead(10_000) && is_readable(&death, 10), "a zombie is dead: {by_number}");
            child.wait().expect("reaped");
            assert_eq!(handle.pid(), None);
        }
    }

    #[test]
    fn a_number_that_has_come_to_mean_another_process_is_left_alone() {
        let (mut child, pid) = sleeper();
        let earlier = Pidfd::of_number(pid, proc::stat(pid).expect("alive").started - 1);
        assert!(earlier.pid().is_none() && earlier.wait_dead(0));
        earlier.kill();
        assert!(child.try_wait().expect("a child").is_none(), "the other process was killed");
        assert!(is_readable(&earlier.death().expect("a descriptor"), 10));
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
}
