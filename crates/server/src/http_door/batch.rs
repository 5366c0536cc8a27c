//! A batch in one body, and its answers in one.
//!
//! Rule: only where the revision of 2025-03-26 is spoken, or none is named, which means the same. The messages of a batch are
//! served one after the other: a batch takes no more of the server than one call does, whatever is in it.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Collected};
use rmcp::model::RequestId;

use super::answer::{self, Work};
use crate::batch::split;
use crate::message::{self, Meaning, Message};
use crate::refusal::Refusal;

const VERSION: &str = "2025-03-26";

/// Whether this client may send batches.
pub(crate) fn is_spoken(headers: &HeaderMap) -> bool {
    headers.get("mcp-protocol-version").is_none_or(|version| version == VERSION)
}

/// Takes each message of a batch apart.
///
/// # Errors
/// It is no batch.
pub(crate) fn lift(body: &[u8]) -> Result<Vec<Result<Message, Refusal>>, Refusal> {
    let lift = |message: &[u8]| {
        // What comes before an answer has no place in an array of answers.
        let message = message::lift_for(message, false)?;
        if message.meaning == Meaning::Opens {
            return Err(Refusal::batch("must have no initialize").answering(message.id.map(RequestId::into_json_value)));
        }
        Ok(message)
    };
    Ok(split(body)?.into_iter().map(lift).collect())
}

/// The answers to all of them, one after the other, each sent before the next message is served: no more than one is held,
/// however slowly the client reads. Where none asks for one, that they have been taken.
pub(crate) async fn answer(works: Vec<Work>, is_asked: bool, as_events: bool) -> Response {
    if !is_asked {
        for work in works {
            work.await;
        }
        return StatusCode::ACCEPTED.into_response();
    }
    let rest = Rest { current: None, works: works.into_iter(), has_begun: false, as_events };
    let pieces = stream::unfold(Some(rest), |rest| async { rest?.next().await }).flat_map(Body::into_data_stream);
    let content_type = if as_events { answer::EVENTS } else { answer::JSON };
    ([(CONTENT_TYPE, content_type)], Body::from_stream(pieces)).into_response()
}

/// What is still to be answered.
struct Rest {
    current: Option<Work>,
    works: std::vec::IntoIter<Work>,
    has_begun: bool,
    as_events: bool,
}

impl Rest {
    /// The next piece of the answer, and what is left after it.
    async fn next(mut self) -> Option<(Body, Option<Self>)> {
        while let Some(mut work) = self.current.take().or_else(|| self.works.next()) {
            let response = tokio::select! {
                biased;
                response = &mut work => response,
                () = tokio::time::sleep(answer::KEEP_ALIVE) => {
                    self.current = Some(work);
                    return Some((Body::from(answer::blank(self.as_events)), Some(self)));
                }
            };
            let answer = response.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
            if answer.is_empty() {
                continue;
            }
            let body = match (self.as_events, self.has_begun) {
                (true, _) => answer::event(answer.into()),
                (false, has_begun) => {
                    let before = Bytes::from_static(if has_begun { b"," } else { b"[" });
                    Body::from_stream(stream::iter([before, answer].map(Ok::<_, Infallible>)))
                }
            };
            self.has_begun = true;
            return Some((body, Some(self)));
        }
        Some((Body::from(if self.as_events { "" } else { "]" }), None))
    }
}
