//! What settings are called in the environment and in files, and what counts as a value.

use std::ffi::OsStr;

/// What stands before a setting's name.
pub(crate) const PREFIX: &str = "CODE_INTERPRETER_";

/// A variable that is set to nothing counts as not set.
pub(crate) fn is_empty(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| value.trim().is_empty())
}
