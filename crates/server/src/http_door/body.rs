//! The bodies of requests: how large, how slow, and how many bytes of them at once.
//!
//! Rule: small bodies are always read; large ones take room of a budget first, and keep it as long as anything of them is
//! held. Who finds none waits a little and is told to come again: the server does not grow.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::refusal::Refusal;

/// So much of each body is read without asking: with as many connections as there may be that is 32 MB.
const FREE_BYTES: usize = 64 << 10;
/// How many of the largest bodies fit into the budget: as many as a machine of four cores runs at once.
const LARGEST_AT_ONCE: usize = 8;
/// How long a large body waits for room: less than a client waits, more than most calls take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A client that sends nothing for so long has gone.
const STALL: Duration = Duration::from_secs(10);
/// The whole of a body: 12 MB by a line of 2 Mbit/s take 50 seconds.
const WHOLE: Duration = Duration::from_secs(60);
/// The budget is counted in pieces of this size.
const PIECE: usize = 1 << 10;

/// Reads bodies.
#[derive(Clone)]
pub(crate) struct Bodies {
    largest: usize,
    budget: Arc<Semaphore>,
}

/// A body, and the room it takes of the budget.
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(largest: usize) -> Self {
        Self { largest, budget: Arc::new(Semaphore::new(pieces(largest) as usize * LARGEST_AT_ONCE)) }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is too large, too slow, or there is no room for it.
    pub(crate) async fn read(&self, mut body: Body) -> Result<Held, Refusal> {
        let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > self.largest) {
            return Err(self.too_large());
        }
        let until = Instant::now() + WHOLE;
        let mut held = Held { bytes: Bytes::new(), room: None };
        let (mut whole, mut busy) = (Vec::new(), false);
        let mut length = 0;
        loop {
            let frame = timeout_at(until.min(Instant::now() + STALL), body.frame());
            let data = match frame.await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => {
                    return Err(Refusal::unread(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")));
                }
                Err(_) => {
                    let (part, all) = (STALL.as_secs(), WHOLE.as_secs());
                    let message = format!(
                        "Request Timeout: the body was too slow: its next part must come within {part} seconds, and all within {all}"
                    );
                    return Err(Refusal::unread(StatusCode::REQUEST_TIMEOUT, message));
                }
            };
            length += data.len();
            if length > self.largest {
                return Err(self.too_large());
            }
            if length == data.len() && announced == Some(length) {
                // In one piece, as small ones come, and all where the function's runtime holds them anyway.
                held.bytes = data;
                continue;
            }
            if busy {
                // Read to its end all the same: a client listens when it has spoken.
                continue;
            }
            if length > FREE_BYTES && held.room.is_none() {
                held.room = self.room(announced.unwrap_or(self.largest)).await;
                if held.room.is_none() {
                    (busy, whole) = (true, Vec::new());
                    continue;
                }
                whole.reserve(announced.unwrap_or_default().saturating_sub(whole.len()));
            }
            whole.extend_from_slice(&data);
        }
        if busy {
            return Err(Refusal::busy("too many large requests are being served"));
        }
        if !whole.is_empty() {
            held.bytes = whole.into();
        }
        if let Some(room) = &mut held.room {
            // What was taken for a body of unknown length, and not needed.
            drop(room.split(room.num_permits().saturating_sub(pieces(length) as usize)));
        }
        Ok(held)
    }

    async fn room(&self, length: usize) -> Option<OwnedSemaphorePermit> {
        timeout(PATIENCE, self.budget.clone().acquire_many_owned(pieces(length))).await.ok()?.ok()
    }

    fn too_large(&self) -> Refusal {
        let message = format!("Payload Too Large: the body is larger than MAX_BODY_BYTES, {} bytes", self.largest);
        Refusal::unread(StatusCode::PAYLOAD_TOO_LARGE, message)
    }
}

fn pieces(length: usize) -> u32 {
    u32::try_from(length.div_ceil(PIECE)).unwrap_or(u32::MAX / 2)
}
