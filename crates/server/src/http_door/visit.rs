//! One client's connection, and who waits for whom on it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// One client's connection.
pub(crate) struct Visit {
    phase: Mutex<(Phase, Instant)>,
    is_guest: bool,
}

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The server, for a request.
    Idles,
    /// The server, for the rest of a request.
    Reads,
    /// The client, for the answer.
    Works,
    /// The server, for what there is of the answer to be read.
    Answers,
}

impl Visit {
    pub(crate) fn new(is_guest: bool) -> Arc<Self> {
        Arc::new(Self { phase: Mutex::new((Phase::Idles, Instant::now())), is_guest })
    }

    /// A request has begun.
    pub(crate) fn begins(&self) {
        *self.lock() = (Phase::Reads, Instant::now());
    }

    /// The request is whole: now the client waits.
    pub(crate) fn is_served(&self) {
        self.enter(Phase::Works);
    }

    pub(crate) fn enter(&self, phase: Phase) {
        let mut known = self.lock();
        // What the server has waited for already, it waits for still.
        let since = if known.0 == Phase::Works { Instant::now() } else { known.1 };
        *known = (phase, since);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().0
    }

    /// Since when the server waits for its client; none while it works.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        let (phase, since) = *self.lock();
        (phase != Phase::Works).then_some(since)
    }

    /// It is here only to hear that the server is busy.
    pub(crate) fn is_guest(&self) -> bool {
        self.is_guest
    }

    fn lock(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
