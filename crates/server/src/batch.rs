//! Several messages in one, as the revision of 2025-03-26 has it.
//!
//! Rule: a batch is bounded before any of its messages is looked at, and these are left as they were written.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::refusal::Refusal;

/// Their answers are held until the last is there, and each may have megabytes of figures. Clients that batch send a handful.
const MAX_MESSAGES: usize = 32;

/// Whether `body` is meant to be one.
pub(crate) fn is_one(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"[")
}

/// The messages of a batch, as they were written.
///
/// # Errors
/// It is no JSON, or there are none or too many.
pub(crate) fn split(body: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    let text = std::str::from_utf8(body).map_err(Refusal::no_json)?;
    let Messages(messages) = serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            Refusal::batch(&format!("must have at most {MAX_MESSAGES} messages"))
        } else {
            Refusal::no_json(error)
        }
    })?;
    if messages.is_empty() {
        return Err(Refusal::batch("must have at least one message"));
    }
    Ok(messages.into_iter().map(|message| message.get().as_bytes()).collect())
}

struct Messages<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Messages<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;
        impl<'de> Visitor<'de> for Bounded {
            type Value = Messages<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut messages = Vec::new();
                while let Some(message) = items.next_element()? {
                    if messages.len() == MAX_MESSAGES {
                        return Err(A::Error::custom("too many"));
                    }
                    messages.push(message);
                }
                Ok(Messages(messages))
            }
        }
        deserializer.deserialize_seq(Bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_bounded_and_its_messages_are_left_as_they_are() {
        let messages = split(b" [{\"a\": 1} , 7,[2]] ").unwrap_or_else(|refusal| panic!("{refusal:?}"));
        assert_eq!(messages, [&b"{\"a\": 1}"[..], b"7", b"[2]"]);
        let of = |count: usize| format!("[{}]", vec!["1"; count].join(","));
        assert!(split(of(MAX_MESSAGES).as_bytes()).is_ok());
        for body in [of(MAX_MESSAGES + 1), of(0), of(1_000_000), "[1".to_owned(), "[1] 2".to_owned()] {
            assert!(split(body.as_bytes()).is_err(), "{}", &body[..body.len().min(99)]);
        }
    }
}
