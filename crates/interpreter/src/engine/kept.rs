//! Tests of a kernel that is kept: one cell after the other, each in what those before it have left.

use std::sync::Arc;
use std::task::{Context, Poll};

use protocol::{CallDefaults, CellRequest, ErrorCode, Event, EventSink, Fold, Limits, Outcome, Policy, Silent};
use serde_json::{Value, json};

use super::{Engine, EngineConfig, Inner};
use crate::answer;
use crate::kernel::{Cell, Kernel};
use crate::{Allowed, Preload};

pub(super) fn config(preload: Preload) -> EngineConfig {
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../../build/tree").into();
    EngineConfig {
        tree,
        preload,
        max_concurrency: 2,
        max_queue: 2,
        spares: 1,
        limits: Limits::default(),
        allowed: Allowed::default(),
        disabled_layers: Vec::new(),
        authorized_imports: vec!["math".to_owned()],
        readable: Vec::new(),
        allow_root: true,
    }
}

async fn engine(preload: Preload) -> Engine {
    Engine::start(config(preload)).await.expect("it starts")
}

async fn kernel(engine: &Engine, stage: usize) -> Kernel {
    let Ok(admitted) = Inner::admit(&engine.inner, stage, &mut Silent).await else { panic!("a kernel") };
    admitted.kernel
}

async fn run(kernel: &mut Kernel, arguments: Value) -> Outcome {
    let Value::Object(arguments) = arguments else { panic!("an object") };
    let max_timeout = std::time::Duration::from_secs(30);
    let defaults = CallDefaults { limits: Limits::default(), max_timeout, policy: Policy::Open };
    let request = CellRequest::from_arguments(arguments.into(), &defaults).expect("a request");
    let cell = Cell { request: &request, authorized_imports: &["math".to_owned()], cores: 2, is_kept: true };
    let mut silent = Silent;
    let mut events = Fold::new(request.limits.output_cap_bytes, &mut silent);
    let finished = kernel.run(cell, &mut events).await;
    events.push(Event::Ended(Arc::new(answer::ended(finished, &request))));
    events.outcome()
}

async fn code(kernel: &mut Kernel, code: &str) -> Outcome {
    run(kernel, json!({"code": code})).await
}

#[tokio::test]
async fn a_cell_finds_what_the_ones_before_it_have_left() {
    let engine = engine(Preload::Core).await;
    let mut kernel = kernel(&engine, 0).await;
    let first =
        run(&mut kernel, json!({"code": "x = input_data['x']\ndef f():\n    return 1 / 0", "input_data": {"x": 41}})).await;
    assert!(first.result.success, "{first:?}");
    let second = code(
        &mut kernel,
        "import atexit, os, threading, time\npid = os.getpid()\natexit.register(print, 'at the end')\n\
        threading.Thread(target=time.sleep, args=(600,)).start()\nprint('two')\nx + 1",
    )
    .await;
    assert_eq!((second.result.result.as_deref(), second.result.stdout.as_str()), (Some("42"), "two\n"), "{second:?}");
    let third = code(&mut kernel, "print('three')\n\nf()").await;
    let error = third.result.error.as_ref().expect("an error");
    assert_eq!((error.code, error.line), (ErrorCode::PythonError, Some(3)), "{third:?}");
    let traceback = error.traceback.as_deref().unwrap_or_default();
    for line in ["File \"<cell-3>\", line 3, in <module>", "f()", "File \"<cell>\", line 3, in f", "return 1 / 0"] {
        assert!(traceback.contains(line), "{traceback}");
    }
    let fourth =
        code(&mut kernel, "import pickle\nclass C:\n    pass\npickle.loads(pickle.dumps(C())).__class__ is C, __name__, x").await;
    assert_eq!(fourth.result.result.as_deref(), Some("(True, '__main__', 41)"), "{fourth:?}");
    assert!(kernel.is_alive());
}

/// What one cell has printed or used up is not counted against the next.
#[tokio::test]
async fn each_cell_has_its_own_counts_and_limits() {
    let engine = engine(Preload::Core).await;
    let mut kernel = kernel(&engine, 0).await;
    for round in 0..3 {
        let busy =
            "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nfor i in range(300): print(i)";
        let outcome = run(&mut kernel, json!({"code": busy, "timeout": 5})).await;
        let usage = outcome.result.usage.expect("asked for while it lives");
        assert!((0.2..1.5).contains(&usage.cpu_seconds), "{round}: {usage:?}");
        assert_eq!(outcome.result.stdout.lines().count(), 300, "{round}");
    }
    let full = code(&mut kernel, "b = bytearray(900 << 20)").await;
    assert_eq!(full.result.error.expect("an error").code, ErrorCode::MemoryLimit);
    let after = code(&mut kernel, "b = bytearray(100 << 20); len(b)").await;
    assert_eq!(after.result.result.as_deref(), Some("104857600"), "{after:?}");
    assert!(after.result.usage.expect("asked").peak_memory_mb > 90.0, "{after:?}");
    let long = run(&mut kernel, json!({"code": "print('on')\nwhile True: pass", "timeout": 0.5})).await;
    assert_eq!((long.result.error.expect("an error").code, long.result.stdout.as_str()), (ErrorCode::Timeout, "on\n"));
    let ends = async {
        while kernel.is_alive() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), ends).await.expect("it was killed");
}

#[tokio::test]
async fn figures_are_counted_for_each_cell() {
    let engine = engine(Preload::Plot).await;
    let mut kernel = kernel(&engine, 2).await;
    let plots = "import matplotlib.pyplot as plt\nfor i in range(20):\n    plt.figure(figsize=(2, 1)); plt.plot([i, 2])";
    for round in 0..3 {
        let outcome = code(&mut kernel, plots).await;
        assert_eq!((outcome.images.len(), outcome.result.warnings.len()), (20, 0), "{round}: {:?}", outcome.result);
    }
}

/// The policy's hook can't be taken away: what was restricted once stays so, and a refusal is its own cell's.
#[tokio::test]
async fn a_kernel_that_was_restricted_stays_so() {
    let engine = engine(Preload::Core).await;
    let mut kernel = kernel(&engine, 0).await;
    let restricted = |code: &str| json!({"code": code, "policy": "restricted"});
    assert_eq!(run(&mut kernel, restricted("import math\nmath.floor(2.5)")).await.result.result.as_deref(), Some("2"));
    for text in ["import os", "open('/etc/passwd')"] {
        let refused = run(&mut kernel, restricted(text)).await;
        assert_eq!(refused.result.error.expect("refused").code, ErrorCode::PolicyDenied, "{text}");
    }
    assert_eq!(run(&mut kernel, restricted("math.ceil(2.5)")).await.result.result.as_deref(), Some("3"));
    let open = code(&mut kernel, "import os").await;
    assert_eq!(open.result.error.expect("refused").code, ErrorCode::PolicyDenied);
}

/// Takes so many bytes, and no more until it is told to.
struct Slow {
    room: usize,
    bytes: usize,
}

impl EventSink for Slow {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        if self.bytes < self.room { Poll::Ready(()) } else { Poll::Pending }
    }

    fn push(&mut self, event: Event) {
        if let Event::Output { bytes, .. } = event {
            self.bytes += bytes.len();
        }
    }
}

/// The code waits for whoever can't take more of its output, nothing is gathered meanwhile, and its clock runs on.
#[tokio::test]
async fn a_listener_that_takes_no_more_holds_the_code_up_and_not_its_clock() {
    let engine = engine(Preload::Core).await;
    let arguments = json!({"code": "while True: print('x' * 100_000)", "timeout": 1});
    let Value::Object(arguments) = arguments else { panic!("an object") };
    let max_timeout = std::time::Duration::from_secs(30);
    let defaults = CallDefaults { limits: Limits::default(), max_timeout, policy: Policy::Open };
    let request = CellRequest::from_arguments(arguments.into(), &defaults).expect("a request");
    let mut slow = Slow { room: 100_000, bytes: 0 };
    let ended = engine.run(&request, &mut slow).await;
    assert_eq!(ended.error.expect("an error").code, ErrorCode::Timeout, "not the limit of the output");
    assert!((100_000..20_000_000).contains(&slow.bytes), "{}", slow.bytes);
}
