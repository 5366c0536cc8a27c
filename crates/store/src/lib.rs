//! Where things outlive a process: a directory, or a bucket of S3.
//!
//! Rules: what comes out is what was put in, or an error: every object carries its SHA-256. An object is written once;
//! who comes second finds it there. Nothing waits longer than its patience.

mod digest;
mod directory;
mod s3;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

pub use directory::Directory;
pub use s3::S3;

/// A future that a trait object gives.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What became of an object that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is there now.
    New,
    /// It was there before; nothing was changed.
    AlreadyThere,
}

/// Why an object can't be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of ours could not be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The service refused, or did not answer in time.
    #[error("the store failed: {0}")]
    Service(String),
    /// It is not what was put there.
    #[error("the stored object {0} is damaged")]
    Damaged(String),
}

/// Keeps files by name.
pub trait Store: Send + Sync {
    /// Writes the object to the file `to`; false when there is none. Objects of more than `max_bytes` are refused.
    fn fetch<'a>(&'a self, key: &'a str, to: &'a Path, max_bytes: u64) -> Boxed<'a, Result<bool, StoreError>>;

    /// Keeps the file `from`, unless there is an object of that name.
    fn keep<'a>(&'a self, key: &'a str, from: &'a Path) -> Boxed<'a, Result<Kept, StoreError>>;
}
