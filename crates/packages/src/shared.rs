//! Sets that other environments have built: fetched from a store instead of installed, and kept there for the next.
//!
//! Rule: the store is a help, never a need. Whatever is wrong with it costs its patience at most, and is logged.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::{S3, Store};
use tokio::sync::OnceCell;

use crate::archive;

/// How long an object may take.
const PATIENCE: Duration = Duration::from_secs(10);
const PREFIX: &str = "code-interpreter/packages/v1";

/// A bucket, looked at when it is first needed.
pub(crate) struct SharedSets {
    bucket: Option<String>,
    store: OnceCell<Arc<dyn Store>>,
}

impl SharedSets {
    pub(crate) fn new(bucket: Option<String>) -> Self {
        Self { bucket, store: OnceCell::new() }
    }

    /// Puts the set into `target`; false when it has to be installed.
    pub(crate) async fn fetch(&self, set: &str, work: &Path, target: &Path, max_bytes: u64) -> bool {
        let Some(store) = self.store().await else { return false };
        let (started, file) = (Instant::now(), work.join("fetched.zip"));
        match store.fetch(&key(set), &file, max_bytes).await {
            Ok(false) => return false,
            Ok(true) => {}
            Err(error) => {
                tracing::warn!(set, %error, "a set could not be fetched; it is installed anew");
                return false;
            }
        }
        let (from, to) = (file.clone(), target.to_owned());
        let unpacked = tokio::task::spawn_blocking(move || archive::unpack(&from, &to, max_bytes)).await;
        match unpacked.unwrap_or_else(|error| Err(error.into())) {
            Ok(()) => {
                tracing::info!(set, seconds = started.elapsed().as_secs_f64(), "a set was fetched from the store");
                true
            }
            Err(error) => {
                tracing::warn!(set, %error, "a fetched set could not be unpacked; it is installed anew");
                let _ = sandbox::remove(target);
                let _ = std::fs::create_dir(target);
                false
            }
        }
    }

    /// Whether there is a place to keep sets.
    pub(crate) fn is_there(&self) -> bool {
        self.bucket.is_some()
    }

    /// Keeps what is in `folder` for others.
    pub(crate) async fn keep(&self, set: &str, folder: &Path, work: &Path) {
        let Some(store) = self.store().await else { return };
        let file = work.join("kept.zip");
        let (from, to) = (folder.to_owned(), file.clone());
        let packed = tokio::task::spawn_blocking(move || archive::pack(&from, &to)).await;
        let kept = match packed.unwrap_or_else(|error| Err(error.into())) {
            Ok(()) => store.keep(&key(set), &file).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match kept {
            Ok(kept) => tracing::info!(set, ?kept, "a set was offered to the store"),
            Err(error) => tracing::warn!(set, error, "a set could not be kept in the store"),
        }
    }

    async fn store(&self) -> Option<&Arc<dyn Store>> {
        let bucket = self.bucket.as_deref()?;
        let open = || async { Arc::new(S3::open(bucket, PATIENCE).await) as Arc<dyn Store> };
        Some(self.store.get_or_init(open).await)
    }
}

fn key(set: &str) -> String {
    format!("{PREFIX}/{set}.zip")
}
