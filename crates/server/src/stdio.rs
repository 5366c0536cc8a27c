//! The stdio door: one message a line.
//!
//! Rule: a line is bounded and taken apart as a request's body is, so that both doors take and refuse the same.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use rmcp::model::{ClientJsonRpcMessage, GetExtensions, ServerJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::{RoleServer, ServiceExt};
use tokio::io::{Empty, Stdin, Stdout};
use tokio_util::codec::{AnyDelimiterCodec, FramedRead};

use crate::mcp::McpServer;
use crate::message::{self, Lifted};
use crate::refusal::Refusal;
use crate::tools::Interpreter;

/// The longest line, as rmcp's own transport has it: what the HTTP door takes fits.
const MAX_LINE_BYTES: usize = 16 << 20;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Serves MCP on standard input and output until the client closes it.
///
/// # Errors
/// When the client's first message is no MCP opening, or the pipes break.
pub async fn serve_stdio(interpreter: Arc<Interpreter>) -> Result<(), String> {
    let service = McpServer(interpreter).serve(Lines::new()).await.map_err(|error| error.to_string())?;
    service.waiting().await.map(drop).map_err(|error| error.to_string())
}

struct Lines {
    incoming: FramedRead<Stdin, AnyDelimiterCodec>,
    outgoing: AsyncRwTransport<RoleServer, Empty, Stdout>,
}

impl Lines {
    fn new() -> Self {
        let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), MAX_LINE_BYTES);
        Self {
            incoming: FramedRead::new(tokio::io::stdin(), codec),
            outgoing: AsyncRwTransport::new(tokio::io::empty(), tokio::io::stdout()),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        let (error, id) = refusal.into_error();
        // Not awaited here: who receives is interrupted at will.
        tokio::spawn(self.outgoing.send(ServerJsonRpcMessage::error(error, id)));
    }
}

impl Transport<RoleServer> for Lines {
    type Error = io::Error;

    fn send(&mut self, message: ServerJsonRpcMessage) -> impl Future<Output = io::Result<()>> + Send + 'static {
        self.outgoing.send(message)
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            let Ok(line) = self.incoming.next().await? else {
                self.refuse(Refusal::no_message());
                // The end that the codec's errors are followed by; the rest of the line is skipped.
                self.incoming.next().await;
                continue;
            };
            let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line).trim_ascii();
            if line.is_empty() {
                continue;
            }
            match read(line) {
                Ok(message) => return Some(message),
                // As other servers have it: an answer to noise might be answered with noise.
                Err(refusal) if refusal.is_of_no_json() => tracing::debug!("a line that is not JSON is skipped"),
                Err(refusal) => self.refuse(refusal),
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.outgoing.close().await
    }
}

fn read(line: &[u8]) -> Result<ClientJsonRpcMessage, Refusal> {
    let lifted = message::lift(line)?;
    let mut message = serde_json::from_slice(&lifted.text).map_err(|_| Refusal::no_message())?;
    if let ClientJsonRpcMessage::Request(request) = &mut message {
        request.request.extensions_mut().insert(Lifted::new(lifted.arguments, None));
    }
    Ok(message)
}
