//! Removes what user code has left behind, however it has left it.
//!
//! Rule: everything goes by descriptor (see `beneath`), with the rights of the user whose files they are, in bounded time
//! and with a handful of descriptors. So code that is alive meanwhile can make a removal fail and never make it reach
//! elsewhere. What is left then is the caller's to quarantine and report.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::beneath;

/// How long a removal may take. A tree as large as a call may leave takes far less; code that makes files as fast as they
/// are removed is not waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Removes a file, or a directory with all that is in it: also one that is closed, deeper than a path can be long, or
/// deeper than a process can have descriptors. Links are removed and not followed. What is not there is no error.
///
/// # Errors
/// The system's reason for what is left.
pub fn remove(path: &Path) -> io::Result<()> {
    match split(path)? {
        Some((parent, name)) => remove_entry(&parent, name),
        None => Ok(()),
    }
}

/// The same with the rights of `user` for all that is in the directory, so that nothing can be removed which that user
/// could not. Only for a process that is root.
///
/// # Errors
/// As [`remove`].
pub fn remove_as(path: &Path, user: u32) -> io::Result<()> {
    let Some((parent, name)) = split(path)? else { return Ok(()) };
    // On a thread of its own: a thread's rights are taken away for good.
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("removal".to_owned()).spawn_scoped(scope, || {
            crate::supervisor::give_up_rights_of_thread(user)?;
            empty_entry(&parent, &c_string(name)?)
        });
        worker?.join().unwrap_or_else(|_| Err(io::Error::other("the removal panicked")))
    })?;
    // Now it is empty, or no directory: no more than this one name goes.
    remove_entry(&parent, name)
}

/// The directory a path is in, held open, and its name there; `None` when there is no such directory.
fn split(path: &Path) -> io::Result<Option<(OwnedFd, &OsStr)>> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    match beneath::first(path.parent().unwrap_or(Path::new(""))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        parent => Ok(Some((parent?, name))),
    }
}

fn remove_entry(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let name = c_string(name)?;
    match unlink(parent, &name)? {
        Entry::Gone => return Ok(()),
        Entry::Directory => {}
    }
    empty_entry(parent, &name)?;
    match rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Empties a directory; what is none, or not there, is left as it is.
fn empty_entry(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    match open(parent, name) {
        Ok(directory) => empty(&directory),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes all that is in the directory. Directories within directories are lifted up to it, one level at a time: so depth
/// costs neither a descriptor nor a longer path. Passes are repeated until one finds nothing: entries come in a directory
/// while it is read, lifted ones and those of code that is still alive.
fn empty(root: &OwnedFd) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut lifted = 0_u64;
    loop {
        let mut found = false;
        for entry in beneath::entries(root)? {
            found = true;
            let entry = entry?;
            let name = entry.file_name();
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "something keeps making files in it"));
            }
            if let Entry::Gone = unlink(root, name)? {
                continue;
            }
            match open(root, name) {
                Ok(directory) => lift(&directory, root, &mut lifted, deadline)?,
                // Another thing by now: the next pass looks at it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error.into()),
            }
            match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Removes the files in a directory, and moves the directories in it up to `root`.
fn lift(directory: &OwnedFd, root: &OwnedFd, lifted: &mut u64, deadline: Instant) -> io::Result<()> {
    for entry in beneath::entries(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Entry::Gone = unlink(directory, name)? {
            continue;
        }
        // A directory can only be moved by who may write to it.
        match open(directory, name) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error.into()),
        }
        while Instant::now() < deadline {
            let place = c_string(OsStr::new(&format!(".{}-{lifted}", crate::process_id())))?;
            *lifted += 1;
            match rustix::fs::renameat(directory, name, root, &place) {
                Ok(()) | Err(Errno::NOENT) => break,
                // The name is taken.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

enum Entry {
    Gone,
    Directory,
}

/// Removes an entry that is no directory.
fn unlink(parent: impl AsFd, name: &CStr) -> io::Result<Entry> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Entry::Gone),
        Err(Errno::ISDIR) => Ok(Entry::Directory),
        Err(error) => Err(error.into()),
    }
}

/// Opens a directory and, where that is needed, opens it up.
fn open(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let directory = match beneath::directory(&parent, name) {
        Err(Errno::ACCESS) => {
            let closed = beneath::closed_directory(&parent, name)?;
            beneath::set_mode(&closed, Mode::RWXU)?;
            beneath::again(&closed)?
        }
        other => other?,
    };
    // Of another user's it can't be set: then the removal says so.
    let _ = beneath::set_mode(&directory, Mode::RWXU);
    Ok(directory)
}

fn c_string(name: &OsStr) -> io::Result<CString> {
    Ok(CString::new(name.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn closed_linked_and_bottomless_directories_go() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("left");
        std::fs::create_dir_all(root.join("closed/within")).expect("made");
        std::fs::write(place.path().join("kept"), "").expect("made");
        std::os::unix::fs::symlink(place.path().join("kept"), root.join("closed/link")).expect("made");
        // Deeper than PATH_MAX and than the usual number of descriptors: made by lifting, too.
        let (chain, next) = (root.join("chain"), place.path().join("next"));
        std::fs::create_dir(&chain).expect("made");
        for _ in 0..3000 {
            std::fs::create_dir(&next).expect("made");
            std::fs::rename(&chain, next.join("a-directory-with-a-name")).expect("moved");
            std::fs::rename(&next, &chain).expect("moved");
        }
        std::fs::set_permissions(root.join("closed"), std::fs::Permissions::from_mode(0o000)).expect("closed");
        remove(&root).expect("all of it goes");
        assert!(!root.exists() && place.path().join("kept").exists());
        remove(&root).expect("what is not there is no error");
    }

    #[test]
    fn depth_costs_no_descriptors() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("left");
        std::fs::create_dir(&root).expect("made");
        let mut bottom = beneath::first(&root).expect("open");
        for _ in 0..15_000 {
            rustix::fs::mkdirat(&bottom, "d", Mode::RWXU).expect("made");
            bottom = beneath::closed_directory(&bottom, c"d").expect("open");
        }
        drop(bottom);
        let open = || std::fs::read_dir("/proc/self/fd").expect("a list").count();
        let (before, most, done) = (open(), std::sync::atomic::AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    most.fetch_max(open(), Ordering::Relaxed);
                }
            });
            remove(&root).expect("all of it goes");
            done.store(true, Ordering::Relaxed);
        });
        // Other tests of this process open some too.
        assert!(most.load(Ordering::Relaxed) < before + 100 && !root.exists());
    }

    /// The server deleted what a link pointed to: the fall-back for trees that a live process kept filling went by path.
    #[test]
    fn a_live_process_that_swaps_directories_for_links_gets_nothing_removed_elsewhere() {
        let place = tempfile::tempdir().expect("a directory");
        swap_while_removing(&place, &place.path().join("victim"));
        // Across two file systems.
        let elsewhere = tempfile::tempdir_in("/dev/shm").expect("a directory");
        swap_while_removing(&place, &elsewhere.path().join("victim"));
    }

    fn swap_while_removing(place: &tempfile::TempDir, victim: &Path) {
        use rustix::fs::{CWD, RenameFlags};
        std::fs::create_dir_all(victim.join("inner")).expect("made");
        std::fs::write(victim.join("inner/kept"), "").expect("made");
        std::fs::set_permissions(victim, std::fs::Permissions::from_mode(0o751)).expect("set");
        for _ in 0..200 {
            let root = place.path().join("left");
            std::fs::create_dir_all(root.join("a/b")).expect("made");
            std::os::unix::fs::symlink(victim, place.path().join("link")).expect("made");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let link = place.path().join("link");
                    for number in 0..100 {
                        // Keeps what is emptied from being empty, and puts the link in its place meanwhile.
                        let _ = std::fs::write(root.join(format!("a/{number}")), "");
                        let _ = rustix::fs::renameat_with(CWD, root.join("a/b"), CWD, &link, RenameFlags::EXCHANGE);
                        let _ = rustix::fs::renameat_with(CWD, root.join("a"), CWD, &link, RenameFlags::EXCHANGE);
                        let _ = std::fs::create_dir(root.join("a"));
                    }
                });
                let _ = remove(&root);
            });
            for left in ["left", "link"] {
                remove(&place.path().join(left)).expect("removed");
            }
            for left in 0..100 {
                // Written through the link by the other thread itself.
                let _ = std::fs::remove_file(victim.join(left.to_string()));
            }
            assert!(victim.join("inner/kept").exists());
            assert_eq!(victim.metadata().expect("there").permissions().mode() & 0o777, 0o751);
        }
    }

    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn with_a_users_rights_nothing_of_another_goes() {
        const USER: u32 = 64_999;
        let place = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o711)).expect("open");
        let root = place.path().join("left");
        std::fs::create_dir_all(root.join("of-the-user/deep")).expect("made");
        for path in [root.clone(), root.join("of-the-user"), root.join("of-the-user/deep")] {
            std::os::unix::fs::chown(path, Some(USER), Some(USER)).expect("given");
        }
        std::fs::create_dir(root.join("of-root")).expect("made");
        std::fs::write(root.join("of-root/kept"), "").expect("made");
        assert!(remove_as(&root, USER).is_err(), "what is in another's directory is not the user's to remove");
        assert!(root.join("of-root/kept").exists());
        std::fs::remove_dir_all(root.join("of-root")).expect("removed");
        remove_as(&root, USER).expect("all is the user's");
        assert!(!root.exists() && crate::is_root());
        std::fs::write(&root, "").expect("made");
        remove_as(&root, USER).expect("a file in a directory of root's goes by its name");
        assert!(!root.exists());
    }
}
