//! What the supervisor does to itself before any child exists.

use std::io;

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit};

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

/// Raises the number of descriptors this process may have to `wanted`, as far as its hard limit goes, and gives what it is
/// then. Children inherit it.
///
/// What code holds in sockets that nobody reads from counts against a limit of its whole user: that of whoever sends the
/// next descriptor. A server with the usual 1024, which is also a kernel's, could be kept from sending any.
pub fn raise_descriptor_limit(wanted: u64) -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let (now, most) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let target = wanted.min(most);
    let raised = Rlimit { current: Some(target), maximum: limit.maximum };
    if now >= target || rustix::process::setrlimit(Resource::Nofile, raised).is_err() { now } else { target }
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

/// Leaves the calling thread of a server that is root only what `user` may do to files. For good: let the thread end.
///
/// # Errors
/// When the system refuses it; the thread may have lost some rights by then.
pub(crate) fn give_up_rights_of_thread(user: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "rights of one thread: libraries change those of the whole process")]
    // SAFETY: three calls that take numbers and touch no memory. The system call sets the groups of this thread alone.
    let set = unsafe {
        let groups = libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>());
        libc::setfsgid(user);
        libc::setfsuid(user);
        // They answer with the number before, and never with an error: an impossible one asks.
        groups == 0 && libc::setfsgid(u32::MAX).cast_unsigned() == user && libc::setfsuid(u32::MAX).cast_unsigned() == user
    };
    if set { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}
