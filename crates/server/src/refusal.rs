//! Refusals of the HTTP door as JSON-RPC errors.
//!
//! Rule: what is wrong with a body is told from the body itself, not from another library's words about it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::body::HttpBody;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use rmcp::model::ClientJsonRpcMessage;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const INVALID_PARAMS: i32 = -32602;
const REFUSED: i32 = -32000;

/// What has been read of a request's body.
pub(crate) struct SeenBody {
    parts: Arc<Mutex<Vec<Bytes>>>,
    was_empty: bool,
    is_json: bool,
}

impl SeenBody {
    /// The body that was refused for its content; `None` when it was not looked at.
    fn judged(&self, status: StatusCode) -> Option<Vec<u8>> {
        let body = self.parts.lock().unwrap_or_else(PoisonError::into_inner).concat();
        // rmcp says 415 of a body that it can't read.
        let for_content =
            matches!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST);
        (self.is_json && for_content && (self.was_empty || !body.is_empty())).then_some(body)
    }
}

/// Keeps what is read of the body, for the case that it is refused.
pub(crate) fn remember_body(request: Request) -> (Request, SeenBody) {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let seen = SeenBody {
        parts: Arc::default(),
        was_empty: request.body().is_end_stream(),
        is_json: content_type.starts_with("application/json"),
    };
    let keep = seen.parts.clone();
    let request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                keep.lock().unwrap_or_else(PoisonError::into_inner).push(data.clone());
            }
            frame
        }))
    });
    (request, seen)
}

/// The refusal as a JSON-RPC error that says what would be right.
pub(crate) async fn explain(response: Response, seen: &SeenBody) -> Response {
    let (mut parts, body) = response.into_parts();
    let text = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let found = seen.judged(parts.status).and_then(|body| what_is_wrong(&body));
    let (code, message, id, field) = match found {
        Some(found) => {
            parts.status = StatusCode::BAD_REQUEST;
            (found.code, found.message, found.id, found.field)
        }
        None if text.is_empty() => (REFUSED, parts.status.canonical_reason().unwrap_or("refused").to_owned(), Value::Null, None),
        None => (REFUSED, String::from_utf8_lossy(&text).into_owned(), Value::Null, None),
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut error = json!({"code": code, "message": message});
    if let Some(field) = field {
        error["data"] = json!({"field": field});
    }
    Response::from_parts(parts, Body::from(json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string()))
}

struct Wrong {
    code: i32,
    message: String,
    id: Value,
    field: Option<String>,
}

/// The members of an object, each with its text unread.
type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// `None` when the body is a message: then it was refused for something else.
fn what_is_wrong(body: &[u8]) -> Option<Wrong> {
    let wrong = |code, message| Some(Wrong { code, message, id: Value::Null, field: None });
    let Err(reason) = serde_json::from_slice::<Value>(body) else {
        if serde_json::from_slice::<ClientJsonRpcMessage>(body).is_ok() {
            return None;
        }
        return wrong(
            INVALID_REQUEST,
            "Invalid Request: the body must be one JSON-RPC 2.0 message: an object with jsonrpc, method and, for a request, id"
                .to_owned(),
        );
    };
    // Right by JSON's grammar, but no value: half of a surrogate pair, or a number beyond all bounds.
    let Ok(fields) = serde_json::from_slice::<Fields<'_>>(body) else {
        return wrong(PARSE_ERROR, format!("Parse error: the body is not valid JSON: {reason}"));
    };
    let id = fields.get("id").and_then(|id| serde_json::from_str(id.get()).ok()).unwrap_or_default();
    let (field, reason) = unreadable_field(&fields).unwrap_or_else(|| ("params".to_owned(), reason));
    Some(Wrong { code: INVALID_PARAMS, message: format!("{field}: can't be read: {reason}"), id, field: Some(field) })
}

/// The tool's argument, or the member of the message, that is no value, and why.
fn unreadable_field(message: &Fields<'_>) -> Option<(String, serde_json::Error)> {
    let inner = |fields: &Fields<'_>, name: &str| fields.get(name).map(|raw| raw.get().to_owned()).unwrap_or_default();
    let params = inner(message, "params");
    let params = serde_json::from_str::<Fields<'_>>(&params).unwrap_or_default();
    let arguments = inner(&params, "arguments");
    let arguments = serde_json::from_str::<Fields<'_>>(&arguments).unwrap_or_default();
    let mut all = arguments.iter().chain(&params).chain(message);
    all.find_map(|(name, raw)| Some((name.to_string(), serde_json::from_str::<Value>(raw.get()).err()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_surrogate_is_an_invalid_parameter_with_its_name() {
        let body = br#"{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"execute_python","arguments":{"timeout":3,"code":"a\ud800"}}}"#;
        let wrong = what_is_wrong(body).expect("it is wrong");
        assert_eq!((wrong.code, wrong.id, wrong.field.as_deref()), (INVALID_PARAMS, json!(9), Some("code")));
        assert!(wrong.message.starts_with("code: can't be read: "), "{}", wrong.message);
    }

    #[test]
    fn broken_json_and_wrong_shapes_are_told_apart() {
        for body in ["{", "nonsense", "{\"a\":}", "\u{fffd}"] {
            assert_eq!(what_is_wrong(body.as_bytes()).expect("it is wrong").code, PARSE_ERROR, "{body}");
        }
        for body in ["[]", "{}", "7", r#"{"jsonrpc":"2.0"}"#] {
            assert_eq!(what_is_wrong(body.as_bytes()).expect("it is wrong").code, INVALID_REQUEST, "{body}");
        }
    }
}
