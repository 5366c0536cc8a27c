//! What outlives a call in a function: its temporary directory, System V objects and keys.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox::Leftovers;

/// What is wiped after each call, and what of it stays.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    /// The engine's own, and the packages', which are checked before each use.
    keep: [PathBuf; 2],
    /// What is wiped besides.
    leftovers: Leftovers,
    user: u32,
    /// Since it was last clean.
    code_ran: AtomicBool,
}

impl Workspace {
    /// `keep`: the directories of the engine and the packages. None where wiping could hit somebody else's files: outside of a function, or as root.
    pub(crate) fn of_function(keep: [&Path; 2]) -> Option<Self> {
        let in_function = std::env::var_os("LAMBDA_TASK_ROOT").is_some() && !sandbox::is_root();
        in_function.then(|| Self {
            root: std::env::temp_dir(),
            keep: keep.map(Path::to_owned),
            leftovers: Leftovers::of_this_machine(),
            user: sandbox::user_id(),
            code_ran: AtomicBool::new(false),
        })
    }

    /// What is wiped besides files.
    pub(crate) fn leftovers(&self) -> Leftovers {
        self.leftovers
    }

    /// Whether code has run since it was last clean; from here on it may have.
    pub(crate) fn code_may_have_run(&self) -> bool {
        self.code_ran.swap(true, Ordering::AcqRel)
    }

    /// Removes all that this user has left. Blocks.
    pub(crate) fn wipe(&self) -> io::Result<()> {
        let mut result = self.leftovers.remove(self.user);
        for entry in std::fs::read_dir(&self.root)? {
            let path = entry?.path();
            if self.keep.contains(&path) {
                continue;
            }
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.uid() == self.user {
                result = result.and(sandbox::remove(&path));
            }
        }
        if result.is_ok() {
            self.code_ran.store(false, Ordering::Release);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn everything_goes_but_what_is_the_engines() {
        let root = tempfile::tempdir().expect("a directory");
        let keep = root.path().join("engine");
        let closed = root.path().join("closed/within");
        for directory in [&keep, &closed, &root.path().join("open")] {
            std::fs::create_dir_all(directory).expect("a directory");
            std::fs::write(directory.join("file"), "left").expect("a file");
        }
        let outside = tempfile::NamedTempFile::new().expect("a file");
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).expect("a link");
        for directory in [closed.clone(), root.path().join("closed")] {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o0)).expect("a closed directory");
        }
        let workspace = Workspace {
            root: root.path().to_owned(),
            keep: [keep.clone(), root.path().join("packages")],
            leftovers: Leftovers { system_v: false, keys: false },
            user: sandbox::user_id(),
            code_ran: AtomicBool::new(false),
        };
        assert!(!workspace.code_may_have_run() && workspace.code_may_have_run());
        workspace.wipe().expect("all of it can be removed");
        let left = std::fs::read_dir(root.path()).expect("a directory").flatten().map(|entry| entry.path());
        assert_eq!(left.collect::<Vec<_>>(), std::slice::from_ref(&keep));
        assert!(keep.join("file").exists() && outside.path().exists(), "a link is removed, not what it points to");
        assert!(!workspace.code_may_have_run(), "it is clean again");
        let other = Workspace { user: sandbox::user_id() + 1, ..workspace };
        std::fs::write(root.path().join("of-another-user"), "").expect("a file");
        other.wipe().expect("nothing to do");
        assert!(root.path().join("of-another-user").exists());
    }
}
