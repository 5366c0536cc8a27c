//! What the supervisor does to itself before any child exists.

use rustix::process::{DumpableBehavior, Pid};

use crate::unreadable::is_unreadable;

/// Which of the supervisor's own protections hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Other processes of the same user can't read its memory or environment, nor trace it.
    pub non_dumpable: bool,
    /// Orphans of kernels become its children instead of init's, so that none can slip away.
    pub subreaper: bool,
}

/// Makes the calling process unreadable for its children and the heir of their orphans.
pub fn protect_supervisor() -> Protection {
    Protection {
        // Where prctl is refused, the program may have started itself again from an unreadable copy.
        non_dumpable: rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok() || is_unreadable(),
        subreaper: rustix::process::set_child_subreaper(Pid::from_raw(1)).is_ok(),
    }
}

/// True when the process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The real user id.
pub fn user_id() -> u32 {
    rustix::process::getuid().as_raw()
}

/// This process's id.
pub fn process_id() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}
