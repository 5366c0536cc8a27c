//! Objects as files of a directory: for a single machine.

use std::path::{Path, PathBuf};

use crate::{Boxed, Kept, Store, StoreError, digest};

/// A directory of objects, each with its digest in a file beside it.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Objects below `root`, which is made when it is first needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The object and its digest.
    fn files(&self, key: &str) -> (PathBuf, PathBuf) {
        (self.root.join(key), self.root.join(format!("{key}.sha256")))
    }
}

impl Store for Directory {
    fn fetch<'a>(&'a self, key: &'a str, to: &'a Path, max_bytes: u64) -> Boxed<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let (object, wanted) = self.files(key);
            let size = match object.metadata() {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let damaged = || StoreError::Damaged(key.to_owned());
            let wanted = std::fs::read_to_string(wanted).map_err(|_| damaged())?;
            if size > max_bytes {
                return Err(damaged());
            }
            std::fs::copy(object, to)?;
            if digest::of_file(to).await? == wanted { Ok(true) } else { Err(damaged()) }
        })
    }

    fn keep<'a>(&'a self, key: &'a str, from: &'a Path) -> Boxed<'a, Result<Kept, StoreError>> {
        Box::pin(async move {
            let (object, wanted) = self.files(key);
            if object.exists() {
                return Ok(Kept::AlreadyThere);
            }
            std::fs::create_dir_all(object.parent().unwrap_or(&self.root))?;
            std::fs::write(wanted, digest::of_file(from).await?)?;
            // Copied beside its place, so that an object is whole or not there; linked, so that the second finds the first.
            let part = tempfile_beside(&object);
            std::fs::copy(from, &part)?;
            let linked = std::fs::hard_link(&part, &object);
            std::fs::remove_file(&part)?;
            match linked {
                Ok(()) => Ok(Kept::New),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Kept::AlreadyThere),
                Err(error) => Err(error.into()),
            }
        })
    }
}

fn tempfile_beside(object: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    object.with_extension(format!("part-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_kept_comes_back_and_damage_is_seen() {
        let root = tempfile::tempdir().expect("a directory");
        let file = |name: &str| root.path().join(name);
        let store = Directory::new(file("store"));
        std::fs::write(file("a"), "content").expect("written");
        assert!(!store.fetch("x/a", &file("b"), 100).await.expect("answered"));
        assert_eq!(store.keep("x/a", &file("a")).await.expect("kept"), Kept::New);
        assert_eq!(store.keep("x/a", &file("a")).await.expect("kept"), Kept::AlreadyThere);
        assert!(store.fetch("x/a", &file("b"), 100).await.expect("answered"));
        assert_eq!(std::fs::read_to_string(file("b")).expect("read"), "content");
        assert!(matches!(store.fetch("x/a", &file("b"), 3).await, Err(StoreError::Damaged(_))));
        std::fs::write(file("store/x/a"), "cont").expect("written");
        assert!(matches!(store.fetch("x/a", &file("b"), 100).await, Err(StoreError::Damaged(_))));
    }
}
