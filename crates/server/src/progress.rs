//! Sends output as progress notifications while a cell runs.
//!
//! Rule: a slow client slows nothing. Lines that can't be sent in time are gathered, and past a bound left out; the
//! answer has them anyway.

use std::convert::Infallible;
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
        let mut sent = 0.0;
        loop {
            self.arrived.notified().await;
            let Some(lines) = self.take_lines() else { continue };
            sent += 1.0;
            let note = ProgressNotificationParam::new(token.clone(), sent).with_message(lines);
            if peer.notify_progress(note).await.is_err() {
                return std::future::pending().await;
            }
        }
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
