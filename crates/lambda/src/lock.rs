//! The lock on the Runtime API while user code runs.
//!
//! While a streamed response is open, the core that AWS has published for On-Demand functions (the emulator's
//! `internal/lambda/core`) answers 403 to `next`, `response` and `error` (`InvalidStateTransition`; seen from the service
//! itself in 2023, bref#1562), so that code can't read its event, forge its answer or take the next event. There is no
//! acknowledgement of an opened response, so `next` is asked until it is refused: before, it gives the same event once more
//! and changes nothing.
//!
//! That is documented nowhere, and AWS's newer core (`internal/lambda-managed-instances`, `invoke/runtime_pool.go` and
//! `running_invoke.go` in the same repository) does otherwise: a second `next` is parked as one more idle runtime and is
//! given the next event, or gets a 500 where there are too many; after a timeout 410. A parked one that is given up stays in
//! its pool, and the event it is given is lost. Hence:
//!
//! - A question is a poll like any other ([`crate::events`]): one that is not answered is kept and becomes the poll after
//!   this response, and an event that it brings is the next one that is served. No event is lost, none is taken by accident.
//! - What was answered is told: in the log, as the layer's reason, and in the result. `RESPONSE_LOCK` says whether code runs
//!   then (`prefer`) or does not (`require`); `off` never asks, and leaves the whole loop to AWS's library.
//! - Where asking parks a poll, or does not end, it is done once in an environment. Answers that come at once are asked for
//!   anew by the next call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use protocol::Layer;
use server::{LayerReport, LayerState};

use crate::api::Answer;
use crate::events::{Early, Events};

/// How long one question may take: it is answered within a millisecond, or not at all.
const TRY: Duration = Duration::from_secs(1);
const BETWEEN_TRIES: Duration = Duration::from_millis(2);
/// How long the response may take to open.
const PATIENCE: Duration = Duration::from_secs(3);
const EFFECT: &str =
    "the answer is open and the Runtime API closed before the code runs: it can't read its event or forge its answer";

/// Asks whether the Runtime API is closed.
#[derive(Debug)]
pub(crate) struct Lock {
    events: Arc<Events>,
    required: bool,
    verdict: Mutex<Verdict>,
}

/// What the last question found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    NotAsked,
    Closed,
    /// What was answered, and whether it may be asked again.
    Otherwise(String, bool),
}

impl Lock {
    pub(crate) fn new(events: Arc<Events>, required: bool) -> Self {
        Self { events, required, verdict: Mutex::new(Verdict::NotAsked) }
    }

    /// Comes back when the API refuses the next event, or answers otherwise: then with what the caller should know, or as an
    /// error where the code must not run.
    pub(crate) async fn confirm(&self) -> Result<Option<String>, String> {
        let before = self.verdict();
        let now = if let Verdict::Otherwise(_, false) = before { before.clone() } else { self.ask().await };
        if now != before {
            self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&now);
            if let Verdict::Otherwise(said, _) = &now {
                tracing::warn!(required = self.required, "the response lock does not hold: {said}");
            } else {
                tracing::info!(required = self.required, "the response lock holds");
            }
        }
        match now {
            Verdict::Otherwise(said, _) if self.required => Err(format!(
                "the code was not run: the Runtime API could not be seen to be closed, and the code could have forged this \
                 answer: {said}. RESPONSE_LOCK=prefer runs code nevertheless"
            )),
            Verdict::Otherwise(said, _) => Ok(Some(format!(
                "the response lock does not hold: the code could have read its own request and forged this answer ({said})"
            ))),
            _ => Ok(None),
        }
    }

    /// How it stands.
    pub(crate) fn layer(&self) -> LayerReport {
        let (state, reason) = match self.verdict() {
            Verdict::Closed => (LayerState::Active, None),
            // Code that runs runs behind it.
            Verdict::NotAsked if self.required => (LayerState::Active, None),
            Verdict::NotAsked => {
                (LayerState::Unknown, Some("the first call tells; RESPONSE_LOCK=require insists on it".to_owned()))
            }
            Verdict::Otherwise(said, _) => (LayerState::Refused, Some(said)),
        };
        LayerReport { name: Layer::ResponseLock, state, effect: EFFECT, reason }
    }

    fn verdict(&self) -> Verdict {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask(&self) -> Verdict {
        let from = Instant::now();
        loop {
            let (said, again) = match self.events.ask_early(TRY).await {
                Early::Other(Answer::Other(StatusCode::FORBIDDEN, _)) => return Verdict::Closed,
                Early::Same if from.elapsed() < PATIENCE => {
                    tokio::time::sleep(BETWEEN_TRIES).await;
                    continue;
                }
                Early::Same => (format!("it gave the same event for {} seconds", PATIENCE.as_secs()), false),
                Early::Next(id) => (format!("it gave the next event, {id}"), false),
                Early::Silent => (format!("it kept the question waiting for more than {} second", TRY.as_secs()), false),
                Early::Other(answer) => (answer.to_string(), true),
            };
            let said = format!(
                "the Runtime API was asked for the next event while a response was open, and should have answered 403; {said}"
            );
            return Verdict::Otherwise(said, again);
        }
    }
}

/// The layer of a function that does not ask.
pub(crate) fn off(reason: &str) -> LayerReport {
    LayerReport { name: Layer::ResponseLock, state: LayerState::Off, effect: EFFECT, reason: Some(reason.to_owned()) }
}
