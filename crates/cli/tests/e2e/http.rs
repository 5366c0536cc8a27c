//! The HTTP door and the MCP protocol on it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Home, Server, last_event, processes_named, told};

const JSON: (&str, &str) = ("content-type", "application/json");

fn call(code: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "execute_python", "arguments": {"code": code}}})
        .to_string()
}

#[tokio::test]
async fn a_bare_call_is_answered_on_every_path() {
    let server = Server::start();
    for path in ["/lambda/mcp/", "/lambda/mcp", "/mcp/", "/mcp"] {
        let (status, body) = server.request("POST", path, &[JSON], call("1+1")).await;
        assert_eq!(status, 200, "{path}: {body}");
        let answer: Value = serde_json::from_str(&body).expect("plain JSON");
        assert_eq!(answer["id"], 7);
        let result = &answer["result"];
        assert_eq!(result["isError"], false);
        let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(text, result["structuredContent"]);
        assert_eq!(text["result"], "2");
    }
}

#[tokio::test]
async fn both_protocol_eras_are_spoken() {
    let server = Server::start();
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        let (_, answer) = server.request("POST", "/mcp", &[JSON], body.to_string()).await;
        assert_eq!(last_event(&answer)["result"]["protocolVersion"], version);
    }
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}});
    let headers = [JSON, ("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/list")];
    let (status, answer) = server.request("POST", "/mcp", &headers, body.to_string()).await;
    let answer = last_event(&answer);
    assert_eq!((status, answer["result"]["tools"].as_array().unwrap().len()), (200, 4), "{answer}");
    assert!(answer["result"]["ttlMs"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn malformed_posts_get_json_rpc_errors() {
    let server = Server::start();
    for (body, status, code) in [
        ("{", 400, -32700),
        ("", 400, -32700),
        ("[]", 400, -32600),
        ("{\"a\": 1}", 400, -32600),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_python","arguments":{"code":"a\ud800"}}}"#,
            400,
            -32602,
        ),
    ] {
        let (got, answer) = server.request("POST", "/mcp", &[JSON], body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{body}: {answer}"));
        assert_eq!((got, answer["error"]["code"].as_i64()), (status, Some(code)), "{body}: {answer}");
    }
    let surrogate =
        r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"execute_python","arguments":{"code":"a\ud800"}}}"#;
    let (_, answer) = server.request("POST", "/mcp", &[JSON], surrogate).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["data"]["field"]), (&json!(4), &json!("code")), "{answer}");
    let (status, answer) = server.request("GET", "/mcp", &[], "").await;
    assert_eq!(status, 405);
    assert!(answer.contains("jsonrpc"), "{answer}");
    let (status, answer) = server.request("POST", "/mcp", &[("content-type", "text/plain")], call("1")).await;
    assert_eq!(status, 415);
    assert!(answer.contains("application/json"), "{answer}");
    assert_eq!(server.request("GET", "/nowhere", &[], "").await.0, 404);
    server.still_works().await;
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_and_configurable() {
    let server = Server::start();
    for header in [("host", "evil.example"), ("origin", "https://evil.example"), ("origin", "null")] {
        let (status, body) = server.request("POST", "/mcp", &[JSON, header], call("1")).await;
        assert_eq!(status, 403, "{header:?}: {body}");
        assert!(body.contains("jsonrpc"), "{body}");
    }
    let (status, _) = server.request("POST", "/mcp", &[JSON, ("origin", "http://localhost:5173")], call("1")).await;
    assert_eq!(status, 200);
    let settings = [("PRELOAD", "core"), ("ALLOWED_HOSTS", "*"), ("ALLOWED_ORIGINS", "https://app.example:443")];
    let server = Server::with(Home::Caller, &settings);
    let (status, _) =
        server.request("POST", "/mcp", &[JSON, ("host", "x.example"), ("origin", "https://app.example")], call("1")).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_body_above_the_cap_is_refused() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_BODY_BYTES", "10000")]);
    let (status, body) = server.request("POST", "/mcp", &[JSON], call(&"a".repeat(20_000))).await;
    assert_eq!(status, 413, "{body}");
    server.still_works().await;
}

#[tokio::test]
async fn output_streams_as_progress_when_a_token_is_given() {
    let server = Server::start();
    let code = "import time\nfor i in range(3):\n    print('line', i)\n    time.sleep(0.1)";
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "execute_python", "arguments": {"code": code}, "_meta": {"progressToken": "p"}}});
    let (_, stream) = server.request("POST", "/mcp", &[JSON], body.to_string()).await;
    let events = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
        .collect::<Vec<Value>>();
    let notes = events.iter().filter(|event| event["method"] == "notifications/progress").collect::<Vec<_>>();
    let lines = notes.iter().map(|note| note["params"]["message"].as_str().unwrap()).collect::<Vec<_>>().join("\n");
    assert_eq!(lines, "line 0\nline 1\nline 2", "{stream}");
    assert!(notes.len() >= 2, "{stream}");
    assert_eq!(told(events.last().unwrap())["stdout"], "line 0\nline 1\nline 2\n");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_run() {
    let server = Server::with_subprocesses(Home::Caller);
    let marker = format!("87654.{}", server.pid());
    let code = format!("import subprocess\nsubprocess.run(['sleep', '{marker}'])");
    let request = server.request("POST", "/mcp", &[JSON], call(&code));
    let started = async {
        while processes_named(&marker).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = request => panic!("the run must not end by itself"),
        () = started => {}
    }
    // The request's future is dropped, and with it the connection.
    let gone = async {
        while !processes_named(&marker).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the process is gone soon after its client");
    server.still_works().await;
}

#[tokio::test]
async fn hanging_calls_leave_the_other_doors_open_and_a_full_queue_says_busy() {
    let server = Server::with(
        Home::Caller,
        &[("PRELOAD", "core"), ("MAX_CONCURRENCY", "1"), ("MAX_QUEUE", "1"), ("DEFAULT_TIMEOUT", "4")],
    );
    let (hang, body) = ("while True: pass", call("print('waited')"));
    let hanging = server.run(hang);
    let rest = async {
        wait_for(&server, "running", 1).await;
        let queued = server.request("POST", "/mcp", &[JSON], body);
        let busy = async {
            wait_for(&server, "queued", 1).await;
            server.run("1").await
        };
        tokio::join!(queued, busy)
    };
    let (first, ((_, waited), busy)) = tokio::join!(hanging, rest);
    assert_eq!(first["error"]["code"], "timeout");
    assert_eq!(busy["error"]["code"], "busy");
    assert_eq!(told(&last_event(&waited))["stdout"], "waited\n");
}

async fn wait_for(server: &Server, field: &str, value: u64) {
    loop {
        let (_, health) = server.request("GET", "/health", &[], "").await;
        let health: Value = serde_json::from_str(&health).unwrap();
        if health["engine"][field] == value {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn packages_and_environment_are_read_from_the_tree() {
    let server = Server::start();
    let packages = server.call("list_preinstalled_packages", json!({})).await;
    let packages = told(&packages);
    let names = packages["packages"].as_array().unwrap();
    for name in ["numpy", "pandas", "scikit-learn", "matplotlib", "pydantic"] {
        assert!(names.contains(&json!(name)), "{name}");
    }
    let sklearn = packages["details"].as_array().unwrap().iter().find(|detail| detail["name"] == "scikit-learn").unwrap();
    assert_eq!(sklearn["import_name"], "sklearn");
    let version = server.run("import sklearn; print(sklearn.__version__, end='')").await;
    assert_eq!(version["stdout"], sklearn["version"]);
    let environment = server.call("get_environment_info", json!({})).await;
    let environment = told(&environment);
    let version = server.run("import platform; print(platform.python_version(), end='')").await;
    assert_eq!(environment["python_version"], version["stdout"]);
    assert_eq!(environment["limits"]["memory_mb"], 512);
}

#[tokio::test]
async fn the_smoke_test_passes_here_and_fails_elsewhere() {
    let server = Server::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../test_deployment.sh");
    let smoke = |address: String| async move {
        tokio::task::spawn_blocking(move || std::process::Command::new("bash").arg(script).arg(address).output().unwrap())
            .await
            .unwrap()
    };
    let output = smoke(format!("http://{}", server.address)).await;
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let output = smoke("http://127.0.0.1:1".to_owned()).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAILED"));
}
