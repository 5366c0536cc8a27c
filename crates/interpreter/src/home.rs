//! What a kernel has to itself: a directory and, where the server is root, a user.
//!
//! Rule: both come back only when nothing of the kernel is alive, and a directory leaves nothing behind, also when the
//! code took away its own rights to it.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// More files than this in its directory and a call is ended: each look at them must stay short.
pub(crate) const MAX_FILES: usize = 20_000;
/// Where POSIX shared memory and semaphores are files.
const SHARED_MEMORY: &str = "/dev/shm";

/// The users that kernels of a server that is root run as, each used by one kernel at a time.
#[derive(Debug, Default)]
pub(crate) struct KernelUsers(Mutex<Users>);

#[derive(Debug, Default)]
struct Users {
    next: u32,
    in_use: HashSet<u32>,
}

/// A user that no other kernel has until this is dropped.
#[derive(Debug)]
pub(crate) struct KernelUser {
    id: u32,
    users: Arc<KernelUsers>,
}

impl KernelUsers {
    /// The first of them. They have no name and no file of the system belongs to them.
    pub(crate) const FIRST: u32 = 64_000;
    const COUNT: u32 = 1000;

    /// The next free user, in turn: what one left somewhere is not found by the next kernel. `None` when all are in use.
    pub(crate) fn take(self: &Arc<Self>) -> Option<KernelUser> {
        let mut users = self.lock();
        let next = users.next;
        let id = (0..Self::COUNT).map(|step| Self::FIRST + (next + step) % Self::COUNT).find(|id| !users.in_use.contains(id))?;
        users.in_use.insert(id);
        users.next = id + 1 - Self::FIRST;
        Some(KernelUser { id, users: self.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Users> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KernelUser {
    fn drop(&mut self) {
        self.users.lock().in_use.remove(&self.id);
    }
}

/// A kernel's directory and user; dropping it removes the one and frees the other.
#[derive(Debug)]
pub(crate) struct Home {
    directory: PathBuf,
    user: Option<KernelUser>,
}

impl Home {
    /// Makes the directory, readable for its user alone.
    pub(crate) fn make(directory: PathBuf, user: Option<KernelUser>) -> io::Result<Self> {
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let home = Self { directory, user };
        if let Some(id) = home.user() {
            chown(home.path(), Some(id), Some(id))?;
        }
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// What the files take on disk, as far as needed to see that it is more than `limit`; `u64::MAX` when there are too
    /// many files, or a directory that can't be looked into.
    pub(crate) fn disk_usage(&self, limit: u64) -> u64 {
        let (mut bytes, mut files, mut directories) = (0, 0, vec![self.directory.clone()]);
        while let Some(directory) = directories.pop() {
            let entries = match std::fs::read_dir(&directory) {
                Ok(entries) => entries,
                // It has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) => return u64::MAX,
            };
            for entry in entries.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                files += 1;
                bytes += metadata.blocks() * 512;
                if files > MAX_FILES || bytes > limit {
                    return u64::MAX;
                }
                if metadata.is_dir() {
                    directories.push(entry.path());
                }
            }
        }
        bytes
    }

    /// The user's id; `None` when the kernel runs as the server's own user.
    pub(crate) fn user(&self) -> Option<u32> {
        self.user.as_ref().map(|user| user.id)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(id) = self.user() {
            clear_shared_memory(id);
        }
        if let Err(error) = sandbox::remove(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "a kernel's directory could not be removed");
        }
    }
}

/// Removes what the user left in `/dev/shm`: it would stay until the machine's next start.
fn clear_shared_memory(user: u32) {
    for entry in std::fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|metadata| metadata.uid() == user) {
            let path = entry.path();
            if let Err(error) = sandbox::remove(&path) {
                tracing::warn!(path = %path.display(), %error, "shared memory could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_not_given_to_a_second_kernel_however_long_the_first_waits() {
        let users = Arc::new(KernelUsers::default());
        let waiting = users.take().expect("a user");
        for _ in 0..2 * KernelUsers::COUNT {
            assert_ne!(users.take().expect("a user").id, waiting.id);
        }
        let all = (1..KernelUsers::COUNT).map(|_| users.take().expect("a user")).collect::<Vec<_>>();
        assert!(users.take().is_none(), "all are in use");
        drop(all);
        assert!(users.take().is_some());
    }

    #[test]
    fn a_kernel_that_never_started_leaves_no_directory() {
        let state = tempfile::tempdir().expect("a directory");
        let path = state.path().join("k1");
        let home = Home::make(path.clone(), None).expect("a home");
        std::fs::create_dir_all(path.join("a/b")).expect("made");
        std::fs::set_permissions(path.join("a"), std::fs::Permissions::from_mode(0o000)).expect("closed");
        drop(home);
        assert!(!path.exists());
    }
}
