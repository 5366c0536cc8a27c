//! What is said of an argument that can't be used.
//!
//! Rule: a client's own words are never said back to it at any length.

use std::borrow::Cow;

use thiserror::Error;

/// How much of a client's own words is said back to it or logged.
const MAX_ECHOED: usize = 200;

/// An argument that can't be used: names the field and says what would be right.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct ArgumentError {
    /// The argument's name.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl ArgumentError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: shortened(&field.into()).into_owned(), problem: problem.into() }
    }
}

/// The start of a client's own words, when they are long.
pub fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_ECHOED) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()).into(),
        None => text.into(),
    }
}
