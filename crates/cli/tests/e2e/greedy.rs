//! One client can't take the server: bodies, connections, log lines and headers that want too much.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Home, Server, last_event, processes_named, program, told};

const JSON: (&str, &str) = ("content-type", "application/json");
const MB: u64 = 1 << 20;
/// What a body may be, nearly.
const LARGE: usize = 12_000_000;

fn execute(arguments: &str) -> String {
    call(&format!(r#"{{"name":"execute_python","arguments":{arguments}}}"#))
}

fn call(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
}

/// `{"a":[0,0,…]}` of so many bytes.
fn zeros(bytes: usize) -> String {
    format!(r#"{{"a":[{}0]}}"#, "0,".repeat(bytes / 2))
}

/// A number of kilobytes in the server's status, in bytes.
fn memory(server: &Server, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// From here on `VmHWM` is the most memory since.
fn forget_peak(server: &Server) {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
}

async fn post(server: &Server, body: String) -> (u16, Value) {
    let (status, text) = server.request("POST", "/mcp", &[JSON], body).await;
    (status, last_event(&text))
}

#[tokio::test]
async fn one_request_costs_the_server_less_than_64_mb_whatever_it_sends() {
    let server = Server::start();
    server.still_works().await;
    let array = format!("[{}0]", "0,".repeat(LARGE / 2));
    let names = (0..LARGE / 16).map(|n| format!("\"{n:011}\":0")).collect::<Vec<_>>().join(",");
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let text = "\\u0041".repeat(LARGE / 6);
    let strings = format!("[{}\"a\"]", "\"a\",".repeat(LARGE / 4));
    let long = "n".repeat(LARGE);
    let base = memory(&server, "VmRSS");
    let mut costs = Vec::new();
    for (what, body, answer) in [
        (
            "the red team's",
            execute(&format!(r#"{{"code":"len(input_data['a'])","input_data":{}}}"#, zeros(8_300_000))),
            "4150001",
        ),
        ("data", execute(&format!(r#"{{"code":"len(input_data['a'])","input_data":{}}}"#, zeros(LARGE))), "6000001"),
        ("data of many members", execute(&format!(r#"{{"code":"len(input_data)","input_data":{{{names}}}}}"#)), "750000"),
        ("code", execute(&format!(r#"{{"code":"1 #{text}"}}"#)), "1"),
        (
            "data that is no object",
            execute(&format!(r#"{{"code":"1","input_data":{array}}}"#)),
            "input_data: must be a JSON object",
        ),
        (
            "deep data",
            execute(&format!(r#"{{"code":"1","input_data":{{"a":{}}}}}"#, deep(LARGE / 2))),
            "input_data: can't be read",
        ),
        ("code that is no string", execute(&format!(r#"{{"code":{array}}}"#)), "code: must be a string"),
        ("requirements", execute(&format!(r#"{{"code":"1","requirements":{strings}}}"#)), "requirements: must be at most"),
        ("one requirement", execute(&format!(r#"{{"code":"1","requirements":["{long}"]}}"#)), "requirements: must be at most"),
        ("policy", execute(&format!(r#"{{"code":"1","policy":"{long}"}}"#)), "policy: must be at most"),
        ("timeout", execute(&format!(r#"{{"code":"1","timeout":{array}}}"#)), "timeout: must be"),
        ("an unknown argument", execute(&format!(r#"{{"code":"1","other":{array}}}"#)), "other: is not an argument"),
        ("an argument's name", execute(&format!(r#"{{"code":"1","{long}":1}}"#)), "is too long a name"),
        ("many arguments", execute(&format!("{{{names}}}")), "arguments: can't be read: there are more than 64"),
        ("arguments that are none", execute(&array), "arguments: must be an object"),
        ("a tool's name", call(&format!(r#"{{"name":"{long}"}}"#)), "params.name: is too large"),
        (
            "packages",
            call(&format!(r#"{{"name":"install_packages","arguments":{{"packages":{strings}}}}}"#)),
            "packages: must be at most",
        ),
        ("_meta", call(&format!(r#"{{"name":"execute_python","_meta":{{"a":{array}}}}}"#)), "params._meta: is too large"),
        ("many params", call(&format!("{{{names}}}")), "params: can't be read"),
        (
            "another's params",
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{array}}}"#),
            "params: is too large",
        ),
        (
            "a notification",
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/a","params":{{"a":{array}}}}}"#),
            "params.a: is too large",
        ),
        ("an answer", format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"a":{array}}}}}"#), "result: is too large"),
        ("an id", format!(r#"{{"jsonrpc":"2.0","id":{array},"method":"ping"}}"#), "id: is too large"),
        ("a method", format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{long}"}}"#), "method: is too large"),
        ("many members", format!("{{{names}}}"), "the body must be one JSON-RPC 2.0 message"),
        ("an array", array.clone(), "a batch must have at most 32 messages"),
        ("a deep array", deep(LARGE / 2), "the body must be one JSON-RPC 2.0 message"),
        ("a string", format!("\"{long}\""), "the body must be one JSON-RPC 2.0 message"),
        ("blanks", " ".repeat(LARGE), "the body is not valid JSON"),
        ("no JSON", long.clone(), "the body is not valid JSON"),
    ] {
        forget_peak(&server);
        let (_, got) = post(&server, body).await;
        let cost = memory(&server, "VmHWM").saturating_sub(base) / MB;
        assert!(got.to_string().contains(answer) && got.to_string().len() < 4000, "{what}: {:.500}", got.to_string());
        costs.push(format!("{cost} MB for {what}"));
        assert!(cost < 64, "{costs:#?}");
    }
    eprintln!("{costs:#?}");
    server.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_while_eight_large_bodies_are_in_flight_and_memory_is_bounded() {
    let server = Server::start();
    server.still_works().await;
    let body = execute(&format!(r#"{{"code":"len(input_data['a'])","input_data":{}}}"#, zeros(8_300_000)));
    let base = memory(&server, "VmRSS");
    forget_peak(&server);
    let calls = async {
        let calls = (0..8).map(|_| post(&server, body.clone()));
        for (status, answer) in futures_util::future::join_all(calls).await {
            assert_eq!((status, told(&answer)["result"].as_str()), (200, Some("4150001")), "{answer}");
        }
    };
    let mut slowest = Duration::ZERO;
    let health = async {
        loop {
            let asked = Instant::now();
            assert_eq!(server.request("GET", "/health", &[], "").await.0, 200);
            slowest = slowest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! { () = calls => {}, () = health => {} }
    let cost = memory(&server, "VmHWM").saturating_sub(base) / MB;
    eprintln!("{cost} MB, /health within {slowest:?}");
    // Eight bodies, one more copy of each on its way into a kernel, and what the parsing holds.
    assert!(cost < 256, "{cost} MB");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_budget_a_large_body_is_refused_as_busy_and_a_small_one_is_served() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_CONCURRENCY", "16"), ("DEFAULT_TIMEOUT", "20")]);
    server.still_works().await;
    let hang = execute(&format!(r#"{{"code":"while True: pass","input_data":{}}}"#, zeros(LARGE)));
    let refused = async {
        let calls = (0..10).map(|_| Box::pin(server.request_with_headers("POST", "/mcp", &[JSON], hang.clone())));
        // Eight hold the budget until they time out.
        let ((status, headers, body), _, others) = futures_util::future::select_all(calls).await;
        assert_eq!(status, 503, "{body}");
        assert_eq!(headers["retry-after"], "2");
        let answer = last_event(&body);
        assert_eq!((&answer["error"]["code"], &answer["error"]["data"]["code"]), (&json!(-32000), &json!("busy")), "{answer}");
        others
    };
    let others = refused.await;
    server.still_works().await;
    assert_eq!(server.request("GET", "/health", &[], "").await.0, 200);
    // What they held is free again when their clients have gone.
    drop(others);
    let again = async {
        let body = execute(&format!(r#"{{"code":"1","input_data":{}}}"#, zeros(LARGE)));
        while post(&server, body.clone()).await.0 != 200 {}
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("there is room again");
}

#[tokio::test]
async fn numbers_of_any_length_reach_the_code_as_they_were_written() {
    let server = Server::start();
    let data =
        r#"{"c":12345678901234567890123,"d":18446744073709551616,"e":0.1000000000000000055511151231257827,"f":-0,"g":1E2}"#;
    for (accept, body) in [("*/*", data.to_owned()), ("application/json", data.replace(',', ",\n\t "))] {
        let body = execute(&format!(r#"{{"code":"print(input_data)","input_data":{body}}}"#));
        let (_, answer) = server.request("POST", "/mcp", &[JSON, ("accept", accept)], body).await;
        let printed = "{'c': 12345678901234567890123, 'd': 18446744073709551616, 'e': 0.1, 'f': 0, 'g': 100.0}\n";
        assert_eq!(told(&last_event(&answer))["stdout"], printed);
    }
    let run = program().args(["run", "--code", "print(input_data['c'])", "--input-data", data]).output().unwrap();
    assert_eq!(String::from_utf8(run.stdout).unwrap(), "12345678901234567890123\n");
    // What would be no value, or one that Python does not take.
    for (data, reason) in [
        (r#"{"a":1e999}"#.to_owned(), "number out of range"),
        (format!(r#"{{"a":{}}}"#, "9".repeat(5000)), "number out of range"),
        (r#"{"a":"\ud800"}"#.to_owned(), "unexpected end of hex escape"),
        (r#"{"\udc00":1}"#.to_owned(), "lone leading surrogate in hex escape"),
        (format!(r#"{{"a":{}{}}}"#, "[".repeat(200), "]".repeat(200)), "recursion limit exceeded"),
    ] {
        let (status, answer) = post(&server, execute(&format!(r#"{{"code":"1","input_data":{data}}}"#))).await;
        assert_eq!(
            (status, &answer["error"]["code"], &answer["error"]["data"]["field"]),
            (400, &json!(-32602), &json!("input_data"))
        );
        assert!(
            answer["error"]["message"].as_str().unwrap().starts_with(&format!("input_data: can't be read: {reason}")),
            "{answer}"
        );
    }
    for data in ["NaN", "{\"a\":Infinity}", "{'a':1}"] {
        let (status, answer) = post(&server, execute(&format!(r#"{{"code":"1","input_data":{data}}}"#))).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!(-32700)), "{answer}");
    }
}

#[tokio::test]
async fn arguments_can_not_be_given_past_the_check() {
    let server = Server::start();
    for (params, code) in [
        (r#"{"name":"execute_python","arguments":{"code":"1"},"arguments":{"code":"2"}}"#, -32602),
        (r#"{"name":"execute_python","arguments":{"code":"1"},"argum\u0065nts":{"code":"2"}}"#, -32602),
        (r#"{"name":"execute_python","arguments":{"code":"1","cod\u0065":"2"}}"#, -32602),
        (r#"{"name":"execute_python","arguments":[{"code":"1"}]}"#, -32602),
    ] {
        let (_, answer) = post(&server, call(params)).await;
        assert_eq!(answer["error"]["code"], code, "{params}: {answer}");
    }
    let beside = post(&server, call(r#"{"name":"execute_python","code":"1"}"#)).await.1;
    assert_eq!(told(&beside)["error"]["message"], "code: is missing; it must be a string of Python source");
    let escaped = r#"{"jsonrpc":"2.0","id":1,"m\u0065thod":"tools\/call","params":{"n\u0061me":"execute_python","\u0061rguments":{"code":"1"}}}"#;
    assert_eq!(told(&post(&server, escaped.to_owned()).await.1)["result"], "1");
}

/// Opens a connection and sends this on it.
fn begun(server: &Server, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// What the server says until it closes the connection.
fn until_closed(mut stream: &TcpStream) -> String {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection is still open"),
        _ => String::from_utf8(said).unwrap(),
    }
}

fn may_open_files(files: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < files) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), ..limit }).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_send_half_a_request_keep_nobody_out_and_are_closed() {
    may_open_files(3000);
    let (server, log) = Server::with_log(Home::Caller, &[("PRELOAD", "core"), ("IDLE_TIMEOUT", "3")], Some(1024));
    server.still_works().await;
    let header = "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let headers = (0..1100).map(|_| begun(&server, header)).collect::<Vec<_>>();
    let answered = async {
        server.still_works().await;
        assert_eq!(server.request("GET", "/health", &[], "").await.0, 200);
    };
    tokio::time::timeout(Duration::from_secs(5), answered).await.expect("calls and /health are answered meanwhile");
    let bodies = (0..200).map(|_| begun(&server, &format!("{header}content-length: 9000000\r\n\r\n{{"))).collect::<Vec<_>>();
    let answered = async {
        server.still_works().await;
        assert_eq!(server.request("GET", "/health", &[], "").await.0, 200);
    };
    tokio::time::timeout(Duration::from_secs(5), answered).await.expect("calls and /health are answered meanwhile");
    assert!(headers.iter().all(|stream| until_closed(stream).is_empty()));
    let refused =
        bodies.iter().map(until_closed).filter(|said| said.starts_with("HTTP/1.1 408 ") && said.contains("\"jsonrpc\"")).count();
    assert!(refused > 100, "{refused} were told");
    let said = log.lock().unwrap().iter().filter(|line| line.contains("MAX_CONNECTIONS")).count();
    assert_eq!(said, 1, "{:?}", log.lock().unwrap());
    server.still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_no_answer_keep_nobody_out() {
    let settings = [("PRELOAD", "core"), ("MAX_CONNECTIONS", "8"), ("MAX_OUTPUT_BYTES", "8000000")];
    let server = Server::with(Home::Caller, &settings);
    let body = execute(r#"{"code":"print('x' * 8000000)"}"#);
    let header = format!(
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let deaf = (0..8).map(|_| begun(&server, &format!("{header}{body}"))).collect::<Vec<_>>();
    // All have begun to answer, and none can go on.
    for stream in &deaf {
        let mut start = vec![0; 100_000];
        while stream.peek(&mut start).unwrap() < start.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    server.still_works().await;
    // They have waited longest, and go for these.
    let _newer = (0..8).map(|_| begun(&server, "")).collect::<Vec<_>>();
    server.still_works().await;
    assert!(deaf.iter().all(|stream| until_closed(stream).len() < 16_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_calls_run_on_all_connections_the_next_is_told_so_and_none_is_cut() {
    let settings = [("PRELOAD", "core"), ("MAX_CONNECTIONS", "2"), ("MAX_CONCURRENCY", "2"), ("ALLOW_SUBPROCESS", "true")];
    let server = Server::with(Home::Caller, &settings);
    server.still_works().await;
    let marker = format!("3.{}", server.pid());
    let code = format!("import subprocess\nsubprocess.run(['sleep', '{marker}'])\n'done'");
    let next = async {
        while processes_named(&marker).len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (status, answer) = post(&server, execute(r#"{"code":"1"}"#)).await;
        assert_eq!((status, &answer["error"]["data"]["code"]), (503, &json!("busy")), "{answer}");
        assert_eq!(server.request("GET", "/health", &[], "").await.0, 200);
    };
    let (first, second, ()) = tokio::join!(server.run(&code), server.run(&code), next);
    assert_eq!((&first["result"], &second["result"]), (&json!("'done'"), &json!("'done'")));
    server.still_works().await;
}

#[tokio::test]
async fn a_connection_is_kept_between_requests_and_closed_when_it_is_idle() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("IDLE_TIMEOUT", "1")]);
    let request = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut stream = begun(&server, request);
    let mut seen = String::new();
    for _ in 0..2 {
        while !seen.ends_with('}') {
            let mut part = [0; 8192];
            let read = stream.read(&mut part).unwrap();
            assert!(read > 0, "it is kept: {seen}");
            seen.push_str(std::str::from_utf8(&part[..read]).unwrap());
        }
        seen.clear();
        stream.write_all(request.as_bytes()).unwrap();
    }
    let said = until_closed(&stream);
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    // A call that takes longer is not idle, with events or without.
    for accept in ["*/*", "application/json"] {
        let body = execute(r#"{"code":"import time\ntime.sleep(2.5)\nprint(1)"}"#);
        let (_, answer) = server.request("POST", "/mcp", &[JSON, ("accept", accept)], body).await;
        assert_eq!(told(&last_event(&answer))["stdout"], "1\n", "{accept}: {answer}");
    }
}

#[tokio::test]
async fn log_lines_and_echoes_are_bounded() {
    for level in ["warn,cli=info,server=info", "debug"] {
        let (server, log) = Server::with_log(Home::Caller, &[("PRELOAD", "core"), ("LOG", level)], None);
        let text = "A".repeat(60_000);
        for body in [
            call(&format!(r#"{{"name":"{text}"}}"#)),
            execute(&format!(r#"{{"code":"1","{}":1}}"#, "B".repeat(LARGE))),
            execute(&format!(r#"{{"code":"1","policy":"{text}"}}"#)),
            execute(&format!(r#"{{"code":"1","requirements":["{}"]}}"#, "C".repeat(2000))),
            execute(r#"{"code":"print('D' * 90000)\n1"}"#),
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{text}"}}"#),
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/{text}"}}"#),
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"2025-06-18","capabilities":{{}},"clientInfo":{{"name":"{text}","version":"1"}}}}}}"#
            ),
        ] {
            let (_, answer) = server.request("POST", "/mcp", &[JSON, ("mcp-session-id", &"E".repeat(9000))], body.clone()).await;
            assert!(!answer.contains(&"A".repeat(300)) || body.contains("\"method\":\"A"), "{answer:.500}");
            assert!(!answer.contains(&"B".repeat(300)) && !answer.contains(&"C".repeat(300)), "{answer:.500}");
        }
        server.request("GET", "/health", &[("host", &"f".repeat(9000))], "").await;
        server.still_works().await;
        let log = log.lock().unwrap();
        let longest = log.iter().map(String::len).max().unwrap();
        assert!(log.iter().any(|line| line.contains("ffff")), "{log:?}");
        assert!(longest < 4200, "{longest} bytes with LOG={level}");
    }
}

#[tokio::test]
async fn hosts_and_origins_are_read_strictly_on_every_path() {
    let server = Server::start();
    for headers in [
        "host: [::1].evil.com",
        "host: localhost:abc",
        "host: evil.com",
        "host: localhost\r\nhost: evil.com",
        "host: localhost\r\norigin: http://localhost:1.evil.com",
        "host: localhost\r\norigin: http://localhost:abc",
        "host: localhost\r\norigin: http://localhost\r\norigin: http://evil.com",
    ] {
        for path in ["/health", "/mcp", "/lambda/mcp/", "/nowhere"] {
            let stream = begun(&server, &format!("GET {path} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n"));
            let said = until_closed(&stream);
            assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("\"jsonrpc\""), "{path} {headers}: {said}");
        }
    }
    let (_, said) = server.request("GET", "/health", &[("host", "evil.com")], "").await;
    assert!(said.contains("Host header \\\"evil.com\\\" is not served; ALLOWED_HOSTS names those that are"), "{said}");
    let (_, said) = server.request("GET", "/health", &[("origin", "http://evil.com")], "").await;
    assert!(said.contains("ALLOWED_ORIGINS names those that are"), "{said}");
    let stream = begun(&server, "GET http://evil.com/health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    assert!(until_closed(&stream).starts_with("HTTP/1.1 403 "));
}

#[test]
fn settings_of_the_door_that_can_not_hold_are_refused_at_start() {
    for (name, value, says) in [
        ("ALLOWED_HOSTS", "localhost,*.example.com", "ALLOWED_HOSTS: must be names such as app.example.com"),
        (
            "IDLE_TIMEOUT",
            "1e18",
            "IDLE_TIMEOUT: invalid value '1e18' for '--idle-timeout <IDLE_TIMEOUT>': must be a number of seconds above 0, and at most 86400",
        ),
        ("ALLOWED_HOSTS", "https://x", "ALLOWED_HOSTS: must be names such as app.example.com"),
        ("ALLOWED_ORIGINS", "app.example.com", "ALLOWED_ORIGINS: must be origins such as https://app.example.com"),
    ] {
        let output = program().args(["serve", "--port", "0"]).env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(says), "{value}: {said}");
    }
}
