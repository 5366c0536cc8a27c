//! How an answer goes out: in one piece as JSON, or as events, and what keeps its connection meanwhile.
//!
//! Rule: an answer is JSON unless something has to be said before it. Who waits long gets the head of the answer and then
//! something small from time to time, blanks before JSON and comments between events, so that nothing on the way takes
//! the connection for dead. A client that goes away drops the answer, and with it the work.

use std::time::Duration;

use crate::message::InEvents;
use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;

/// How often something is sent where there is nothing to say: proxies wait for 30 to 60 seconds.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const NAME: &[u8] = b"event: message\n";
const DATA: &[u8] = b"data: ";
/// What nginx and others must not gather.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// An answer on its way.
pub(crate) type Work = BoxFuture<'static, Response>;

/// Waits for an answer, and opens it before it is there when it takes long or `opened` comes back: as events if `as_events`.
pub(crate) async fn answer(mut work: Work, as_events: bool, told: &InEvents, opened: impl Future<Output = ()>) -> Response {
    let late = tokio::select! {
        biased;
        response = &mut work => return response,
        () = opened => false,
        () = tokio::time::sleep(KEEP_ALIVE) => true,
    };
    // What could be refused has been by now: the answer is a result, whatever it says.
    told.begins(as_events);
    let blank = blank(as_events);
    let rest = stream::unfold(Some(work), move |work| async move {
        let mut work = work?;
        Some(tokio::select! {
            biased;
            response = &mut work => (body(response, as_events), None),
            () = tokio::time::sleep(KEEP_ALIVE) => (Body::from(blank), Some(work)),
        })
    });
    let first = stream::iter(late.then(|| Body::from(blank)));
    let mut response = Response::new(Body::from_stream(first.chain(rest).flat_map(Body::into_data_stream)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, if as_events { EVENTS } else { JSON });
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

fn body(response: Response, as_events: bool) -> Body {
    let plain = !is_events(response.headers());
    let body = response.into_body();
    if as_events && plain { event(body) } else { body }
}

/// A plain answer as an event.
pub(crate) fn in_event(response: Response) -> Response {
    if is_events(response.headers()) || !response.status().is_success() || !response.headers().contains_key(CONTENT_TYPE) {
        return response;
    }
    let mut response = response.map(event);
    response.headers_mut().insert(CONTENT_TYPE, EVENTS);
    response.headers_mut().remove(CONTENT_LENGTH);
    response
}

/// What says nothing where an answer is awaited.
pub(crate) fn blank(as_events: bool) -> &'static str {
    if as_events { ":\n\n" } else { "\n" }
}

/// JSON of one line as an event.
pub(crate) fn event(body: Body) -> Body {
    let head = [Bytes::from_static(NAME), Bytes::from_static(DATA)].map(Ok::<_, axum::Error>);
    let frames = stream::iter(head).chain(body.into_data_stream());
    Body::from_stream(frames.chain(stream::iter([Ok(Bytes::from_static(b"\n\n"))])))
}

pub(crate) fn is_events(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|written| written.as_bytes().starts_with(EVENTS.as_bytes()))
}

/// Names rmcp's events, which have `data:` alone; the deployed clients look for `event: message`.
pub(crate) fn named(response: Response) -> Response {
    let name = |data: Bytes| {
        if !data.starts_with(b"data:") {
            return data;
        }
        let mut named = BytesMut::with_capacity(NAME.len() + data.len());
        named.put_slice(NAME);
        named.put_slice(&data);
        named.freeze()
    };
    response.map(|body| Body::new(body.map_frame(move |frame| frame.map_data(name))))
}
