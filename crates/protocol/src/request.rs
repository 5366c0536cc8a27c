//! What can be asked, and the one text for each way of asking wrongly.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{Arguments, Limits};

/// How much of a client's own words is said back to it or logged.
const MAX_ECHOED: usize = 200;
const ARGUMENTS: [&str; 5] = ["code", "timeout", "input_data", "requirements", "policy"];

/// The arguments of `execute_python`, as the tool's schema shows them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteArguments {
    /// Python source. The value of the last expression, or of a variable named `result`, comes back as `result`.
    pub code: String,
    /// Wall-clock seconds after which the run is killed. Fractions are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub timeout: Option<f64>,
    /// A JSON object that the code finds as the dict `input_data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_data: Option<Map<String, Value>>,
    /// Packages the code needs besides the preinstalled ones: names with versions, such as `humanize>=4`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
    /// `restricted` allows a short list of imports and nothing that reaches around it; only ever stricter than the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// What the code may say. It is guidance for the model and defence in depth; the walls are the process's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// All of Python.
    #[default]
    Open,
    /// Authorised imports, no files, no `eval`, no walks through the interpreter's insides.
    Restricted,
}

impl Policy {
    /// The word for it, or none for an unknown word.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "open" => Some(Self::Open),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

/// What a server sets for all calls.
#[derive(Clone, Copy, Debug)]
pub struct CallDefaults {
    /// Limits of a call that asks for none.
    pub limits: Limits,
    /// The longest timeout a call may ask for.
    pub max_timeout: Duration,
    /// The least strict policy.
    pub policy: Policy,
}

/// A request that may be run: every value is inside its bounds.
#[derive(Clone, Debug)]
pub struct CellRequest {
    /// Python source.
    pub code: String,
    /// Bound to the variable `input_data` when given: the text of a JSON object, as it came.
    pub input_data: Option<Box<RawValue>>,
    /// What bounds the run.
    pub limits: Limits,
    /// When the run must have ended, however long it has waited for a kernel.
    pub deadline: Option<Instant>,
    /// What the code may say.
    pub policy: Policy,
    /// Packages it needs, as they were asked for.
    pub requirements: Vec<String>,
    /// Where these are, once they are there.
    pub packages: Option<PackagePath>,
}

/// A folder that a cell imports from besides the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackagePath {
    /// The folder.
    pub directory: PathBuf,
    /// It takes the stack's place.
    pub separate: bool,
}

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

impl CellRequest {
    /// Checks a call's arguments against the tool's schema and the server's limits.
    ///
    /// # Errors
    /// The first argument that is missing, unknown, of the wrong type or out of bounds.
    pub fn from_arguments(mut arguments: Arguments, defaults: &CallDefaults) -> Result<Self, ArgumentError> {
        let code = arguments.long_string("code", "a string of Python source")?;
        let code = code.ok_or_else(|| ArgumentError::new("code", "is missing; it must be a string of Python source"))?;
        let mut limits = defaults.limits;
        if let Some(seconds) = arguments.number("timeout", "a number of seconds")? {
            limits.timeout = timeout(seconds, defaults.max_timeout)?;
        }
        let input_data = arguments.take_object("input_data", "a JSON object")?;
        let word = arguments.string("policy", "open or restricted")?;
        let policy = word.map_or(Ok(defaults.policy), |word| policy(&word, defaults.policy))?;
        let requirements =
            arguments.strings("requirements", "an array of strings such as [\"humanize>=4\"]", "a string such as humanize>=4")?;
        if let Some(name) = arguments.unknown(&ARGUMENTS) {
            return Err(ArgumentError::new(
                name,
                "is not an argument of execute_python; it takes code, timeout, input_data, requirements and policy",
            ));
        }
        Ok(Self { code, input_data, limits, deadline: None, policy, requirements, packages: None })
    }
}

/// A call's policy: never less strict than the server's.
fn policy(word: &str, server: Policy) -> Result<Policy, ArgumentError> {
    match Policy::from_word(word) {
        None => Err(ArgumentError::new("policy", format!("must be open or restricted, not {:?}", shortened(word)))),
        Some(policy) if policy < server => {
            Err(ArgumentError::new("policy", "must be restricted, as the server's is: a call can only be stricter"))
        }
        Some(policy) => Ok(policy),
    }
}

/// A timeout in seconds as a duration, when it is inside its bounds.
fn timeout(seconds: f64, max: Duration) -> Result<Duration, ArgumentError> {
    let max_seconds = max.as_secs_f64();
    if seconds > 0.0 && seconds <= max_seconds {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(ArgumentError::new("timeout", format!("must be more than 0 and at most {max_seconds} seconds, not {seconds}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(arguments: Value) -> Result<CellRequest, String> {
        let Value::Object(arguments) = arguments else { panic!("the case must be an object") };
        let defaults = CallDefaults { limits: Limits::default(), max_timeout: Duration::from_secs(120), policy: Policy::Open };
        CellRequest::from_arguments(arguments.into(), &defaults).map_err(|e| e.to_string())
    }

    #[test]
    fn good_arguments_become_a_request() {
        let request = check(json!({"code": "1", "timeout": 0.5, "input_data": {"a": 1}})).expect("valid");
        assert_eq!(request.limits.timeout, Duration::from_millis(500));
        assert_eq!(request.input_data.expect("given").get(), r#"{"a":1}"#);
        assert_eq!(check(json!({"code": "", "timeout": null})).expect("valid").limits, Limits::default());
    }

    #[test]
    fn every_mistake_names_its_field_and_says_what_is_right() {
        for (arguments, message) in [
            (json!({}), "code: is missing; it must be a string of Python source"),
            (json!({"code": null}), "code: must be a string of Python source, not null"),
            (json!({"code": ["a"]}), "code: must be a string of Python source, not an array"),
            (json!({"code": "", "timeout": "9"}), "timeout: must be a number of seconds, not a string"),
            (json!({"code": "", "timeout": -1}), "timeout: must be more than 0 and at most 120 seconds, not -1"),
            (json!({"code": "", "timeout": 0}), "timeout: must be more than 0 and at most 120 seconds, not 0"),
            (json!({"code": "", "timeout": 121}), "timeout: must be more than 0 and at most 120 seconds, not 121"),
            (json!({"code": "", "input_data": [1]}), "input_data: must be a JSON object, not an array"),
            (
                json!({"code": "", "files": []}),
                "files: is not an argument of execute_python; it takes code, timeout, input_data, requirements and policy",
            ),
            (json!({"code": "", "policy": "strict"}), "policy: must be open or restricted, not \"strict\""),
            (
                json!({"code": "", "requirements": "humanize"}),
                "requirements: must be an array of strings such as [\"humanize>=4\"], not a string",
            ),
            (
                json!({"code": "", "requirements": ["a", 1]}),
                "requirements[1]: must be a string such as humanize>=4, not a number",
            ),
            (json!({"code": "", "policy": 1}), "policy: must be open or restricted, not a number"),
        ] {
            assert_eq!(check(arguments).expect_err(message), message);
        }
        assert!(check(json!({"code": "", "timeout": 1e308})).expect_err("too long").starts_with("timeout: must be"));
    }

    #[test]
    fn what_a_client_wrote_is_said_back_to_it_shortened() {
        let long = "é".repeat(1_000_000);
        for arguments in [
            Map::from_iter([("code".to_owned(), json!("")), (long.clone(), json!(1))]),
            Map::from_iter([("code".to_owned(), json!("")), ("policy".to_owned(), json!("é".repeat(20_000)))]),
            Map::from_iter([("code".to_owned(), json!("")), ("policy".to_owned(), json!(long))]),
            Map::from_iter([("code".to_owned(), json!("")), ("requirements".to_owned(), json!([long[..2002]]))]),
            Map::from_iter([("code".to_owned(), json!("")), ("requirements".to_owned(), json!(vec!["a"; 20_000]))]),
        ] {
            let error = check(Value::Object(arguments)).expect_err("refused");
            assert!(error.len() < 1000, "{error}");
        }
    }

    #[test]
    fn a_call_can_only_be_stricter_than_the_server() {
        let defaults =
            CallDefaults { limits: Limits::default(), max_timeout: Duration::from_secs(120), policy: Policy::Restricted };
        let ask = |policy: Value| {
            let arguments = Map::from_iter([("code".to_owned(), json!("1")), ("policy".to_owned(), policy)]);
            CellRequest::from_arguments(arguments.into(), &defaults)
                .map(|request| request.policy)
                .map_err(|error| error.to_string())
        };
        assert_eq!(ask(Value::Null), Ok(Policy::Restricted));
        assert_eq!(ask(json!("restricted")), Ok(Policy::Restricted));
        assert!(ask(json!("open")).expect_err("less strict").starts_with("policy: must be restricted"));
    }
}
