//! What a kernel has to itself: a directory and, where the server is root, a user.
//!
//! A kernel that has a root of its own finds two directories of it there, one for its work and one for what is temporary;
//! where it has none, it works in the directory itself.
//!
//! Rule: both come back only when nothing of the kernel is alive, and a directory leaves nothing behind, also when the
//! code took away its own rights to it. What can't be removed is used by nobody until it could be; where something of the
//! kernel may be alive, by nobody again. Both are counted.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::state_dir::{Remains, StateDir};
use crate::users::KernelUser;

/// More files than this in its directory and a call is ended: each look at them must stay short.
pub(crate) const MAX_FILES: usize = 20_000;

/// As `namespaces.py` finds them.
const WORK: &str = "data";
const TEMPORARY: &str = "tmp";

/// Who may do what in the directory that all homes are in: pass, and see nothing.
const STATE_MODE: u32 = 0o711;

/// A kernel's directory and user; dropping it removes the one and frees the other.
#[derive(Debug)]
pub(crate) struct Home {
    name: String,
    directory: PathBuf,
    user: Option<KernelUser>,
    own_root: bool,
    /// Goes after the last home in it.
    state: Arc<StateDir>,
}

impl Home {
    /// Makes the directory, readable for its user alone.
    pub(crate) fn make(state: &Arc<StateDir>, name: &str, user: Option<KernelUser>, own_root: bool) -> io::Result<Self> {
        let directory = state.path().join(name);
        // Known before it is there: a purge leaves it alone.
        state.homes().insert(name.to_owned());
        if let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            state.homes().remove(name);
            return Err(error);
        }
        // Nobody's until all of it is the user's: what fails before is removed with rights of our own.
        let mut home = Self { name: name.to_owned(), directory, user: None, own_root, state: state.clone() };
        let within: &[&str] = if own_root { &[WORK, TEMPORARY] } else { &[] };
        for name in within {
            std::fs::DirBuilder::new().mode(0o700).create(home.directory.join(name))?;
        }
        if let Some(user) = &user {
            for name in within.iter().chain(&[""]) {
                chown(home.directory.join(name), Some(user.id), Some(user.id))?;
            }
        }
        home.user = user;
        Ok(home)
    }

    /// Something of the kernel may be alive: its directory stays, and nobody gets its user any more.
    pub(crate) fn quarantine(self) {
        let mut home = std::mem::ManuallyDrop::new(self);
        home.state.given_up.fetch_add(1, Ordering::Relaxed);
        std::mem::forget(home.user.take());
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// Where the code works, and leaves its files.
    pub(crate) fn work(&self) -> PathBuf {
        if self.own_root { self.directory.join(WORK) } else { self.directory.clone() }
    }

    /// The user's id; `None` when the kernel runs as the server's own user.
    pub(crate) fn user(&self) -> Option<u32> {
        self.user.as_ref().map(|user| user.id)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.state.remove(Remains { directory: std::mem::take(&mut self.directory), user: self.user.take() });
        self.state.homes().remove(&self.name);
    }
}

/// Makes the directory of all homes what it must be, should code of the server's own user have changed it.
pub(crate) fn mend_state_directory(directory: &Path) -> io::Result<()> {
    for (path, mode) in [(directory.to_owned(), STATE_MODE), (directory.join(crate::tree::MATPLOTLIB), 0o755)] {
        let found = match path.symlink_metadata() {
            // A purge makes it anew in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        if found.is_dir() && found.permissions().mode() & 0o777 != mode {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_never_started_leaves_no_directory() {
        let state = Arc::new(StateDir::make().expect("a directory"));
        let home = Home::make(&state, "k1", None, true).expect("a home");
        let path = home.path().to_owned();
        std::fs::create_dir_all(path.join("a/b")).expect("made");
        std::fs::set_permissions(path.join("a"), std::fs::Permissions::from_mode(0o000)).expect("closed");
        drop(home);
        assert!(!path.exists());
    }

    /// C15: its directory and its user went to the next call.
    #[test]
    fn what_could_not_be_ended_is_used_by_nobody_again() {
        let state = Arc::new(StateDir::make().expect("a directory"));
        let home = Home::make(&state, "k1", None, true).expect("a home");
        let path = home.path().to_owned();
        home.quarantine();
        assert!(path.exists());
        assert_eq!(state.quarantined(), 1);
        let again = Home::make(&state, "k1", None, true).expect_err("it is there");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    /// A short lack of descriptors took every user of a server for good.
    #[test]
    fn what_can_not_be_removed_is_tried_again_and_used_then() {
        let state = Arc::new(StateDir::make().expect("a directory"));
        let home = Home::make(&state, "k1", None, true).expect("a home");
        let path = home.path().to_owned();
        // No directory, and so refused.
        std::fs::remove_dir_all(&path).expect("removed");
        let elsewhere = state.path().with_extension("moved");
        std::fs::rename(state.path(), &elsewhere).expect("moved");
        std::fs::write(state.path(), "").expect("a file in its place");
        drop(home);
        assert_eq!(state.quarantined(), 1);
        state.remove_what_remains();
        assert_eq!(state.quarantined(), 1, "it still can't be");
        std::fs::remove_file(state.path()).expect("removed");
        std::fs::rename(&elsewhere, state.path()).expect("moved back");
        state.remove_what_remains();
        assert_eq!((state.quarantined(), path.exists()), (0, false));
        Home::make(&state, "k1", None, true).expect("its place is free");
    }

    /// Code of an ordinary user's server closed it, and no call worked any more.
    #[test]
    fn a_state_directory_that_was_closed_is_mended() {
        let state = Arc::new(StateDir::make().expect("a directory"));
        let matplotlib = state.path().join(crate::tree::MATPLOTLIB);
        std::fs::create_dir(&matplotlib).expect("made");
        for path in [matplotlib.as_path(), state.path()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).expect("closed");
        }
        mend_state_directory(state.path()).expect("mended");
        std::fs::read_dir(&matplotlib).expect("it can be read");
        Home::make(&state, "k1", None, true).expect("a home");
    }
}
