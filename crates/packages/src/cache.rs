//! Sets of packages on disk: a folder for each, named by what is in it.
//!
//! Rules: a folder in `sets/` is whole, because it was renamed there; it goes when nobody holds it and room is needed,
//! least recently used first. Where user code could write to it (as the server's own user, with no Landlock), a set is
//! used only while every file is as this process has seen it when it was made: what code can't set is a file's ctime.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::process::size;

/// The sets, and what is nobody else's to see.
const FOLDERS: [&str; 5] = ["sets", "work", "marks", "answers", "compiled"];
/// Folders of single processes, where code can write to them.
const OWN_PREFIX: &str = "of-";
/// After this long a set of requirements is resolved anew: newer versions may be out.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);

/// The folder of all sets.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    max_bytes: u64,
    /// Whether user code can't write here.
    guarded: bool,
    seals: Mutex<HashMap<String, [u8; 32]>>,
    answers: Mutex<HashMap<String, Answer>>,
    /// Sets whose bytecode this process has begun to compile.
    compiled: Mutex<HashSet<String>>,
    next: AtomicU64,
}

/// What a set of requirements came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// None when the stack has it all.
    pub(crate) set: Option<String>,
    /// Instead of the stack.
    pub(crate) separate: bool,
    /// `name==version`, of the set.
    pub(crate) packages: Vec<String>,
}

/// A set in use: it stays until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) directory: PathBuf,
    _lock: File,
}

/// A folder for one install; removed when dropped.
pub(crate) struct Work(pub(crate) PathBuf, #[expect(dead_code, reason = "held for its lock")] File);

impl Drop for Work {
    fn drop(&mut self) {
        let _ = sandbox::remove(&self.0);
    }
}

impl Drop for Cache {
    /// A folder of this process alone ends with it.
    fn drop(&mut self) {
        let Some(shared) = self.root.parent().filter(|_| !self.guarded) else { return };
        let _ = sandbox::remove(&self.root);
        // And what is empty around it.
        for folder in FOLDERS.map(|folder| shared.join(folder)).iter().map(PathBuf::as_path).chain([shared]) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl Cache {
    /// Where the sets are: what kernels must be able to read.
    pub(crate) fn sets_in(root: &Path) -> PathBuf {
        root.join(FOLDERS[0])
    }

    /// Opens the folder, and makes it where it is not there. Where user code can write to it, each process has an empty
    /// one of its own in it.
    pub(crate) fn open(root: &Path, max_bytes: u64, guarded: bool) -> io::Result<Self> {
        make(root)?;
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
            make(root)?;
        }
        let cache = Self {
            root: root.to_owned(),
            max_bytes,
            guarded,
            seals: Mutex::default(),
            answers: Mutex::default(),
            compiled: Mutex::default(),
            next: AtomicU64::new(0),
        };
        cache.remove_left_work();
        Ok(cache)
    }

    /// Whether user code can't write here.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// The only folder installers write to.
    pub(crate) fn work_root(&self) -> PathBuf {
        self.root.join("work")
    }

    /// A folder for one install, with an empty `target` in it.
    pub(crate) fn work(&self) -> io::Result<Work> {
        make(&self.root)?;
        let name = format!("{}-{}", sandbox::process_id(), self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.work_root().join(name);
        std::fs::create_dir(&path)?;
        // Its lock says that somebody works in it, also in another container.
        let lock = File::open(&path)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let work = Work(path, lock);
        std::fs::create_dir(work.0.join("target"))?;
        Ok(work)
    }

    /// What these requirements came to not long ago.
    pub(crate) fn answer(&self, requirements: &str) -> Option<Answer> {
        let known = self.answers().get(requirements).cloned();
        known.or_else(|| {
            let path = self.answer_file(requirements);
            let age = SystemTime::now().duration_since(path.metadata().ok()?.modified().ok()?).ok()?;
            let answer: Answer = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
            (self.guarded && age < REMEMBERED_FOR).then_some(answer)
        })
    }

    /// Remembers what these requirements came to.
    pub(crate) fn remember(&self, requirements: &str, answer: Answer) {
        if self.guarded {
            // As many as there are: each is a line. The file's age counts, also for other processes.
            let text = serde_json::to_vec(&answer).unwrap_or_default();
            let part = self.root.join("answers").join(format!(
                ".{}-{}",
                sandbox::process_id(),
                self.next.fetch_add(1, Ordering::Relaxed)
            ));
            let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, self.answer_file(requirements)));
            if let Err(error) = written {
                tracing::warn!(%error, "what requirements came to could not be written down");
            }
        } else {
            self.answers().insert(requirements.to_owned(), answer);
        }
    }

    /// Takes a set into use, if it is there and as it was made.
    pub(crate) fn lease(&self, set: &str) -> Option<Lease> {
        let directory = self.directory(set);
        let lock = File::open(&directory).ok()?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).ok()?;
        // It may have been moved away before it was locked.
        if directory.symlink_metadata().ok()?.ino() != lock.metadata().ok()?.ino() {
            return None;
        }
        if !self.guarded {
            let seal = self.seals().get(set).copied();
            if seal.is_none() || fingerprint(&directory).ok() != seal {
                tracing::warn!(set, "an installed set is not as it was made; it is installed anew");
                drop(lock);
                self.discard(set);
                return None;
            }
        }
        // Its age is how long ago it was used.
        let _ = File::open(self.mark(set)).and_then(|mark| mark.set_modified(SystemTime::now()));
        Some(Lease { directory, _lock: lock })
    }

    /// Makes what an installer has left in `target` a set.
    pub(crate) fn publish(&self, target: &Path, set: &str) -> io::Result<()> {
        open_for_reading(target)?;
        let seal = if self.guarded { None } else { Some(fingerprint_when_settled(target)?) };
        std::fs::write(self.mark(set), size(target).to_string())?;
        let place = self.directory(set);
        match std::fs::rename(target, &place) {
            Ok(()) => {}
            // Somebody else was faster, with the same content.
            Err(_) if place.is_dir() => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Some(seal) = seal {
            self.seals().insert(set.to_owned(), seal);
        }
        Ok(())
    }

    /// Whether a set's bytecode has yet to be compiled; true once. Never where code could write beside the compiler.
    pub(crate) fn takes_bytecode(&self, set: &str) -> bool {
        let mut begun = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        self.guarded && !self.root.join("compiled").join(set).exists() && begun.insert(set.to_owned())
    }

    /// Its bytecode is there, also for other processes.
    pub(crate) fn has_bytecode(&self, set: &str) {
        let _ = std::fs::write(self.root.join("compiled").join(set), "");
    }

    /// Removes sets nobody has used for long, until the rest fits, and the installers' downloads when they are too many.
    pub(crate) fn make_room(&self, downloads: Option<&Path>) {
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
        for entry in std::fs::read_dir(self.root.join("answers")).into_iter().flatten().flatten() {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            if changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > REMEMBERED_FOR)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        if let Some(downloads) = downloads
            && size(downloads) > self.max_bytes
        {
            let _ = sandbox::remove(downloads);
        }
    }

    /// Removes a set that nobody uses.
    fn evict(&self, set: &str) -> bool {
        let Ok(lock) = File::open(self.directory(set)) else { return false };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return false;
        }
        self.discard(set);
        true
    }

    fn discard(&self, set: &str) {
        // Out of sight first, so that nobody finds the half of it.
        let away = self.work_root().join(format!("{}-{}", sandbox::process_id(), self.next.fetch_add(1, Ordering::Relaxed)));
        if std::fs::rename(self.directory(set), &away).is_ok() {
            let _ = sandbox::remove(&away);
        }
        let _ = std::fs::remove_file(self.mark(set));
        let _ = std::fs::remove_file(self.root.join("compiled").join(set));
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).remove(set);
        self.seals().remove(set);
    }

    fn sets(&self) -> Vec<Set> {
        let entries = std::fs::read_dir(Self::sets_in(&self.root)).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let mark = self.mark(&name);
                let bytes = std::fs::read_to_string(&mark).ok().and_then(|text| text.parse().ok());
                let used = mark.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                Some(Set { bytes: bytes.unwrap_or_else(|| size(&entry.path())), used, name })
            })
            .collect()
    }

    /// What processes that have ended in the middle of an install have left.
    fn remove_left_work(&self) {
        for entry in std::fs::read_dir(self.work_root()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<i32>().ok());
            let is_left = || {
                let lock = File::open(entry.path()).ok()?;
                rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).ok()
            };
            if pid.is_some_and(|pid| pid != sandbox::process_id()) && is_left().is_some() {
                let _ = sandbox::remove(&entry.path());
            }
        }
    }

    fn directory(&self, set: &str) -> PathBuf {
        Self::sets_in(&self.root).join(set)
    }

    fn mark(&self, set: &str) -> PathBuf {
        self.root.join("marks").join(set)
    }

    fn answer_file(&self, requirements: &str) -> PathBuf {
        self.root.join("answers").join(requirements)
    }

    fn seals(&self) -> std::sync::MutexGuard<'_, HashMap<String, [u8; 32]>> {
        self.seals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Set {
    name: String,
    bytes: u64,
    used: SystemTime,
}

/// One of another user is no server that shares this folder.
fn is_alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// Makes the folders, and refuses one that others can write to.
pub(crate) fn make(root: &Path) -> io::Result<()> {
    let folder = |path: &Path, mode: u32| {
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        let metadata = path.symlink_metadata()?;
        if !metadata.is_dir() || metadata.uid() != sandbox::user_id() || metadata.mode() & 0o022 != 0 {
            let text = format!("{} must be a folder of the server's user that nobody else can write to", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        // Whatever the umask left.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    // Passed through by kernels of other users, and listed by nobody: names of sets are not theirs to see.
    folder(root, 0o711)?;
    folder(&Cache::sets_in(root), 0o711)?;
    for private in &FOLDERS[1..] {
        folder(&root.join(private), 0o700)?;
    }
    Ok(())
}

fn open_for_reading(folder: &Path) -> io::Result<()> {
    walk(folder, &mut |path, metadata| {
        if metadata.is_symlink() {
            // A wheel has none; one that leads out of the set would be a door.
            return std::fs::remove_file(path);
        }
        let mode = if metadata.is_dir() { 0o755 } else { 0o644 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    })
}

/// The fingerprint, once the clock of the file system has moved on: a later change then shows.
fn fingerprint_when_settled(folder: &Path) -> io::Result<[u8; 32]> {
    // The kernel stamps files by its tick, which is 10 ms at most.
    std::thread::sleep(Duration::from_millis(20));
    fingerprint(folder)
}

/// Of every file's place, identity, size, mode and last change of any kind.
fn fingerprint(folder: &Path) -> io::Result<[u8; 32]> {
    let mut files = Vec::new();
    walk(folder, &mut |path, metadata| {
        // Moving the set to its place changes its own folder.
        let changed = if path == folder { (0, 0) } else { (metadata.ctime(), metadata.ctime_nsec()) };
        let inner = path.strip_prefix(folder).unwrap_or(path).to_owned();
        files.push((inner, metadata.ino(), metadata.size(), metadata.mode(), changed));
        Ok(())
    })?;
    files.sort();
    Ok(Sha256::digest(format!("{files:?}")).into())
}

fn walk(path: &Path, visit: &mut dyn FnMut(&Path, &std::fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    visit(path, &metadata)?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            walk(&entry?.path(), visit)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(root: &Path, max_bytes: u64, guarded: bool) -> Cache {
        Cache::open(&root.join("packages"), max_bytes, guarded).expect("a cache")
    }

    fn install(cache: &Cache, set: &str) {
        let work = cache.work().expect("a folder");
        std::fs::write(work.0.join("target/module.py"), vec![b'#'; 100_000]).expect("written");
        cache.publish(&work.0.join("target"), set).expect("published");
    }

    #[test]
    fn the_least_recently_used_set_goes_and_never_one_in_use() {
        let root = tempfile::tempdir().expect("a folder");
        let cache = cache(root.path(), 250_000, true);
        for set in ["a", "b", "c"] {
            install(&cache, set);
            let old = SystemTime::now() - Duration::from_secs(1000 - u64::from(set.as_bytes()[0]));
            File::open(cache.mark(set)).and_then(|mark| mark.set_modified(old)).expect("aged");
        }
        let held = cache.lease("a").expect("it is there");
        File::open(cache.mark("a")).and_then(|mark| mark.set_modified(SystemTime::UNIX_EPOCH)).expect("aged");
        cache.make_room(None);
        assert!(cache.lease("a").is_some(), "it was in use");
        assert!(cache.lease("b").is_none(), "it was the oldest that was not");
        assert!(cache.lease("c").is_some());
        drop(held);
    }

    #[test]
    fn an_install_that_was_broken_off_leaves_nothing_that_can_be_seen() {
        let root = tempfile::tempdir().expect("a folder");
        let first = cache(root.path(), 1 << 30, true);
        let left = first.work_root().join("999999999-0/target");
        std::fs::create_dir_all(&left).expect("made");
        assert!(first.sets().is_empty());
        let again = cache(root.path(), 1 << 30, true);
        assert!(!left.exists() && again.sets().is_empty());
    }

    #[test]
    fn a_set_that_code_has_written_to_is_not_used_again() {
        let root = tempfile::tempdir().expect("a folder");
        let cache = cache(root.path(), 1 << 30, false);
        install(&cache, "a");
        assert!(cache.lease("a").is_some());
        let file = cache.directory("a").join("module.py");
        let before = file.metadata().expect("there").modified().expect("a time");
        let mut content = std::fs::read(&file).expect("read");
        content[0] = b'!';
        std::fs::write(&file, content).expect("written");
        // What code would do to hide it.
        File::options().write(true).open(&file).and_then(|file| file.set_modified(before)).expect("set back");
        assert!(cache.lease("a").is_none());
        assert!(!file.exists(), "it is gone");
        install(&cache, "a");
        std::fs::write(cache.directory("a").join("added.py"), "").expect("written");
        assert!(cache.lease("a").is_none());
    }

    #[test]
    fn what_somebody_else_can_write_to_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let open = root.path().join("packages");
        std::fs::create_dir(&open).expect("made");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("opened");
        assert!(Cache::open(&open, 1, true).expect_err("refused").to_string().contains("nobody else can write"));
    }

    #[test]
    fn answers_are_remembered_across_restarts_only_where_code_cannot_write_them() {
        let root = tempfile::tempdir().expect("a folder");
        let answer = Answer { set: None, separate: false, packages: vec!["a==1".to_owned()] };
        for guarded in [true, false] {
            let first = cache(root.path(), 1, guarded);
            first.remember("key", answer.clone());
            assert_eq!(first.answer("key"), Some(answer.clone()));
            assert_eq!(cache(root.path(), 1, guarded).answer("key").is_some(), guarded);
        }
    }
}
