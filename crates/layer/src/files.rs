//! Files of a tree, in an order that does not change.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::BuildError;

/// One file, folder or link.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) is_dir: bool,
    pub(crate) is_link: bool,
    /// Bytes of a file; what a link takes is its target's name.
    pub(crate) size: u64,
    pub(crate) mode: u32,
}

impl Entry {
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn is_file(&self) -> bool {
        !self.is_dir && !self.is_link
    }
}

/// Everything below `root`, a folder before what is in it, sorted by name. A folder that is removed meanwhile is empty.
pub(crate) fn walk(root: &Path) -> Result<impl Iterator<Item = Entry>, BuildError> {
    let mut waiting = entries(root).map_err(BuildError::io(root))?;
    let mut folder: Option<PathBuf> = None;
    Ok(std::iter::from_fn(move || {
        if let Some(folder) = folder.take() {
            waiting.extend(entries(&folder).unwrap_or_default());
        }
        let entry = waiting.pop()?;
        folder = entry.is_dir.then(|| entry.path.clone());
        Some(entry)
    }))
}

/// The last by name first.
fn entries(directory: &Path) -> std::io::Result<Vec<Entry>> {
    let mut entries = std::fs::read_dir(directory)?
        .map(|entry| {
            let path = entry?.path();
            let metadata = path.symlink_metadata()?;
            Ok(Entry {
                is_dir: metadata.is_dir(),
                is_link: metadata.is_symlink(),
                size: metadata.len(),
                mode: metadata.permissions().mode() & 0o777,
                path,
            })
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by(|a, b| b.path.cmp(&a.path));
    Ok(entries)
}

/// Bytes of all files below `root`.
pub(crate) fn size(root: &Path) -> Result<u64, BuildError> {
    Ok(walk(root)?.filter(|entry| !entry.is_dir).map(|entry| entry.size).sum())
}
