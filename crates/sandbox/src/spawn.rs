//! Starts the zygote's interpreter. Rule: the child gets exactly the descriptors and the environment it is given.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A descriptor and the number it has in the child.
#[derive(Debug)]
pub struct ChildDescriptor {
    /// Ours.
    pub fd: OwnedFd,
    /// Its number in the child.
    pub number: RawFd,
}

/// Above every number a child is given, so that none is overwritten before it is copied.
const SAFE_FROM: RawFd = 100;

/// Starts `command` with an empty environment but for `environment`, no input, no output, our standard error, and the
/// given descriptors.
///
/// # Errors
/// When the program can't be started.
pub fn spawn(mut command: Command, environment: &[(&str, String)], descriptors: Vec<ChildDescriptor>) -> io::Result<Child> {
    let mut copies = Vec::with_capacity(descriptors.len());
    for ChildDescriptor { fd, number } in descriptors {
        copies.push((rustix::io::fcntl_dupfd_cloexec(&fd, SAFE_FROM)?, number));
    }
    let numbers = copies.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect::<Vec<_>>();
    command.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    #[expect(unsafe_code, reason = "the child's descriptors are set between fork and exec")]
    // SAFETY: between fork and exec only dup2 and setpgid are called, both async-signal-safe; nothing is allocated.
    // The `OwnedFd`s stand for numbers that belong to the child alone and are forgotten, never closed.
    unsafe {
        command.pre_exec(move || {
            // Out of the terminal's process group: Ctrl-C is for the supervisor, which then ends its children.
            let _ = rustix::process::setpgid(None, None);
            for &(from, to) in &numbers {
                let source = std::os::fd::BorrowedFd::borrow_raw(from);
                let mut target = std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(to));
                rustix::io::dup2(source, &mut target)?;
            }
            Ok(())
        });
    }
    #[expect(clippy::disallowed_methods, reason = "whoever calls this is in `Reaper::start`")]
    let child = command.spawn();
    drop(copies);
    child
}
