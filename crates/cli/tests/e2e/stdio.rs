//! The stdio door.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::client::{program, told};

#[test]
fn the_same_tools_answer_on_stdio_and_nothing_else_reaches_it() {
    let mut child = program()
        .arg("stdio")
        .env("PRELOAD", "core")
        .env("ALLOW_SUBPROCESS", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut send = |message: Value| writeln!(input, "{message}").unwrap();
    let mut answer = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).expect("only messages on stdout");
    send(json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}));
    assert_eq!(answer()["id"], 1);
    send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    let code = "import os, subprocess\nos.write(1, b'{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}\\n')\nsubprocess.run(['echo', 'sub'])\nos.write(2, b'e')";
    send(
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "execute_python", "arguments": {"code": code}}}),
    );
    let result = answer();
    assert_eq!(result["id"], 2);
    assert_eq!(told(&result)["stdout"], "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}\nsub\n");
    assert_eq!(told(&result)["stderr"], "e");
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_first_message_that_is_no_opening_ends_with_a_clear_error() {
    let mut child = program()
        .arg("stdio")
        .env("PRELOAD", "core")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "get_environment_info"}});
    writeln!(child.stdin.take().unwrap(), "{call}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("code-interpreter: "));
}

#[test]
fn messages_are_taken_apart_as_the_http_door_does_it() {
    let mut child = program().arg("stdio").env("PRELOAD", "core").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = |line: &str| {
        writeln!(input, "{line}").unwrap();
        serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()
    };
    let opening = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    // With what Windows puts before and behind it; a line that is not JSON gets no answer.
    assert_eq!(ask(&format!("\u{feff}{opening}\r"))["id"], 1);
    let execute = |arguments: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"execute_python","arguments":{arguments}}}}}"#
        )
    };
    let answer =
        ask(&format!("nonsense\n\n{}", execute(r#"{"code":"print(input_data)","input_data":{"c":12345678901234567890123}}"#)));
    assert_eq!(told(&answer)["stdout"], "{'c': 12345678901234567890123}\n", "{answer}");
    for (line, id, says) in [
        (execute(r#"{"code":"a\ud800"}"#), json!(2), "code: can't be read: "),
        (execute(r#"{"code":"1","cod\u0065":"2"}"#), json!(2), "arguments: can't be read: code is there twice"),
        (
            format!(r#"{{"jsonrpc":"2.0","id":3,"method":"ping","params":[{}0]}}"#, "0,".repeat(2000)),
            json!(3),
            "params: is too large",
        ),
        ("[]".to_owned(), Value::Null, "Invalid Request: "),
        (format!("\"{}\"", "a".repeat(17 << 20)), Value::Null, "Invalid Request: "),
    ] {
        let answer = ask(&line);
        assert_eq!(answer.get("id").cloned().unwrap_or_default(), id, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().starts_with(says), "{answer}");
    }
    let wrong = ask(&execute(r#"{"code":"1","input_data":[1]}"#));
    assert_eq!(told(&wrong)["error"]["message"], "input_data: must be a JSON object, not an array");
    assert_eq!(told(&ask(&execute(r#"{"code":"1"}"#)))["result"], "1");
    drop(input);
    assert!(child.wait().unwrap().success());
}
