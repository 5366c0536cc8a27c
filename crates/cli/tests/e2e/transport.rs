//! What a client meets of HTTP around the tools: the form of an answer, calls taken back, browsers, batches.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Home, Server, last_event, processes_named};

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
/// Far more than what is promised, for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) fn call(id: &Value, code: &str) -> String {
    call_with(id, &json!({"code": code}), &json!({}))
}

pub(crate) fn call_with(id: &Value, arguments: &Value, meta: &Value) -> String {
    let params = json!({"name": "execute_python", "arguments": arguments, "_meta": meta});
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).to_string()
}

/// The outcome that an answer has as text.
pub(crate) fn outcome(answer: &Value) -> Value {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).unwrap()
}

fn post(server: &Server, headers: &str, body: &str) -> String {
    let length = body.len();
    let usual = format!("host: {}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n", server.address);
    format!("POST /mcp HTTP/1.1\r\n{usual}{headers}\r\n{body}")
}

/// A connection whose bytes are looked at.
struct Wire {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Wire {
    async fn send(server: &Server, request: &str) -> Self {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, heard: Vec::new() }
    }

    /// Reads until this has come, or to the end.
    async fn until(&mut self, wanted: &str) -> String {
        let read = async {
            while !String::from_utf8_lossy(&self.heard).contains(wanted) {
                if self.stream.read_buf(&mut self.heard).await.unwrap() == 0 {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), read).await.unwrap_or_else(|_| panic!("{wanted:?} has not come"));
        let heard = String::from_utf8_lossy(&self.heard).into_owned();
        assert!(heard.contains(wanted), "{wanted:?} is not in {heard:?}");
        heard
    }
}

pub(crate) async fn engine(server: &Server) -> Value {
    let (_, health) = server.request("GET", "/health", &[], "").await;
    serde_json::from_str::<Value>(&health).unwrap()["engine"].clone()
}

pub(crate) async fn wait_until_running(server: &Server, count: u64) {
    let wait = async {
        while engine(server).await["running"] != count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON * 3, wait).await.unwrap_or_else(|_| panic!("there are never {count} calls running"));
}

#[tokio::test]
async fn an_answer_is_one_json_document_unless_only_events_are_taken() {
    let server = Server::start();
    let body = call(&json!(7), "1+1");
    for (accept, events) in [
        (None, false),
        (Some("*/*"), false),
        (Some("application/json"), false),
        (Some("APPLICATION/JSON, TEXT/EVENT-STREAM"), false),
        (Some("application/json, text/event-stream"), false),
        (Some("*/*, text/event-stream;q=0"), false),
        (Some("text/event-stream"), true),
        (Some("text/event-stream, application/json;q=0"), true),
    ] {
        let headers = [Some(JSON), accept.map(|accept| ("accept", accept))].into_iter().flatten().collect::<Vec<_>>();
        let (status, head, text) = server.request_with_headers("POST", "/mcp", &headers, body.clone()).await;
        let content_type = head["content-type"].to_str().unwrap();
        assert_eq!(content_type, if events { "text/event-stream" } else { "application/json" }, "{accept:?}: {text}");
        assert_eq!((status, text.starts_with("event: message\ndata: {")), (200, events), "{accept:?}: {text}");
        assert_eq!(head.contains_key("content-length"), !events, "{accept:?}: {head:?}");
        assert_eq!(outcome(&last_event(&text))["result"], "2");
    }
}

/// Python's `mcp` 2.x reads no event of more than a megabyte.
#[tokio::test]
async fn an_answer_of_megabytes_is_json_for_a_client_that_takes_both() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_OUTPUT_BYTES", "4194304")]);
    let headers = [JSON, ("accept", "application/json, text/event-stream")];
    let meta = json!({"progressToken": 1});
    let body = call_with(&json!(1), &json!({"code": "import sys\n_ = sys.stdout.write('x' * 3_000_000)"}), &json!({}));
    let (_, text) = server.request("POST", "/mcp", &headers, body).await;
    let answer: Value = serde_json::from_str(&text).expect("plain JSON");
    assert_eq!(outcome(&answer)["stdout"].as_str().unwrap().len(), 3_000_000);
    // And with a token, where nothing came before it.
    let (_, text) = server.request("POST", "/mcp", &headers, call_with(&json!(1), &json!({"code": "1"}), &meta)).await;
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
}

#[tokio::test]
async fn progress_is_told_to_those_who_take_events() {
    let server = Server::start();
    let body = call_with(&json!(1), &json!({"code": "print('line')"}), &json!({"progressToken": "p"}));
    for (accept, told) in
        [("application/json", false), ("application/json, text/event-stream", true), ("*/*", true), ("text/event-stream", true)]
    {
        let (_, head, text) = server.request_with_headers("POST", "/mcp", &[JSON, ("accept", accept)], body.clone()).await;
        assert_eq!(text.contains("notifications/progress"), told, "{accept}: {text}");
        assert_eq!(head["content-type"] == "text/event-stream", told, "{accept}");
        assert_eq!(outcome(&last_event(&text))["stdout"], "line\n");
    }
}

/// Proxies end a connection on which nothing comes for a minute or less.
#[tokio::test]
async fn a_plain_answer_that_takes_long_is_opened_and_kept_with_blanks() {
    let server = Server::with_subprocesses(Home::Caller);
    let marker = format!("86543.{}", server.pid());
    let leaving = format!("import subprocess\nsubprocess.run(['sleep', '{marker}'])");
    let call_of = |code: &str| post(&server, "", &call_with(&json!(1), &json!({"code": code, "timeout": 60}), &json!({})));
    let mut leaving = Wire::send(&server, &call_of(&leaving)).await;
    let mut waiting = Wire::send(&server, &call_of("import time\ntime.sleep(16)\nprint('waited')")).await;
    let opened = waiting.until("\r\n\r\n1\r\n\n\r\n").await;
    assert!(opened.starts_with("HTTP/1.1 200 ") && opened.contains("content-type: application/json\r\n"), "{opened}");
    leaving.until("\r\n\r\n1\r\n\n\r\n").await;
    assert!(!processes_named(&marker).is_empty());
    drop(leaving);
    let gone = async {
        while !processes_named(&marker).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("its run ends with a client that has gone");
    let whole = waiting.until("\r\n0\r\n\r\n").await;
    let json = whole.lines().find(|line| line.starts_with('{')).unwrap();
    assert_eq!(outcome(&serde_json::from_str(json).unwrap())["stdout"], "waited\n");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_run_however_it_is_answered() {
    let server = Server::with_subprocesses(Home::Caller);
    let marker = format!("85432.{}", server.pid());
    let code = format!("import subprocess\nprint('begun', flush=True)\nsubprocess.run(['sleep', '{marker}'])");
    let running = async |wanted: bool| {
        let wait = async {
            while processes_named(&marker).is_empty() == wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("running: {}", !wanted));
    };
    let plain = call(&json!(1), &code);
    let told = call_with(&json!(1), &json!({"code": code}), &json!({"progressToken": 1}));
    for (accept, body) in [
        ("application/json", &plain),
        ("application/json, text/event-stream", &plain),
        ("application/json, text/event-stream", &told),
        ("text/event-stream", &plain),
        ("*/*", &format!("[{plain}]")),
    ] {
        let wire = Wire::send(&server, &post(&server, &format!("accept: {accept}\r\n"), body)).await;
        running(true).await;
        drop(wire);
        running(false).await;
    }
    server.still_works().await;
}

/// As `nc -N` and others that close what they send by.
#[tokio::test]
async fn a_client_that_closes_its_sending_half_is_answered() {
    let server = Server::start();
    let params = json!({"name": "list_preinstalled_packages"});
    let quick = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    for headers in ["", "accept: text/event-stream\r\n"] {
        let mut wire = Wire::send(&server, &post(&server, headers, &quick)).await;
        wire.stream.shutdown().await.unwrap();
        let heard = wire.until("\"isError\":false").await;
        assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
    }
}

pub(crate) async fn open(server: &Server) -> String {
    let body = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let (status, head, text) = server.request_with_headers("POST", "/mcp", &[JSON], body.to_string()).await;
    assert_eq!(status, 200, "{text}");
    head["mcp-session-id"].to_str().unwrap().to_owned()
}

/// Tells the server of a request that is not wanted any more.
pub(crate) async fn cancel(server: &Server, session: Option<&str>, id: &Value) {
    let body = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id, "reason": "test"}});
    let headers = [Some(JSON), session.map(|session| ("mcp-session-id", session))].into_iter().flatten().collect::<Vec<_>>();
    let (status, text) = server.request("POST", "/mcp", &headers, body.to_string()).await;
    assert_eq!((status, text.as_str()), (202, ""));
}

#[tokio::test]
async fn a_call_is_taken_back_by_its_session_and_id_and_by_nothing_else() {
    let settings = [("PRELOAD", "core"), ("MAX_CONCURRENCY", "4"), ("DEFAULT_TIMEOUT", "100")];
    let server = Server::with(Home::Caller, &settings);
    let (session, other) = (open(&server).await, open(&server).await);
    assert!(session != other && session.len() == 32, "{session} {other}");
    let headers = [JSON, ("mcp-session-id", session.as_str())];
    let run = async |id: Value, accept: &str| {
        let body = call_with(&id, &json!({"code": "import time\ntime.sleep(90)"}), &json!({}));
        let headers = [headers[0], headers[1], ("accept", accept)];
        let (status, text) = server.request("POST", "/mcp", &headers, body).await;
        let answer = last_event(&text);
        assert_eq!((status, &answer["id"], &answer["result"]["isError"]), (200, &id, &json!(true)), "{answer}");
        assert_eq!(outcome(&answer)["error"]["code"], "cancelled", "{answer}");
    };
    let (number, text) = (run(json!(1), "application/json"), run(json!("1"), "text/event-stream"));
    let twins = async { tokio::join!(run(json!(2), "*/*"), run(json!(2), "*/*")) };
    let calls = async { tokio::join!(number, text, twins) };
    let end = async {
        wait_until_running(&server, 4).await;
        for (session, id) in [
            (Some(&*session), json!(3)),
            (Some(&*session), json!("2")),
            (Some(&*session), json!(null)),
            (Some(&*other), json!(1)),
            (Some("1"), json!(1)),
            (Some(&*session.to_uppercase()), json!("1")),
            (None, json!(1)),
        ] {
            cancel(&server, session, &id).await;
        }
        assert_eq!(engine(&server).await["running"], 4);
        cancel(&server, Some(&session), &json!(2)).await;
        wait_until_running(&server, 2).await;
        cancel(&server, Some(&session), &json!(1)).await;
        wait_until_running(&server, 1).await;
        cancel(&server, Some(&session), &json!("1")).await;
    };
    let all = Box::pin(async { tokio::join!(calls, end) });
    tokio::time::timeout(SOON * 3, all).await.expect("they end long before their time is over");
    // The id is free again.
    let (_, text) = server.request("POST", "/mcp", &headers, call(&json!(1), "1+1")).await;
    assert_eq!(outcome(&last_event(&text))["result"], "2");
}

/// Four aborted calls kept all others waiting until they timed out.
#[tokio::test]
async fn calls_that_were_taken_back_make_room_for_others() {
    let settings = [("PRELOAD", "core"), ("MAX_CONCURRENCY", "4"), ("DEFAULT_TIMEOUT", "100")];
    let server = Server::with(Home::Caller, &settings);
    let session = open(&server).await;
    let body = |id: u64| call(&json!(id), "while True: pass");
    let header = format!("mcp-session-id: {session}\r\n");
    let mut wires = Vec::new();
    for id in 0..6 {
        wires.push(Wire::send(&server, &post(&server, &header, &body(id))).await);
    }
    wait_until_running(&server, 4).await;
    for id in 0..4 {
        cancel(&server, Some(&session), &json!(id)).await;
    }
    // One of those that have waited is ended in the queue or soon after, both by the end of their session.
    let (status, text) = server.request("DELETE", "/mcp", &[("mcp-session-id", &session)], "").await;
    assert_eq!((status, text.as_str()), (204, ""));
    let result = tokio::time::timeout(SOON, server.run("1+1")).await.expect("an answer at once");
    assert_eq!(result["result"], "2");
    for mut wire in wires {
        // Python's `mcp` 2.x breaks when JSON comes while it closes.
        let heard = wire.until("cancelled").await;
        assert!(heard.contains("content-type: text/event-stream\r\n") && heard.contains("event: message\n"), "{heard}");
    }
    assert_eq!(server.request("DELETE", "/mcp", &[], "").await.0, 405, "without a session");
}

#[tokio::test]
async fn pages_of_served_origins_can_read_answers_and_refusals() {
    let settings =
        [("PRELOAD", "core"), ("ALLOWED_ORIGINS", "https://app.example,http://localhost:*"), ("MAX_BODY_BYTES", "9999")];
    let server = Server::with(Home::Caller, &settings);
    let preflight = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,mcp-protocol-version"),
        ("access-control-request-private-network", "true"),
    ];
    for path in ["/mcp", "/lambda/mcp/", "/health"] {
        let (status, head, _) = server.request_with_headers("OPTIONS", path, &preflight, "").await;
        let of = |name: &str| head.get(name).map_or("", |value| value.to_str().unwrap()).to_lowercase();
        assert_eq!((status, of("access-control-allow-origin").as_str()), (200, "https://app.example"), "{path}: {head:?}");
        for method in ["post", "get", "delete", "options"] {
            assert!(of("access-control-allow-methods").contains(method), "{head:?}");
        }
        for name in [
            "content-type",
            "accept",
            "authorization",
            "x-api-key",
            "mcp-session-id",
            "mcp-protocol-version",
            "mcp-method",
            "mcp-name",
            "last-event-id",
        ] {
            assert!(of("access-control-allow-headers").split(',').any(|allowed| allowed == name), "{name}: {head:?}");
        }
        assert_eq!(
            (of("access-control-allow-private-network").as_str(), of("access-control-max-age").as_str()),
            ("true", "3600")
        );
        assert!(of("vary").contains("origin") && !head.contains_key("access-control-allow-credentials"), "{head:?}");
    }
    let page = ("origin", "http://localhost:5173");
    let large = call(&json!(1), &"a".repeat(10_000));
    for (method, path, header, body, status) in [
        ("POST", "/mcp", JSON, call(&json!(1), "1"), 200),
        ("GET", "/health", JSON, String::new(), 200),
        ("GET", "/mcp", JSON, String::new(), 405),
        ("GET", "/nothing", JSON, String::new(), 404),
        ("POST", "/mcp", JSON, "{".to_owned(), 400),
        ("POST", "/mcp", ("content-type", "text/plain"), call(&json!(1), "1"), 415),
        ("POST", "/mcp", JSON, large, 413),
        ("POST", "/mcp", ("host", "evil.example"), call(&json!(1), "1"), 403),
    ] {
        let (got, head, text) = server.request_with_headers(method, path, &[page, header], body).await;
        let allowed = head.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!((got, allowed), (status, Some("http://localhost:5173")), "{path}: {text}");
        let exposed = head["access-control-expose-headers"].to_str().unwrap().to_lowercase();
        assert_eq!(exposed, "mcp-session-id,www-authenticate,mcp-protocol-version");
        assert!(head["vary"].to_str().unwrap().contains("origin"), "{head:?}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_and_other_hosts_get_nothing() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("ALLOWED_ORIGINS", "https://app.example")]);
    let method = ("access-control-request-method", "POST");
    for (origin, host) in [
        ("https://evil.example", None),
        ("https://app.example.evil", None),
        ("http://app.example", None),
        ("null", None),
        ("https://app.example", Some("evil.example")),
    ] {
        let headers = [Some(("origin", origin)), Some(method), host.map(|host| ("host", host))];
        let headers = headers.into_iter().flatten().collect::<Vec<_>>();
        let (status, head, text) = server.request_with_headers("OPTIONS", "/mcp", &headers, "").await;
        assert_eq!((status, head.get("access-control-allow-origin")), (403, None), "{origin}: {text}");
        let (status, head, _) = server.request_with_headers("POST", "/mcp", &[&headers[..], &[JSON]].concat(), "{}").await;
        assert_eq!((status, head.contains_key("access-control-allow-origin")), (403, host.is_some()), "{origin}");
    }
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("ALLOWED_ORIGINS", "*")]);
    let (status, head, _) =
        server.request_with_headers("OPTIONS", "/mcp", &[("origin", "https://any.example"), method], "").await;
    assert_eq!((status, &head["access-control-allow-origin"]), (200, &"https://any.example".parse().unwrap()));
}

#[tokio::test]
async fn a_wrong_message_is_answered_by_its_id_and_field() {
    let server = Server::start();
    for (body, id, code, field) in [
        (r#"{"jsonrpc":"2.0","id":5,"a":1}"#, json!(5), -32600, Value::Null),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, json!(1.5), -32600, json!("id")),
        (r#"{"jsonrpc":"2.0","id":5,"method":"tools/call"}"#, json!(5), -32602, json!("params.name")),
        (r#"{"jsonrpc":"2.0","id":5,"method":"resources/read","params":{"uri":5}}"#, json!(5), -32602, json!("params.uri")),
        (r#"{"jsonrpc":"2.0","id":5,"method":"tools/list","params":{"cursor":5}}"#, json!(5), -32602, json!("params.cursor")),
        (
            r#"{"jsonrpc":"2.0","id":5,"method":"tools/list","params":{"_meta":{"progressToken":1.5}}}"#,
            json!(5),
            -32602,
            json!("params._meta.progressToken"),
        ),
        (r#"{"jsonrpc":"2.0","id":"a","method":"initialize","params":{}}"#, json!("a"), -32602, json!("params.protocolVersion")),
        (
            r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"execute_python","arguments":""}}"#,
            json!(5),
            -32602,
            json!("arguments"),
        ),
    ] {
        let (status, text) = server.request("POST", "/mcp", &[JSON], body).await;
        let answer = last_event(&text);
        assert_eq!((status, &answer["id"], &answer["error"]["code"]), (400, &id, &json!(code)), "{body}: {answer}");
        assert_eq!(answer["error"]["data"]["field"], field, "{body}: {answer}");
    }
    // The answer to something that nobody asked.
    let answered = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    assert_eq!(server.request("POST", "/mcp", &[JSON], answered).await, (202, String::new()));
    let text = json!({"code": "1+1"}).to_string();
    let body =
        json!({"jsonrpc": "2.0", "id": 1.0, "method": "tools/call", "params": {"name": "execute_python", "arguments": text}});
    let (_, text) = server.request("POST", "/mcp", &[JSON], body.to_string()).await;
    assert_eq!((&last_event(&text)["id"], &outcome(&last_event(&text))["result"]), (&json!(1), &json!("2")));
}

/// It was refused for the params that the older ones want of it.
#[tokio::test]
async fn a_protocol_without_a_handshake_has_no_initialize() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core")]);
    let newest = "2026-07-28";
    let meta = json!({"io.modelcontextprotocol/protocolVersion": newest, "io.modelcontextprotocol/clientCapabilities": {}});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"_meta": meta}});
    let headers = [JSON, ("mcp-protocol-version", newest), ("mcp-method", "initialize")];
    let (status, text) = server.request("POST", "/mcp", &headers, body.to_string()).await;
    assert_eq!((status, &last_event(&text)["error"]["code"]), (404, &json!(-32601)), "{text}");
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_the_fault_of_its_client() {
    let server = Server::start();
    let beginning = format!("POST /mcp HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n", server.address);
    for (rest, status) in [
        ("transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "400 "),
        ("transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "400 "),
        ("content-length: 1000000000000\r\n\r\n", "413 "),
        ("expect: 100-continue\r\ncontent-length: 1000000000000\r\n\r\n", "413 "),
        ("content-encoding: gzip\r\ncontent-length: 9\r\n\r\n", "415 "),
    ] {
        let mut wire = Wire::send(&server, &format!("{beginning}{rest}")).await;
        let heard = wire.until("\"jsonrpc\":\"2.0\"").await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{rest:?}: {heard}");
        assert_eq!(heard.contains("content-encoding: must be identity"), status == "415 ", "{heard}");
    }
    server.still_works().await;
}
