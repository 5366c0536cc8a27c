//! Runs other programs. Rule: a failure carries what was to be done and everything that was printed.

use std::process::{Command, Stdio};

use crate::BuildError;

/// Runs `command` to its end and gives its standard output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<String, BuildError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| BuildError::Command { what: what.to_owned(), output: format!("{command:?}: {error}") })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(BuildError::Command { what: what.to_owned(), output: format!("{}\n({})", text.trim_end(), output.status) })
}
