//! What can be asked, and the one text for each way of asking wrongly.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::argument_error::{ArgumentError, shortened};
use crate::{Arguments, Limits, kind};

const ARGUMENTS: [&str; 5] = ["code", "timeout", "input_data", "requirements", "policy"];
/// The argument, and what else models call it.
const CODE: [&str; 5] = ["code", "python_code", "script", "source", "input"];
const REQUIREMENTS: [&str; 3] = ["requirements", "packages", "dependencies"];

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
    /// What its caller should know of the arguments; goes into the answer.
    pub warnings: Vec<String>,
}

/// A folder that a cell imports from besides the stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackagePath {
    /// The folder.
    pub directory: PathBuf,
    /// It takes the stack's place.
    pub separate: bool,
}

impl CellRequest {
    /// Checks a call's arguments against the tool's schema and the server's limits. What is not as it should be and can yet
    /// be understood is, with a warning.
    ///
    /// # Errors
    /// The first argument that is missing, of the wrong type or out of bounds.
    pub fn from_arguments(mut arguments: Arguments, defaults: &CallDefaults) -> Result<Self, ArgumentError> {
        const WANTED: &str = "a string of Python source";
        let Some(code) = arguments.long_string(&CODE, WANTED)? else {
            let instead = arguments.unknown(&ARGUMENTS).map(|name| format!("; {} is not an argument", shortened(name)));
            let problem = format!("is missing; it must be {WANTED}{}", instead.unwrap_or_default());
            return Err(ArgumentError::new(CODE[0], problem));
        };
        let mut limits = defaults.limits;
        if let Some(seconds) = arguments.number("timeout", "a number of seconds")? {
            limits.timeout = timeout(seconds, defaults.max_timeout)?;
            let max = defaults.max_timeout.as_secs_f64();
            if seconds > max {
                let asked = seconds.to_string();
                arguments.warn("timeout", format_args!("at most {max} seconds can be had, and were, not {}", shortened(&asked)));
            }
        }
        let input_data = arguments.object("input_data", "a JSON object")?;
        let word = arguments.string("policy", "open or restricted")?;
        let policy = word.map_or(Ok(defaults.policy), |word| policy(&word, defaults.policy))?;
        let requirements =
            arguments.strings(&REQUIREMENTS, "an array of strings such as [\"humanize>=4\"]", "a string such as humanize>=4")?;
        let warnings = arguments.finish("execute_python", &ARGUMENTS, missed);
        Ok(Self { code, input_data, limits, deadline: None, policy, requirements, packages: None, warnings })
    }
}

/// Arguments of other interpreters, whose meaning would be missed without a word.
fn missed(name: &str, value: &RawValue) -> Option<&'static str> {
    if kind(value) == "null" {
        return None;
    }
    match name {
        "session_id" | "session" | "conversation_id" | "kernel_id" | "context_id" | "container_id" => {
            Some("nothing is kept between calls; send all the code that is needed in each")
        }
        "files" | "file" | "file_ids" | "file_paths" | "attachments" => {
            Some("a call begins with an empty directory; send data in input_data")
        }
        "language" | "lang" if !["\"python\"", "\"python3\"", "\"py\""].contains(&value.get().to_lowercase().as_str()) => {
            Some("only Python is run")
        }
        "stdin" => Some("there is no standard input; send data in input_data"),
        "env" | "environment" | "env_vars" => Some("the environment is the interpreter's own; send data in input_data"),
        _ => None,
    }
}

/// A call's policy: never less strict than the server's.
fn policy(word: &str, server: Policy) -> Result<Policy, ArgumentError> {
    match Policy::from_word(word.trim().to_ascii_lowercase().as_str()) {
        None => Err(ArgumentError::new("policy", format!("must be open or restricted, not {:?}", shortened(word)))),
        Some(policy) if policy < server => {
            Err(ArgumentError::new("policy", "must be restricted, as the server's is: a call can only be stricter"))
        }
        Some(policy) => Ok(policy),
    }
}

/// A timeout in seconds as a duration of at most `max`.
fn timeout(seconds: f64, max: Duration) -> Result<Duration, ArgumentError> {
    let max_seconds = max.as_secs_f64();
    if seconds > 0.0 {
        Ok(Duration::try_from_secs_f64(seconds).map_or(max, |timeout| timeout.min(max)))
    } else {
        Err(ArgumentError::new("timeout", format!("must be more than 0 and at most {max_seconds} seconds, not {seconds}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

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
            (json!({"code": null}), "code: is missing; it must be a string of Python source"),
            (json!({"cmd": "1"}), "code: is missing; it must be a string of Python source; cmd is not an argument"),
            (json!({"code": ["a"]}), "code: must be a string of Python source, not an array"),
            (json!({"script": 5}), "code: must be a string of Python source, not a number"),
            (json!({"code": "", "timeout": "soon"}), "timeout: must be a number of seconds, not \"soon\""),
            (json!({"code": "", "timeout": "NaN"}), "timeout: must be a number of seconds, not \"NaN\""),
            (json!({"code": "", "timeout": true}), "timeout: must be a number of seconds, not a boolean"),
            (json!({"code": "", "timeout": -1}), "timeout: must be more than 0 and at most 120 seconds, not -1"),
            (json!({"code": "", "timeout": "0"}), "timeout: must be more than 0 and at most 120 seconds, not 0"),
            (json!({"code": "", "input_data": [1]}), "input_data: must be a JSON object, not an array"),
            (json!({"code": "", "input_data": "[1]"}), "input_data: must be a JSON object, not a string that holds none"),
            (json!({"code": "", "input_data": "{'a': 1}"}), "input_data: must be a JSON object, not a string that holds none"),
            (json!({"code": "", "policy": "strict"}), "policy: must be open or restricted, not \"strict\""),
            (
                json!({"code": "", "requirements": {"humanize": 4}}),
                "requirements: must be an array of strings such as [\"humanize>=4\"], not an object",
            ),
            (
                json!({"code": "", "requirements": ["a", 1]}),
                "requirements[1]: must be a string such as humanize>=4, not a number",
            ),
            (json!({"code": "", "policy": 1}), "policy: must be open or restricted, not a number"),
        ] {
            assert_eq!(check(arguments).expect_err(message), message);
        }
        let surrogate = json!({"code": "", "input_data": "{\"a\": \"\\ud800\"}"});
        assert!(check(surrogate).expect_err("no value").starts_with("input_data: can't be read: "));
    }

    #[test]
    fn what_can_be_understood_is_with_a_warning() {
        let only = |arguments: Value| {
            let mut request = check(arguments.clone()).unwrap_or_else(|error| panic!("{arguments}: {error}"));
            assert_eq!(request.warnings.len(), 1, "{arguments}: {:?}", request.warnings);
            (request.warnings.remove(0), request)
        };
        let (warning, request) = only(json!({"code": "", "timeout": " 10 "}));
        assert_eq!((warning.as_str(), request.limits.timeout.as_secs()), ("timeout: the number was read from a string", 10));
        for asked in [json!(1000), json!(1e308)] {
            let (warning, request) = only(json!({"code": "", "timeout": asked}));
            assert_eq!(request.limits.timeout.as_secs(), 120);
            assert!(warning.starts_with("timeout: at most 120 seconds can be had, and were, not 1000"), "{warning}");
        }
        let (warning, request) = only(json!({"code": "", "input_data": "{\"a\": [1,  2]}"}));
        assert_eq!(request.input_data.expect("given").get(), "{\"a\": [1,  2]}");
        assert_eq!(warning, "input_data: the object was read from a string of JSON");
        let (_, request) = only(json!({"code": "", "requirements": "humanize>=4,<5"}));
        assert_eq!(request.requirements, ["humanize>=4,<5"]);
        let (warning, request) = only(json!({"code": "", "packages": ["humanize"]}));
        assert_eq!(
            (warning.as_str(), request.requirements),
            ("packages: was taken as requirements", vec!["humanize".to_owned()])
        );
        for name in ["python_code", "script", "source", "input"] {
            let (warning, request) = only(json!({"code": null, name: "7"}));
            assert_eq!((warning, request.code), (format!("{name}: was taken as code"), "7".to_owned()));
        }
        for (name, value, note) in [
            ("session_id", json!("a"), "session_id: had no effect: nothing is kept between calls; "),
            ("session_id", json!(null), "session_id: is not an argument of execute_python and was ignored; it takes code, "),
            ("files", json!([]), "files: had no effect: a call begins with an empty directory; "),
            ("language", json!("javascript"), "language: had no effect: only Python is run"),
            ("language", json!("Python"), "language: is not an argument of execute_python and was ignored; "),
            ("script", json!("print(2)"), "script: is not an argument of execute_python and was ignored; "),
        ] {
            let (warning, request) = only(json!({"code": "1", name: value}));
            assert!(warning.starts_with(note), "{warning}");
            assert_eq!(request.code, "1");
        }
        let nothing = json!({"code": "1", "timeout": null, "input_data": null, "requirements": null, "policy": null});
        let empty = json!({"code": "1", "timeout": "", "input_data": "", "requirements": "", "policy": ""});
        for arguments in [nothing, empty, json!({"code": "1", "policy": "Open"}), json!({"code": "1", "requirements": []})] {
            let request = check(arguments).expect("valid");
            assert_eq!((request.limits, request.warnings), (Limits::default(), Vec::new()));
        }
    }

    #[test]
    fn what_a_client_wrote_is_said_back_to_it_shortened() {
        let long = "é".repeat(1_000_000);
        for (name, value) in [
            ("timeout", json!(long[..20_000])),
            ("policy", json!("é".repeat(20_000))),
            ("policy", json!(long)),
            ("requirements", json!([long[..2002]])),
            ("requirements", json!(vec!["a"; 20_000])),
        ] {
            let error = check(json!({"code": "", name: value})).expect_err("refused");
            assert!(error.len() < 1000, "{error}");
        }
        let of_name = [json!({"code": "", &*long: 1}), json!({"code": "", "timeout": 1e300})];
        for arguments in of_name {
            let warnings = check(arguments).expect("understood").warnings.concat();
            assert!(warnings.len() < 1000, "{warnings}");
        }
        assert!(check(json!({&*long: 1})).expect_err("no code").len() < 1000);
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
