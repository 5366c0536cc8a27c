//! A message, before rmcp makes a tree of it: the arguments of a tool are lifted out as text.
//!
//! Rule: rmcp reads what is small, and nothing else. A call's arguments reach the tool beside the message, never through
//! it, so whatever a client writes in their place is not looked at.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use protocol::{ArgumentError, Arguments, Members, count_values, kind};
use rmcp::RoleServer;
use rmcp::service::RequestContext;
use serde::de::IgnoredAny;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::OwnedSemaphorePermit;

use crate::refusal::Refusal;

/// What a message may take besides a tool's arguments. Icons of a client are known to come as text within it.
const MAX_BYTES: usize = 64 << 10;
/// And how many values and names it may have: each becomes some 200 bytes. An opening has about 50.
const MAX_VALUES: usize = 1000;
/// Above this much a message is not read on a thread that others wait for.
const LARGE_BYTES: usize = 64 << 10;
const CALL: &str = "tools/call";

/// A message in two parts.
pub(crate) struct Message {
    /// What rmcp reads.
    pub(crate) text: Vec<u8>,
    /// What a tool is called with.
    pub(crate) arguments: Arguments,
}

/// What a door keeps among a request's extensions: the arguments, and the room that they take of the budget.
pub(crate) struct Lifted {
    arguments: Mutex<Option<Arguments>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Lifted {
    pub(crate) fn new(arguments: Arguments, room: Option<OwnedSemaphorePermit>) -> Arc<Self> {
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
    let text = std::str::from_utf8(body).map_err(Refusal::no_json)?;
    if !text.trim_start().starts_with('{') {
        let is_json = serde_json::from_str::<IgnoredAny>(text);
        return Err(is_json.map_or_else(Refusal::no_json, |_| Refusal::no_message()));
    }
    let mut message =
        Members::read(text).map_err(|error| if error.is_data() { Refusal::no_message() } else { Refusal::no_json(error) })?;
    let id = message.get("id").filter(|id| id.get().len() <= MAX_BYTES && ["a string", "a number"].contains(&kind(id)));
    take_apart(&mut message).map_err(|error| {
        let id = id.and_then(|id| serde_json::from_str(id.get()).ok());
        Refusal::of_field(&error).answering(id)
    })
}

fn take_apart(message: &mut Members<'_>) -> Result<Message, ArgumentError> {
    let unreadable = |field: &str, error: &serde_json::Error| ArgumentError::new(field, format!("can't be read: {error}"));
    let is_call = message.get("method").is_some_and(|method| {
        method.get().len() <= MAX_BYTES && serde_json::from_str::<Cow<'_, str>>(method.get()).is_ok_and(|method| method == CALL)
    });
    let params = message.get("params").filter(|params| kind(params) == "an object");
    let params = params.map(|params| Members::read(params.get()).map_err(|error| unreadable("params", &error)));
    let mut params = params.transpose()?;
    let arguments = params.as_mut().filter(|_| is_call).and_then(|params| params.remove("arguments"));
    bound(message, params.as_ref(), arguments)?;
    let arguments = arguments.map_or_else(|| Ok(Arguments::default()), Arguments::read)?;
    let rest = params.map(|params| to_raw_value(&params)).transpose().map_err(|error| unreadable("params", &error))?;
    if let Some(rest) = &rest {
        // Shorter lived than the body: a message of its own.
        let mut message = message.clone();
        message.replace("params", rest);
        return write(&message, arguments);
    }
    write(message, arguments)
}

fn write(message: &Members<'_>, arguments: Arguments) -> Result<Message, ArgumentError> {
    let text = serde_json::to_vec(message).map_err(|error| ArgumentError::new("params", error.to_string()))?;
    Ok(Message { text, arguments })
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
            call("null"),
            call(r#"{"name":"a"}"#),
            r#"{"id":1,"method":"prompts/get","params":{"arguments":{"a":1}}}"#.to_owned(),
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
            (format!(r#"{{"id":"{long}","method":"a"}}"#), "id"),
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
