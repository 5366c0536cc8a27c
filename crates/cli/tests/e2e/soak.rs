//! Many calls, honest and hostile, several at once: afterwards nothing is left that was not there before.
//!
//! A short form runs with the other tests; `make soak` makes it 10,000 calls (`SOAK_CALLS`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::client::{Home, Server};

const SHORT: usize = 400;
const AT_ONCE: usize = 4;
/// What may come and go with the allocator's pages.
const RESIDENT_SLACK_KB: u64 = 4096;

/// Each with a timeout in seconds.
const CALLS: &[(&str, f64)] = &[
    ("print(2+3)", 5.0),
    ("open('a', 'w').write('x' * 100_000)\n1/0", 5.0),
    ("print('x' * 300_000)", 5.0),
    (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(60)\n    os._exit(0)",
        5.0,
    ),
    ("import os; os._exit(3)", 5.0),
    ("import ctypes; ctypes.string_at(0)", 5.0),
    ("while True: pass", 0.1),
    ("import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(0.01,)).start()", 5.0),
    ("import os\nfor fd in range(3, 1024):\n    try: os.close(fd)\n    except OSError: pass", 5.0),
    ("import os\nopen(f'/dev/shm/of-{os.getuid()}', 'w').write('x')\nos._exit(0)", 5.0),
    ("import os\nos.makedirs('a/b')\nos.chmod('a', 0)", 5.0),
    ("x = bytearray(64 << 30)", 5.0),
    ("import subprocess; subprocess.run(['true'])", 5.0),
];

/// Everything that could be left over, by name, so that a difference says what it is.
pub(crate) fn inventory(server: &Server, state: &Path) -> BTreeMap<&'static str, usize> {
    let entries = |path: PathBuf| std::fs::read_dir(path).map(Iterator::count).unwrap_or_default();
    let pid = server.pid();
    let processes = descendants(pid);
    let zygote_descriptors = processes.iter().map(|pid| entries(format!("/proc/{pid}/fd").into())).sum();
    let engine = std::fs::read_dir(state).unwrap().next().unwrap().unwrap().path();
    BTreeMap::from([
        ("processes", processes.len()),
        ("descriptors of the server", entries(format!("/proc/{pid}/fd").into())),
        ("descriptors of its processes", zygote_descriptors),
        ("directories of calls", entries(engine)),
        ("shared memory", entries("/dev/shm".into())),
        ("control groups", groups(Path::new("/sys/fs/cgroup"), server.pid())),
        ("mounts", std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap().lines().count()),
    ])
}

/// Directories of the server's own control groups: one in each hierarchy, with nothing below.
pub(crate) fn groups(directory: &Path, pid: i32) -> usize {
    let name = format!("code-interpreter-{pid}");
    let below = std::fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    below.map(|entry| usize::from(entry.path().to_string_lossy().contains(&name)) + groups(&entry.path(), pid)).sum()
}

fn descendants(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        at += 1;
    }
    found.split_off(1)
}

/// Resident memory of the server, and of the process that all kernels come from.
fn resident_kb(server: &Server) -> Vec<u64> {
    let of = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    // The stub, and then the zygote, are the oldest below the server.
    std::iter::once(server.pid()).chain(descendants(server.pid()).into_iter().take(2)).map(of).collect()
}

async fn run_calls(server: &Server, count: usize) {
    let worker = |first: usize| async move {
        for call in (first..count).step_by(AT_ONCE) {
            let (code, timeout) = CALLS[call % CALLS.len()];
            let result = server.run_with(json!({"code": code, "timeout": timeout})).await;
            assert!(result["exit_code"].is_i64(), "{code}: {result}");
        }
    };
    tokio::join!(worker(0), worker(1), worker(2), worker(3));
}

#[tokio::test]
async fn thousands_of_calls_leave_nothing_behind() {
    let calls = std::env::var("SOAK_CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(SHORT);
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_str().unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("TMPDIR", path), ("MAX_CONCURRENCY", "4")]);
    run_calls(&server, 2 * CALLS.len()).await;
    let settle = async || {
        let mut last = inventory(&server, state.path());
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = inventory(&server, state.path());
            if now == last {
                return now;
            }
            last = now;
        }
        last
    };
    let (before, resident_before) = (settle().await, resident_kb(&server));
    run_calls(&server, calls).await;
    // What a call leaves goes after its answer: waited for, and it must come to what was there before.
    let mut after = settle().await;
    for _ in 0..50 {
        if after == before {
            break;
        }
        after = settle().await;
    }
    assert_eq!(after, before);
    for (before, after) in resident_before.iter().zip(resident_kb(&server)) {
        assert!(after <= before + RESIDENT_SLACK_KB, "resident memory went from {before} to {after} kB");
    }
    let (_, health) = server.request("GET", "/health", &[], "").await;
    assert!(health.contains("\"restarts\":0"), "{health}");
    let pid = server.pid();
    drop(server);
    assert_eq!(groups(Path::new("/sys/fs/cgroup"), pid), 0, "the server takes its control groups with it");
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "and its directory");
}
