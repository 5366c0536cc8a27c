//! The listener: how many clients it has at once, and how long it waits for one.
//!
//! Rule: who keeps the server waiting goes first. A connection on which a call runs is never closed for another; where all
//! are such, a few more are taken to tell their clients that the server is busy, and how it stands.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::Request;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tower::ServiceExt;

use super::stream::Stream;
use super::visit::{Phase, Visit};

/// Above the bound, for those who get told that the server is busy and for `/health`.
const GUESTS: usize = 16;
/// A client that takes nothing of its answer for so long has gone: the kernel ends its connection.
const UNREAD_MS: u32 = 30_000;
/// Room for a request's header, and for what is read of a body at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// How long to wait when the machine gives no descriptor for another client.
const BREATH: Duration = Duration::from_millis(50);
/// Clients that keep the server waiting are told of in the log so often, not each.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The connections there are.
struct Visits {
    bound: usize,
    idle: Duration,
    router: Router,
    tasks: JoinSet<()>,
    known: HashMap<Id, (AbortHandle, Arc<Visit>)>,
    said: Option<Instant>,
}

/// How long answers that are there may take to go out at the end, at least.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves until `stop` completes, then drops all connections, and with them their calls. Where it gives a time, what was answered
/// may go out until then.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    bound: usize,
    idle: Duration,
    stop: impl Future<Output = Option<Instant>> + Send,
) {
    let mut visits = Visits { bound, idle, router, tasks: JoinSet::new(), known: HashMap::new(), said: None };
    let mut stop = std::pin::pin!(stop);
    let mut stopped = None;
    let mut looks = tokio::time::interval(BREATH);
    // Not looked at until the end.
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            until = &mut stop, if stopped.is_none() => match until {
                Some(until) => stopped = Some(until.max(Instant::now() + LAST_ANSWERS)),
                None => return,
            },
            _ = looks.tick(), if stopped.is_some() => {
                let is_over = stopped.is_some_and(|until| Instant::now() > until);
                if is_over || !visits.is_answering() {
                    return;
                }
            }
            Some(ended) = visits.tasks.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                visits.known.remove(&id);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => visits.welcome(stream),
                Err(error) if is_of_client(&error) => {}
                Err(error) => {
                    visits.make_room(&error.to_string());
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

impl Visits {
    fn welcome(&mut self, stream: TcpStream) {
        let full = self.known.len() >= self.bound
            && !self.make_room(&format!("there are {} connections (MAX_CONNECTIONS)", self.known.len()));
        if full && self.known.len() >= self.bound + GUESTS {
            return;
        }
        // Small answers must not wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNREAD_MS);
        let visit = Visit::new(full);
        let connection = connection(stream, self.router.clone(), visit.clone(), self.idle);
        let handle = self.tasks.spawn(connection);
        self.known.insert(handle.id(), (handle, visit));
    }

    /// Ends the connection that has waited longest for its client; false when the server works for each.
    fn make_room(&mut self, why: &str) -> bool {
        let waiting = self.known.iter().filter_map(|(id, (_, visit))| Some((visit.waits_since()?, *id)));
        let Some((_, id)) = waiting.min_by_key(|(since, _)| *since) else {
            self.say(&format!("{why}, and calls run on all of them: new clients are told to come again"));
            return false;
        };
        if let Some((handle, _)) = self.known.remove(&id) {
            handle.abort();
        }
        self.say(&format!("{why}: those that have waited longest for their client are closed for new ones"));
        true
    }

    /// Whether a client still gets an answer.
    fn is_answering(&self) -> bool {
        self.known.values().any(|(_, visit)| matches!(visit.phase(), Phase::Works | Phase::Answers))
    }

    fn say(&mut self, what: &str) {
        if self.said.is_none_or(|said| said.elapsed() > SAID_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!("{what}");
        }
    }
}

/// The client went before it was taken.
fn is_of_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

async fn connection(stream: TcpStream, router: Router, visit: Arc<Visit>, idle: Duration) {
    let stream = Stream::new(stream, visit.clone());
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, visit) = (router.clone(), visit.clone());
        visit.begins();
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(visit.clone());
            let response = router.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {});
            Ok::<_, Infallible>(response.map(|body| Answer { body, visit }))
        }
    });
    // Its errors are the client's: it went away, was too slow, or speaks no HTTP.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// An answer that knows whether its client reads it.
struct Answer {
    body: Body,
    visit: Arc<Visit>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            // Asked for more: what there was has been taken.
            Poll::Pending => self.visit.is_served(),
            Poll::Ready(_) => self.visit.enter(Phase::Answers),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.visit.enter(Phase::Idles);
    }
}
