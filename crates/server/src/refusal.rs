//! Refusals of a door as JSON-RPC errors.
//!
//! Rule: what is wrong with a body is told from the body itself, not from another library's words about it. What a client
//! wrote is said back to it shortened.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use protocol::{ArgumentError, ErrorCode, shortened};
use rmcp::model::{ErrorData, RequestId};
use serde_json::{Value, json};

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const INVALID_PARAMS: i32 = -32602;
const REFUSED: i32 = -32000;
/// Seconds after which a refusal for want of room may be a thing of the past.
const RETRY_SECONDS: &str = "2";

/// A request that goes no further.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: i32,
    message: String,
    /// A name and a value.
    data: Option<(&'static str, String)>,
    /// What it answers, where that is known.
    id: Option<Box<Value>>,
    /// Whatever is still to come of the request is not read.
    ends_connection: bool,
}

impl Refusal {
    fn new(status: StatusCode, code: i32, message: String) -> Self {
        Self { status, code, message, data: None, id: None, ends_connection: false }
    }

    pub(crate) fn no_json(reason: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, PARSE_ERROR, format!("Parse error: the body is not valid JSON: {reason}"))
    }

    pub(crate) fn no_message() -> Self {
        let wanted = "the body must be one JSON-RPC 2.0 message: an object with jsonrpc, method and, for a request, id";
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, format!("Invalid Request: {wanted}"))
    }

    /// For a part of a message that is not as it must be.
    pub(crate) fn of_field(error: &ArgumentError) -> Self {
        let data = Some(("field", error.field.clone()));
        Self { data, ..Self::new(StatusCode::BAD_REQUEST, INVALID_PARAMS, error.to_string()) }
    }

    /// For a member of the message itself.
    pub(crate) fn of_envelope(error: &ArgumentError) -> Self {
        let data = Some(("field", error.field.clone()));
        Self { data, ..Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, format!("Invalid Request: {error}")) }
    }

    pub(crate) fn batch(problem: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, format!("Invalid Request: a batch {problem}"))
    }

    /// For a body in a form that is not read.
    pub(crate) fn encoded(encoding: &str) -> Self {
        let message =
            format!("Unsupported Media Type: content-encoding: must be identity or absent, not {:?}", shortened(encoding));
        Self::unread(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub(crate) fn busy(what: &str) -> Self {
        let data = Some(("code", ErrorCode::Busy.as_str().to_owned()));
        Self { data, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, REFUSED, format!("busy: {what}; try again in a few seconds")) }
    }

    /// The rest of whose body is not read.
    pub(crate) fn unread(status: StatusCode, message: String) -> Self {
        Self { ends_connection: true, ..Self::new(status, REFUSED, message) }
    }

    pub(crate) fn forbidden(status: StatusCode, message: String) -> Self {
        Self::new(status, REFUSED, message)
    }

    pub(crate) fn answering(self, id: Option<Value>) -> Self {
        Self { id: id.map(Box::new), ..self }
    }

    fn data(&self) -> Option<Value> {
        self.data.as_ref().map(|(name, value)| json!({*name: value}))
    }

    pub(crate) fn is_of_no_json(&self) -> bool {
        self.code == PARSE_ERROR
    }

    /// The same for a door without HTTP.
    pub(crate) fn into_error(self) -> (ErrorData, Option<RequestId>) {
        let data = self.data();
        let id = self.id.and_then(|id| serde_json::from_value(*id).ok());
        (ErrorData::new(rmcp::model::ErrorCode(self.code), self.message, data), id)
    }
}

impl From<ArgumentError> for Refusal {
    fn from(error: ArgumentError) -> Self {
        Self::of_field(&error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(data) = self.data() {
            error["data"] = data;
        }
        let body = json!({"jsonrpc": "2.0", "id": self.id, "error": error}).to_string();
        let mut response = (self.status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
        }
        if self.ends_connection {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A refusal of rmcp's as a JSON-RPC error. `judged`: the body is JSON and was read, and `id` is its own.
pub(crate) async fn explain(response: Response, judged: bool, id: Option<RequestId>) -> Response {
    let (mut parts, body) = response.into_parts();
    let refusal = if judged && parts.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        // It says so of a body in which it finds no message.
        parts.status = StatusCode::BAD_REQUEST;
        Refusal::no_message()
    } else {
        let text = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let text = if text.is_empty() { parts.status.canonical_reason().unwrap_or("refused").into() } else { text };
        Refusal::new(parts.status, REFUSED, shortened(&text).into_owned())
    };
    parts.headers.remove(CONTENT_LENGTH);
    let refusal = refusal.answering(id.map(RequestId::into_json_value));
    let (own, body) = refusal.into_response().into_parts();
    parts.headers.extend(own.headers);
    Response::from_parts(parts, Body::new(body))
}
