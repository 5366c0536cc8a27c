//! Steps from one directory into the next by descriptor.
//!
//! Rule: whoever wrote what is in a directory may still be alive and swap an entry for a link between any two looks. So a
//! step names one entry of a directory that is held open, follows no link and crosses no mount; what has been opened stays
//! what it was, wherever it is moved.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Dir, DirEntry, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const STEP: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// The first step, which is the only one by path: to a directory that user code can't put another in place of.
pub(crate) fn first(path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a directory in another to read it.
pub(crate) fn directory(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    step(parent.as_fd(), name, OFlags::RDONLY | DIRECTORY)
}

/// A directory in another, also one that its owner has closed to himself; it can be named and not read.
pub(crate) fn closed_directory(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    step(parent.as_fd(), name, OFlags::PATH | DIRECTORY)
}

/// Opens what [`closed_directory`] has found, to read it.
pub(crate) fn again(directory: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, ".", OFlags::RDONLY | DIRECTORY, Mode::empty())
}

/// Opens a plain file in a directory to read it; should it be something else, nothing waits and nothing becomes a terminal.
pub(crate) fn file(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    step(parent.as_fd(), name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC)
}

/// Sets the mode of the very directory that the descriptor is, whichever way it was opened.
pub(crate) fn set_mode(directory: impl AsFd, mode: Mode) -> Result<(), Errno> {
    match rustix::fs::fchmod(&directory, mode) {
        // One that was only named: there its entry in /proc is the way to the descriptor's own inode.
        Err(Errno::BADF) => rustix::fs::chmod(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()), mode),
        other => other,
    }
}

/// The entries of an open directory, without itself and its parent.
pub(crate) fn entries<F: AsFd>(directory: F) -> Result<impl Iterator<Item = Result<DirEntry, Errno>> + use<F>, Errno> {
    let is_itself =
        |entry: &Result<DirEntry, Errno>| entry.as_ref().is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."));
    Ok(Dir::read_from(directory)?.filter(move |entry| !is_itself(entry)))
}

fn step(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    /// A function's kernel may refuse the call, and kernels before 5.6 don't have it.
    static HAS_OPENAT2: AtomicBool = AtomicBool::new(true);
    if HAS_OPENAT2.load(Ordering::Relaxed) {
        match rustix::fs::openat2(parent, name, flags, Mode::empty(), STEP) {
            Err(Errno::NOSYS | Errno::PERM) => HAS_OPENAT2.store(false, Ordering::Relaxed),
            other => return other,
        }
    }
    // One name is one step, so that nothing but a mount is missed.
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
