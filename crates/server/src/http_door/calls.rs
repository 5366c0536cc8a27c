//! The calls in flight over HTTP, so that a client of the old eras can take one back.
//!
//! Rule: who knows a session's id may end its calls, and nobody else. The id is minted here and can't be guessed; whatever a
//! client has thought up is no id. A call is known for as long as its answer lives, however that ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, HeaderName, HeaderValue};
use rmcp::model::RequestId;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio_util::sync::CancellationToken;

pub(crate) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// The id of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session(u128);

impl Session {
    /// A new one; none where the system has no chance to give.
    pub(crate) fn mint() -> Option<Self> {
        let mut bytes = [0; 16];
        let given = getrandom(&mut bytes, GetRandomFlags::empty()).ok()?;
        (given == bytes.len()).then_some(Self(u128::from_ne_bytes(bytes)))
    }

    /// The one that a request belongs to.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut written = headers.get_all(SESSION_ID).iter();
        let (Some(only), None) = (written.next(), written.next()) else { return None };
        let text = only.to_str().ok()?;
        let session = Self(u128::from_str_radix(text, 16).ok()?);
        // Nothing but what is written here: neither shorter, nor with a sign.
        (session.to_string() == text).then_some(session)
    }

    pub(crate) fn header(self) -> Option<HeaderValue> {
        self.to_string().parse().ok()
    }
}

impl fmt::Display for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// One call that can be taken back.
struct Known {
    session: Session,
    id: RequestId,
    taken_back: CancellationToken,
}

#[derive(Default)]
struct All {
    calls: HashMap<u64, Known>,
    /// How many there have been.
    count: u64,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Calls(Mutex<All>);

impl Calls {
    /// Keeps a call for as long as what comes back lives.
    pub(crate) fn begin(self: &Arc<Self>, session: Session, id: RequestId) -> InFlight {
        let taken_back = CancellationToken::new();
        let mut known = self.lock();
        known.count += 1;
        let number = known.count;
        known.calls.insert(number, Known { session, id, taken_back: taken_back.clone() });
        InFlight { calls: self.clone(), number, taken_back }
    }

    /// Ends the calls of a session that have this id: a client that gives it to two means both.
    pub(crate) fn cancel(&self, session: Session, id: &RequestId) {
        self.end(|call| call.session == session && call.id == *id);
    }

    /// Ends all calls of a session.
    pub(crate) fn close(&self, session: Session) {
        self.end(|call| call.session == session);
    }

    fn end(&self, meant: impl Fn(&Known) -> bool) {
        self.lock().calls.values().filter(|call| meant(call)).for_each(|call| call.taken_back.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is known.
pub(crate) struct InFlight {
    calls: Arc<Calls>,
    number: u64,
    taken_back: CancellationToken,
}

impl InFlight {
    /// What takes it back.
    pub(crate) fn end(&self) -> CancellationToken {
        self.taken_back.clone()
    }

    pub(crate) fn is_taken_back(&self) -> bool {
        self.taken_back.is_cancelled()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.calls.lock().calls.remove(&self.number);
    }
}

/// Set among the extensions of the answer to a call that was taken back.
#[derive(Clone, Copy)]
pub(crate) struct TakenBack;

#[cfg(test)]
mod tests {
    use super::*;

    fn given(values: &[&str]) -> Option<Session> {
        Session::of(&values.iter().map(|value| (SESSION_ID, value.parse().expect("a value"))).collect())
    }

    #[test]
    fn only_what_was_minted_is_an_id() {
        let session = Session::mint().expect("chance");
        let text = session.to_string();
        assert!(given(&[&text]) == Some(session) && Session::mint() != Some(session), "{text}");
        let short = text[1..].to_owned();
        for values in [&[][..], &["1"], &[&short], &[&format!("+{short}")], &[&format!("{text}0")], &[&text, &text], &["é"]] {
            assert!(given(values).is_none(), "{values:?}");
        }
        assert!(given(&[&"ABCDEF01".repeat(4)]).is_none());
    }

    #[test]
    fn a_call_ends_by_its_own_session_and_id_and_leaves_nothing_behind() {
        let calls = Arc::<Calls>::default();
        let (mine, yours) = (Session(1), Session(2));
        let number = || RequestId::Number(1);
        let (first, twin) = (calls.begin(mine, number()), calls.begin(mine, number()));
        let text = calls.begin(mine, RequestId::String("1".into()));
        let foreign = calls.begin(yours, number());
        let ended = || [&first, &twin, &text, &foreign].map(|call| call.taken_back.is_cancelled());
        calls.cancel(mine, &RequestId::Number(2));
        assert_eq!(ended(), [false; 4]);
        calls.cancel(mine, &number());
        assert_eq!(ended(), [true, true, false, false]);
        calls.close(mine);
        assert_eq!(ended(), [true, true, true, false]);
        drop((first, twin));
        assert_eq!(calls.lock().calls.len(), 2);
        let again = calls.begin(mine, number());
        assert!(!again.taken_back.is_cancelled(), "an id may be used again");
        drop((text, foreign, again));
        assert!(calls.lock().calls.is_empty());
    }
}
