//! A message, before rmcp makes a tree of it: the arguments of a tool are lifted out as text.
//!
//! Rule: rmcp reads what is small, and nothing else. A call's arguments reach the tool beside the message, never through
//! it, so whatever a client writes in their place is not looked at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::{ArgumentError, Arguments, Members, count_values, kind, shortened};
use rmcp::RoleServer;
use rmcp::model::RequestId;
use rmcp::service::RequestContext;
use serde::de::IgnoredAny;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::OwnedSemaphorePermit;

use crate::params;
use crate::refusal::Refusal;

/// What a message may take besides a tool's arguments. Icons of a client are known to come as text within it.
const MAX_BYTES: usize = 64 << 10;
/// And how many values and names it may have: each becomes some 200 bytes. An opening has about 50.
const MAX_VALUES: usize = 1000;
/// Above this much a message is not read on a thread that others wait for.
const LARGE_BYTES: usize = 64 << 10;
const CANCELLED: &str = "notifications/cancelled";

/// A message in two parts, and what a door looks at.
pub(crate) struct Message {
    /// What rmcp reads.
    pub(crate) text: Vec<u8>,
    /// What a tool is called with.
    pub(crate) arguments: Arguments,
    /// The id of a request.
    pub(crate) id: Option<RequestId>,
    pub(crate) meaning: Meaning,
    /// Notifications may come before the answer.
    pub(crate) wants_progress: bool,
}

/// What a message is to the door.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The first one of a client of the old eras.
    Opens,
    /// It takes a call back.
    Cancels(RequestId),
    /// The answer to something that no door has asked.
    Answers,
    Other,
}

/// What a door keeps among a request's extensions: the arguments, and the room that they take of the budget.
pub(crate) struct Lifted {
    arguments: Mutex<Option<Arguments>>,
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Lifted {
    pub(crate) fn new(arguments: Arguments, room: Option<Arc<OwnedSemaphorePermit>>) -> Arc<Self> {
        Arc::new(Self { arguments: Mutex::new(Some(arguments)), _room: room })
    }

    /// The arguments of the call, which has them once.
    pub(crate) fn of(context: &RequestContext<RoleServer>) -> Arguments {
        let by_http = context.extensions.get::<http::request::Parts>().map(|parts| &parts.extensions);
        let lifted =
            by_http.and_then(|extensions| extensions.get::<Arc<Self>>()).or_else(|| context.extensions.get::<Arc<Self>>());
        let take = |lifted: &Arc<Self>| lifted.arguments.lock().unwrap_or_else(PoisonError::into_inner).take();
        lifted.and_then(take).unwrap_or_default()
    }
}

/// Whether the answer to a request will be an event: known to its tools among the request's extensions.
#[derive(Clone, Default)]
pub(crate) struct InEvents(Arc<AtomicBool>);

impl InEvents {
    pub(crate) fn new(from_the_start: bool) -> Self {
        Self(Arc::new(AtomicBool::new(from_the_start)))
    }

    /// The answer is begun with before it is there.
    pub(crate) fn begins(&self, as_events: bool) {
        self.0.fetch_or(as_events, Ordering::Relaxed);
    }

    /// Of the request that a tool answers. What rmcp itself makes of an answer after progress is not known here.
    pub(crate) fn of(context: &RequestContext<RoleServer>) -> bool {
        let parts = context.extensions.get::<http::request::Parts>();
        parts.and_then(|parts| parts.extensions.get::<Self>()).is_some_and(|known| known.0.load(Ordering::Relaxed))
    }
}

/// Does what takes long with many bytes away from the threads that others wait for.
pub(crate) async fn away<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes <= LARGE_BYTES {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and whoever waits with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Takes a message apart.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn lift(body: &[u8]) -> Result<Message, Refusal> {
    lift_for(body, true)
}

/// The same for a client that may not take what comes before an answer.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn lift_for(body: &[u8], takes_progress: bool) -> Result<Message, Refusal> {
    let text = std::str::from_utf8(body).map_err(Refusal::no_json)?;
    if !text.trim_start().starts_with('{') {
        let is_json = serde_json::from_str::<IgnoredAny>(text);
        return Err(is_json.map_or_else(Refusal::no_json, |_| Refusal::no_message()));
    }
    let mut message =
        Members::read(text).map_err(|error| if error.is_data() { Refusal::no_message() } else { Refusal::no_json(error) })?;
    let id = message.get("id").filter(|id| id.get().len() <= MAX_BYTES && ["a string", "a number"].contains(&kind(id)));
    take_apart(&mut message, takes_progress)
        .map_err(|refusal| refusal.answering(id.and_then(|id| serde_json::from_str(id.get()).ok())))
}

fn take_apart(message: &mut Members<'_>, takes_progress: bool) -> Result<Message, Refusal> {
    let method = message.get("method").and_then(word);
    let of_call = method.as_deref() == Some(params::CALL);
    let text = message.get("params");
    let members = text.filter(|params| kind(params) == "an object").map(|params| Members::read(params.get()));
    let mut members = members.transpose().map_err(|error| unreadable("params", &error))?;
    let arguments = members.as_mut().filter(|_| of_call).and_then(|params| params.remove("arguments"));
    bound(message, members.as_ref(), arguments)?;
    let id = envelope(message)?;
    let token = progress_token(members.as_ref());
    let quiet = members.as_mut().filter(|_| token && !takes_progress).map(without_token).transpose()?;
    if let (Some(members), Some(meta)) = (&mut members, &quiet) {
        members.replace("_meta", meta);
    }
    let rest = members.as_ref().map(|params| to_raw_value(params).map_err(|error| unreadable("params", &error))).transpose()?;
    let rest = rest.as_deref().or(text);
    if let Some(method) = &method {
        params::check(method, rest, members.as_ref())?;
    }
    let meaning = match method.as_deref() {
        Some(params::INITIALIZE) => Meaning::Opens,
        Some(CANCELLED) => {
            let id = members.as_ref().and_then(|params| params.get("requestId"));
            id.and_then(|id| serde_json::from_str(id.get()).ok()).map_or(Meaning::Other, Meaning::Cancels)
        }
        None => Meaning::Answers,
        _ => Meaning::Other,
    };
    let arguments = arguments.map_or_else(|| Ok(Arguments::default()), read_arguments)?;
    // Shorter lived than the body: a message of its own.
    let mut message = message.clone();
    if let Some(rest) = rest {
        message.replace("params", rest);
    }
    let text = serde_json::to_vec(&message).map_err(|error| unreadable("params", &error))?;
    Ok(Message { text, arguments, id, meaning, wants_progress: token && takes_progress })
}

/// What every message must have; the id of a request.
fn envelope(message: &Members<'_>) -> Result<Option<RequestId>, Refusal> {
    if message.get("jsonrpc").and_then(word).as_deref() != Some("2.0") {
        return Err(Refusal::of_envelope(&ArgumentError::new("jsonrpc", "must be \"2.0\"")));
    }
    match message.get("method") {
        Some(method) if kind(method) == "a string" => {}
        Some(method) => {
            let problem = format!("must be a string, not {}", kind(method));
            return Err(Refusal::of_envelope(&ArgumentError::new("method", problem)));
        }
        // An answer, which the door has not asked for.
        None if message.get("result").or(message.get("error")).is_some() => return Ok(None),
        None => return Err(Refusal::no_message()),
    }
    let read = |id: &RawValue| {
        serde_json::from_str(id.get()).map_err(|_| {
            let problem = format!("must be a string or a whole number below 2^63, not {}", shortened(id.get()));
            Refusal::of_envelope(&ArgumentError::new("id", problem))
        })
    };
    message.get("id").map(read).transpose()
}

/// Whether the client would be told of progress.
fn progress_token(params: Option<&Members<'_>>) -> bool {
    let meta = params.and_then(|params| params.get("_meta")).and_then(|meta| Members::read(meta.get()).ok());
    meta.and_then(|meta| meta.get(params::PROGRESS_TOKEN)).is_some_and(|token| kind(token) != "null")
}

/// The params' `_meta` for a call that tells nothing before it ends.
fn without_token(params: &mut Members<'_>) -> Result<Box<RawValue>, ArgumentError> {
    let of_meta = |error: serde_json::Error| unreadable("params._meta", &error);
    let mut meta =
        params.get("_meta").map_or_else(|| Ok(Members::default()), |meta| Members::read(meta.get())).map_err(of_meta)?;
    meta.remove(params::PROGRESS_TOKEN);
    to_raw_value(&meta).map_err(of_meta)
}

/// An object, also where a client has written it as text.
fn read_arguments(arguments: &RawValue) -> Result<Arguments, ArgumentError> {
    if kind(arguments) == "a string" {
        let text = serde_json::from_str::<String>(arguments.get()).map_err(|error| unreadable("arguments", &error))?;
        if text.trim_start().starts_with('{') {
            let object = RawValue::from_string(text).map_err(|error| unreadable("arguments", &error))?;
            let mut arguments = Arguments::read(&object)?;
            arguments.warn("arguments", "the object was read from a string of JSON");
            return Ok(arguments);
        }
    }
    Arguments::read(arguments)
}

/// A short string.
fn word(value: &RawValue) -> Option<String> {
    if value.get().len() > MAX_BYTES { None } else { serde_json::from_str(value.get()).ok() }
}

fn unreadable(field: &str, error: &serde_json::Error) -> ArgumentError {
    ArgumentError::new(field, format!("can't be read: {error}"))
}

/// Refuses what would be a large tree, by the name of its largest part, and what is no value at all.
fn bound(message: &Members<'_>, params: Option<&Members<'_>>, arguments: Option<&RawValue>) -> Result<(), ArgumentError> {
    let of_params = params.into_iter().flat_map(Members::iter).map(|(name, value)| (format!("params.{name}"), value));
    let of_message = message.iter().filter(|(name, _)| params.is_none() || *name != "params");
    let parts = of_message.map(|(name, value)| (name.to_owned(), value)).chain(of_params).collect::<Vec<_>>();
    let size = |(name, value): &(String, &RawValue)| name.len() + value.get().len();
    let too_large = |what: String| {
        let field = parts.iter().max_by_key(|part| size(part)).map_or("params", |(name, _)| name);
        ArgumentError::new(field, format!("is too large: besides a tool's arguments a message may have {what}"))
    };
    // With the blanks between them.
    let all = message.iter().map(|(name, value)| name.len() + value.get().len()).sum::<usize>();
    if all - arguments.map_or(0, |arguments| arguments.get().len()) > MAX_BYTES {
        return Err(too_large(format!("{MAX_BYTES} bytes")));
    }
    let mut values = 0;
    for (name, value) in &parts {
        values += count_values(value.get()).map_err(|error| ArgumentError::new(name, format!("can't be read: {error}")))?;
    }
    if values > MAX_VALUES { Err(too_large(format!("{MAX_VALUES} values"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn refused(body: &str) -> Value {
        let Err(refusal) = lift(body.as_bytes()) else { panic!("it is taken: {}", &body[..body.len().min(200)]) };
        let body = refusal.into_response().into_body().collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&body).expect("JSON")
    }

    fn call(params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{params}}}"#)
    }

    #[test]
    fn rmcp_reads_all_but_the_arguments() {
        let body = r#" {"jsonrpc":"2.0", "id":9, "m\u0065thod":"tools\/call",
            "params":{"name":"execute_python","argum\u0065nts":{"code":"1","input_data":{"a":18446744073709551617}},"_meta":{"p":1}}}"#;
        let message = lift(body.as_bytes()).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        let rest = r#"{"jsonrpc":"2.0","id":9,"method":"tools\/call","params":{"name":"execute_python","_meta":{"p":1}}}"#;
        assert_eq!(String::from_utf8(message.text).expect("text"), rest);
        assert_eq!(message.arguments.unknown(&["code"]), Some("input_data"));
        for body in [
            call(r#"{"name":"a"}"#),
            r#"{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"arguments":{"a":1}}}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":null}"#.to_owned(),
        ] {
            let message = lift(body.as_bytes()).unwrap_or_else(|refusal| panic!("{refusal:?}"));
            assert_eq!(String::from_utf8(message.text).expect("text"), body);
            assert_eq!(message.arguments.unknown(&[]), None);
        }
    }

    #[tokio::test]
    async fn a_lone_surrogate_is_an_invalid_parameter_with_its_name() {
        let answer = refused(&call(r#"{"name":"execute_python","arguments":{"timeout":3,"code":"a\ud800"}}"#)).await;
        let error = &answer["error"];
        assert_eq!((&error["code"], &answer["id"], &error["data"]["field"]), (&json!(-32602), &json!(9), &json!("code")));
        assert!(error["message"].as_str().expect("words").starts_with("code: can't be read: "), "{answer}");
    }

    #[tokio::test]
    async fn broken_json_and_wrong_shapes_are_told_apart() {
        for body in ["", "{", "[1", "nonsense", "{\"a\":}", "\u{fffd}", "{} {}"] {
            assert_eq!(refused(body).await["error"]["code"], -32700, "{body}");
        }
        for body in ["[]", "7", r#"{"id":1,"id":2}"#] {
            assert_eq!(refused(body).await["error"]["code"], -32600, "{body}");
        }
    }

    #[tokio::test]
    async fn a_wrong_envelope_is_named_and_answers_its_id() {
        for (body, id, field) in [
            (r#"{"id":5,"method":"ping"}"#, json!(5), json!("jsonrpc")),
            (r#"{"jsonrpc":"1.0","id":"a","method":"ping"}"#, json!("a"), json!("jsonrpc")),
            (r#"{"jsonrpc":"2.0","id":5,"method":5}"#, json!(5), json!("method")),
            (r#"{"jsonrpc":"2.0","id":5}"#, json!(5), Value::Null),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, Value::Null, json!("id")),
            (r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#, Value::Null, json!("id")),
            (r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#, Value::Null, json!("id")),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, json!(1.5), json!("id")),
            (r#"{"jsonrpc":"2.0","id":18446744073709551615,"method":"ping"}"#, json!(u64::MAX), json!("id")),
        ] {
            let answer = refused(body).await;
            assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32600), &id), "{body}: {answer}");
            assert_eq!(answer["error"]["data"]["field"], field, "{body}: {answer}");
        }
        for (id, read) in
            [("1.0", RequestId::Number(1)), ("1e3", RequestId::Number(1000)), ("\"1\"", RequestId::String("1".into()))]
        {
            let message = lift(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#).as_bytes());
            assert_eq!(message.unwrap_or_else(|refusal| panic!("{refusal:?}")).id, Some(read));
        }
    }

    /// rmcp calls each of these an unknown method.
    #[tokio::test]
    async fn malformed_params_of_a_known_method_name_the_field() {
        let open = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":9,"method":"initialize","params":{params}}}"#);
        let no_params = |method: &str| format!(r#"{{"jsonrpc":"2.0","id":9,"method":"{method}"}}"#);
        for (body, field) in [
            (no_params("tools/call"), "params.name"),
            (call("null"), "params.name"),
            (call("[]"), "params"),
            (call("7"), "params"),
            (call(r#"{"arguments":{}}"#), "params.name"),
            (call(r#"{"name":5}"#), "params.name"),
            (call(r#"{"name":"a","arguments":[]}"#), "arguments"),
            (call(r#"{"name":"a","arguments":""}"#), "arguments"),
            (call(r#"{"name":"a","arguments":"{"}"#), "arguments"),
            (call(r#"{"name":"a","arguments":"[1]"}"#), "arguments"),
            (call(r#"{"name":"a","_meta":5}"#), "params._meta"),
            (call(r#"{"name":"a","requestState":5}"#), "params"),
            (no_params("initialize"), "params.protocolVersion"),
            (
                open(r#"{"protocolVersion":5,"capabilities":{},"clientInfo":{"name":"a","version":"1"}}"#),
                "params.protocolVersion",
            ),
            (open(r#"{"protocolVersion":"1","clientInfo":{"name":"a","version":"1"}}"#), "params.capabilities"),
            (
                open(r#"{"protocolVersion":"1","capabilities":{"roots":5},"clientInfo":{"name":"a","version":"1"}}"#),
                "params.capabilities",
            ),
            (open(r#"{"protocolVersion":"1","capabilities":{}}"#), "params.clientInfo"),
            (open(r#"{"protocolVersion":"1","capabilities":{},"clientInfo":"a"}"#), "params.clientInfo"),
            (open(r#"{"protocolVersion":"1","capabilities":{},"clientInfo":{"name":"a"}}"#), "params.clientInfo"),
            (r#"{"jsonrpc":"2.0","id":9,"method":"tools/list","params":[]}"#.to_owned(), "params"),
        ] {
            let answer = refused(&body).await;
            let error = &answer["error"];
            assert_eq!(
                (&error["code"], &answer["id"], &error["data"]["field"]),
                (&json!(-32602), &json!(9), &json!(field)),
                "{body}"
            );
            assert!(error["message"].as_str().expect("words").starts_with(&format!("{field}: ")), "{answer}");
        }
    }

    #[test]
    fn arguments_may_be_an_object_written_as_text() {
        let body = call(r#"{"name":"a","arguments":" {\"code\": \"1\"}"}"#);
        let message = lift(body.as_bytes()).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        assert_eq!(message.arguments.unknown(&[]), Some("code"));
    }

    #[test]
    fn a_door_sees_what_a_message_is_to_it() {
        let read = |body: &str, takes_progress| {
            lift_for(body.as_bytes(), takes_progress).unwrap_or_else(|refusal| panic!("{refusal:?}"))
        };
        let note = |id: &str| format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#);
        assert_eq!(read(&note("7"), true).meaning, Meaning::Cancels(RequestId::Number(7)));
        assert_eq!(read(&note("\"7\""), true).meaning, Meaning::Cancels(RequestId::String("7".into())));
        assert_eq!(read(&note("[]"), true).meaning, Meaning::Other);
        let body = call(r#"{"_meta":{"a":1,"progressToken":"t"},"name":"a"}"#);
        let (told, quiet) = (read(&body, true), read(&body, false));
        assert!(told.wants_progress && !quiet.wants_progress);
        assert_eq!(String::from_utf8(told.text).expect("text"), body);
        assert_eq!(String::from_utf8(quiet.text).expect("text"), call(r#"{"_meta":{"a":1},"name":"a"}"#));
    }

    #[tokio::test]
    async fn what_would_be_a_large_tree_is_refused_by_its_name() {
        let (zeros, deep) = (format!("[{}0]", "0,".repeat(600)), format!("{}{}", "[".repeat(200), "]".repeat(200)));
        let long = "a".repeat(70_000);
        for (body, field) in [
            (call(&format!(r#"{{"name":"a","_meta":{{"a":{zeros},"b":{zeros}}}}}"#)), "params._meta"),
            (call(&format!(r#"{{"name":"a","_meta":{deep}}}"#)), "params._meta"),
            (call(&format!(r#"{{"name":"{long}"}}"#)), "params.name"),
            (call(&format!(r#"{{"name":"a","{long}":1}}"#)), "params"),
            (call(&format!(r#"{{"name":"a","arguments":{zeros}}}"#)), "arguments"),
            (call(&format!(r#"{{"name":"a","arguments":{{"input_data":{deep}}}}}"#)), "input_data"),
            (call(&format!("[{zeros},{zeros}]")), "params"),
            (format!(r#"{{"jsonrpc":"2.0","id":"{long}","method":"a"}}"#), "id"),
            (format!(r#"{{"id":1,"method":"initialize","params":{{"capabilities":[{zeros},{zeros}]}}}}"#), "params.capabilities"),
            (format!(r#"{{"id":1,"result":[{zeros},{zeros}]}}"#), "result"),
        ] {
            let answer = refused(&body).await;
            assert_eq!(answer["error"]["code"], -32602, "{field}");
            let named = answer["error"]["data"]["field"].as_str().expect("a field");
            assert!(named.starts_with(field), "{named} is not {field}");
            assert!(answer.to_string().len() < 1500, "{field}");
        }
    }
}
