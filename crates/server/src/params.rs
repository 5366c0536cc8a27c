//! What the params of the methods that are served must have.
//!
//! Rule: rmcp takes a message whose params it can't read for a method it doesn't know. So params are checked before, and the
//! first field that is wrong is named.

use protocol::{ArgumentError, Members, kind};
use rmcp::model::{CallToolRequestParams, ClientCapabilities, Implementation, ProgressToken, RequestMetaObject};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

pub(crate) const INITIALIZE: &str = "initialize";
pub(crate) const CALL: &str = "tools/call";
const READ: &str = "resources/read";
pub(crate) const PROGRESS_TOKEN: &str = "progressToken";
/// In the `_meta` of a message whose protocol has no handshake.
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";

/// Checks params without a tool's arguments; `params` are the members of `text`.
///
/// # Errors
/// The first field that is wrong.
pub(crate) fn check(method: &str, text: Option<&RawValue>, params: Option<&Members<'_>>) -> Result<(), ArgumentError> {
    if let Some(text) = text.filter(|text| !["an object", "null"].contains(&kind(text))) {
        return Err(wrong("params", "an object", Some(text)));
    }
    let member = |name: &str| params.and_then(|params| params.get(name));
    if let Some(meta) = member("_meta") {
        readable::<Option<RequestMetaObject>>("params._meta", meta)?;
        let token = Members::read(meta.get()).ok().and_then(|meta| meta.get(PROGRESS_TOKEN));
        if let Some(token) =
            token.filter(|token| kind(token) != "null" && serde_json::from_str::<ProgressToken>(token.get()).is_err())
        {
            return Err(wrong("params._meta.progressToken", "a string or a whole number", Some(token)));
        }
    }
    let has_handshake =
        member("_meta").and_then(|meta| Members::read(meta.get()).ok()).is_none_or(|meta| meta.get(VERSION).is_none());
    match method {
        // No method there, which rmcp says.
        INITIALIZE if !has_handshake => Ok(()),
        INITIALIZE => {
            required("params.protocolVersion", "a string such as 2025-11-25", "a string", member("protocolVersion"))?;
            let capabilities = required("params.capabilities", "an object", "an object", member("capabilities"))?;
            readable::<ClientCapabilities>("params.capabilities", capabilities)?;
            let client = "an object with the client's name and version";
            readable::<Implementation>(
                "params.clientInfo",
                required("params.clientInfo", client, "an object", member("clientInfo"))?,
            )
        }
        CALL => {
            required("params.name", "the name of a tool", "a string", member("name"))?;
            text.map_or(Ok(()), |text| readable::<CallToolRequestParams>("params", text))
        }
        READ => required("params.uri", "the URI of a resource", "a string", member("uri")).map(drop),
        _ => match member("cursor").filter(|cursor| !["a string", "null"].contains(&kind(cursor))) {
            Some(cursor) if method.ends_with("/list") => Err(wrong("params.cursor", "a string", Some(cursor))),
            _ => Ok(()),
        },
    }
}

fn required<'a>(field: &str, wanted: &str, of_kind: &str, value: Option<&'a RawValue>) -> Result<&'a RawValue, ArgumentError> {
    value.filter(|value| kind(value) == of_kind).ok_or_else(|| wrong(field, wanted, value))
}

fn wrong(field: &str, wanted: &str, value: Option<&RawValue>) -> ArgumentError {
    let problem = match value.map(kind) {
        None => format!("is missing; it must be {wanted}"),
        Some(got) => format!("must be {wanted}, not {got}"),
    };
    ArgumentError::new(field, problem)
}

/// What is left for rmcp's own types to say.
fn readable<T: DeserializeOwned>(field: &str, value: &RawValue) -> Result<(), ArgumentError> {
    let read = serde_json::from_str::<T>(value.get());
    read.map(drop).map_err(|error| ArgumentError::new(field, format!("can't be read: {error}")))
}
