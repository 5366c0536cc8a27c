//! Sets that other environments have built: fetched from a store instead of installed, and kept there for the next.
//!
//! Rule: the store is a help, never a need. Whatever is wrong with it costs its patience at most, and is logged.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use store::{Fetched, S3, StoreError, Version};
use tokio::sync::OnceCell;

use crate::archive;

/// How long an object may take.
const PATIENCE: Duration = Duration::from_secs(10);
const PREFIX: &str = "code-interpreter/packages/v1";

/// What the store has of a set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offered {
    /// All of it: it was unpacked.
    Set,
    /// Nothing, or nothing that could be had in time.
    Nothing,
    /// What nobody can use.
    Damaged(Version),
}

/// A bucket, looked at when it is first needed.
pub(crate) struct SharedSets {
    bucket: Option<String>,
    store: OnceCell<S3>,
}

impl SharedSets {
    pub(crate) fn new(bucket: Option<String>) -> Self {
        Self { bucket, store: OnceCell::new() }
    }

    /// Puts the set into `target`, where the store has it.
    pub(crate) async fn fetch(&self, set: &str, work: &Path, target: &Path, max_bytes: u64) -> Offered {
        let Some(store) = self.store().await else { return Offered::Nothing };
        let (started, file) = (Instant::now(), work.join("fetched.zip"));
        let version = match store.fetch(&key(set), &file, max_bytes).await {
            Ok(Fetched::Whole(version)) => version,
            Ok(Fetched::Absent) => return Offered::Nothing,
            Ok(Fetched::Damaged(version)) => {
                tracing::warn!(set, "a stored set is damaged; it is installed anew and replaced");
                return Offered::Damaged(version);
            }
            Err(error) => {
                tracing::warn!(set, %error, "a set could not be fetched; it is installed anew");
                return Offered::Nothing;
            }
        };
        let (from, to) = (file.clone(), target.to_owned());
        let unpacked = tokio::task::spawn_blocking(move || {
            archive::unpack(&from, &to, max_bytes).inspect_err(|_| {
                let _ = sandbox::remove(&to);
                let _ = std::fs::create_dir(&to);
            })
        });
        match unpacked.await.unwrap_or_else(|error| Err(error.into())) {
            Ok(()) => {
                tracing::info!(set, seconds = started.elapsed().as_secs_f64(), "a set was fetched from the store");
                Offered::Set
            }
            Err(error) => {
                tracing::warn!(set, %error, "a fetched set could not be unpacked; it is installed anew");
                // A full disk here is no fault of what is there.
                if error.kind() == ErrorKind::InvalidData { Offered::Damaged(version) } else { Offered::Nothing }
            }
        }
    }

    /// Whether there is a place to keep sets.
    pub(crate) fn is_there(&self) -> bool {
        self.bucket.is_some()
    }

    /// Keeps what is in `folder` for others, unless it is there; in the place of what was offered, when that is damaged.
    pub(crate) async fn keep(&self, set: &str, folder: &Path, work: &Path, offered: &Offered) {
        let Some(store) = self.store().await else { return };
        let file = work.join("kept.zip");
        let (from, to) = (folder.to_owned(), file.clone());
        let packed = tokio::task::spawn_blocking(move || archive::pack(&from, &to)).await;
        let damaged = if let Offered::Damaged(version) = offered { Some(version) } else { None };
        let kept = match packed.unwrap_or_else(|error| Err(error.into())) {
            Ok(()) => store.keep(&key(set), &file, damaged).await,
            Err(error) => Err(StoreError::Io(error)),
        };
        match kept {
            Ok(kept) => tracing::info!(set, ?kept, "a set was offered to the store"),
            Err(error) => tracing::warn!(set, %error, "a set could not be kept in the store"),
        }
    }

    async fn store(&self) -> Option<&S3> {
        let bucket = self.bucket.as_deref()?;
        Some(self.store.get_or_init(|| S3::open(bucket, PATIENCE)).await)
    }
}

fn key(set: &str) -> String {
    format!("{PREFIX}/{set}.zip")
}
