//! What a client posts: a message is taken apart, or refused in words.
//!
//! What goes on to rmcp is small, and the message without its arguments; what is refused is answered with a known code and
//! few words. JSON that serde can't read is never taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::Value;

#[allow(dead_code, reason = "the doors use it all")]
#[path = "../../crates/server/src/message.rs"]
mod message;
#[allow(dead_code, reason = "the doors use it all")]
#[path = "../../crates/server/src/params.rs"]
mod params;
#[allow(dead_code, reason = "the doors use it all")]
#[path = "../../crates/server/src/refusal.rs"]
mod refusal;

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

fuzz_target!(|body: &[u8]| {
    let is_json = std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    match message::lift(body) {
        Ok(message) => {
            assert!(is_json, "no JSON was taken");
            let rest: Value = serde_json::from_slice(&message.text).expect("what goes on is JSON");
            assert!(message.text.len() <= (64 << 10) + 4096 && count(&rest) <= 1100, "what goes on is small");
            let mut whole: Value = serde_json::from_slice(body).expect("what was taken can be read");
            if whole["method"] == "tools/call"
                && let Some(params) = whole.get_mut("params").and_then(Value::as_object_mut)
            {
                params.shift_remove("arguments");
            }
            assert_eq!(rest, whole, "nothing but the arguments is taken out");
            let _ = serde_json::from_slice::<rmcp::model::ClientJsonRpcMessage>(&message.text);
        }
        Err(refusal) => {
            let of_no_json = refusal.is_of_no_json();
            let (error, id) = refusal.into_error();
            assert!([-32700, -32600, -32602].contains(&error.code.0), "{error:?}");
            assert!(!of_no_json || !is_json, "JSON was refused as none: {error:?}");
            assert!(error.message.len() < 1500, "{} bytes of words", error.message.len());
            if let Some(id) = id {
                let whole = serde_json::from_slice::<Value>(body);
                let known = whole.map_or(true, |whole| serde_json::to_value(&id).is_ok_and(|id| id == whole["id"]));
                assert!(known, "answers {id:?}, which nobody asked");
            }
        }
    }
});
