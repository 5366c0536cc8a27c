//! What a door knows about one request that its tools must keep to.
//!
//! Rule: a door that needs more than the request itself puts an [`Invocation`] among the request's extensions; a door
//! that puts none has no deadline and nothing to guard.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A future behind a pointer.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What has to hold while user code runs.
pub trait Guard: Send + Sync {
    /// Comes back when user code waits for the answer to be opened; where it never does, not at all.
    fn wanted(&self) -> Boxed<'_, ()>;
    /// Comes back when user code may run, with what its caller should know of what holds.
    fn before_code(&self) -> Boxed<'_, Result<Option<String>, String>>;
    /// Comes back when nothing is left of what ran, and before its answer is given.
    fn after_code(&self) -> Boxed<'_, ()>;
}

/// One request as its door sees it.
#[derive(Clone)]
pub struct Invocation {
    /// When the answer must have been given.
    pub deadline: Instant,
    /// What has to hold.
    pub guard: Arc<dyn Guard>,
}

impl Invocation {
    /// What the answer itself needs of the time.
    const ANSWER: Duration = Duration::from_millis(1500);

    /// When user code must have ended.
    pub(crate) fn latest_end(&self) -> Instant {
        self.deadline.checked_sub(Self::ANSWER).unwrap_or(self.deadline)
    }
}
