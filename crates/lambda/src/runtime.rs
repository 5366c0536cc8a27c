//! The loop of a function whose responses are locked: takes an event, answers it, takes the next.
//!
//! AWS's library polls by itself, and the lock's question would be a second poll beside it (see [`crate::lock`]). All that
//! is about events and answers is still the library's; it also has the loop where nothing is asked.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use lambda_http::lambda_runtime::{Config, MetadataPrelude};
use lambda_http::{Context, Error, RequestExt};

use crate::api::Event;
use crate::door::Door;
use crate::events::Events;

/// Between the head and the body of an answer.
const SEPARATOR: [u8; 8] = [0; 8];

/// Serves events until the API gives none.
///
/// # Errors
/// What the API said instead of an event.
pub(crate) async fn run(events: &Events, door: &Arc<Door>) -> Result<(), Error> {
    let config = Arc::new(Config::from_env());
    loop {
        let event = Arc::new(events.next().await?);
        let (api, door, config, answered) = (events.api.clone(), door.clone(), config.clone(), event.clone());
        // A task of its own: one that panics fails its event and no other.
        let answering = tokio::spawn(async move { api.respond(&answered, answer(&door, config, &answered).await?).await });
        if let Err(error) = answering.await.unwrap_or_else(|error| Err(error.into())) {
            tracing::error!(%error, request_id = event.id, "an event could not be answered");
            if let Err(error) = events.api.fail(&event, &error.to_string()).await {
                tracing::warn!(%error, request_id = event.id, "nor could the Runtime API be told");
            }
        }
    }
}

/// The answer as API Gateway reads it: a head in JSON, and the body.
async fn answer(door: &Door, config: Arc<Config>, event: &Event) -> Result<Body, Error> {
    let context = Context::new(&event.id, config, &event.headers)?;
    let request = lambda_http::request::from_str(std::str::from_utf8(&event.body)?)?.with_lambda_context(context);
    let (parts, body) = door.stream(request).await.into_parts();
    let mut head = MetadataPrelude { status_code: parts.status, headers: parts.headers, cookies: Vec::new() };
    head.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
    let head = [Bytes::from(serde_json::to_vec(&head)?), Bytes::from_static(&SEPARATOR)];
    Ok(Body::from_stream(stream::iter(head).map(Ok).chain(body.into_data_stream())))
}
