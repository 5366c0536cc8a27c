//! Sets of packages on disk: a folder for each, named by what is in it.
//!
//! Rules: a folder in `sets/` is whole, because it was renamed there, and is used only while it is as it was sealed; what user
//! code could harm is mended before each use, or made anew. It goes when nobody holds it and room is needed, least recently
//! used first. Whatever is locked is a file that user code can't open; where it can open all that the server can (as the
//! server's own user, with no Landlock), each process has a folder of its own, and needs no lock.

mod answers;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use answers::Answer;

use crate::folders::{self, ALL, COMPILED, LOCKS, MARKS, SETS, WORK};
use crate::process::size;
use crate::seal::{self, Look, Seal};

/// Folders of single processes, where code can write to them.
const OWN_PREFIX: &str = "of-";
/// How often a lock is tried that somebody holds to take a set away; a millisecond lies between.
const LOCK_TRIES: usize = 200;
/// How often it is tried to remove what an install has left; 10 ms lie between.
const REMOVAL_TRIES: usize = 50;
/// Of files that are the server's alone.
const PRIVATE_FILE: u32 = 0o600;
/// Folders for what installers have downloaded. Each is one installer's at a time, so that it is charged for its own.
const DOWNLOADS: [&str; 2] = ["downloads-0", "downloads-1"];

/// The folder of all sets.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    max_bytes: u64,
    /// Whether user code can't write here.
    guarded: bool,
    /// Where files could be written to by code; elsewhere they are in files.
    marks: Mutex<HashMap<String, Mark>>,
    answers: Mutex<HashMap<String, Answer>>,
    /// In this process: one for each set, and one more for each use of it.
    uses: Mutex<HashMap<String, Arc<()>>>,
    /// Sets whose bytecode this process has begun to compile.
    compiled: Mutex<HashSet<String>>,
    next: AtomicU64,
    /// Its own folder and that of the sets, as they were when it was opened. While they are held no other has their numbers.
    opened: [Option<OwnedFd>; 2],
}

/// What is known of a set, beside it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Mark {
    bytes: u64,
    seal: Seal,
}

/// A set in use: it stays until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) directory: PathBuf,
    _use: Arc<()>,
    /// For other processes.
    _lock: Option<File>,
}

/// A folder for one install; removed when dropped.
pub(crate) struct Work(pub(crate) PathBuf, Option<File>);

impl Drop for Work {
    /// Behind whoever drops it, where it can be: thousands of files would hold up all other tasks.
    fn drop(&mut self) {
        let left = Left { folder: std::mem::take(&mut self.0), _lock: self.1.take() };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(left));
        }
    }
}

/// A folder that nobody needs any more: removed also when the runtime ends before its turn has come.
struct Left {
    folder: PathBuf,
    _lock: Option<File>,
}

impl Drop for Left {
    fn drop(&mut self) {
        // An installer that was killed may still be in the middle of a system call.
        for _ in 0..REMOVAL_TRIES {
            match sandbox::remove(&self.folder) {
                Ok(()) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        tracing::warn!(folder = %self.folder.display(), "what an install has left can't be removed before the next start");
    }
}

/// A folder for downloads, which nobody else uses until this is dropped.
pub(crate) struct Downloads(pub(crate) PathBuf, #[expect(dead_code, reason = "held for its lock")] File);

impl Drop for Cache {
    /// A folder of this process alone ends with it.
    fn drop(&mut self) {
        let Some(shared) = self.root.parent().filter(|_| !self.guarded) else { return };
        let _ = sandbox::remove(&self.root);
        // And what is empty around it.
        for folder in ALL.map(|folder| shared.join(folder)).iter().map(PathBuf::as_path).chain([shared]) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl Cache {
    /// Where the sets are: what kernels must be able to read.
    pub(crate) fn sets_in(root: &Path) -> PathBuf {
        root.join(SETS)
    }

    /// Opens the folder, and makes it where it is not there. Where user code can write to it, each process has an empty
    /// one of its own in it.
    pub(crate) fn open(root: &Path, max_bytes: u64, guarded: bool) -> io::Result<Self> {
        folders::make(root)?;
        let own = root.join(format!("{OWN_PREFIX}{}", sandbox::process_id()));
        let root = if guarded { root } else { own.as_path() };
        if !guarded {
            for entry in std::fs::read_dir(own.parent().unwrap_or(root))?.flatten() {
                let name = entry.file_name();
                let pid = name.to_str().and_then(|name| name.strip_prefix(OWN_PREFIX)?.parse::<i32>().ok());
                if pid.is_some_and(|pid| pid == sandbox::process_id() || !is_alive(pid)) {
                    sandbox::remove(&entry.path())?;
                }
            }
            folders::make(root)?;
        }
        let cache = Self {
            root: root.to_owned(),
            max_bytes,
            guarded,
            marks: Mutex::default(),
            answers: Mutex::default(),
            uses: Mutex::default(),
            compiled: Mutex::default(),
            next: AtomicU64::new(0),
            opened: [root, &Self::sets_in(root)].map(|folder| name(folder).ok()),
        };
        cache.remove_left_work();
        Ok(cache)
    }

    /// Whether user code can't write here.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// Whether its folders are those that were opened, and none that have taken their names since. What code has closed is
    /// mended when it is used.
    pub(crate) fn is_where_it_was(&self) -> bool {
        let number = |folder: &OwnedFd| rustix::fs::fstat(folder).map(|stat| (stat.st_dev, stat.st_ino));
        let folders = [self.root.clone(), Self::sets_in(&self.root)];
        self.opened.iter().zip(&folders).all(|(then, folder)| match (then, name(folder)) {
            (Some(then), Ok(now)) => number(then) == number(&now),
            (_, Err(error)) => error == Errno::ACCESS,
            (None, Ok(_)) => true,
        })
    }

    fn work_root(&self) -> PathBuf {
        self.root.join(WORK)
    }

    /// A name that nobody else has in `work`.
    fn new_work(&self) -> PathBuf {
        self.work_root().join(format!("{}-{}", sandbox::process_id(), self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// Sees to the rights of all folders. One of this process alone, where code can do anything, is made anew when it is
    /// past mending.
    fn make_folders(&self) -> io::Result<()> {
        let Some(shared) = self.root.parent().filter(|_| !self.guarded) else { return folders::make(&self.root) };
        folders::make(shared)?;
        folders::make(&self.root).or_else(|_| {
            sandbox::remove(&self.root)?;
            folders::make(&self.root)
        })
    }

    /// A folder for one install, with an empty `target` in it.
    pub(crate) fn work(&self) -> io::Result<Work> {
        self.make_folders()?;
        let path = self.new_work();
        std::fs::create_dir(&path)?;
        // Its lock says that somebody works in it, also in another container.
        let lock = self.guarded.then(|| File::open(&path)).transpose()?;
        if let Some(lock) = &lock {
            rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive)?;
        }
        let work = Work(path, lock);
        std::fs::create_dir(work.0.join("target"))?;
        Ok(work)
    }

    /// A folder that keeps downloads between installs, while one is free. None where user code could write to it.
    pub(crate) fn downloads(&self) -> Option<Downloads> {
        let free = |name: &str| self.guarded.then(|| self.try_lock(name, FlockOperation::NonBlockingLockExclusive)).flatten();
        let (path, lock) = DOWNLOADS.iter().find_map(|name| Some((self.work_root().join(name), free(name)?)))?;
        if path.exists() && !seal::is_private(&path) {
            tracing::warn!("what was downloaded has other rights than it was given; it is downloaded anew");
            sandbox::remove(&path).ok()?;
        }
        std::fs::create_dir_all(&path).ok()?;
        let downloads = Downloads(path, lock);
        // Also of installs that came to nothing.
        self.bound(&downloads);
        std::fs::create_dir_all(&downloads.0).ok()?;
        Some(downloads)
    }

    /// Takes a set into use, if it is there and as it was made, or can be made so.
    pub(crate) fn lease(&self, set: &str) -> Option<Lease> {
        let hold = self.hold(set).ok()?;
        if !folders::are_as_made(&self.root) {
            tracing::warn!("the folder of packages has other rights than it was given; they are set back");
            self.make_folders().ok()?;
        }
        let directory = self.directory(set);
        directory.symlink_metadata().ok()?;
        if !self.is_sound(set, &directory) {
            tracing::warn!(set, "an installed set is not as it was made; it is installed anew");
            self.discard(set);
            return None;
        }
        // Its age is how long ago it was used.
        let _ = File::open(self.mark_file(set)).and_then(|mark| mark.set_modified(SystemTime::now()));
        Some(Lease { directory, ..hold })
    }

    fn is_sound(&self, set: &str, directory: &Path) -> bool {
        let Some(mark) = self.mark(set) else { return false };
        if Look::at(directory).is_ok_and(|look| mark.seal.holds(&look)) {
            return true;
        }
        match mark.seal.mended(directory) {
            Ok(Some(seal)) => {
                tracing::warn!(
                    set,
                    "the files of an installed set were touched; their content is right, and their rights are set back"
                );
                self.forget_bytecode(set);
                self.keep_mark(set, Mark { seal, ..mark }).is_ok()
            }
            _ => false,
        }
    }

    /// Makes what an installer has left in `target` a set, and takes it into use.
    pub(crate) fn publish(&self, target: &Path, set: &str) -> io::Result<Lease> {
        let hold = self.hold(set)?;
        let seal = Seal::of_new(target, self.guarded)?;
        self.keep_mark(set, Mark { bytes: size(target), seal })?;
        let directory = self.directory(set);
        match std::fs::rename(target, &directory) {
            Ok(()) => Ok(Lease { directory, ..hold }),
            // Another process was faster, with the same content.
            Err(error) => self.lease(set).ok_or(error),
        }
    }

    /// Whether a set's bytecode has yet to be compiled; true once. Never where code could write beside the compiler.
    pub(crate) fn takes_bytecode(&self, set: &str) -> bool {
        self.guarded && !self.root.join(COMPILED).join(set).exists() && lock(&self.compiled).insert(set.to_owned())
    }

    /// Its bytecode is there, also for other processes.
    pub(crate) fn has_bytecode(&self, set: &str) {
        let look = Look::at(&self.directory(set));
        let sealed = self.mark(set).and_then(|mark| Some(Mark { seal: mark.seal.with_bytecode(&look.ok()?)?, ..mark }));
        if sealed.is_some_and(|mark| self.keep_mark(set, mark).is_ok()) {
            let _ = std::fs::write(self.root.join(COMPILED).join(set), "");
        }
    }

    fn forget_bytecode(&self, set: &str) {
        let _ = std::fs::remove_file(self.root.join(COMPILED).join(set));
        lock(&self.compiled).remove(set);
    }

    /// Removes sets nobody has used for long, until the rest fits, and the installer's downloads when they are too many.
    pub(crate) fn make_room(&self, downloads: Option<&Downloads>) {
        let mut sets = self.sets();
        let mut total = sets.iter().map(|set| set.bytes).sum::<u64>();
        sets.sort_by_key(|set| set.used);
        for set in sets {
            if total <= self.max_bytes {
                break;
            }
            if self.evict(&set.name) {
                total -= set.bytes;
            }
        }
        self.forget_old_answers();
        if let Some(downloads) = downloads {
            self.bound(downloads);
        }
    }

    fn bound(&self, downloads: &Downloads) {
        if size(&downloads.0) > self.max_bytes {
            let _ = sandbox::remove(&downloads.0);
        }
    }

    /// Says that a set is in use.
    fn hold(&self, set: &str) -> io::Result<Lease> {
        let mut file = None;
        if self.guarded {
            let mut tries = (0..LOCK_TRIES).map(|number| {
                std::thread::sleep(Duration::from_millis(u64::from(number > 0)));
                self.try_lock(set, FlockOperation::NonBlockingLockShared)
            });
            file = tries.find_map(|lock| lock);
            if file.is_none() {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "the lock of a set can't be had"));
            }
        }
        let token = lock(&self.uses).entry(set.to_owned()).or_default().clone();
        Ok(Lease { directory: PathBuf::new(), _use: token, _lock: file })
    }

    /// A lock between processes. None while somebody holds it otherwise, or takes it away.
    fn try_lock(&self, name: &str, operation: FlockOperation) -> Option<File> {
        let path = self.root.join(LOCKS).join(name);
        let open = || File::options().read(true).append(true).create(true).open(&path);
        let file = open().or_else(|_| {
            self.make_folders()?;
            let _ = folders::restore(&path, PRIVATE_FILE);
            open()
        });
        let file = file.ok()?;
        rustix::fs::flock(&file, operation).ok()?;
        // It may have been removed before it was locked.
        let is_there = rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_nlink > 0);
        is_there.then_some(file)
    }

    /// Removes a set that nobody uses.
    fn evict(&self, set: &str) -> bool {
        let mut uses = lock(&self.uses);
        if uses.get(set).is_some_and(|token| Arc::strong_count(token) > 1) {
            return false;
        }
        let lock = self.guarded.then(|| self.try_lock(set, FlockOperation::NonBlockingLockExclusive));
        if lock.as_ref().is_some_and(Option::is_none) {
            return false;
        }
        uses.remove(set);
        let away = self.take_away(set);
        if lock.is_some() {
            let _ = std::fs::remove_file(self.root.join(LOCKS).join(set));
        }
        drop((uses, lock));
        sandbox::remove(&away).is_ok()
    }

    fn discard(&self, set: &str) {
        let _ = sandbox::remove(&self.take_away(set));
    }

    /// Puts a set out of sight, so that nobody finds the half of it: where it is now.
    fn take_away(&self, set: &str) -> PathBuf {
        let (directory, away) = (self.directory(set), self.new_work());
        // A folder that its owner can't write to can't be moved to another one.
        let _ = folders::restore(&directory, 0o755);
        let moved = std::fs::rename(&directory, &away);
        let _ = std::fs::remove_file(self.mark_file(set));
        lock(&self.marks).remove(set);
        self.forget_bytecode(set);
        if moved.is_ok() { away } else { directory }
    }

    fn sets(&self) -> Vec<Set> {
        let entries = std::fs::read_dir(Self::sets_in(&self.root)).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let bytes = self.mark(&name).map(|mark| mark.bytes);
                let used = self.mark_file(&name).metadata().and_then(|metadata| metadata.modified());
                Some(Set {
                    bytes: bytes.unwrap_or_else(|| size(&entry.path())),
                    used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                    name,
                })
            })
            .collect()
    }

    /// What processes that have ended in the middle of an install have left.
    fn remove_left_work(&self) {
        for entry in std::fs::read_dir(self.work_root()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<i32>().ok());
            let is_left = || {
                folders::restore(&entry.path(), 0o700).ok()?;
                let lock = File::open(entry.path()).ok()?;
                rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).ok()
            };
            if pid.is_some_and(|pid| pid != sandbox::process_id()) && is_left().is_some() {
                let _ = sandbox::remove(&entry.path());
            }
        }
    }

    /// What is known of a set.
    fn mark(&self, set: &str) -> Option<Mark> {
        if !self.guarded {
            return lock(&self.marks).get(set).copied();
        }
        serde_json::from_slice(&self.read(&self.mark_file(set)).ok()?).ok()
    }

    fn keep_mark(&self, set: &str, mark: Mark) -> io::Result<()> {
        if !self.guarded {
            lock(&self.marks).insert(set.to_owned(), mark);
        }
        self.write(&self.mark_file(set), &serde_json::to_vec(&mark)?)
    }

    /// Reads a file of the server's own, also one that code has closed, or the way to it.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                self.make_folders()?;
                folders::restore(path, PRIVATE_FILE)?;
                std::fs::read(path)
            }
            _ => Err(error),
        })
    }

    /// Writes a file whole, whatever was in its place.
    fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let part = path.with_file_name(format!(".{}-{}", sandbox::process_id(), self.next.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&part, text)?;
        std::fs::rename(&part, path)
    }

    fn directory(&self, set: &str) -> PathBuf {
        Self::sets_in(&self.root).join(set)
    }

    fn mark_file(&self, set: &str) -> PathBuf {
        self.root.join(MARKS).join(set)
    }
}

struct Set {
    name: String,
    bytes: u64,
    used: SystemTime,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder by its name alone: no right to it is needed.
fn name(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty())
}

/// One of another user is no server that shares this folder.
fn is_alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
