//! What clients of the function see.

use serde_json::{Value, json};

use super::function::{Function, call, message, told};
use crate::index::Index;

#[test]
fn the_smoke_test_passes_as_against_aws() {
    let function = Function::start();
    for (tool, arguments) in [
        ("get_environment_info", json!({})),
        ("execute_python", json!({"code": "2 + 3"})),
        ("list_preinstalled_packages", json!({})),
    ] {
        for path in ["/lambda/mcp/", "/lambda/mcp"] {
            let (status, content_type, text) = function.post(path, &[], &call(tool, &arguments));
            assert_eq!((status, content_type.as_str()), (200, "application/json"), "{text}");
            assert_eq!(message(&text)["result"]["isError"], false, "{text}");
        }
    }
    let (status, _, text) = function.post("/lambda/nothing", &[], "{}");
    assert_eq!(status, 404, "{text}");
    let (status, content_type, text) = function.post("/lambda/mcp/", &[], "no json");
    assert_eq!((status, content_type.as_str()), (400, "application/json"), "{text}");
}

/// The answer of a plain client only comes after the run, and yet its response must be open before.
#[test]
fn a_client_that_takes_no_events_is_answered_in_plain_json() {
    let function = Function::start();
    let plain = [("accept", "application/json")];
    let (status, content_type, text) = function.post("/lambda/mcp/", &plain, &call("execute_python", &json!({"code": "2 + 3"})));
    assert_eq!((status, content_type.as_str()), (200, "application/json"), "{text}");
    assert_eq!(told(&text)["result"], "5", "{text}");
    let wrong = call("execute_python", &json!({"code": 5}));
    let (_, _, text) = function.post("/lambda/mcp/", &plain, &wrong);
    assert_eq!(told(&text)["error"]["code"], "invalid_argument", "{text}");
}

/// There everything in the function's directory is of one user, and nothing but the steps themselves keeps a link from being
/// followed.
#[test]
fn files_that_code_leaves_come_back_and_links_do_not() {
    let function = Function::start();
    let code = "import os\nopen('a.csv', 'w').write('1\\n')\nos.symlink('/etc/passwd', 'link')\nos.symlink('/etc', 'folder')";
    let (_, _, text) = function.post("/lambda/mcp/", &[], &call("execute_python", &json!({"code": code})));
    let content = message(&text)["result"]["content"].as_array().unwrap().clone();
    assert_eq!((content.len(), &content[1]["resource"]["text"]), (2, &json!("1\n")), "{text}");
    let told = content[0]["text"].as_str().unwrap();
    assert!(told.contains("folder (a link), link (a link)"), "{told}");
    assert_eq!(function.run("import os; os.listdir()")["result"], "[]", "the next call has none of them");
}

/// Such a request is answered when its run has ended, also as events: the run waited for the response to open.
#[test]
fn clients_of_the_newest_protocol_are_answered() {
    let function = Function::start();
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    let params = json!({"name": "execute_python", "arguments": {"code": "2 + 3"}, "_meta": meta});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    for accept in ["application/json, text/event-stream", "application/json", "text/event-stream"] {
        let headers = [
            ("accept", accept),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", "execute_python"),
        ];
        let (status, content_type, text) = function.post("/lambda/mcp/", &headers, &body);
        assert_eq!((status, accept.starts_with(&content_type)), (200, true), "{content_type} {text}");
        assert_eq!(told(&text)["result"], "5", "{text}");
    }
}

/// The response is open before code runs: what it is called then is what it must turn out to be, whether or not there is
/// something to say before the answer.
#[test]
fn the_response_is_what_it_was_opened_as() {
    let function = Function::start();
    let both = "application/json, text/event-stream";
    for (accept, token, events) in [
        ("*/*", false, false),
        (both, false, false),
        ("application/json", true, false),
        (both, true, true),
        ("*/*", true, true),
        ("text/event-stream", false, true),
        ("text/event-stream", true, true),
    ] {
        for code in ["2 + 3", "print('told', flush=True)\n2 + 3"] {
            let meta = if token { json!({"progressToken": 1}) } else { json!({}) };
            let params = json!({"name": "execute_python", "arguments": {"code": code}, "_meta": meta});
            let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
            let (status, content_type, text) = function.post("/lambda/mcp/", &[("accept", accept)], &body);
            let wanted = if events { "text/event-stream" } else { "application/json" };
            assert_eq!((status, content_type.as_str()), (200, wanted), "{accept} {token}: {text}");
            assert_eq!(text.trim_start_matches([':', '\n']).starts_with("event: message\ndata: {"), events, "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).is_ok(), !events, "{text}");
            assert_eq!(text.contains("notifications/progress"), token && events && code != "2 + 3", "{text}");
            assert_eq!(message(&text)["result"]["isError"], false, "{text}");
        }
    }
}

/// Each call of a batch has its own guard, and what is wiped after one must not end the next.
#[test]
fn the_calls_of_a_batch_run_one_after_the_other() {
    let function = Function::start();
    let code = |code: &str| call("execute_python", &json!({"code": code}));
    let leave = code("open('left', 'w').write('a') and print('first')");
    let look = code("import os\nprint(os.path.exists('left'))");
    let (status, content_type, text) = function.post("/lambda/mcp/", &[], &format!("[{leave},{look},{look}]"));
    assert_eq!((status, content_type.as_str()), (200, "application/json"), "{text}");
    let answers: Value = serde_json::from_str(&text).unwrap();
    let printed = |index: usize| {
        let outcome = answers[index]["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{text}"));
        serde_json::from_str::<Value>(outcome).unwrap()["stdout"].clone()
    };
    assert_eq!([printed(0), printed(1), printed(2)], ["first\n", "False\n", "False\n"], "{text}");
}

#[test]
fn bodies_may_come_as_base64() {
    let function = Function::with(&[], &["--base64"]);
    assert_eq!(function.run("print('grüße 🐍')")["stdout"], "grüße 🐍\n");
}

#[test]
fn a_buffered_integration_is_a_setting_and_its_missing_lock_is_reported() {
    let function = Function::with(&[("RESPONSE_STREAMING", "false")], &["--integration", "buffered"]);
    assert_eq!(function.run("2 + 3")["result"], "5");
    function.wait_for_log(&["RESPONSE_STREAMING is off", "WARN"]);
    let (_, _, text) = function.post("/lambda/mcp/", &[], &call("get_environment_info", &json!({})));
    let environment = told(&text);
    let lock = environment["sandbox"].as_array().unwrap().iter().find(|layer| layer["name"] == "response_lock").unwrap();
    assert_eq!(lock["state"], "off");
    let wrong = Function::with(&[("RESPONSE_STREAMING", "false")], &[]);
    assert_eq!(wrong.post("/lambda/mcp/", &[], &call("get_environment_info", &json!({}))).0, 502, "as in API Gateway");
}

#[test]
fn a_run_that_would_outlast_the_invocation_ends_as_timeout_with_its_output() {
    let function = Function::with(&[], &["--timeout", "4"]);
    let result = function.run_with(&json!({"code": "print('kept', flush=True)\nwhile True: pass", "timeout": 60}), &[]);
    assert_eq!(result["error"]["code"], "timeout", "{result:#}");
    assert_eq!(result["stdout"], "kept\n", "{result:#}");
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains("the time of the whole request was over"), "not the 60 s that were asked for: {message}");
    assert_eq!(function.run("2 + 3")["result"], "5");
}

/// Whoever chooses a header must not choose the tenant.
#[test]
fn the_tenant_comes_from_the_context_and_not_from_a_header() {
    let function = Function::start();
    let headers = [("x-api-key", "key-of-alice"), ("x-amz-tenant-id", "bob"), ("x-tenant-id", "bob")];
    assert_eq!(function.run_with(&json!({"code": "1"}), &headers)["result"], "1");
    let line = function.wait_for_log(&["\"a request\"", "key-of-alice"]);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((line["tenant"].as_str(), line["caller"].as_str()), (Some("key-of-alice"), Some("key-of-alice")));
    assert!(line["request_id"].as_str().unwrap().len() > 20, "{line}");
}

/// All that the first deployment into an account must tell, in one line.
#[test]
fn one_line_of_the_log_says_what_this_environment_grants() {
    let function = Function::start();
    assert_eq!(function.run("2 + 3")["result"], "5");
    let line: Value = serde_json::from_str(&function.wait_for_log(&["\"message\":\"init\""])).unwrap();
    let strict = super::JAIL == "strict";
    assert_eq!(line["level"], "INFO", "{line:#}");
    assert_eq!(line["process_handles"], if strict { "numbers" } else { "descriptors" }, "{line:#}");
    assert_eq!(line["signals"], if strict { "by number" } else { "by descriptor" }, "{line:#}");
    assert_eq!(line["nameless_files"], if strict { "unlinked" } else { "in memory" }, "{line:#}");
    let words = |name: &str| line[name].as_str().unwrap().split(' ').map(str::to_owned).collect::<Vec<_>>();
    let refused = words("refused_calls");
    assert!(refused.contains(&"prctl:1".to_owned()) && refused.contains(&"landlock_create_ruleset:38".to_owned()), "{line:#}");
    for name in ["memfd_create:1", "pidfd_open:1", "pidfd_send_signal:1", "close_range:1", "openat2:1", "statx:1", "clone3:38"] {
        assert_eq!(refused.contains(&name.to_owned()), strict, "{name} {line:#}");
    }
    let layers = words("layers");
    for layer in ["landlock=refused:38", "seccomp=refused:1", "no_new_privileges=refused:1", "process_per_call=active"] {
        assert!(layers.contains(&layer.to_owned()), "{layer} {line:#}");
    }
    assert!(layers.iter().any(|layer| layer.starts_with("response_lock=")), "{line:#}");
    assert!(line["response_lock"] == "prefer" && line["unreadable"] == true, "{line:#}");
    assert!(line["interpreter"].as_str().unwrap().starts_with("111 of "), "{line:#}");
    assert!(line["kernel"].as_str().unwrap().contains('.') && line["orphans_go_to"].as_i64().unwrap() > 0, "{line:#}");
    assert!(line["temporary_mb"].as_u64().unwrap() > 0 && line["shared_memory"].is_string(), "{line:#}");
    let uid = if homes::is_root() { homes::USER } else { rustix::process::geteuid().as_raw() };
    assert_eq!(line["uid"], uid, "{line:#}");
    function.wait_for_log(&["the response lock holds"]);
}

#[test]
fn an_unknown_log_value_is_told_and_is_not_silence() {
    let function = Function::with(&[("LOG", "verbose")], &[]);
    assert_eq!(function.run("2 + 3")["result"], "5");
    function.wait_for_log(&["LOG: ", "verbose", "is no level"]);
}

#[test]
fn a_setting_that_can_not_be_used_is_named_in_the_log() {
    let function = Function::with(&[("MAX_MEMORY_MB", "lots")], &[]);
    assert_ne!(function.post("/lambda/mcp/", &[], &call("get_environment_info", &json!({}))).0, 200);
    let line = function.wait_for_log(&["the function can't work", "--max-memory-mb"]);
    assert!(serde_json::from_str::<Value>(&line).is_ok(), "one line of JSON: {line}");
}

#[test]
fn sigterm_ends_the_function_and_all_it_has_made() {
    let mut function = Function::start();
    assert_eq!(function.run("2 + 3")["result"], "5");
    let left = || std::fs::read_dir(function.temporary.path()).unwrap().count();
    assert!(left() > 0, "the engine has a directory");
    let marker = format!("TMPDIR={}", function.temporary.path().display());
    let alive = || {
        let environments = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("environ"));
        environments
            .filter_map(|path| std::fs::read(path).ok())
            .filter(|text| String::from_utf8_lossy(text).contains(&marker))
            .count()
    };
    function.stop();
    assert_eq!(alive(), 0, "processes of the function");
    assert_eq!(std::fs::read_dir(function.temporary.path()).unwrap().count(), 0, "the engine cleans up after itself");
}

/// With the tree's pip: what is wiped after each call leaves packages alone, and what code has written into them is not used
/// again.
#[test]
fn installed_packages_outlive_a_call_and_what_code_changes_in_them_does_not() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let function = Function::with(&[("UV", "off"), ("PACKAGE_INDEX", &index.url())], &[]);
    let run = |code: &str| function.run_with(&json!({"code": code, "requirements": ["good-one"]}), &[]);
    let version = "import good_one; good_one.__version__";
    let mut installed = Vec::new();
    for _ in 0..2 {
        let (_, _, text) = function.post("/lambda/mcp/", &[], &call("install_packages", &json!({"packages": ["good-one"]})));
        let report = told(&text);
        assert_eq!(report["success"], true, "{text}");
        installed.push(report["packages"][0]["already_installed"].clone());
        let result = run(version);
        assert_eq!((&result["result"], &result["packages"]["outcome"]), (&json!("'1.0'"), &json!("added")), "{result}");
    }
    assert_eq!(installed, [false, true]);
    assert_eq!(run("import good_one; open(good_one.__file__, 'w').write('__version__ = \"evil\"')")["success"], true);
    let result = run(version);
    assert_eq!(result["result"], "'1.0'", "{result}");
}
