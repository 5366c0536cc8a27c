//! The stdio door: every line is answered, and a client that goes away leaves nothing running.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Server, last_event, processes_named, program, told, variable};

/// A run that nothing but its end ends, and that says that it has begun.
const ENDLESS: &str = "print('on', flush=True)\nwhile True: pass";

/// A client that has started the program.
struct Client {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
    /// Of this program alone: all its processes name it.
    folder: TempDir,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = program();
        command.arg("stdio").env(variable("PRELOAD"), "core").env("TMPDIR", folder.path());
        command.envs(settings.iter().map(|(name, value)| (variable(name), value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        Self { child, input, output, folder }
    }

    /// One that has shaken hands.
    fn introduced(settings: &[(&str, &str)]) -> Self {
        let mut client = Self::with(settings);
        assert_eq!(client.ask(opening())["id"], 0);
        client.say(initialized());
        client
    }

    fn say(&mut self, line: impl Display) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.output.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn ask(&mut self, line: impl Display) -> Value {
        self.say(line);
        self.hear()
    }

    /// Starts a run that does not end, and waits until it has begun.
    fn run_endlessly(&mut self, id: impl Into<Value>) {
        let note = self.ask(with_token(call(id, ENDLESS)));
        assert_eq!(note["params"]["message"], "on", "{note}");
    }

    /// How it ended, once nothing of it is left, and how long that took.
    fn end(&mut self) -> (ExitStatus, Duration) {
        let from = Instant::now();
        let status = self.child.wait().unwrap();
        let took = from.elapsed();
        let folder = self.folder.path().to_str().unwrap();
        while !processes_named(folder).is_empty() {
            assert!(from.elapsed() < Duration::from_secs(30), "{:?}", processes_named(folder));
            std::thread::sleep(Duration::from_millis(10));
        }
        (status, took)
    }
}

fn opening() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}})
}

fn initialized() -> Value {
    json!({"jsonrpc": "2.0", "method": "notifications/initialized"})
}

fn call(id: impl Into<Value>, code: &str) -> Value {
    let arguments = json!({"code": code, "timeout": 60});
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": {"name": "execute_python", "arguments": arguments}})
}

fn with_token(mut call: Value) -> Value {
    call["params"]["_meta"] = json!({"progressToken": call["id"]});
    call
}

fn ping(id: impl Into<Value>) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "ping"})
}

/// What a run came to, as the text has it.
#[test]
fn the_same_tools_answer_on_stdio_and_nothing_else_reaches_it() {
    let mut client = Client::introduced(&[("ALLOW_SUBPROCESS", "true")]);
    let code = "import os, subprocess\nos.write(1, b'{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}\\n')\nsubprocess.run(['echo', 'sub'])\nos.write(2, b'e')";
    let answer = client.ask(call(2, code));
    assert_eq!(answer["id"], 2);
    assert_eq!(told(&answer)["stdout"], "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}\nsub\n");
    assert_eq!(told(&answer)["stderr"], "e");
    client.input = None;
    assert!(client.end().0.success());
}

/// The program ended with code 2 where no handshake came first, and five seconds after its input at the latest.
#[test]
fn whoever_pipes_a_call_gets_its_answer_with_or_without_a_handshake() {
    // Longer than rmcp waits for answers at the end.
    let call = call(7, "import time\ntime.sleep(6)\n'slept'");
    let mut modern = call.clone();
    modern["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"}, "io.modelcontextprotocol/clientCapabilities": {}});
    let scripts = [call.to_string(), modern.to_string(), format!("{}\n{}\n{call}", opening(), initialized())];
    let clients = scripts.map(|script| {
        let mut client = Client::start();
        write!(client.input.take().unwrap(), "{script}").unwrap();
        client
    });
    for mut client in clients {
        let mut answer = client.hear();
        if answer["id"] == 0 {
            answer = client.hear();
        }
        assert_eq!((&answer["id"], &told(&answer)["result"]), (&json!(7), &json!("'slept'")), "{answer}");
        assert!(client.end().0.success());
    }
    let mut silent = Client::start();
    silent.input = None;
    assert!(silent.end().0.success());
}

/// It took five seconds. Nothing is said after that to a client that has gone: Python's 1.x throws out of its own end then.
#[test]
fn a_client_that_ends_its_input_in_mid_run_ends_the_run() {
    let begun = "import time\nprint('on', flush=True)\ntime.sleep(0.5)\nprint('and on', flush=True)\nwhile True: print('.')";
    // With and without a handshake: who has kept its input open after a call has waited for its answer.
    for (mut client, asks) in [(Client::introduced(&[]), true), (Client::start(), false)] {
        let note = client.ask(with_token(call(1, begun)));
        assert_eq!(note["params"]["message"], "on", "{note}");
        assert!(client.hear()["params"]["message"].as_str().unwrap().starts_with("and on"));
        if asks {
            client.say(ping(2));
        }
        client.input = None;
        // There is time for what is answered at once.
        while asks && client.hear() != json!({"jsonrpc": "2.0", "id": 2, "result": {}}) {}
        let (status, took) = client.end();
        assert!(status.success() && took < Duration::from_secs(4), "{status:?} {took:?}");
        let rest = client.output.take().unwrap().lines().map(Result::unwrap);
        assert!(rest.map(|line| serde_json::from_str::<Value>(&line).unwrap()).all(|line| line["id"].is_null()));
    }
}

/// The read of standard input held it up for half a second, whatever ran.
#[test]
fn a_signal_ends_it_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let tries = (0..3).map(|_| {
            let mut client = Client::introduced(&[]);
            client.run_endlessly(1);
            kill_process(Pid::from_child(&client.child), signal).unwrap();
            let (status, took) = client.end();
            assert_eq!(status.signal(), Some(signal.as_raw()));
            took
        });
        // The machine may be busy with other things.
        let best = tries.min().unwrap();
        assert!(best < Duration::from_millis(400), "{best:?}");
    }
}

/// It was noticed by none.
#[test]
fn a_client_that_takes_no_answers_any_more_has_gone() {
    for runs in [false, true] {
        let mut client = Client::introduced(&[]);
        if runs {
            client.run_endlessly(1);
        }
        client.output = None;
        assert!(client.end().0.success());
    }
    // And one whose input has ended too.
    let mut client = Client::start();
    client.run_endlessly(1);
    (client.input, client.output) = (None, None);
    assert!(client.end().0.success());
}

#[test]
fn a_call_that_is_taken_back_makes_room_for_the_next() {
    let mut client = Client::introduced(&[("MAX_CONCURRENCY", "1")]);
    for id in [json!(5), json!("five")] {
        client.run_endlessly(id.clone());
        let from = Instant::now();
        client.say(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}));
        // Its own answer does not come.
        let answer = client.ask(call("next", "1"));
        assert_eq!((&answer["id"], &told(&answer)["result"]), (&json!("next"), &json!("1")));
        assert!(from.elapsed() < Duration::from_secs(10), "the run went on: {:?}", from.elapsed());
        // And the id is free again.
        assert_eq!(client.ask(ping(id.clone()))["id"], id);
    }
}

/// Each of these was answered with silence, or without the id that the client waits for.
#[test]
fn whatever_is_asked_is_answered_with_its_id() {
    let mut client = Client::start();
    let execute = |arguments: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"execute_python","arguments":{arguments}}}}}"#
        )
    };
    let nested = |depth| execute(&format!(r#"{{"code":"1","input_data":{{"a":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth)));
    let id_last = |bytes| format!(r#"{{"method":"ping","params":{{"a":"{}"}},"jsonrpc":"2.0","id":"z"}}"#, "a".repeat(bytes));
    for (line, id, says) in [
        (execute(r#"{"code":"a\ud800"}"#), "2", "code: can't be read: "),
        (execute(r#"{"code":"1","input_data":{"a":1e400}}"#), "2", "input_data: can't be read: "),
        (nested(200), "2", "input_data: can't be read: "),
        (nested(10_000), "2", "input_data: can't be read: "),
        (format!(r#"{{"jsonrpc":"2.0","id":3,"method":"ping","params":[{}0]}}"#, "0,".repeat(2000)), "3", "params: is too large"),
        (
            execute(&format!(r#"{{"code":"{}"}}"#, "a".repeat(13_000_000))),
            "2",
            "Payload Too Large: the line is longer than MAX_BODY_BYTES",
        ),
        (id_last(20_000_000), "\"z\"", "Payload Too Large: "),
        (id_last(60_000_000), "\"z\"", "Payload Too Large: "),
        (r#"{"jsonrpc":"2.0","id":5,"method":"#.to_owned(), "5", "Parse error: "),
        ("{nonsense".to_owned(), "null", "Parse error: "),
        ("[".repeat(10_000), "null", "Parse error: "),
        ("[]".to_owned(), "null", "Invalid Request: "),
        (format!("[{}]", vec!["1"; 33].join(",")), "null", "Invalid Request: a batch must have at most 32 messages"),
        ("7".to_owned(), "null", "Invalid Request: "),
        (format!("\"{}\"", "a".repeat(1000)), "null", "Invalid Request: "),
    ] {
        let from = Instant::now();
        let answer = client.ask(&line);
        assert_eq!(answer["id"].to_string(), id, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().starts_with(says), "{answer}");
        assert!(from.elapsed() < Duration::from_secs(10), "{says}: {:?}", from.elapsed());
    }
    for id in ["1.5", "-1.5", "18446744073709551616", "1e400", "null", "true", "[1]", r#""\ud800""#] {
        let answer = client.ask(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#));
        assert!(answer["error"]["code"].is_i64(), "{answer}");
        // As far as it is a number or a string that can be read.
        assert_eq!(answer["id"], serde_json::from_str(id).ok().filter(Value::is_number).unwrap_or_default(), "{answer}");
    }
    // A batch, whose answers come as they are ready.
    client.say(format!("[{},7,{}]", ping(21), call(22, "22")));
    let answers = [client.hear(), client.hear(), client.hear()];
    assert_eq!(answers[0]["error"]["code"], -32600);
    let of = |id: i32| answers.iter().find(|answer| answer["id"] == id).unwrap_or_else(|| panic!("{answers:?}"));
    assert_eq!((&of(21)["result"]["isError"], &told(of(22))["result"]), (&Value::Null, &json!("22")));
    // Two that share a line, and two that share an id.
    client.say(format!("{}{}", ping(11), ping(12)));
    assert_eq!(
        [client.hear(), client.hear()].map(|answer| (answer["id"].clone(), answer["error"]["code"].clone())),
        [(json!(11), json!(-32700)), (json!(12), json!(-32700))]
    );
    client.say(call(4, "import time\ntime.sleep(0.3)"));
    let answer = client.ask(ping(4));
    assert_eq!(answer["error"]["message"], "id: is that of another request that is not answered yet");
    assert_eq!(told(&client.hear())["success"], true);
    client.input.as_mut().unwrap().write_all(b"{\"id\":6,\"method\":\"\xff\"}\n\xff\xfe\n").unwrap();
    assert_eq!(client.hear()["id"], 6);
    // What is no message at all gets no answer; nor does what Windows puts before and behind a line harm it.
    let answer = client.ask(format!("nonsense\n\n\u{feff}{}\r", call(8, "print(8)")));
    assert_eq!((&answer["id"], &told(&answer)["stdout"]), (&json!(8), &json!("8\n")), "{answer}");
    let exact = execute(r#"{"code":"print(input_data)","input_data":{"c":12345678901234567890123}}"#);
    assert_eq!(told(&client.ask(exact))["stdout"], "{'c': 12345678901234567890123}\n");
    client.input = None;
    assert!(client.end().0.success());
}

/// No notification came of what prints nothing, so that clients gave up after a minute.
#[test]
fn who_asks_for_progress_hears_of_a_silent_call_and_of_one_that_waits() {
    let mut client = Client::introduced(&[("MAX_CONCURRENCY", "1")]);
    client.run_endlessly(1);
    client.say(with_token(call(2, "1")));
    let note = client.hear();
    assert_eq!(note["params"]["message"], "waiting for others to end: 1 calls run, and 1 wait", "{note}");
    let (mut running, mut waiting) = (1.0, 1.0);
    for _ in 0..2 {
        let note = client.hear();
        let params = &note["params"];
        let (text, number) = (params["message"].as_str().unwrap(), params["progress"].as_f64().unwrap());
        let seconds = text.strip_prefix("running, ").and_then(|text| text.strip_suffix(" s")).unwrap();
        assert!((1..=10).contains(&seconds.parse::<u64>().unwrap()), "{note}");
        let last = if params["progressToken"] == 1 { &mut running } else { &mut waiting };
        assert!(number > *last && params.get("total").is_none(), "{note}");
        *last = number;
    }
    assert!(running > 1.0 && waiting > 1.0, "both are told of");
    client.input = None;
    client.end();
}

/// A client that uses one id again and again was often told that it was that of another request.
#[test]
fn an_id_is_free_when_its_answer_is_there() {
    let mut client = Client::introduced(&[]);
    for _ in 0..500 {
        let answer = client.ask(ping(7));
        assert!(answer["error"].is_null(), "{answer}");
    }
    client.input = None;
    client.end();
}

/// The new call got what came of the old one, and its own answer was lost.
#[test]
fn an_id_that_was_taken_back_is_nobody_elses_until_its_work_has_ended() {
    let mut client = Client::introduced(&[]);
    for round in 0..10 {
        client.run_endlessly(1);
        client.say(r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#);
        // Refused until it is free, and then answered with what is its own.
        let answer = loop {
            let answer = client.ask(call(1, "print('new')"));
            if answer.get("error").is_none() {
                break answer;
            }
            assert!(answer["error"]["message"].as_str().unwrap().starts_with("id: "), "{round}: {answer}");
        };
        assert_eq!(told(&answer)["stdout"], "new\n", "{round}: {answer}");
    }
    client.input = None;
    client.end();
}

/// It was cut to what is read of an event, which there are none of here.
#[test]
fn an_answer_is_whole_after_progress() {
    let mut client = Client::introduced(&[("MAX_OUTPUT_BYTES", "4194304")]);
    client.say(with_token(call(1, "print('on', flush=True)\nprint('a' * 2_000_000)")));
    let mut notes = 0;
    let answer = loop {
        let heard = client.hear();
        if heard["id"] == 1 {
            break heard;
        }
        notes += 1;
    };
    assert!(notes > 0);
    assert_eq!(told(&answer)["stdout"].as_str().map(str::len), Some(2_000_004));
}

#[tokio::test]
async fn a_silent_call_is_told_of_over_http_too() {
    let server = Server::start();
    let call = with_token(call(1, "import time\ntime.sleep(6)"));
    let accept = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    let (status, body) = server.request("POST", "/mcp", &accept, call.to_string()).await;
    assert_eq!(status, 200);
    assert!(body.contains("running, 5 s"), "{body}");
    assert_eq!(told(&last_event(&body))["success"], true);
}
