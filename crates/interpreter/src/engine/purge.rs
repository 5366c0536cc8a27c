//! A clean start between two calls, where user code is of the server's own user and nothing keeps it out of the engine's
//! directory: in a Lambda function.
//!
//! Rule: whatever existed while code ran may have been touched by it. Spare kernels end, and everything in the directory
//! is made anew.

use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use crate::state_dir::StateDir;
use crate::tree::MATPLOTLIB;

/// The end of a kernel that is removed meanwhile.
const TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

impl Engine {
    /// Ends all spare kernels and empties the engine's directory, also of what code has given the names of kernels to come.
    /// Call it when no cell runs; kernels that are started from here on are not touched.
    ///
    /// # Errors
    /// When something can't be removed or made anew: then the engine can't promise a clean call any more.
    pub async fn purge(&self) -> io::Result<()> {
        let inner = &self.inner;
        let bounds = inner.bounds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if bounds.iter().any(|(pid, bounds)| sandbox::bounds_of(*pid).is_some_and(|now| now != *bounds)) {
            return Err(io::Error::other("limits, niceness or processors of the engine's own processes were changed"));
        }
        // In this order: a kernel that is begun with from here on has a directory that stays, and a pool that takes it.
        let horizon = inner.next_id.load(Ordering::Acquire);
        inner.pools.iter().for_each(|pool| pool.clear());
        inner.epoch.send_modify(|epoch| *epoch += 1);
        let (state, prebuilt) = (inner.state_dir.clone(), inner.tree.matplotlib());
        let mut result = Ok(());
        for _ in 0..TRIES {
            let (state, prebuilt) = (state.clone(), prebuilt.clone());
            let work = move || empty(&state, horizon).and_then(|()| configure_matplotlib(state.path(), &prebuilt));
            result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
            if result.is_ok() {
                break;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        result
    }
}

/// Removes all but the directories of kernels from `horizon` on.
fn empty(state: &StateDir, horizon: u64) -> io::Result<()> {
    let root = state.path();
    match root.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => std::fs::remove_file(root)?,
        Err(_) => {}
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(root)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(root, open)?;
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let is_new = |name: &str| {
            let id = name.strip_prefix('k').and_then(|id| id.parse::<u64>().ok());
            id.is_some_and(|id| id >= horizon) && state.homes().contains(name)
        };
        if !entry.file_name().to_str().is_some_and(is_new) {
            sandbox::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// What the zygotes' matplotlib reads its fonts from, as they have made it.
pub(super) fn configure_matplotlib(root: &Path, prebuilt: &Path) -> io::Result<()> {
    let directory = root.join(MATPLOTLIB);
    std::fs::create_dir(&directory)?;
    for entry in std::fs::read_dir(prebuilt).into_iter().flatten().flatten() {
        symlink(entry.path(), directory.join(entry.file_name()))?;
    }
    Ok(())
}
