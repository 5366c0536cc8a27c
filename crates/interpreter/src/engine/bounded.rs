//! Tests of what comes to an end: waiting calls, and engines.

use std::time::{Duration, Instant};

use protocol::{CallDefaults, CellRequest, Ended, ErrorCode, Limits, Policy, Silent};
use serde_json::{Value, json};

use super::kept::config;
use super::{Engine, EngineConfig, Inner};
use crate::Preload;

async fn run_within(engine: &Engine, code: &str, patience: Duration) -> Ended {
    let Value::Object(arguments) = json!({"code": code}) else { panic!("an object") };
    let defaults = CallDefaults { limits: Limits::default(), max_timeout: Duration::from_secs(30), policy: Policy::Open };
    let mut request = CellRequest::from_arguments(arguments.into(), &defaults).expect("a request");
    request.deadline = Some(Instant::now() + patience);
    engine.run(&request, &mut Silent).await
}

/// C12: a call waited for its place and its kernel without an end, and was then told that the fault was ours.
#[tokio::test]
async fn a_call_waits_no_longer_than_its_own_deadline_and_is_told_for_what() {
    let engine = Engine::start(EngineConfig { max_concurrency: 1, ..config(Preload::Core) }).await.expect("it starts");
    let Ok(running) = Inner::admit(&engine.inner, 0, &mut Silent).await else { panic!("a kernel") };
    let error = run_within(&engine, "1", Duration::from_millis(20)).await.error.expect("no place");
    assert_eq!(error.code, ErrorCode::Busy, "{error:?}");
    assert_eq!(engine.status().queued, 0);
    drop(running);
    assert_eq!(run_within(&engine, "1", Duration::from_secs(30)).await.value.as_deref(), Some("1"));

    let engine = Engine::start(config(Preload::All)).await.expect("it starts");
    let error = run_within(&engine, "import sklearn", Duration::from_millis(1)).await.error.expect("it is imported");
    assert!(error.code == ErrorCode::Internal && error.message.contains("in the time of the call"), "{error:?}");
    assert_eq!((engine.status().queued, engine.status().running), (0, 0));
}

/// Tasks that started kernels held what they were started for, until the runtime ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_dropped_while_it_starts_leaves_nothing() {
    for pause in [0, 1, 30, 100, 200, 400] {
        let engine = Engine::start_in_background(config(Preload::All)).expect("it starts");
        let place = engine.state_dir().to_owned();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        drop(engine);
        let named = || {
            let entries = std::fs::read_dir("/proc").expect("a list").flatten();
            let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
            lines.filter(|line| String::from_utf8_lossy(line).contains(place.to_str().expect("text"))).count()
        };
        let gone = async {
            while place.exists() || named() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap_or_else(|_| panic!("{pause} ms: {} processes", named()));
    }
}
