//! The list of tools, as a model reads it.
//!
//! Rule: schemas are plain, because many clients can read no others: one type each, no references, no alternatives, no
//! formats; and every bound and default in them is this server's own.

use std::sync::Arc;
use std::time::Duration;

use interpreter::Allowed;
use protocol::{CallDefaults, Policy};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::service::{EnvironmentInfo, INSTALL, InstallReport, PackageList};

pub(crate) const EXECUTE: &str = "execute_python";
/// What some clients call it.
pub(crate) const INSTALL_ALIAS: &str = "pip_install";
pub(crate) const PACKAGES: &str = "list_preinstalled_packages";
pub(crate) const ENVIRONMENT: &str = "get_environment_info";

/// Less is no time for any code.
const MIN_TIMEOUT_SECONDS: f64 = 0.1;

/// What a server says of itself to a client that opens.
pub(crate) const INSTRUCTIONS: &str = "Runs Python in a fresh, isolated process with numpy, pandas, scipy, scikit-learn, matplotlib and more. \
    The value of the last expression (or of a variable named `result`) comes back with stdout, stderr and figures. \
    Nothing is kept between calls.";

/// The tools of a server with these settings.
pub(crate) fn tools(defaults: &CallDefaults, allowed: Allowed) -> Vec<Tool> {
    let acting = |idempotent, open_world| {
        ToolAnnotations::new().read_only(false).destructive(false).idempotent(idempotent).open_world(open_world)
    };
    let reading = || ToolAnnotations::new().read_only(true).destructive(false).open_world(false);
    vec![
        // Without an output schema: with one, clients would read the structured content only, and so never see a figure.
        Tool::new(EXECUTE, execute_description(defaults, allowed), execute_input(defaults))
            .with_title("Run Python")
            .with_annotations(acting(false, allowed.network)),
        Tool::new(
            ENVIRONMENT,
            "What code runs on: Python version, platform, limits, preinstalled packages and the protections that hold.",
            object(&json!({}), &[]),
        )
        .with_title("Describe the environment")
        .with_raw_output_schema(output::<EnvironmentInfo>())
        .with_annotations(reading()),
        Tool::new(
            INSTALL,
            "Have packages at hand ahead of time, so that execute_python calls with the same `requirements` start at once. It is \
             not needed before such a call, and calls without these requirements don't see the packages.",
            object(&json!({"packages": requirements("The packages")}), &["packages"]),
        )
        .with_title("Install packages")
        .with_raw_output_schema(output::<InstallReport>())
        .with_annotations(acting(true, true)),
        Tool::new(
            PACKAGES,
            "The packages that code can import without `requirements`, with versions and the names to import.",
            object(&json!({}), &[]),
        )
        .with_title("List installed packages")
        .with_raw_output_schema(output::<PackageList>())
        .with_annotations(reading()),
    ]
}

fn execute_description(defaults: &CallDefaults, allowed: Allowed) -> String {
    let limits = &defaults.limits;
    let denied = match (allowed.network, allowed.subprocess) {
        (false, false) => "There is no network, no subprocess and no input().",
        (true, false) => "There is no subprocess and no input().",
        (false, true) => "There is no network and no input().",
        (true, true) => "There is no input().",
    };
    format!(
        "Run Python in a fresh, isolated process. Returns the value of the last expression (or of a variable named `result`), \
         stdout, stderr, and figures as images: each at plt.show(), and those still open at the end. numpy, pandas, scipy, \
         scikit-learn, matplotlib and more are preinstalled; what else is imported must be named in `requirements`. Nothing is \
         kept between calls: send all the code that is needed, and its data in `input_data`. The working directory (/mnt/data \
         on most servers) begins empty and goes with the call; files left in it come back, small ones with their contents. {denied} Top-level await works. Memory: {} MB; stdout and \
         stderr: {} bytes each.",
        limits.memory_bytes >> 20,
        limits.output_cap_bytes,
    )
}

fn execute_input(defaults: &CallDefaults) -> JsonObject {
    let max = defaults.max_timeout.as_secs_f64();
    let policy = match defaults.policy {
        Policy::Open => json!({
            "type": "string",
            "enum": ["open", "restricted"],
            "default": "open",
            "description": "restricted: a short list of imports, no files, no eval.",
        }),
        Policy::Restricted => json!({
            "type": "string",
            "enum": ["restricted"],
            "default": "restricted",
            "description": "What this server has: a short list of imports, no files, no eval.",
        }),
    };
    let properties = json!({
        "code": {
            "type": "string",
            "description": "Python source. End with an expression, or set `result`, to get its value; print what else is of use.",
        },
        "timeout": {
            "type": "number",
            "minimum": MIN_TIMEOUT_SECONDS.min(max),
            "maximum": plain_number(defaults.max_timeout),
            "default": plain_number(defaults.limits.timeout),
            "description": "Wall-clock seconds after which the code is stopped.",
        },
        "input_data": {
            "type": "object",
            "description": "A JSON object that the code finds as the dict `input_data`.",
        },
        "requirements": requirements("Packages for this call besides the preinstalled ones"),
        "policy": policy,
    });
    object(&properties, &["code"])
}

fn requirements(what: &str) -> Value {
    json!({
        "type": "array",
        "items": {"type": "string"},
        "description": format!("{what}, by their names on PyPI, with versions where these matter: [\"humanize\", \"polars>=1,<2\"]. No options, URLs or paths."),
    })
}

fn object(properties: &Value, required: &[&str]) -> JsonObject {
    let mut schema = JsonObject::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), properties.clone());
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

/// 120, not 120.0.
fn plain_number(time: Duration) -> Value {
    if time.subsec_nanos() == 0 { json!(time.as_secs()) } else { json!(time.as_secs_f64()) }
}

/// What a tool's structured content looks like.
fn output<T: JsonSchema>() -> Arc<JsonObject> {
    let settings = SchemaSettings::draft2020_12().for_serialize().with_transform(RecursiveTransform(simplify));
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = std::mem::take(schema.ensure_object());
    // They are the type's own.
    schema.remove("title");
    schema.remove("description");
    Arc::new(schema)
}

fn simplify(schema: &mut Schema) {
    schema.remove("format");
    // An enum with a description of each word.
    if let Some(Value::Array(words)) = schema.remove("oneOf") {
        schema.insert("type".to_owned(), json!("string"));
        schema.insert("enum".to_owned(), words.iter().filter_map(|word| word.get("const").cloned()).collect());
    }
}

#[cfg(test)]
mod tests {
    use protocol::Limits;

    use super::*;

    fn list(policy: Policy) -> Value {
        let defaults = CallDefaults { limits: Limits::default(), max_timeout: Duration::from_millis(45_500), policy };
        serde_json::to_value(tools(&defaults, Allowed::default())).expect("JSON")
    }

    /// The places of schemas in a schema, also of those that no client may have to read.
    fn check(schema: &Value, at: &str) {
        let schema = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema}"));
        for (keyword, value) in schema {
            match keyword.as_str() {
                "description" => assert!(value.is_string(), "{at}"),
                "type" => assert!(value.is_string(), "{at}: {value}"),
                "enum" => {
                    assert!(
                        value.as_array().is_some_and(|words| !words.is_empty() && words.iter().all(Value::is_string)),
                        "{at}"
                    );
                }
                "properties" => {
                    for (name, property) in value.as_object().expect("properties") {
                        check(property, &format!("{at}.{name}"));
                    }
                }
                "items" => check(value, &format!("{at}[]")),
                "required" | "additionalProperties" | "default" | "minimum" | "maximum" => {}
                other => panic!("{at}: {other} is a keyword that some client can't read"),
            }
        }
    }

    #[test]
    fn schemas_are_plain_and_the_list_is_short() {
        for policy in [Policy::Open, Policy::Restricted] {
            let list = list(policy);
            for tool in list.as_array().expect("tools") {
                check(&tool["inputSchema"], &format!("{} in", tool["name"]));
                if tool["name"] != EXECUTE {
                    check(&tool["outputSchema"], &format!("{} out", tool["name"]));
                }
            }
            let bytes = list.to_string().len();
            assert!(bytes < 7500, "{bytes} bytes");
        }
    }

    /// Clients that see one look at nothing but the structured content: no model saw a figure.
    #[test]
    fn execute_python_has_no_output_schema() {
        assert_eq!(list(Policy::Open)[0].get("outputSchema"), None);
    }

    #[test]
    fn bounds_and_defaults_are_those_of_the_server() {
        let timeout = &list(Policy::Open)[0]["inputSchema"]["properties"]["timeout"];
        assert_eq!((&timeout["maximum"], &timeout["default"]), (&json!(45.5), &json!(30)));
        let policy = &list(Policy::Restricted)[0]["inputSchema"]["properties"]["policy"];
        assert_eq!((&policy["enum"], &policy["default"]), (&json!(["restricted"]), &json!("restricted")));
    }
}
