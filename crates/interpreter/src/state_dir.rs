//! The engine's own directory, in which each kernel has its own.
//!
//! Rule: it is locked as long as its server lives, and bears the mark of a server's directory only while it is locked. A
//! marked one that nobody locks was left by a server that was killed: the next start ends what still runs of it and removes
//! it. The lock is on the directory itself, because systemd-tmpfiles leaves a locked directory alone however old it is.
//!
//! Code can't take the lock while the server has it, and no process inherits the server's. Where code is of the server's
//! own user and nothing keeps it out of the directory, it can keep a dead one from being found, and nothing more.

use std::collections::{BTreeSet, HashSet};
use std::fs::{DirEntry, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::told::Told;
use crate::users::{KernelUser, clear_shared_memory, is_kernel_user};

const PREFIX: &str = "code-interpreter-";
/// What could not be removed is tried again so many at a time.
const REMOVED_AT_ONCE: usize = 8;
const MARK: &str = ".server";

/// How many directories of this process there are.
static ALIVE: Mutex<usize> = Mutex::new(0);
static ONE_WENT: Condvar = Condvar::new();

/// The directory; removed when dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Calls after which something could not be ended.
    pub(crate) given_up: AtomicUsize,
    /// What could not be removed yet.
    remains: Mutex<Vec<Remains>>,
    told: Mutex<Told>,
    /// Names of the kernels' directories in it. What else is there, whatever it is called, is code's.
    homes: Mutex<HashSet<String>>,
    lock: Mutex<File>,
}

/// What a kernel had to itself, when all of it is dead.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) directory: PathBuf,
    /// Given back with this.
    pub(crate) user: Option<KernelUser>,
}

impl Remains {
    fn remove(&self) -> io::Result<()> {
        match &self.user {
            Some(user) => clear_shared_memory(user.id).and(sandbox::remove_as(&self.directory, user.id)),
            None => sandbox::remove(&self.directory),
        }
    }
}

impl StateDir {
    /// Makes it in the system's temporary folder. Kernels of other users can reach their own directories in it, and list
    /// none.
    pub(crate) fn make() -> io::Result<Self> {
        let made = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let lock = Mutex::new(open_and_mark(made.path())?);
        let path = std::path::absolute(made.keep())?;
        *ALIVE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let (given_up, remains, told) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Ok(Self { path, given_up, remains, told, homes: Mutex::default(), lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what a kernel had to itself, and gives its user back; at the latest with a later one, where that is refused now.
    pub(crate) fn remove(&self, remains: Remains) {
        if let Err(error) = remains.remove() {
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).is_news(&error.kind().to_string()) {
                let directory = remains.directory.display();
                tracing::error!(%directory, %error, "what a call left could not be removed; it is tried again, and its user not used until then");
            }
            self.remains().push(remains);
        }
    }

    /// Tries again what could not be removed: until the first that still can't be, and no more than a few.
    pub(crate) fn remove_what_remains(&self) {
        for _ in 0..REMOVED_AT_ONCE {
            // One that is tried is in nobody's way meanwhile.
            let Some(remains) = self.remains().pop() else { return };
            if remains.remove().is_err() {
                self.remains().insert(0, remains);
                return;
            }
        }
    }

    /// Calls after which something could not be ended, or is not removed yet.
    pub(crate) fn quarantined(&self) -> usize {
        self.given_up.load(Ordering::Relaxed) + self.remains().len()
    }

    fn remains(&self) -> MutexGuard<'_, Vec<Remains>> {
        self.remains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it anew when somebody has removed it; true when that was so.
    pub(crate) fn restore(&self) -> io::Result<bool> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match self.path.symlink_metadata() {
            Ok(found) if found.is_dir() && found.uid() == sandbox::user_id() => return Ok(false),
            Ok(_) => return Err(io::Error::other("something else is at the place of the server's directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        std::fs::DirBuilder::new().mode(0o700).create(&self.path)?;
        *lock = open_and_mark(&self.path)?;
        tracing::warn!(directory = %self.path.display(), "the server's directory was removed; it is made anew");
        Ok(true)
    }

    /// The names of the kernels' directories.
    pub(crate) fn homes(&self) -> MutexGuard<'_, HashSet<String>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks a new directory, and marks it once it is locked.
fn open_and_mark(path: &Path) -> io::Result<File> {
    std::fs::set_permissions(path, Permissions::from_mode(0o711))?;
    let lock = File::open(path)?;
    match lock.try_lock() {
        Ok(()) => drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join(MARK))?),
        Err(error) => tracing::warn!(%error, "the state directory can't be locked: killed, this server would leave it"),
    }
    Ok(lock)
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if let Err(error) = remove_marked(&self.path) {
            tracing::warn!(directory = %self.path.display(), %error, "the state directory could not be removed");
        }
        *ALIVE.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ONE_WENT.notify_all();
    }
}

/// Waits until every engine of this process has ended and its directory has gone; false when that takes longer.
pub fn wait_for_engines(patience: Duration) -> bool {
    let alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let (alive, _) = ONE_WENT.wait_timeout_while(alive, patience, |alive| *alive > 0).unwrap_or_else(PoisonError::into_inner);
    *alive == 0
}

/// Removes what killed servers of our user have left beside `own`, on a thread of its own: no start waits for it.
pub(crate) fn sweep_beside(own: &StateDir) -> io::Result<()> {
    let own = own.path().to_owned();
    std::thread::Builder::new().name("sweep".to_owned()).spawn(move || {
        let entries = own.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
            if let Some(_lock) = claim(&entry.path()) {
                clear(&entry.path());
            }
        }
    })?;
    Ok(())
}

/// The lock of a directory that a dead server of our user has left; `None` for everything else.
fn claim(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let ours = |stat: rustix::fs::Stat| (stat.st_uid == rustix::process::geteuid().as_raw()).then_some(stat.st_mode);
    ours(rustix::fs::fstat(&directory).ok()?)?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
    let mark = rustix::fs::statat(&directory, MARK, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok()?;
    rustix::fs::FileType::from_raw_mode(ours(mark)?).is_file().then(|| directory.into())
}

/// Ends what still runs of the server that had the directory, and removes it.
fn clear(path: &Path) {
    let users = kernel_users(path);
    let ended = sandbox::end_leftovers(path, &users);
    for user in users {
        // Alive, it is a kernel of another server.
        if !sandbox::is_user_alive(user)
            && let Err(error) = clear_shared_memory(user)
        {
            tracing::warn!(user, %error, "shared memory that a killed server left could not be removed");
        }
    }
    match remove_marked(path) {
        Ok(()) => tracing::info!(directory = %path.display(), processes = ended, "removed what a killed server had left"),
        Err(error) => tracing::warn!(directory = %path.display(), %error, "what a killed server left could not be removed"),
    }
}

/// The users that the server's last kernels were: their directories belong to them.
fn kernel_users(path: &Path) -> BTreeSet<u32> {
    let owners = std::fs::read_dir(path).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    owners.map(|metadata| metadata.uid()).filter(|user| sandbox::is_root() && is_kernel_user(*user)).collect()
}

/// The mark goes last, and only when all else has gone: what is interrupted is found again.
fn remove_marked(path: &Path) -> io::Result<()> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.file_name() != MARK);
    let remove = |entry: DirEntry| match entry.metadata()?.uid() {
        user if sandbox::is_root() && is_kernel_user(user) => sandbox::remove_as(&entry.path(), user),
        _ => sandbox::remove(&entry.path()),
    };
    let failed = entries.filter_map(|entry| remove(entry).err()).last();
    failed.map_or_else(|| sandbox::remove(path), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_directory_that_nobody_locks_is_claimed() {
        let state = StateDir::make().expect("made");
        assert!(claim(state.path()).is_none(), "its server lives");
        let folder = tempfile::tempdir().expect("made");
        assert!(claim(folder.path()).is_none(), "it has no mark");
        std::os::unix::fs::symlink(state.path().join(MARK), folder.path().join(MARK)).expect("made");
        assert!(claim(folder.path()).is_none(), "its mark is a link");
        std::fs::remove_file(folder.path().join(MARK)).expect("removed");
        std::fs::write(folder.path().join(MARK), "").expect("made");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("made");
        assert!(claim(&link).is_none(), "it is a link");
        let claimed = claim(folder.path()).expect("its server is dead");
        assert!(claim(folder.path()).is_none(), "somebody is at it");
        drop(claimed);
    }

    #[test]
    fn an_engine_that_has_ended_has_left_nothing() {
        let state = StateDir::make().expect("made");
        let path = state.path().to_owned();
        std::fs::create_dir_all(path.join("k1/closed")).expect("made");
        std::fs::set_permissions(path.join("k1/closed"), Permissions::from_mode(0o000)).expect("closed");
        assert!(!wait_for_engines(Duration::from_millis(1)));
        drop(state);
        assert!(!path.exists());
    }

    /// Whoever cleans the temporary folder took the server with it, until it was started again.
    #[test]
    fn a_directory_that_was_removed_is_made_anew_and_is_locked() {
        let state = StateDir::make().expect("made");
        assert!(!state.restore().expect("it is there"));
        std::fs::remove_dir_all(state.path()).expect("removed");
        assert!(state.restore().expect("made anew") && !state.restore().expect("it is there"));
        assert!(state.path().join(MARK).exists() && claim(state.path()).is_none());
        std::fs::remove_dir_all(state.path()).expect("removed");
        std::os::unix::fs::symlink("/", state.path()).expect("made");
        state.restore().expect_err("it is not ours");
        std::fs::remove_file(state.path()).expect("removed");
    }
}
