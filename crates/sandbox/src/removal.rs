//! Removes what user code has left behind, however it has left it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Removes a file, or a directory with all that is in it: also one that is closed, deeper than a path can be long, or
/// deeper than a process can have descriptors. Links are removed and not followed. What is not there is no error.
///
/// # Errors
/// The system's reason for what is left.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path).or_else(|_| remove_flattened(path)),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Lifts the directories within directories up to the top, one level at a time: every path stays short.
fn remove_flattened(root: &Path) -> io::Result<()> {
    let mut lifted = 0_u64;
    open(root)?;
    loop {
        let mut directories = 0;
        for child in std::fs::read_dir(root)? {
            let child = child?;
            if !child.file_type()?.is_dir() {
                std::fs::remove_file(child.path())?;
                continue;
            }
            directories += 1;
            open(&child.path())?;
            for grandchild in std::fs::read_dir(child.path())? {
                let grandchild = grandchild?;
                if grandchild.file_type()?.is_dir() {
                    open(&grandchild.path())?;
                    let place = root.join(format!(".{}-{lifted}", crate::process_id()));
                    std::fs::rename(grandchild.path(), place)?;
                    lifted += 1;
                } else {
                    std::fs::remove_file(grandchild.path())?;
                }
            }
            std::fs::remove_dir(child.path())?;
        }
        if directories == 0 {
            return std::fs::remove_dir(root);
        }
    }
}

fn open(directory: &Path) -> io::Result<()> {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
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
        remove_flattened(&root).expect("all of it goes");
        assert!(!root.exists() && place.path().join("kept").exists());
        remove(&root).expect("what is not there is no error");
    }
}
