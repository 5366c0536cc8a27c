//! How a server stops while it works.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::client::{Home, Server};

fn server(drain: &str) -> Server {
    Server::with(Home::Caller, &[("PRELOAD", "core"), ("DRAIN_SECONDS", drain)])
}

fn stop(server: &Server) {
    kill_process(Pid::from_raw(server.pid()).unwrap(), Signal::TERM).unwrap();
}

/// The server's own end, which is awaited beside calls.
async fn end(server: &Server) -> ExitStatus {
    loop {
        if let Some(status) = server.ended() {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn wait_for(server: &Server, path: &str, is_it: impl Fn(u16, &Value) -> bool) {
    loop {
        let (status, body) = server.request("GET", path, &[], "").await;
        if is_it(status, &serde_json::from_str(&body).unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn runs(server: &Server) {
    wait_for(server, "/health", |_, health| health["engine"]["running"] == 1).await;
}

/// Review C13: a rolling deployment cut every call.
#[tokio::test]
async fn what_runs_comes_to_its_end_and_what_is_new_is_refused() {
    let server = server("60");
    let running = server.run("import time\ntime.sleep(3)\nprint('whole')\n2 + 3");
    let meanwhile = async {
        runs(&server).await;
        stop(&server);
        wait_for(&server, "/health/ready", |status, health| status == 503 && health["status"] == "draining").await;
        let (live, _) = server.request("GET", "/health/live", &[], "").await;
        let health = server.request("GET", "/health", &[], "").await.1;
        let refused = server.run("1").await;
        (live, serde_json::from_str::<Value>(&health).unwrap(), refused)
    };
    let (answer, (live, health, refused)) = tokio::join!(running, meanwhile);
    assert_eq!((answer["stdout"].as_str(), answer["result"].as_str()), (Some("whole\n"), Some("5")), "{answer}");
    assert_eq!((live, &health["status"]), (200, &json!("draining")));
    assert_eq!(refused["error"]["code"], "busy");
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("the server is shutting down"), "{message}");
    assert_eq!(end(&server).await.signal(), Some(Signal::TERM.as_raw()));
}

#[tokio::test]
async fn what_does_not_end_in_time_is_ended() {
    let server = Arc::new(server("0.3"));
    let client = hangs(&server);
    runs(&server).await;
    stop(&server);
    assert_eq!(end(&server).await.signal(), Some(Signal::TERM.as_raw()));
    assert!(client.await.is_err(), "it got no answer");
}

/// Who stops a server by hand need not wait.
#[tokio::test]
async fn a_second_signal_waits_for_nothing() {
    let server = Arc::new(server("3600"));
    let client = hangs(&server);
    runs(&server).await;
    stop(&server);
    wait_for(&server, "/health/ready", |status, _| status == 503).await;
    stop(&server);
    assert_eq!(end(&server).await.signal(), Some(Signal::TERM.as_raw()));
    assert!(client.await.is_err(), "it got no answer");
}

/// A client of a call that does not end by itself; it breaks off when the server ends.
fn hangs(server: &Arc<Server>) -> JoinHandle<()> {
    let server = server.clone();
    let arguments = json!({"code": "import time\ntime.sleep(1000)", "timeout": 120});
    tokio::spawn(async move { drop(server.call("execute_python", arguments).await) })
}
