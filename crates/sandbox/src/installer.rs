//! The bounds of a package installer: a child of the server that reads what strangers have uploaded.
//!
//! Rule: it may reach the network and write to its work folder, and nothing else; it never runs what it installs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit};

/// What bounds the process, and each one it starts.
#[derive(Clone, Copy, Debug)]
pub struct InstallerLimits {
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Memory of its own, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
    /// Whether everything else on the machine goes first.
    pub background: bool,
}

/// Puts the command in a process group of its own, under the limits, without the right to gain rights, and behind the
/// Landlock rule set where there is one.
pub fn confine_installer(command: &mut Command, limits: InstallerLimits, ruleset: Option<OwnedFd>) {
    let bounds = [
        (Resource::Fsize, limits.file_bytes),
        (Resource::Data, limits.memory_bytes),
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Core, 0),
    ];
    #[expect(unsafe_code, reason = "limits are set between fork and exec")]
    // SAFETY: only system calls are made in the child, all async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setpgid(None, None)?;
            for (resource, bound) in bounds {
                let hard = rustix::process::getrlimit(resource).maximum.map_or(bound, |hard| hard.min(bound));
                rustix::process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?;
            }
            if limits.background {
                let _ = rustix::process::nice(19);
            }
            // Refused inside a Lambda function, as Landlock is.
            let no_new_privileges = rustix::thread::set_no_new_privs(true);
            match &ruleset {
                Some(ruleset) => no_new_privileges.map_err(io::Error::from).and_then(|()| restrict(ruleset)),
                None => Ok(()),
            }
        });
    }
}

fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "the landlock crate restricts the calling process only with a rule set of its own")]
    // SAFETY: the call takes a descriptor and flags, and touches no memory.
    let refused = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
