//! The users that kernels of a server that is root run as.
//!
//! Rule: a user is one kernel's at a time, on the whole machine. So each server takes ranges of users that no other server
//! has, by locks that end with it: two kernels of one user could read, change and end one another.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// All users there are for kernels. They have no name, and no file of the system belongs to them: above what distributions and
/// systemd give out (<https://systemd.io/UIDS-GIDS/>), and below what is set aside for users of containers.
const USERS: Range<u32> = 70_000..74_000;
/// In a container that has 16 bits of users, which systemd's own services of the container could share.
const USERS_OF_16_BITS: Range<u32> = 61_184..65_184;
/// Users that are locked together.
const RANGE: u32 = 200;
/// Where POSIX shared memory and semaphores are files.
const SHARED_MEMORY: &str = "/dev/shm";
/// Where the locks are: closed to everybody but root, and empty after the machine's next start.
const LOCKS: &str = "/run/code-interpreter";

/// Whether calls may run as this user.
pub(crate) fn is_kernel_user(id: u32) -> bool {
    USERS.contains(&id) || USERS_OF_16_BITS.contains(&id)
}

/// Those that this process's user namespace has.
fn available() -> Range<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let holds_all = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), _, Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else { return false };
        first <= USERS.start.into() && first + count >= USERS.end.into()
    };
    if map.lines().any(holds_all) { USERS } else { USERS_OF_16_BITS }
}

/// Removes what the user left in the machine's `/dev/shm`: it would stay until the machine's next start.
pub(crate) fn clear_shared_memory(user: u32) -> io::Result<()> {
    let mut result = Ok(());
    for entry in std::fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten() {
        if entry.metadata().is_ok_and(|metadata| metadata.uid() == user) {
            result = result.and(sandbox::remove_as(&entry.path(), user));
        }
    }
    result
}

/// The users of this server, each used by one kernel at a time.
#[derive(Debug, Default)]
pub(crate) struct KernelUsers {
    all: Vec<u32>,
    state: Mutex<State>,
    /// Locked while they are open.
    locks: Vec<File>,
}

#[derive(Debug, Default)]
struct State {
    next: usize,
    in_use: HashSet<u32>,
}

/// A user that no other kernel has until this is dropped.
#[derive(Debug)]
pub(crate) struct KernelUser {
    pub(crate) id: u32,
    users: Arc<KernelUsers>,
}

impl KernelUsers {
    /// Takes enough users for so many kernels at once: none where the server is not root.
    ///
    /// # Errors
    /// When other servers have too many of them, or the locks can't be made.
    pub(crate) fn for_kernels(count: usize) -> io::Result<Self> {
        if sandbox::is_root() { Self::lock_in(LOCKS.as_ref(), count) } else { Ok(Self::default()) }
    }

    fn lock_in(directory: &Path, count: usize) -> io::Result<Self> {
        let found = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        let metadata = found.and_then(|()| directory.symlink_metadata())?;
        if !metadata.is_dir() || metadata.uid() != sandbox::user_id() || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other(format!("{} can be written to by others than root", directory.display())));
        }
        let mut users = Self::default();
        for first in available().step_by(RANGE as usize) {
            let file = File::options().create(true).append(true).mode(0o600).open(directory.join(format!("users-{first}")))?;
            match file.try_lock() {
                Ok(()) => {
                    users.all.extend(first..first + RANGE);
                    users.locks.push(file);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if users.all.len() >= count {
                return Ok(users);
            }
        }
        let free = users.all.len();
        Err(io::Error::other(format!(
            "other servers have the users of kernels: {count} are needed (by MAX_CONCURRENCY and SPARE_KERNELS), {free} are free"
        )))
    }

    /// All of them; none where the server is not root.
    pub(crate) fn all(&self) -> &[u32] {
        &self.all
    }

    /// The next free user, in turn: what one left somewhere is not found by the next kernel. `None` when all are in use.
    pub(crate) fn take(self: &Arc<Self>) -> Option<KernelUser> {
        let mut state = self.lock();
        let (count, next) = (self.all.len(), state.next);
        let at = (0..count).map(|step| (next + step) % count).find(|at| !state.in_use.contains(&self.all[*at]))?;
        let id = self.all[at];
        state.in_use.insert(id);
        state.next = at + 1;
        Some(KernelUser { id, users: self.clone() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KernelUser {
    fn drop(&mut self) {
        self.users.lock().in_use.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_not_given_to_a_second_kernel_however_long_the_first_waits() {
        let place = tempfile::tempdir().expect("a directory");
        let users = Arc::new(KernelUsers::lock_in(place.path(), 3).expect("users"));
        let waiting = users.take().expect("a user");
        for _ in 0..2 * RANGE {
            assert_ne!(users.take().expect("a user").id, waiting.id);
        }
        let all = (1..RANGE).map(|_| users.take().expect("a user")).collect::<Vec<_>>();
        assert!(users.take().is_none(), "all are in use");
        drop(all);
        assert!(users.take().is_some());
    }

    /// There were 1,000 users for 1,024 calls.
    #[test]
    fn there_are_users_for_the_largest_settings() {
        let place = tempfile::tempdir().expect("a directory");
        // MAX_CONCURRENCY, SPARE_KERNELS for each stage, and those that are being cleaned up after.
        let count = 1024 + 64 * crate::zygote::STAGES.len() + 64;
        let users = Arc::new(KernelUsers::lock_in(place.path(), count).expect("users"));
        let taken = std::iter::repeat_with(|| users.take()).take(count).collect::<Option<Vec<_>>>().expect("each its own");
        assert_eq!(taken.iter().map(|user| user.id).collect::<HashSet<_>>().len(), count);
        assert!(USERS_OF_16_BITS.len() >= count && USERS.len() >= count);
    }

    /// Both counted from the same number.
    #[test]
    fn two_servers_have_no_user_in_common() {
        let place = tempfile::tempdir().expect("a directory");
        let lock = |count| KernelUsers::lock_in(place.path(), count);
        let [first, second] = [(), ()].map(|()| lock(2 * RANGE as usize).expect("users"));
        assert!(first.all.iter().all(|user| !second.all.contains(user)));
        let rest = available().len() - first.all.len() - second.all.len();
        assert!(lock(rest + 1).expect_err("too many").to_string().contains(&format!("{rest} are free")));
        drop(first);
        lock(rest + 1).expect("they are free again");
    }
}
