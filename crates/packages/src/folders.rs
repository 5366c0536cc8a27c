//! The folders that sets are kept in, with the rights they must have.
//!
//! Rule: Landlock keeps user code from writing here, and not from `chmod`: where it is of the server's own user it can close
//! each of these folders, or open it to others. So rights are looked at before a folder is used, through a descriptor that
//! follows no link. A closed folder is opened again. One that others could write to may hold anything: it is emptied.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Passed through by kernels of other users, and listed by nobody: names of sets are not theirs to see.
const PASSED_THROUGH: u32 = 0o711;
/// What is nobody else's to see.
const PRIVATE: u32 = 0o700;
const OTHERS_WRITE: u32 = 0o022;

pub(crate) const SETS: &str = "sets";
pub(crate) const WORK: &str = "work";
pub(crate) const MARKS: &str = "marks";
pub(crate) const ANSWERS: &str = "answers";
pub(crate) const COMPILED: &str = "compiled";
pub(crate) const LOCKS: &str = "locks";
pub(crate) const ALL: [&str; 6] = [SETS, WORK, MARKS, ANSWERS, COMPILED, LOCKS];

/// Makes the folders where they are not there, and sees to their rights.
///
/// # Errors
/// When one is another user's, or others can write to a folder in which nothing was kept yet.
pub(crate) fn make(root: &Path) -> io::Result<()> {
    let is_ours = |path: PathBuf| path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == sandbox::user_id());
    let create = |path: &Path, mode| std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    create(root, PASSED_THROUGH)?;
    let mut others_wrote = writable_by_others(root)?;
    // Where folders of ours are in it, or its owner can't enter it, it was closed once: no operator has opened it, but code.
    let can_enter = root.symlink_metadata()?.mode() & 0o100 != 0;
    if others_wrote && can_enter && !ALL.iter().all(|folder| is_ours(root.join(folder))) {
        let text = format!("{} must be a folder of the server's user that nobody else can write to", root.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    restore(root, PASSED_THROUGH)?;
    for folder in ALL {
        let (path, mode) = (root.join(folder), mode_of(folder));
        create(&path, mode)?;
        others_wrote |= writable_by_others(&path)?;
        restore(&path, mode)?;
    }
    if others_wrote { empty(root) } else { Ok(()) }
}

/// Whether the way to the sets is as it was made: what a remembered set costs.
pub(crate) fn are_as_made(root: &Path) -> bool {
    let as_made = |path: &Path| {
        let metadata = path.symlink_metadata();
        metadata.is_ok_and(|found| found.is_dir() && found.uid() == sandbox::user_id() && found.mode() & 0o7777 == PASSED_THROUGH)
    };
    as_made(root) && as_made(&root.join(SETS))
}

fn mode_of(folder: &str) -> u32 {
    if folder == SETS { PASSED_THROUGH } else { PRIVATE }
}

fn writable_by_others(folder: &Path) -> io::Result<bool> {
    Ok(folder.symlink_metadata()?.mode() & OTHERS_WRITE != 0)
}

/// The folders themselves stay: kernels are let into `sets`, and not into another one of that name.
fn empty(root: &Path) -> io::Result<()> {
    tracing::warn!(folder = %root.display(), "others could write where packages are kept; all of it is installed anew");
    for folder in ALL.iter().filter(|folder| **folder != LOCKS) {
        for entry in std::fs::read_dir(root.join(folder))? {
            sandbox::remove(&entry?.path())?;
        }
    }
    Ok(())
}

/// Gives a file or a folder of the server's user its rights back, and takes away those of others.
pub(crate) fn restore(path: &Path, mode: u32) -> io::Result<()> {
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    restore_opened(&found, mode)
}

/// The same for what was opened with `O_PATH`, which needs no right to it.
pub(crate) fn restore_opened(found: &OwnedFd, mode: u32) -> io::Result<()> {
    let stat = rustix::fs::fstat(found)?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    if stat.st_uid != sandbox::user_id() || !(kind.is_dir() || kind.is_file()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a file of packages is not the server's own"));
    }
    // The way to what a descriptor stands for, whatever has its name by now.
    let place = format!("/proc/self/fd/{}", found.as_raw_fd());
    if stat.st_mode & 0o7777 != mode {
        rustix::fs::chmod(&place, Mode::from_raw_mode(mode))?;
    }
    for list in ["system.posix_acl_access", "system.posix_acl_default"] {
        // Most have none, and not every file system knows them.
        let _ = rustix::fs::removexattr(&place, list);
    }
    Ok(())
}
