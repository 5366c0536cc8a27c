//! The function under Runtime APIs that treat a second `next` in each way that AWS's published cores know, and some more.
//!
//! Rule of the stand-in: as in `internal/lambda-managed-instances` there is a pool of one idle poll. A second one is a 500,
//! which AWS's library does not survive, and a poll that is given up stays in the pool and swallows an event.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path as Segments, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::function::{alone, call, told};

const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of a poll while an event is being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    /// As the emulator does it: the same event until the response is open, and then 403.
    Refused,
    Parked,
    Answered(u16),
    /// The connection ends without an answer.
    Closed,
    /// The same event, whatever happens.
    Repeated,
}

#[derive(Default)]
struct Core {
    /// The event that is being answered, and whether its response is open.
    current: Option<(String, Value, bool)>,
    waiting_polls: usize,
    most_polls: usize,
    early_polls: usize,
    callers: HashMap<String, oneshot::Sender<Result<Vec<u8>, String>>>,
}

/// A Runtime API, and a function that runs under it.
struct StandIn {
    second: Second,
    core: Mutex<Core>,
    send: mpsc::UnboundedSender<(String, Value)>,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<(String, Value)>>,
}

struct UnderTest {
    stand_in: Arc<StandIn>,
    function: Child,
    log: Arc<Mutex<Vec<String>>>,
    _temporary: tempfile::TempDir,
}

impl Drop for UnderTest {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.function), rustix::process::Signal::TERM);
        self.function.wait().unwrap();
    }
}

impl StandIn {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn given(id: &str, event: &Value) -> Response {
    let headers = [
        ("lambda-runtime-aws-request-id", id.to_owned()),
        // Of the event, not of the poll.
        ("lambda-runtime-deadline-ms", "4102444800000".to_owned()),
        ("lambda-runtime-invocation-id", format!("of-{id}")),
    ];
    (headers, event.to_string()).into_response()
}

async fn next(State(stand_in): State<Arc<StandIn>>) -> Response {
    let current = stand_in.core().current.clone();
    if let Some((id, event, open)) = current {
        stand_in.core().early_polls += 1;
        match stand_in.second {
            Second::Refused if open => {
                return (StatusCode::FORBIDDEN, r#"{"errorType":"InvalidStateTransition"}"#).into_response();
            }
            Second::Refused | Second::Repeated => return given(&id, &event),
            Second::Answered(status) => return (StatusCode::from_u16(status).unwrap(), "as it likes").into_response(),
            Second::Closed => panic!("the connection ends here, as it should"),
            Second::Parked => {}
        }
    }
    {
        let mut core = stand_in.core();
        core.waiting_polls += 1;
        core.most_polls = core.most_polls.max(core.waiting_polls);
        if core.waiting_polls > 1 {
            core.waiting_polls -= 1;
            return (StatusCode::INTERNAL_SERVER_ERROR, r#"{"errorType":"Runtime.TooManyIdleRuntimes"}"#).into_response();
        }
    }
    // Not this handler, which ends with its connection: what is parked stays parked.
    let parked = tokio::spawn(async move {
        let (id, event) = stand_in.events.lock().await.recv().await.unwrap();
        let mut core = stand_in.core();
        core.waiting_polls -= 1;
        core.current = Some((id.clone(), event.clone(), false));
        given(&id, &event)
    });
    parked.await.unwrap()
}

async fn response(State(stand_in): State<Arc<StandIn>>, Segments(id): Segments<String>, body: Body) -> StatusCode {
    if let Some((current, _, open)) = &mut stand_in.core().current {
        *open |= *current == id;
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    answered(&stand_in, &id, Ok(body.to_vec()))
}

async fn error(State(stand_in): State<Arc<StandIn>>, Segments(id): Segments<String>, body: Bytes) -> StatusCode {
    answered(&stand_in, &id, Err(String::from_utf8_lossy(&body).into_owned()))
}

fn answered(stand_in: &StandIn, id: &str, answer: Result<Vec<u8>, String>) -> StatusCode {
    let mut core = stand_in.core();
    core.current.take_if(|(current, ..)| current == id);
    match core.callers.remove(id) {
        Some(caller) => {
            let _ = caller.send(answer);
            StatusCode::ACCEPTED
        }
        None => StatusCode::BAD_REQUEST,
    }
}

impl UnderTest {
    async fn start(second: Second, lock: &str) -> Self {
        let (send, events) = mpsc::unbounded_channel();
        let events = tokio::sync::Mutex::new(events);
        let stand_in = Arc::new(StandIn { second, core: Mutex::default(), send, events });
        let registered = || async {
            let body = json!({"functionName": "f", "functionVersion": "1", "handler": "bootstrap"}).to_string();
            ([("lambda-extension-identifier", "e")], body)
        };
        let router = axum::Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2020-01-01/extension/register", post(registered))
            .route("/2020-01-01/extension/event/next", get(std::future::pending::<()>))
            .with_state(stand_in.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(axum::serve(listener, router).into_future());
        let bootstrap = Path::new(env!("CARGO_BIN_EXE_bootstrap"));
        let (tree, [bootstrap]) = homes::reachable([bootstrap]);
        let temporary = tempfile::tempdir().unwrap();
        if homes::is_root() {
            std::os::unix::fs::chown(temporary.path(), Some(homes::USER), Some(homes::USER)).unwrap();
        }
        let mut command = alone(&bootstrap);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("PYTHON_TREE", tree).env("TMPDIR", temporary.path());
        command.env("PRELOAD", "core").env("RESPONSE_LOCK", lock).env("AWS_LAMBDA_RUNTIME_API", address);
        for (name, value) in [("NAME", "f"), ("VERSION", "1"), ("MEMORY_SIZE", "2048")] {
            command.env(format!("AWS_LAMBDA_FUNCTION_{name}"), value);
        }
        let mut function = command.env("LAMBDA_TASK_ROOT", "/var/task").stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(function.stderr.take().unwrap()).lines().map_while(Result::ok);
        let log = Arc::new(Mutex::new(Vec::new()));
        let heard = log.clone();
        std::thread::spawn(move || {
            for line in lines {
                eprintln!("{line}");
                heard.lock().unwrap().push(line);
            }
        });
        Self { stand_in, function, log, _temporary: temporary }
    }

    /// Sends an event; what comes back is its answer.
    fn invoke(&self, tool: &str, arguments: &Value) -> impl Future<Output = Value> + use<> {
        let (caller, answer) = oneshot::channel();
        let id = format!("00000000-0000-0000-0000-{:012}", number());
        self.stand_in.core().callers.insert(id.clone(), caller);
        let event = json!({
            "resource": "/{proxy+}", "path": "/lambda/mcp/", "httpMethod": "POST",
            "headers": {"content-type": "application/json", "host": "a"},
            "multiValueHeaders": {"content-type": ["application/json"], "host": ["a"]},
            "queryStringParameters": null, "multiValueQueryStringParameters": null, "pathParameters": null, "stageVariables": null,
            "requestContext": {"stage": "dev", "path": "/dev/lambda/mcp/", "httpMethod": "POST", "identity": {}},
            "body": call(tool, arguments), "isBase64Encoded": false,
        });
        self.stand_in.send.send((id, event)).unwrap();
        async move {
            let answer = tokio::time::timeout(PATIENCE, answer).await.expect("no event hangs").unwrap();
            let answer = answer.expect("every event is answered");
            let end = answer.windows(8).position(|window| window == [0; 8]).expect("a head");
            let head: Value = serde_json::from_slice(&answer[..end]).unwrap();
            assert_eq!(head["statusCode"], 200, "{head}");
            told(std::str::from_utf8(&answer[end + 8..]).unwrap())
        }
    }

    async fn run(&self, code: &str) -> Value {
        self.invoke("execute_python", &json!({"code": code})).await
    }

    async fn lock(&self) -> (String, String) {
        let environment = self.invoke("get_environment_info", &json!({})).await;
        let layers = environment["sandbox"].as_array().unwrap();
        let lock = layers.iter().find(|layer| layer["name"] == "response_lock").unwrap();
        (lock["state"].as_str().unwrap().to_owned(), lock["reason"].as_str().unwrap_or_default().to_owned())
    }

    fn polls(&self) -> (usize, usize) {
        let core = self.stand_in.core();
        (core.most_polls, core.early_polls)
    }

    fn has_logged(&self, words: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(words))
    }
}

fn number() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// What is said, and how often three calls ask.
const OTHERWISE: [(Second, &str, usize); 5] = [
    (Second::Parked, "it kept the question waiting for more than 1 second", 1),
    (Second::Answered(500), "it answered 500 Internal Server Error: as it likes", 3),
    (Second::Answered(410), "it answered 410 Gone", 3),
    (Second::Closed, "it gave no answer", 3),
    (Second::Repeated, "it gave the same event for 3 seconds", usize::MAX),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_api_that_refuses_is_a_lock_that_holds() {
    for lock in ["prefer", "require"] {
        let function = UnderTest::start(Second::Refused, lock).await;
        let before = function.lock().await.0;
        assert_eq!(before, if lock == "require" { "active" } else { "unknown" });
        for _ in 0..3 {
            let result = function.run("2 + 3").await;
            assert_eq!((&result["result"], &result["warnings"]), (&json!("5"), &json!([])), "{lock}: {result:#}");
        }
        assert_eq!(function.lock().await, ("active".to_owned(), String::new()));
        assert!(function.polls().0 == 1 && function.polls().1 >= 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_runs_under_every_other_runtime_api_with_a_warning() {
    for (second, said, asked) in OTHERWISE {
        let function = UnderTest::start(second, "prefer").await;
        for _ in 0..3 {
            let result = function.run("2 + 3").await;
            let warning = result["warnings"][0].as_str().unwrap_or_default();
            assert!(result["result"] == "5" && warning.contains(said), "{second:?}: {result:#}");
        }
        let (state, reason) = function.lock().await;
        assert!(state == "refused" && reason.contains(said), "{second:?}: {state} {reason}");
        assert!(function.has_logged("the response lock does not hold") && function.has_logged(said), "{second:?}");
        let (most, early) = function.polls();
        assert_eq!(most, 1, "{second:?}: never a second poll beside one that waits");
        assert!(early == asked || asked == usize::MAX, "{second:?}: {early}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_required_runs_no_code_and_says_what_was_answered() {
    for (second, said, _) in OTHERWISE {
        let function = UnderTest::start(second, "require").await;
        for _ in 0..2 {
            let result = function.run("2 + 3").await;
            let message = result["error"]["message"].as_str().unwrap_or_default();
            assert!(
                result["result"].is_null() && message.contains(said) && message.contains("RESPONSE_LOCK=prefer"),
                "{result:#}"
            );
        }
        assert_eq!(function.lock().await.0, "refused", "{second:?}");
        assert_eq!(function.polls().0, 1, "{second:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_off_asks_nothing() {
    let function = UnderTest::start(Second::Parked, "off").await;
    for _ in 0..3 {
        let result = function.run("2 + 3").await;
        assert_eq!((&result["result"], &result["warnings"]), (&json!("5"), &json!([])), "{result:#}");
    }
    assert_eq!(function.lock().await, ("off".to_owned(), "RESPONSE_LOCK is off".to_owned()));
    assert!(function.polls() == (1, 0) && function.has_logged("RESPONSE_LOCK is off"));
}

/// The question of the first call is given the second call's event.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_out_of_the_question_is_served() {
    for lock in ["prefer", "require"] {
        let function = UnderTest::start(Second::Parked, lock).await;
        let calls = ["'first'", "'second'", "'third'"].map(|code| function.invoke("execute_python", &json!({"code": code})));
        let [first, second, third] = calls;
        for (answer, code) in [(first.await, "first"), (second.await, "second"), (third.await, "third")] {
            if lock == "prefer" {
                assert_eq!(answer["result"], format!("'{code}'"), "{answer:#}");
                assert!(answer["warnings"][0].as_str().unwrap().contains("it gave the next event"), "{answer:#}");
            } else {
                assert!(answer["error"]["message"].as_str().unwrap().contains("it gave the next event"), "{answer:#}");
            }
        }
        assert_eq!(function.polls(), (1, 1), "{lock}");
    }
}
