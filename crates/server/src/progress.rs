//! Sends output as progress notifications while a cell runs.
//!
//! Rule: a slow client slows nothing. Lines that can't be sent in time are gathered, and past a bound left out; the
//! answer has them anyway.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use protocol::OutputEvent;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::{Peer, RoleServer};
use tokio::sync::Notify;

const MAX_GATHERED_BYTES: usize = 16 << 10;

/// Output on its way to the client.
#[derive(Default)]
pub(crate) struct Progress {
    gathered: Mutex<Vec<u8>>,
    arrived: Notify,
    /// How many notifications were sent.
    sent: AtomicU32,
}

impl Progress {
    /// Takes note of output.
    pub(crate) fn push(&self, event: OutputEvent<'_>) {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_GATHERED_BYTES - gathered.len();
        gathered.extend_from_slice(&event.bytes[..event.bytes.len().min(room)]);
        self.arrived.notify_one();
    }

    /// Sends whole lines as they come; never ends by itself.
    pub(crate) async fn forward(&self, peer: &Peer<RoleServer>, token: ProgressToken) -> Infallible {
        loop {
            self.arrived.notified().await;
            if !self.send_lines(peer, &token).await {
                return std::future::pending().await;
            }
        }
    }

    /// Sends the whole lines that have come and were not sent yet; false when the client has gone.
    pub(crate) async fn send_lines(&self, peer: &Peer<RoleServer>, token: &ProgressToken) -> bool {
        let Some(lines) = self.take_lines() else { return true };
        let number = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
        let note = ProgressNotificationParam::new(token.clone(), f64::from(number)).with_message(lines);
        peer.notify_progress(note).await.is_ok()
    }

    /// Whether the client has been told anything.
    pub(crate) fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed) > 0
    }

    fn take_lines(&self) -> Option<String> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let end = match gathered.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if gathered.len() == MAX_GATHERED_BYTES => gathered.len(),
            None => return None,
        };
        let lines = gathered.drain(..end).collect::<Vec<_>>();
        Some(String::from_utf8_lossy(&lines).trim_end_matches('\n').to_owned())
    }
}
