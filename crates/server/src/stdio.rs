//! The stdio door: one message a line.
//!
//! Rule: every line that is meant as a message gets an answer, with the id of what it asks wherever that can be found; a
//! line is bounded and taken apart as a request's body is, so that both doors take and refuse the same. No handshake is
//! asked for. A client that goes away ends what it has started.

mod id;
mod pipes;

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::StatusCode;
use protocol::ArgumentError;
use rmcp::RoleServer;
use rmcp::model::{ClientJsonRpcMessage, ClientNotification, GetExtensions, RequestId, ServerJsonRpcMessage};
use rmcp::service::serve_directly_with_ct;
use rmcp::transport::Transport;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::id::IdSearch;
use self::pipes::{Input, Line, Output};
use crate::batch;
use crate::mcp::McpServer;
use crate::message::{self, Lifted};
use crate::refusal::Refusal;
use crate::service::{Call, Door, Service};

/// What is answered within this time after the end of input still reaches a client that has gone.
const GRACE: Duration = Duration::from_millis(500);
/// What is piped in ends with its last line, not later than this.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How long rmcp may keep what came of a call that was taken back.
const LET_GO: Duration = Duration::from_millis(100);
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Serves MCP on standard input and output until the client has gone. `max_line_bytes`: the longest line.
///
/// Comes back when the input has ended and all is answered. A client that has waited for answers ends its calls with its
/// input; what was written without a pause is a pipe with questions in it, and gets each answer. Who closes standard output
/// ends all at once.
///
/// # Errors
/// When the system has no threads for the pipes.
pub async fn serve_stdio(service: Arc<Service>, max_line_bytes: usize) -> Result<(), String> {
    let ended = CancellationToken::new();
    let lines = Lines::start(max_line_bytes, ended.clone()).map_err(|error| format!("standard input and output: {error}"))?;
    let service = serve_directly_with_ct(McpServer::new(service), lines, None, ended);
    service.waiting().await.map(drop).map_err(|error| error.to_string())
}

/// What is known of the client.
#[derive(Default)]
struct Client {
    /// What it asks and is not answered yet.
    open: Mutex<HashMap<RequestId, Weak<Open>>>,
    /// What it has taken back, and is still being worked for.
    taken_back: Mutex<HashSet<RequestId>>,
    /// Answers that are being written.
    writing: AtomicUsize,
    closed: Notify,
    is_answered: AtomicBool,
    /// It has asked something after it got an answer, or kept its input open for one.
    waits: AtomicBool,
    /// Nobody takes answers.
    gone: CancellationToken,
}

impl Client {
    fn open(&self) -> MutexGuard<'_, HashMap<RequestId, Weak<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken_back(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.taken_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, id: &RequestId) {
        self.open().remove(id);
        self.closed.notify_one();
    }

    /// Comes back when nothing is open and all is written.
    async fn has_all(&self) {
        while !self.open().is_empty() || self.writing.load(Ordering::SeqCst) > 0 {
            self.closed.notified().await;
        }
    }
}

/// An answer on its way. Its id is free from here on: who has read the answer may use it again.
struct Writing(Arc<Client>);

impl Writing {
    fn begin(client: &Arc<Client>, id: &RequestId) -> Self {
        // In this order: there is no moment at which all seems to be written.
        client.writing.fetch_add(1, Ordering::SeqCst);
        client.close(id);
        Self(client.clone())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::SeqCst);
        self.0.closed.notify_one();
    }
}

/// Among a request's extensions, and so for as long as it is worked for: one that breaks down is not waited for.
struct Open(Arc<Client>, RequestId);

impl Drop for Open {
    fn drop(&mut self) {
        let Self(client, id) = self;
        if std::thread::panicking() {
            client.close(id);
        }
        if client.taken_back().contains(id) {
            let (client, id) = (client.clone(), id.clone());
            // The work has ended, and its answer is still in rmcp's hands, which knows it by the id.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    tokio::time::sleep(LET_GO).await;
                    client.taken_back().remove(&id);
                });
            }
        }
    }
}

/// Reads what the client writes, on a thread of its own.
struct Reader {
    client: Arc<Client>,
    messages: mpsc::Sender<ClientJsonRpcMessage>,
    max_line_bytes: usize,
}

impl Reader {
    fn read(self) {
        let client = self.client.clone();
        match self.read_all(&mut BufReader::new(Input)) {
            Ok(()) => pipes::wait_until_unread(),
            Err(error) => tracing::debug!("standard input or output: {error}"),
        }
        client.gone.cancel();
    }

    fn read_all(self, input: &mut BufReader<Input>) -> io::Result<()> {
        loop {
            // What has come together with the line before it was written without a look at any answer.
            if input.buffer().is_empty() {
                let asked = Instant::now();
                let has_ended = input.fill_buf()?.is_empty();
                let has_waited =
                    if has_ended { asked.elapsed() > AT_ONCE } else { self.client.is_answered.load(Ordering::Relaxed) };
                self.client.waits.fetch_or(has_waited, Ordering::Relaxed);
                if has_ended {
                    return Ok(());
                }
            }
            let Some(line) = pipes::next_line(input, self.max_line_bytes)? else { return Ok(()) };
            let mut refused = Vec::new();
            let messages = self.take(line, &mut refused);
            if !refused.is_empty() {
                self.client.is_answered.store(true, Ordering::Relaxed);
                pipes::write_line(refused.join(&b'\n'))?;
            }
            for message in messages {
                if self.messages.blocking_send(message).is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// The messages in a line: one, or those of a batch, whose answers come as lines of their own. What can't be taken is
    /// answered in `refused`.
    fn take(&self, line: Line, refused: &mut Vec<Vec<u8>>) -> Vec<ClientJsonRpcMessage> {
        let line = match line {
            Line::Whole(line) => line,
            Line::TooLong(search) => {
                let problem = format!("Payload Too Large: the line is longer than MAX_BODY_BYTES, {} bytes", self.max_line_bytes);
                refused.push(answer(Refusal::unread(StatusCode::PAYLOAD_TOO_LARGE, problem), &search.found()));
                return Vec::new();
            }
        };
        let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line).trim_ascii();
        if line.is_empty() {
            return Vec::new();
        }
        let parts = if batch::is_one(line) { batch::split(line) } else { Ok(vec![line]) };
        let mut refuse = |part: &[u8], refusal: Refusal| {
            // As other servers have it: an answer to noise might be answered with noise.
            if refusal.is_of_no_json() && !part.starts_with(b"{") && !part.starts_with(b"[") {
                tracing::info!("a line on standard input that is no JSON is skipped");
            } else {
                refused.push(answer(refusal, &IdSearch::ids_of(part)));
            }
        };
        match parts {
            Ok(parts) => {
                parts.into_iter().filter_map(|part| self.message(part).map_err(|refusal| refuse(part, refusal)).ok()).collect()
            }
            Err(refusal) => {
                refuse(line, refusal);
                Vec::new()
            }
        }
    }

    fn message(&self, line: &[u8]) -> Result<ClientJsonRpcMessage, Refusal> {
        let lifted = message::lift(line)?;
        let mut message = serde_json::from_slice(&lifted.text).map_err(|_| Refusal::no_message())?;
        match &mut message {
            ClientJsonRpcMessage::Request(request) => {
                let is_taken = self.client.taken_back().contains(&request.id);
                if is_taken || self.client.open().contains_key(&request.id) {
                    let problem = "is that of another request that is not answered yet";
                    return Err(Refusal::of_field(&ArgumentError::new("id", problem)));
                }
                let worked_for = Arc::new(Open(self.client.clone(), request.id.clone()));
                self.client.open().insert(request.id.clone(), Arc::downgrade(&worked_for));
                let extensions = request.request.extensions_mut();
                extensions.insert(Lifted::new(lifted.arguments, None));
                extensions.insert(Call::new(Door::Stdio));
                extensions.insert(worked_for);
            }
            ClientJsonRpcMessage::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    // It gets no answer, and its id is nobody else's until its work has ended.
                    let mut taken_back = self.client.taken_back();
                    // Where it has ended, nobody would give the id back.
                    if self.client.open().get(id).is_some_and(|open| open.strong_count() > 0) {
                        taken_back.insert(id.clone());
                    }
                    drop(taken_back);
                    self.client.close(id);
                }
            }
            _ => {}
        }
        Ok(message)
    }
}

/// The lines that refuse something, one for each id.
fn answer(refusal: Refusal, ids: &[Box<RawValue>]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answer<'a> {
        jsonrpc: &'static str,
        /// As it was written, also where rmcp has no such ids.
        id: Option<&'a RawValue>,
        error: &'a rmcp::model::ErrorData,
    }
    let (error, _) = refusal.into_error();
    let line = |id| serde_json::to_vec(&Answer { jsonrpc: "2.0", id, error: &error }).unwrap_or_default();
    if ids.is_empty() {
        return line(None);
    }
    ids.iter().map(|id| line(Some(id))).collect::<Vec<_>>().join(&b'\n')
}

/// The client as rmcp talks to it.
struct Lines {
    client: Arc<Client>,
    messages: mpsc::Receiver<ClientJsonRpcMessage>,
    output: Output,
    /// Since when there is no more input.
    input_ended: Option<Instant>,
    /// Ends all calls.
    ended: CancellationToken,
}

impl Lines {
    fn start(max_line_bytes: usize, ended: CancellationToken) -> io::Result<Self> {
        let (sender, messages) = mpsc::channel(1);
        let client = Arc::<Client>::default();
        let output = Output::start()?;
        let reader = Reader { client: client.clone(), messages: sender, max_line_bytes };
        std::thread::Builder::new().name("input".to_owned()).spawn(move || reader.read())?;
        Ok(Self { client, messages, output, input_ended: None, ended })
    }

    /// Comes back when nobody waits for the answers that are still to come.
    async fn wait_for_answers(&mut self) {
        let since = *self.input_ended.get_or_insert_with(Instant::now);
        let grace = async {
            if self.client.waits.load(Ordering::Relaxed) {
                sleep_until(since + GRACE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.client.has_all() => {}
            () = grace => {
                tracing::warn!("calls were ended with standard input; who wants their answers keeps it open until they are there");
            }
            () = self.client.gone.cancelled() => {}
        }
    }
}

impl Transport<RoleServer> for Lines {
    type Error = io::Error;

    fn send(&mut self, message: ServerJsonRpcMessage) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let (client, output, ended) = (self.client.clone(), self.output.clone(), self.ended.clone());
        let writing = match &message {
            ServerJsonRpcMessage::Response(response) => Some(&response.id),
            ServerJsonRpcMessage::Error(error) => error.id.as_ref(),
            _ => None,
        };
        let writing = writing.map(|id| Writing::begin(&client, id));
        // Who has ended its input looks out for no news; some clients stumble over them.
        let is_unheard = matches!(message, ServerJsonRpcMessage::Notification(_))
            && self.input_ended.is_some()
            && client.waits.load(Ordering::Relaxed);
        let write = async move {
            let line = serde_json::to_vec(&message)?;
            tokio::select! {
                biased;
                // Nobody waits for it.
                () = ended.cancelled() => Ok(()),
                written = output.write(line) => written,
            }
        };
        async move {
            if is_unheard {
                return Ok(());
            }
            client.is_answered.store(true, Ordering::Relaxed);
            let written = write.await;
            if written.is_err() {
                client.gone.cancel();
            }
            drop(writing);
            written
        }
    }

    // Left off at will, and called again.
    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        tokio::select! {
            message = self.messages.recv() => if message.is_some() {
                return message;
            },
            () = self.client.gone.cancelled() => {}
        }
        self.wait_for_answers().await;
        self.ended.cancel();
        None
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}
