//! Where things outlive a process: a bucket of S3.
//!
//! Rules: what comes out is what was put in, or an error: every object carries its SHA-256. An object is written once; who
//! comes second finds it there. Only one that was found to be damaged is written again, and only while it is that one.
//! Nothing waits longer than its patience.

mod digest;
mod s3;

pub use s3::S3;

/// What became of an object that was to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is there now.
    New,
    /// It was there before, or is another by now; nothing was changed.
    AlreadyThere,
}

/// What was found under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Nothing.
    Absent,
    /// The file, as it was put there.
    Whole(Version),
    /// Something that is not what was put there.
    Damaged(Version),
}

/// What an object was when it was seen: it is replaced only while it is that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub(crate) Option<String>);

/// Why an object can't be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of ours could not be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The service refused, or did not answer in time.
    #[error("the store failed: {0}")]
    Service(String),
    /// It is larger than whoever asked for it takes.
    #[error("the stored object {0} is larger than is taken here")]
    TooLarge(String),
}
