//! Several messages in one request, as the revision of 2025-03-26 has it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::{Home, Server, last_event};
use crate::transport::{JSON, SOON, call, call_with, cancel, engine, open, outcome, wait_until_running};

#[tokio::test]
async fn a_batch_is_answered_where_its_revision_is_spoken() {
    let server = Server::start();
    let ping = |id: Value| json!({"jsonrpc": "2.0", "id": id, "method": "ping"}).to_string();
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let (one, two) = (call(&json!(1), "1+1"), call_with(&json!("b"), &json!({"code": "print(3)"}), &json!({"progressToken": 1})));
    let unknown = r#"{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":5}}"#;
    let opening = json!({"jsonrpc": "2.0", "id": 5, "method": "initialize", "params": {
        "protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let batch = format!(" [{one}, {note}, {two}, 7, {}, {unknown}, {opening}]", ping(json!(3)));
    for (headers, events) in [
        (vec![JSON], false),
        (vec![JSON, ("mcp-protocol-version", "2025-03-26"), ("accept", "application/json")], false),
        (vec![JSON, ("accept", "text/event-stream")], true),
    ] {
        let (status, text) = server.request("POST", "/mcp", &headers, batch.clone()).await;
        assert_eq!((status, text.starts_with("event: message\ndata: {")), (200, events), "{text}");
        // Each is an event of its own: together they might be more than a client reads.
        let of_events = || {
            text.lines().filter_map(|line| line.strip_prefix("data: ")).map(|line| serde_json::from_str::<Value>(line).unwrap())
        };
        let answers: Value = if events { of_events().collect() } else { last_event(&text) };
        let of = |index: usize| &answers[index];
        let ids = (0..6).map(|index| of(index)["id"].clone()).collect::<Vec<_>>();
        assert_eq!(json!(ids), json!([1, "b", null, 3, 4, 5]), "{text}");
        assert_eq!((&outcome(of(0))["result"], &outcome(of(1))["stdout"]), (&json!("2"), &json!("3\n")));
        let codes = [2, 4, 5].map(|index| of(index)["error"]["code"].clone());
        assert_eq!((json!(codes), &of(3)["result"]), (json!([-32600, -32602, -32600]), &json!({})), "{text}");
        assert_eq!(answers.as_array().unwrap().len(), 6, "{text}");
    }
    assert_eq!(server.request("POST", "/mcp", &[JSON], format!("[{note},{note}]")).await, (202, String::new()));
    let many = format!("[{}1]", "1,".repeat(100_000));
    for (body, version) in [
        ("[]", None),
        (&*many, None),
        (&*batch, Some("2025-06-18")),
        (&*batch, Some("2025-11-25")),
        (&*batch, Some("2026-07-28")),
    ] {
        let headers = [Some(JSON), version.map(|version| ("mcp-protocol-version", version))];
        let headers = headers.into_iter().flatten().collect::<Vec<_>>();
        let (status, text) = server.request("POST", "/mcp", &headers, body.to_owned()).await;
        assert_eq!((status, &last_event(&text)["error"]["code"]), (400, &json!(-32600)), "{version:?}: {text}");
    }
}

/// Each answer of a batch was below what a client reads of an event, and all of them together were one event.
#[tokio::test]
async fn no_event_of_a_batch_is_longer_than_clients_read() {
    let server = Server::start();
    let large = "print('\\0' * 99_000)\nimport sys\nprint('\\0' * 99_000, file=sys.stderr)";
    let batch = format!("[{},{}]", call(&json!(1), large), call(&json!(2), large));
    let (_, text) = server.request("POST", "/mcp", &[JSON, ("accept", "text/event-stream")], batch.clone()).await;
    let events = text.split("\n\n").filter(|event| event.contains("data: ")).collect::<Vec<_>>();
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| event.len() < 1 << 20), "{:?}", events.iter().map(|event| event.len()).collect::<Vec<_>>());
    let (_, text) = server.request("POST", "/mcp", &[JSON], batch).await;
    assert!(text.len() > 2 << 20, "as JSON nothing is left out");
    assert_eq!(last_event(&text).as_array().map(Vec::len), Some(2));
}

/// All answers of a batch were held until the last was there: three megabytes for each of 32.
#[tokio::test]
async fn a_batch_goes_on_as_its_client_reads() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_OUTPUT_BYTES", "8000000")]);
    let large = "print('a' * 7_000_000)";
    let batch = format!("[{}]", (0..32).map(|id| call(&json!(id), large)).collect::<Vec<_>>().join(","));
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    let head = format!("POST /mcp HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n", server.address);
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{batch}", batch.len()).as_bytes()).await.unwrap();
    // It reads nothing: after what fits between the two, no further call is run.
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let resident = resident_mb(server.pid());
        assert!(resident < 150, "{resident} MB");
        if resident == last && engine(&server).await["running"] == 0 {
            break;
        }
        last = resident;
    }
    drop(stream);
    server.still_works().await;
}

fn resident_mb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn a_call_of_a_batch_is_taken_back_by_itself() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("DEFAULT_TIMEOUT", "100")]);
    let session = open(&server).await;
    let batch = format!("[{},{},{}]", call(&json!(1), "while True: pass"), call(&json!(2), "1"), call(&json!(3), "3"));
    let headers = [JSON, ("mcp-session-id", session.as_str())];
    let request = server.request("POST", "/mcp", &headers, batch);
    let end = async {
        wait_until_running(&server, 1).await;
        // The second has not begun.
        cancel(&server, Some(&session), &json!(2)).await;
        cancel(&server, Some(&session), &json!(1)).await;
    };
    let both = async { tokio::join!(request, end) };
    let ((_, text), ()) = tokio::time::timeout(SOON * 3, both).await.expect("it ends at once");
    let answers = last_event(&text);
    let codes = [0, 1].map(|index: usize| outcome(&answers[index])["error"]["code"].clone());
    assert_eq!((json!(codes), &outcome(&answers[2])["result"]), (json!(["cancelled", "cancelled"]), &json!("3")), "{text}");
}
