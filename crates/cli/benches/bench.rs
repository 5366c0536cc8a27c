//! `make bench`: the release server beside a fresh interpreter doing the same work, in one run, as ratios.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that fails is no measurement")]
#![expect(clippy::disallowed_methods, reason = "there is no server in this process")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

const PRINT: &str = "print(2+3)";
const DESCRIBE: &str =
    "import pandas as pd, numpy as np\nprint(pd.DataFrame({'a': np.arange(1000), 'b': np.arange(1000.)}).describe())";
const PLOT: &str = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.savefig('p.png')\nplt.close()";
const FLOOD: &str = "for i in range(10000): print('%099d' % i)";
const TURNS: usize = 6;
const LOAD_SECONDS: f64 = 4.0;

struct Server {
    child: Child,
    address: String,
    started: Instant,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/tree").canonicalize().unwrap()
}

fn start() -> Server {
    start_with(&[])
}

fn start_with(settings: &[(&str, &str)]) -> Server {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_code-interpreter"))
        .arg("serve")
        .env("PORT", "0")
        .env("PYTHON_TREE", tree())
        .env("MAX_CONCURRENCY", "8")
        .env("SPARE_KERNELS", "2")
        .envs(settings.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split_once("http://")?.1.split_once('/')?.0.to_owned())).unwrap();
    std::thread::spawn(move || lines.for_each(drop));
    Server { child, address, started }
}

async fn connect(address: &str) -> SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn call(sender: &mut SendRequest<Full<Bytes>>, tool: &str, arguments: Value) -> Value {
    let answer = post(
        sender,
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}),
    );
    let answer = answer.await;
    assert_ne!(answer["result"]["isError"], true, "{answer}");
    answer
}

async fn post(sender: &mut SendRequest<Full<Bytes>>, body: Value) -> Value {
    let request = Request::post("/mcp").header("host", "localhost").header("content-type", "application/json");
    sender.ready().await.unwrap();
    let response = sender.send_request(request.body(Full::new(Bytes::from(body.to_string()))).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let data = text.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap();
    serde_json::from_str(data).unwrap()
}

async fn run(sender: &mut SendRequest<Full<Bytes>>, code: &str) {
    call(sender, "execute_python", json!({"code": code})).await;
}

async fn warm(sender: &mut SendRequest<Full<Bytes>>, code: &str, times: usize) -> f64 {
    let mut taken = Vec::new();
    for _ in 0..times {
        // The next spare warms itself meanwhile, as it does between the calls of an assistant.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let from = Instant::now();
        run(sender, code).await;
        taken.push(from.elapsed().as_secs_f64() * 1e3);
    }
    median(taken)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn fresh(code: &str) -> f64 {
    let tree = tree();
    let code = format!("import sys; sys.path.append({:?})\n{code}", tree.join("site").display().to_string());
    let once = || {
        let from = Instant::now();
        let mut command = Command::new(tree.join("python/bin/python3"));
        command.args(["-I", "-B", "-c", &code]).current_dir(std::env::temp_dir());
        command.env("MPLCONFIGDIR", tree.join("matplotlib")).env("MPLBACKEND", "Agg");
        assert!(command.stdout(Stdio::null()).status().unwrap().success());
        from.elapsed().as_secs_f64() * 1e3
    };
    once();
    median((0..7).map(|_| once()).collect())
}

async fn load(address: &str, code: &'static str) -> f64 {
    let from = Instant::now();
    let clients = (0..8).map(|_| {
        let address = address.to_owned();
        tokio::spawn(async move {
            let mut sender = connect(&address).await;
            let mut calls = 0.0;
            while from.elapsed().as_secs_f64() < LOAD_SECONDS {
                run(&mut sender, code).await;
                calls += 1.0;
            }
            calls
        })
    });
    let mut total = 0.0;
    for client in clients.collect::<Vec<_>>() {
        total += client.await.unwrap();
    }
    total / from.elapsed().as_secs_f64()
}

/// What the switchable layers cost: the same work with and without them, turn by turn, as the machine's mood changes.
async fn layers_on_and_off() -> [(&'static str, f64, &'static str); 4] {
    let servers = [start(), start_with(&[("DISABLE_LAYERS", "namespaces,landlock,seccomp,cgroup")])];
    let mut senders = [connect(&servers[0].address).await, connect(&servers[1].address).await];
    for sender in &mut senders {
        for code in [PRINT, DESCRIBE, PLOT, "import scipy"] {
            run(sender, code).await;
        }
    }
    let (mut alone, mut loaded) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for turn in 0..TURNS {
        for which in [turn % 2, 1 - turn % 2] {
            alone[which].push(warm(&mut senders[which], PRINT, 30).await);
            loaded[which].push(load(&servers[which].address, PRINT).await);
        }
    }
    let ([alone_on, alone_off], [loaded_on, loaded_off]) = (alone.map(median), loaded.map(median));
    [
        ("print(2+3) with all layers", alone_on, "ms"),
        ("  and without", alone_off, "ms"),
        ("8 clients: print(2+3) with all layers", loaded_on, "calls/s"),
        ("  and without", loaded_off, "calls/s"),
    ]
}

/// Milliseconds of one program's run.
fn time(command: &mut Command) -> f64 {
    let from = Instant::now();
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    from.elapsed().as_secs_f64() * 1e3
}

/// `pip install --target` with nothing in its cache, then a fresh interpreter with it.
fn with_pip(requirement: &str, code: &str) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let pip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/tools/bin/pip");
    let target = folder.path().join("target");
    let mut install = Command::new(pip);
    install.args(["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", "--only-binary", ":all:"]);
    let minor = python_minor();
    install.args(["--python-version", &minor, "--target"]).arg(&target).arg(requirement);
    let installing = time(&mut install);
    let code = format!("import sys; sys.path.insert(0, {:?})\n{code}", target.display().to_string());
    let once = || time(Command::new(tree().join("python/bin/python3")).args(["-I", "-S", "-c", &code]));
    once();
    (installing, median((0..5).map(|_| once()).collect()))
}

/// `3.13`
fn python_minor() -> String {
    let text = std::fs::read_to_string(tree().join("tree.json")).unwrap();
    let tree: Value = serde_json::from_str(&text).unwrap();
    tree["python_version"].as_str().unwrap().split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Packages: each row beside `pip install --target` doing the same.
async fn packages() -> Vec<(&'static str, f64, Option<f64>)> {
    const SMALL: (&str, &str) = ("humanize", "import humanize");
    const OTHER: (&str, &str) = ("pandas==2.3.3", "import pandas");
    let call = async |sender: &mut SendRequest<Full<Bytes>>, (requirement, code): (&str, &str)| {
        let from = Instant::now();
        call(sender, "execute_python", json!({"code": code, "requirements": [requirement]})).await;
        from.elapsed().as_secs_f64() * 1e3
    };
    let (small_pip, small_import) = with_pip(SMALL.0, SMALL.1);
    let (other_pip, other_import) = with_pip(OTHER.0, OTHER.1);
    let mut cold = [Vec::new(), Vec::new()];
    let mut rows = Vec::new();
    for round in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("packages").display().to_string();
        let server = start_with(&[("PACKAGE_DIR", &directory)]);
        let mut sender = connect(&server.address).await;
        run(&mut sender, PRINT).await;
        cold[0].push(call(&mut sender, SMALL).await);
        cold[1].push(call(&mut sender, OTHER).await);
        if round == 2 {
            let compiled = Path::new(&directory).join("compiled");
            while std::fs::read_dir(&compiled).map_or(0, Iterator::count) < 2 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let mut remembered = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..15 {
                for (which, what) in [SMALL, (SMALL.0, "1"), OTHER].into_iter().enumerate() {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    remembered[which].push(call(&mut sender, what).await);
                }
            }
            let [small, nothing, other] = remembered.map(median);
            rows.push(("humanize remembered, without its import", nothing, None));
            rows.push(("humanize remembered, with it", small, Some(small_import)));
            rows.push(("pandas==2.3.3 remembered, with its import", other, Some(other_import)));
        }
    }
    let [small, other] = cold.map(median);
    rows.insert(0, ("humanize, never seen before", small, Some(small_pip)));
    rows.insert(1, ("pandas==2.3.3, never seen before", other, Some(other_pip)));
    rows
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}

#[tokio::main]
async fn main() {
    let mut rows = Vec::new();
    let mut row = |name: &str, ours: f64, unit: &str, fresh: Option<f64>| {
        let ratio = fresh.map(|fresh| fresh / ours);
        let beside = fresh.map_or(String::new(), |fresh| format!("{fresh:10.2} {unit}  {:8.1}x", fresh / ours));
        println!("{name:<42} {ours:10.3} {unit:<8}{beside}");
        rows.push(json!({"name": name, "value": ours, "unit": unit, "fresh": fresh, "ratio": ratio}));
    };
    println!("{:<42} {:>10} {:<8}{:>10}", "", "ours", "", "fresh python");
    let (print, describe, plot) = (fresh(PRINT), fresh(DESCRIBE), fresh(PLOT));
    for (name, tool, code, fresh) in [
        ("start to first MCP answer", "", "", None),
        ("start to first print", "execute_python", PRINT, Some(print)),
        ("start to first describe", "execute_python", DESCRIBE, Some(describe)),
    ] {
        let mut taken = Vec::new();
        for _ in 0..5 {
            let server = start();
            let mut sender = connect(&server.address).await;
            if code.is_empty() {
                post(&mut sender, json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).await;
            } else {
                call(&mut sender, tool, json!({"code": code})).await;
            }
            taken.push(server.started.elapsed().as_secs_f64() * 1e3);
        }
        row(name, median(taken), "ms", fresh);
    }
    let server = start();
    let mut sender = connect(&server.address).await;
    for code in [PRINT, DESCRIBE, PLOT, "import scipy"] {
        run(&mut sender, code).await;
    }
    row("print(2+3)", warm(&mut sender, PRINT, 60).await, "ms", Some(print));
    row("pandas describe()", warm(&mut sender, DESCRIBE, 40).await, "ms", Some(describe));
    row("plot to PNG", warm(&mut sender, PLOT, 15).await, "ms", Some(plot));
    row("1 MB of stdout in 10,000 lines", warm(&mut sender, FLOOD, 15).await, "ms", None);
    row("8 clients: print(2+3)", load(&server.address, PRINT).await, "calls/s", None);
    row("8 clients: describe()", load(&server.address, DESCRIBE).await, "calls/s", None);
    let before = resident_mb(server.child.id());
    for _ in 0..3000 {
        run(&mut sender, PRINT).await;
    }
    row("resident memory after 3,000 more calls", resident_mb(server.child.id()), "MB", None);
    row("  and before them", before, "MB", None);
    drop(server);
    for (name, value, unit) in layers_on_and_off().await {
        row(name, value, unit, None);
    }
    println!("{:<42} {:>19} {:>10}", "packages", "", "pip install --target, or a fresh python with it");
    for (name, value, beside) in packages().await {
        row(name, value, "ms", beside);
    }
    println!("{}", Value::Array(rows));
}
