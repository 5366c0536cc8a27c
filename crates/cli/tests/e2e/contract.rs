//! What clients are promised: the list of tools, arguments, answers, resources. Each test asks what a client asks that failed.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::client::{Home, Server, last_event, program, told};

const JSON: (&str, &str) = ("content-type", "application/json");
const NEWEST: &str = "2026-07-28";
/// Where Python's clients end a stream.
const MIB: usize = 1 << 20;

async fn ask(server: &Server, method: &str, params: Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    last_event(&server.request("POST", "/mcp", &[JSON], body.to_string()).await.1)
}

/// In the newest era.
async fn ask_newest(server: &Server, method: &str, name: &str, mut params: Value) -> Value {
    params["_meta"] =
        json!({"io.modelcontextprotocol/protocolVersion": NEWEST, "io.modelcontextprotocol/clientCapabilities": {}});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let headers = [JSON, ("mcp-protocol-version", NEWEST), ("mcp-method", method), ("mcp-name", name)];
    last_event(&server.request("POST", "/mcp", &headers, body.to_string()).await.1)
}

#[tokio::test]
async fn the_tool_list_is_the_golden_one() {
    let server = Server::start();
    insta::assert_json_snapshot!(ask(&server, "tools/list", json!({})).await["result"]["tools"]);
}

/// autogen, `DSPy` and the TypeScript SDK 1.22 could not load the list at all: see `catalogue.rs` for the rule on keywords.
#[tokio::test]
async fn validators_of_three_drafts_take_the_schemas_and_the_answers() {
    const CHECK: &str = "import json, sys\nimport jsonschema as j\ntools, arguments, answers = json.load(sys.stdin)\n\
        for draft in (j.Draft7Validator, j.Draft201909Validator, j.Draft202012Validator):\n    \
        for tool in tools:\n        \
        draft.check_schema(tool['inputSchema']); draft(tool['inputSchema']).validate(arguments[tool['name']])\n        \
        if 'outputSchema' in tool:\n            \
        draft.check_schema(tool['outputSchema']); [draft(tool['outputSchema']).validate(answer) for answer in answers[tool['name']]]\n\
        print('valid', sum(len(answers[tool['name']]) for tool in tools if 'outputSchema' in tool))";
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("ALLOW_INSTALL", "false")]);
    let list = ask(&server, "tools/list", json!({})).await;
    let structured =
        async |tool: &str, arguments: Value| server.call(tool, arguments).await["result"]["structuredContent"].clone();
    let answers = json!({
        "get_environment_info": [structured("get_environment_info", json!({})).await],
        "list_preinstalled_packages": [structured("list_preinstalled_packages", json!({})).await],
        "install_packages": [
            structured("install_packages", json!({"packages": ["numpy"]})).await,
            structured("install_packages", json!({"packages": ["humanize", "no such name"]})).await,
            structured("install_packages", json!({"packages": 7})).await,
        ],
    });
    let arguments = json!({
        "execute_python": {"code": "1", "timeout": 0.5, "input_data": {"a": [1]}, "requirements": ["humanize>=4"], "policy": "open"},
        "install_packages": {"packages": ["humanize"]},
        "get_environment_info": {},
        "list_preinstalled_packages": {},
    });
    let mut python = Command::new(homes::repository().join("build/aws/bin/python"))
        .args(["-c", CHECK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(json!([list["result"]["tools"], arguments, answers]).to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "valid 5\n");
}

/// An error of the protocol ends the run of many agents; a result is read by the model.
#[tokio::test]
async fn wrong_arguments_are_results_that_name_the_field() {
    let server = Server::start();
    for (arguments, message) in [
        (json!({}), "code: is missing; it must be a string of Python source"),
        (json!({"code": null}), "code: is missing; it must be a string of Python source"),
        (json!({"code": "1", "timeout": -1}), "timeout: must be more than 0 and at most 120 seconds, not -1"),
        (json!({"code": "1", "timeout": "soon"}), "timeout: must be a number of seconds, not \"soon\""),
        (json!({"code": "1", "policy": "none"}), "policy: must be open or restricted, not \"none\""),
    ] {
        let answer = server.call("execute_python", arguments).await;
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        let result = told(&answer);
        let error = json!({"code": "invalid_argument", "type": "ArgumentError", "message": message});
        assert_eq!((&result["success"], &result["error"], &result["exit_code"]), (&json!(false), &error, &json!(1)), "{answer}");
    }
    for tool in ["install_packages", "pip_install"] {
        let answer = server.call(tool, json!({"packages": 7})).await;
        assert_eq!(answer["result"]["isError"], true, "{answer}");
        let message = "packages: must be an array of strings such as [\"humanize>=4\"], not a number";
        assert_eq!(told(&answer), json!({"success": false, "message": message, "packages": [], "warnings": []}));
    }
    assert_eq!(server.call("nothing", json!({})).await["error"]["code"], -32602);
    server.still_works().await;
}

#[tokio::test]
async fn what_can_be_understood_is_run_with_a_warning() {
    let server = Server::start();
    let arguments = json!({"python_code": "print(input_data['a'])", "timeout": "1000", "input_data": "{\"a\": 5}",
        "session_id": "s", "description": "prints", "requirements": null});
    let result = server.run_with(arguments).await;
    assert_eq!((&result["success"], &result["stdout"]), (&json!(true), &json!("5\n")), "{result}");
    assert_eq!(
        result["warnings"],
        json!([
            "python_code: was taken as code",
            "timeout: the number was read from a string",
            "timeout: at most 120 seconds can be had, and were, not 1000",
            "input_data: the object was read from a string of JSON",
            "session_id: had no effect: nothing is kept between calls; send all the code that is needed in each",
            "description: is not an argument of execute_python and was ignored; it takes code, timeout, input_data, requirements and policy",
        ])
    );
    for tool in ["get_environment_info", "list_preinstalled_packages"] {
        assert_eq!(server.call(tool, json!({"verbose": true})).await["result"]["isError"], false);
    }
    let installed = told(&server.call("install_packages", json!({"packages": "numpy, pandas", "upgrade": true})).await);
    let names = installed["packages"].as_array().unwrap().iter().map(|package| package["package"].as_str().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["numpy", "pandas"]);
    assert_eq!(installed["warnings"][0], "packages: the list was read from a string");
    // On the command line too.
    let output = program().args(["run", "--code", "1", "--input-data", "\"{}\""]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("note: input_data: the object was read from a string of JSON"), "{said}");
}

/// Codex, Mastra and others look at nothing but the structured content where there is any: no model saw a figure.
#[tokio::test]
async fn an_answer_with_figures_has_no_structured_content_unless_it_is_wanted() {
    let plot = "import matplotlib.pyplot as plt\nfor _ in range(2):\n    plt.figure(figsize=(1, 1)); plt.plot([1, 2])\n7";
    for (setting, plain, with_figures) in [("auto", true, false), ("always", true, true), ("never", false, false)] {
        let server = Server::with(Home::Caller, &[("PRELOAD", "plot"), ("STRUCTURED_CONTENT", setting)]);
        for (code, images, structured) in [("7", 0, plain), (plot, 2, with_figures)] {
            let answer = server.call("execute_python", json!({"code": code})).await;
            let result = told(&answer);
            assert_eq!((&result["result"], &result["images"]), (&json!("7"), &json!(images)), "{setting}: {result}");
            let content = answer["result"]["content"].as_array().unwrap();
            assert_eq!(content.iter().filter(|block| block["type"] == "image").count(), images);
            let expected = if structured { Some(&result) } else { None };
            assert_eq!(answer["result"].get("structuredContent"), expected, "{setting}");
        }
    }
}

/// Python's newer clients lose the whole answer otherwise.
#[tokio::test]
async fn an_answer_behind_progress_is_an_event_below_one_mebibyte_and_says_what_is_missing() {
    let call = |code: &str, token: bool| {
        let mut params = json!({"name": "execute_python", "arguments": {"code": code}});
        if token {
            params["_meta"] = json!({"progressToken": "p"});
        }
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string()
    };
    let nulls = "import sys\nprint('begun', flush=True)\n\
                 print('\\0' * 100_000)\nprint('\\0' * 99_000, file=sys.stderr)";
    let large = "print('begun', flush=True)\nprint('a' * 3_000_000)";
    for (code, cap, stdout, stderr) in [(nulls, "4194304", 100_007, 99_001), (large, "4194304", 3_000_007, 0)] {
        let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_OUTPUT_BYTES", cap)]);
        let (_, stream) = server.request("POST", "/mcp", &[JSON], call(code, true)).await;
        assert!(stream.contains("notifications/progress"), "events have begun");
        let longest = stream.split("\n\n").map(str::len).max().unwrap();
        assert!(longest < MIB && longest > MIB - 8000, "{longest}");
        let answer = last_event(&stream);
        assert_eq!(answer["result"].get("structuredContent"), None);
        let result = told(&answer);
        let kept = |name: &str| result[name].as_str().unwrap();
        let filling = |name: &str| kept(name).matches(['\0', 'a']).count();
        let dropped = |name: &str| usize::try_from(result["dropped"][name].as_u64().unwrap()).unwrap();
        assert!(kept("stdout").starts_with("begun\n") && kept("stdout").contains("bytes left out"));
        assert_eq!(filling("stdout") + dropped("stdout_bytes") + "begun\n".len() + 1, stdout);
        assert_eq!(filling("stderr") + dropped("stderr_bytes") + usize::from(stderr > 0), stderr);
        assert_eq!(result["truncated"], true);
        assert!(result["warnings"][0].as_str().unwrap().contains("this answer goes out as an event"), "{}", result["warnings"]);
        // A client that takes nothing but events.
        let headers = [JSON, ("accept", "text/event-stream")];
        let (_, stream) = server.request("POST", "/mcp", &headers, call(code, false)).await;
        assert!(stream.len() < MIB && stream.starts_with("event: message\ndata: {"), "{}", stream.len());
        // Where no event has to come first it is whole.
        let headers = [JSON, ("accept", "application/json, text/event-stream")];
        let (_, whole) = server.request("POST", "/mcp", &headers, call(code, false)).await;
        let result = told(&last_event(&whole));
        assert_eq!(result["stdout"].as_str().unwrap().len(), stdout);
        assert_eq!((result["stderr"].as_str().unwrap().len(), &result["truncated"]), (stderr, &json!(false)));
    }
}

#[tokio::test]
async fn resources_are_the_packages_and_the_environment() {
    let server = Server::start();
    let list = ask(&server, "resources/list", json!({})).await;
    let uris = list["result"]["resources"].as_array().unwrap().iter().map(|resource| resource["uri"].as_str().unwrap());
    assert_eq!(uris.collect::<Vec<_>>(), ["code-interpreter://packages", "code-interpreter://environment"]);
    for (uri, tool) in [
        ("code-interpreter://packages", "list_preinstalled_packages"),
        ("code-interpreter://environment", "get_environment_info"),
    ] {
        let answer = ask(&server, "resources/read", json!({"uri": uri})).await;
        let contents = &answer["result"]["contents"][0];
        assert_eq!((&contents["uri"], &contents["mimeType"]), (&json!(uri), &json!("application/json")));
        let read: Value = serde_json::from_str(contents["text"].as_str().unwrap()).unwrap();
        let mut of_tool = told(&server.call(tool, json!({})).await);
        // They change from one moment to the next.
        for changing in ["available_memory", "sandbox"] {
            if let Some(member) = of_tool.get_mut(changing) {
                *member = read[changing].clone();
            }
        }
        assert_eq!(read, of_tool);
    }
    let templates = ask(&server, "resources/templates/list", json!({})).await;
    assert_eq!(templates["result"]["resourceTemplates"], json!([]));
    let nowhere = json!({"uri": "code-interpreter://nowhere"});
    let error = ask(&server, "resources/read", nowhere.clone()).await["error"].clone();
    assert_eq!((&error["code"], &error["data"]["uri"]), (&json!(-32002), &json!("code-interpreter://nowhere")));
    let newest = ask_newest(&server, "resources/read", "code-interpreter://nowhere", nowhere).await;
    assert_eq!(newest["error"]["code"], -32602, "{newest}");
}

#[tokio::test]
async fn what_is_not_declared_is_not_there() {
    let server = Server::start();
    let opening = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let capabilities = ask(&server, "initialize", opening).await["result"]["capabilities"].clone();
    assert_eq!(capabilities, json!({"tools": {}, "resources": {}}));
    let reference = json!({"ref": {"type": "ref/prompt", "name": "a"}, "argument": {"name": "a", "value": "b"}});
    let uri = json!({"uri": "code-interpreter://packages"});
    for (method, params) in [
        ("prompts/list", json!({})),
        ("prompts/get", json!({"name": "a"})),
        ("completion/complete", reference),
        ("logging/setLevel", json!({"level": "info"})),
        ("resources/subscribe", uri.clone()),
        ("resources/unsubscribe", uri),
        ("tasks/get", json!({"taskId": "a"})),
        ("no/such", json!({})),
    ] {
        assert_eq!(ask(&server, method, params).await["error"]["code"], -32601, "{method}");
    }
    for method in ["prompts/list", "subscriptions/listen"] {
        let answer = ask_newest(&server, method, "", json!({"notifications": {}})).await;
        assert_eq!(answer["error"]["code"], -32601, "{method}: {answer}");
    }
    for method in ["tools/list", "resources/list", "resources/templates/list"] {
        let error = ask(&server, method, json!({"cursor": "of another"})).await["error"].clone();
        assert_eq!((&error["code"], &error["data"]["field"]), (&json!(-32602), &json!("cursor")), "{method}");
    }
}

#[tokio::test]
async fn results_of_the_newest_era_name_the_server() {
    let server = Server::start();
    let execute = json!({"name": "execute_python", "arguments": {"code": "1"}});
    for (method, name, params) in [
        ("tools/list", "", json!({})),
        ("tools/call", "execute_python", execute.clone()),
        ("resources/list", "", json!({})),
        ("resources/templates/list", "", json!({})),
        ("resources/read", "code-interpreter://packages", json!({"uri": "code-interpreter://packages"})),
        ("server/discover", "", json!({})),
    ] {
        let answer = ask_newest(&server, method, name, params).await;
        let named = &answer["result"]["_meta"]["io.modelcontextprotocol/serverInfo"]["name"];
        assert_eq!(named, "lambda-code-interpreter", "{method}: {answer}");
    }
    assert_eq!(ask(&server, "tools/call", execute).await["result"].get("_meta"), None);
}
