//! One request for work, as its door sees it.
//!
//! Rule: nothing runs but for a [`Call`], and all that has to hold while it runs comes with it: who asks, until when, what
//! takes it back, and what guards it. A route gets the call of its request and makes none of its own; where a guard is due
//! and a call has none, the service refuses to run anything for it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, select_all};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio_util::sync::CancellationToken;

/// What the answer itself needs of the time.
const ANSWER: Duration = Duration::from_millis(1500);

/// What has to hold while user code runs.
pub trait Guard: Send + Sync {
    /// Comes back when user code waits for the answer to be opened; where it never does, not at all.
    fn wanted(&self) -> BoxFuture<'_, ()>;
    /// Comes back when user code may run, with what its caller should know of what holds.
    fn before_code(&self) -> BoxFuture<'_, Result<Option<String>, String>>;
    /// Comes back when nothing is left of what ran, and before its answer is given.
    fn after_code(&self) -> BoxFuture<'_, ()>;
}

/// Where a call came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// `code-interpreter run` and `doctor`.
    CommandLine,
    /// Standard input and output.
    Stdio,
    /// HTTP.
    Http,
    /// A Lambda function's events.
    Lambda,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Principal {
    /// Nobody has said who it is.
    #[default]
    Anonymous,
    /// Somebody whom the door, or who stands before it, has verified.
    Named(String),
}

/// One request for work.
#[derive(Clone)]
pub struct Call {
    id: String,
    door: Door,
    principal: Principal,
    tenant: Option<String>,
    deadline: Option<Instant>,
    taken_back: Vec<CancellationToken>,
    guard: Option<Arc<dyn Guard>>,
}

impl Call {
    /// A call of nobody in particular, with all the time there is, nothing that takes it back and nothing that guards it.
    pub fn new(door: Door) -> Self {
        let id = new_id();
        Self { id, door, principal: Principal::Anonymous, tenant: None, deadline: None, taken_back: Vec::new(), guard: None }
    }

    /// The same under the id that its door knows it by.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Self {
        Self { id: id.into(), ..self }
    }

    /// The same by somebody.
    #[must_use]
    pub fn by(self, principal: Principal) -> Self {
        Self { principal, ..self }
    }

    /// The same for a tenant.
    #[must_use]
    pub fn of_tenant(self, tenant: Option<String>) -> Self {
        Self { tenant, ..self }
    }

    /// The same with a time at which the answer must have been given.
    #[must_use]
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// The same, guarded.
    #[must_use]
    pub fn guarded(self, guard: Arc<dyn Guard>) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// The same, and one more that takes it back.
    #[must_use]
    pub(crate) fn ended_by(mut self, token: CancellationToken) -> Self {
        self.taken_back.push(token);
        self
    }

    /// By what logs and callers know it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it came in.
    pub fn door(&self) -> Door {
        self.door
    }

    /// Who asks.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// For whom.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    pub(crate) fn is_guarded(&self) -> bool {
        self.guard.is_some()
    }

    /// When user code must have ended.
    pub(crate) fn latest_end(&self) -> Option<Instant> {
        self.deadline.map(|deadline| deadline.checked_sub(ANSWER).unwrap_or(deadline))
    }

    /// What it says when it has done the work; none when it is taken back before. The work is then dropped.
    pub(crate) async fn unless_taken_back<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if self.taken_back.is_empty() {
            return Some(work.await);
        }
        let taken_back = select_all(self.taken_back.iter().map(|token| Box::pin(token.cancelled())));
        tokio::select! {
            biased;
            _ = taken_back => None,
            done = work => Some(done),
        }
    }

    /// Comes back when the answer has to be opened before it is there.
    pub(crate) async fn must_open(&self) {
        match &self.guard {
            Some(guard) => guard.wanted().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) async fn before_code(&self) -> Result<Option<String>, String> {
        match &self.guard {
            Some(guard) => guard.before_code().await,
            None => Ok(None),
        }
    }

    pub(crate) async fn after_code(&self) {
        if let Some(guard) = &self.guard {
            guard.after_code().await;
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, door, principal, tenant, deadline, .. } = self;
        let mut shown = formatter.debug_struct("Call");
        shown.field("id", id).field("door", door).field("principal", principal).field("tenant", tenant);
        shown.field("deadline", deadline).field("is_guarded", &self.is_guarded()).finish_non_exhaustive()
    }
}

/// One that no other call has; empty where the system has no chance to give.
fn new_id() -> String {
    let mut bytes = [0; 8];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => format!("{:016x}", u64::from_ne_bytes(bytes)),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whatever_takes_a_call_back_ends_its_work() {
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let call = Call::new(Door::Http).ended_by(first.clone()).ended_by(second.clone());
        assert_eq!(call.unless_taken_back(std::future::ready(5)).await, Some(5));
        let (ended, ()) = tokio::join!(call.unless_taken_back(std::future::pending::<()>()), async { second.cancel() });
        assert_eq!(ended, None);
        assert_eq!(call.unless_taken_back(std::future::ready(5)).await, None, "it is not begun with any more");
        assert!(!first.is_cancelled());
    }

    #[test]
    fn each_call_has_an_id_of_its_own_and_the_answer_some_of_its_time() {
        let deadline = Instant::now() + Duration::from_secs(10);
        let call = Call::new(Door::Stdio).until(deadline);
        assert_eq!((call.id().len(), call.latest_end()), (16, deadline.checked_sub(ANSWER)));
        assert_ne!(call.id(), Call::new(Door::Stdio).id());
    }
}
