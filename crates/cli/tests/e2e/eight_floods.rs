//! Eight calls that flood at once: each is ended at its limit, and whoever else asks the server is answered meanwhile.
//!
//! `make floods` runs this with the release server, prints what was measured, and holds it to what is promised.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::client::{Home, Server, told};

const MB: u64 = 1 << 20;
/// What the server's memory may grow by.
const GROWTH_MB: u64 = 64;
const OUTPUT_LIMIT: u64 = 64 * MB;
const TIMEOUT: Duration = Duration::from_secs(4);

/// How late an answer may be, and how long one of `/health/live` may take.
struct Bounds {
    ended: Duration,
    live: Duration,
}

const PROMISED: Bounds = Bounds { ended: Duration::from_secs(1), live: Duration::from_millis(100) };
/// Of an unoptimised server on a machine that does other things.
const LOOSE: Bounds = Bounds { ended: Duration::from_secs(15), live: Duration::from_secs(5) };

/// Writes without an end, counts what it and its forks have written, and leaves word in a file of when that was as much as may
/// come, less a megabyte.
const HEAD: &str = "import json, mmap, os, time
counts = memoryview(mmap.mmap(-1, 4096)).cast('Q')
def count(size, slot=0):
    counts[slot] += size
    if not counts[99] and sum(counts[:64]) > LIMIT - (1 << 20):
        counts[99] = 1
        with open('met', 'w') as file: file.write(repr(time.time()))
def flood(fd, data, rounds=1 << 60, slot=0):
    for _ in range(rounds):
        rest = memoryview(data)
        while rest:
            size = os.write(fd, rest)
            count(size, slot)
            rest = rest[size:]
def frame(kind, body=b''): return kind + len(body).to_bytes(4, 'little') + body
";

/// Its name, what it does, and with what it ends that meets no clock.
type Flood = (&'static str, &'static str, &'static str);

const FLOODS: [Flood; 8] = [
    ("frames of nothing", "flood(500, frame(b'O') * 20_000)", "output_limit"),
    ("unknown frames", "flood(500, frame(b'?') * 20_000)", "crashed"),
    ("images of ten bytes", "flood(500, frame(b'I', b'image/png\\0') * 10_000)", "output_limit"),
    ("descriptor 1", "flood(1, b'x' * 100_000)", "output_limit"),
    ("descriptor 2", "flood(2, b'x' * 100_000)", "output_limit"),
    (
        "forks that write",
        "n = 0\nwhile True:\n    if os.fork() == 0:\n        flood(1 + n % 2, b'y' * 50_000, 20, n % 60)\n        os._exit(0)\n    n += 1\n    if n > 4: os.wait()",
        "output_limit",
    ),
    ("text", "while True:\n    print('z' * 999)\n    count(1000)", "output_limit"),
    ("reports", "flood(500, frame(b'V', json.dumps({'warnings': [''] * 340_000}, separators=',:').encode()))", "crashed"),
];

/// Kept until the call is over, it took eight times its size.
const WARNINGS: &str = "many warnings";

/// What else is hard to take when it comes eightfold.
const FURTHER: [Flood; 4] = [
    ("requests to empty the pipes", "flood(500, frame(b'S') * 20_000)", "output_limit"),
    ("images of a megabyte", "flood(500, frame(b'I', b'image/png\\0\\x89PNG\\r\\n\\x1a\\n' + bytes(1 << 20)))", "output_limit"),
    (
        "a value",
        "flood(500, frame(b'V', json.dumps({'value': 'x' * 1_000_000}).encode()), 1)\nflood(1, b'x' * 100_000)",
        "output_limit",
    ),
    (
        WARNINGS,
        "flood(500, frame(b'V', json.dumps({'warnings': [''] * 340_000}, separators=',:').encode()), 1)\nflood(1, b'x' * 100_000)",
        "output_limit",
    ),
];

/// One flood's answer, and how long after its limit it was there.
struct Ended {
    name: &'static str,
    code: Value,
    late: Option<Duration>,
}

/// Runs all at once, with `/health/live` asked all the while: how they ended, and the longest that it took.
async fn at_once(server: &Server, floods: &[Flood; 8], timeout: Duration) -> (Vec<Ended>, Duration, usize) {
    let one = async |&(name, code, _): &Flood| {
        let code = format!("{}{code}", HEAD.replace("LIMIT", &OUTPUT_LIMIT.to_string()));
        let begun = Instant::now();
        let answer = server.call("execute_python", json!({"code": code, "timeout": timeout.as_secs()})).await;
        let (now, took) = (SystemTime::now(), begun.elapsed());
        let result = told(&answer);
        let late = match result["error"]["code"].as_str() {
            Some("timeout") => Some(took.saturating_sub(timeout)),
            Some("output_limit") => Some(now.duration_since(UNIX_EPOCH + met(&answer)).unwrap_or_default()),
            _ => None,
        };
        Ended { name, code: result["error"]["code"].clone(), late }
    };
    let over = std::cell::Cell::new(false);
    let floods = async {
        let ended = join_all(floods.iter().map(one)).await;
        over.set(true);
        ended
    };
    let live = async {
        let (mut longest, mut asked) = (Duration::ZERO, 0);
        while !over.get() {
            let begun = Instant::now();
            let (status, _) = server.request("GET", "/health/live", &[], "").await;
            assert_eq!(status, 200);
            longest = longest.max(begun.elapsed());
            asked += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (longest, asked)
    };
    let (ended, (longest, asked)) = tokio::join!(floods, live);
    (ended, longest, asked)
}

/// When the flood's output came to its limit, as it has left word.
fn met(answer: &Value) -> Duration {
    let blocks = answer["result"]["content"].as_array().unwrap();
    let text = blocks.iter().find_map(|block| block["resource"]["text"].as_str());
    Duration::from_secs_f64(text.unwrap_or_else(|| panic!("no word: {answer:#}")).parse().unwrap())
}

fn peak_mb(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

in_each_home!(eight_floods_at_once_are_ended_and_nobody_else_notices, User);
async fn eight_floods_at_once_are_ended_and_nobody_else_notices(homes: &[Home]) {
    for &home in homes {
        are_ended(home, "all kinds", &FLOODS).await;
    }
}

/// Measured, of each kind, which takes minutes.
#[tokio::test]
async fn eight_floods_of_a_kind_are_ended_and_nobody_else_notices() {
    for flood in FLOODS.into_iter().chain(FURTHER).filter(|flood| is_measured() || flood.0 == WARNINGS) {
        are_ended(Home::Caller, flood.0, &[flood; 8]).await;
    }
}

fn is_measured() -> bool {
    std::env::var_os("MEASURE_FLOODS").is_some()
}

async fn are_ended(home: Home, what: &str, floods: &[Flood; 8]) {
    let bounds = if is_measured() { PROMISED } else { LOOSE };
    // What is met first is the limit of output, then the clock.
    for output_limit in [OUTPUT_LIMIT, 1 << 40] {
        let limit = output_limit.to_string();
        let settings = [("PRELOAD", "core"), ("MAX_CONCURRENCY", "8"), ("OUTPUT_LIMIT_BYTES", &limit)];
        let server = Server::with(home, &settings);
        server.still_works().await;
        let before = peak_mb(&server);
        let is_clock = output_limit > OUTPUT_LIMIT;
        let timeout = if is_clock { TIMEOUT } else { Duration::from_secs(60) };
        let (ended, live, asked) = at_once(&server, floods, timeout).await;
        let grown = peak_mb(&server) - before;
        if is_measured() {
            let load = std::fs::read_to_string("/proc/loadavg").unwrap();
            eprintln!("{what}, {home:?}, until {}: load {}", if is_clock { "the clock" } else { "64 MB" }, load.trim());
            for Ended { name, code, late } in &ended {
                eprintln!("  {name}: {code} {late:?} after its limit");
            }
            eprintln!("  /health/live took {live:?} at most of {asked} times; the server grew by {grown} MB");
        }
        for (Ended { name, code, late }, (.., expected)) in ended.iter().zip(floods) {
            let expected = if is_clock && *expected == "output_limit" { "timeout" } else { expected };
            assert_eq!(code, expected, "{home:?} {name}");
            assert!(late.is_none_or(|late| late < bounds.ended), "{home:?} {name}: {late:?} after its limit");
        }
        assert!(live < bounds.live, "{home:?}: /health/live took {live:?}");
        assert!(grown < GROWTH_MB, "{home:?}: the server grew by {grown} MB");
        server.still_works().await;
        let (_, health) = server.request("GET", "/health", &[], "").await;
        assert!(health.contains("\"restarts\":0") && health.contains("\"quarantined\":0"), "{health}");
    }
}
