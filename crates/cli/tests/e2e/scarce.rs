//! What a server needs is not to be had for a while: room on the disk, its folders, descriptors, processes, users. Each call is
//! told what is missing, `/health` and the log are, too, and when it is there again the server serves without a restart.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};

use crate::client::{Home, Server, last_event, program, told, variable};
use crate::faults::{health, only_zygote, server_of, stage, until};
use crate::index::Index;

const NO_NAMESPACES: (&str, &str) = ("DISABLE_LAYERS", "namespaces");
/// How long a caller may wait to be told.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the log may say of one thing that is missing for some seconds.
const MOST_LINES: usize = 12;

/// A server with a small file system of its own at `place`, and where that is seen from here.
fn on_a_small_disk(place: &Path, mode: &str, settings: &[(&str, &str)]) -> (Server, Arc<Mutex<Vec<String>>>, PathBuf) {
    std::fs::create_dir(place).unwrap();
    let inside = program();
    let mut command = Command::new("unshare");
    let script = format!("mount -t tmpfs -o size=1m,nr_inodes=64,mode={mode} small \"$0\" && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(place).arg(inside.get_program());
    command.env_clear().envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
    command.env("PRELOAD", "core").envs(settings.iter().map(|(name, value)| (variable(name), value)));
    command.env("TMPDIR", std::env::temp_dir()).envs(settings.iter().filter(|(name, _)| *name == "TMPDIR").copied());
    let (server, log) = Server::logged(command);
    let seen = PathBuf::from(format!("/proc/{}/root", server.pid())).join(place.strip_prefix("/").unwrap());
    (server, log, seen)
}

/// Runs calls until one fails, which must be soon: a spare may have had what it needs. Its error's message.
async fn refusal(server: &Server) -> String {
    let begun = Instant::now();
    loop {
        let result = server.run("print(2+3)").await;
        assert!(begun.elapsed() < PATIENCE, "a caller waited for {:?}: {result}", begun.elapsed());
        if result["success"] != true {
            assert_eq!(result["error"]["code"], "internal", "{result}");
            return result["error"]["message"].as_str().unwrap().to_owned();
        }
    }
}

/// That it is told everywhere, and in few lines; `serves_again` takes the cause away.
async fn is_told_and_over(server: &Server, log: &Mutex<Vec<String>>, words: &[&str], serves_again: impl AsyncFnOnce()) {
    let before = log.lock().unwrap().len();
    let message = refusal(server).await;
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    assert!(message.contains("in the server's log"), "{message}");
    until(server, "it is told", |engine| stage(engine, "core")["state"] == "failed").await;
    let found = health(server).await;
    let reason = stage(&found["engine"], "core")["reason"].as_str().unwrap().to_owned();
    assert!(found["status"] == "degraded" && words.iter().all(|word| reason.contains(word)), "{found}");
    assert_eq!(server.request("GET", "/health/ready", &[], "").await.0, 503);
    assert_eq!(server.request("GET", "/health/live", &[], "").await.0, 200);
    // Some tries later.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let said = log.lock().unwrap()[before..].to_vec();
    assert!(!said.is_empty() && said.len() <= MOST_LINES, "{said:#?}");
    serves_again().await;
    until(server, "it serves again", |engine| stage(engine, "core")["state"] == "ready").await;
    for _ in 0..3 {
        server.still_works().await;
    }
    until(server, "all is well", |engine| stage(engine, "core")["reason"].is_null() && engine["quarantined"] == 0).await;
    assert_eq!(health(server).await["status"], "ok");
}

/// C10: five lines a second in the log, and sixty seconds until a caller heard of it.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn a_full_disk_is_told_and_the_server_serves_when_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("small");
    let (server, log, seen) = on_a_small_disk(&place, "1777", &[("TMPDIR", place.to_str().unwrap())]);
    server.still_works().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    // Also with what calls that end give back.
    let fills = std::thread::spawn(move || {
        let mut filled = Vec::new();
        while !over.load(Ordering::Relaxed) {
            match std::fs::create_dir(seen.join(filled.len().to_string())) {
                Ok(()) => filled.push(seen.join(filled.len().to_string())),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        filled
    });
    let words = ["making a kernel's directory: No space left on device", "TMPDIR"];
    is_told_and_over(&server, &log, &words, async || {
        is_over.store(true, Ordering::Relaxed);
        for directory in fills.join().unwrap() {
            std::fs::remove_dir(directory).unwrap();
        }
    })
    .await;
}

fn remount(server: &Server, place: &Path, how: &str) {
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--target", &server.pid().to_string(), "mount", "-o", &format!("remount,bind,{how}")]).arg(place);
    assert!(command.status().unwrap().success());
}

#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn a_temporary_folder_that_becomes_read_only_is_told_and_the_server_serves_when_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("small");
    let (server, log, _) = on_a_small_disk(&place, "1777", &[("TMPDIR", place.to_str().unwrap())]);
    server.still_works().await;
    remount(&server, &place, "ro");
    let words = ["making a kernel's directory: Read-only file system", "TMPDIR"];
    is_told_and_over(&server, &log, &words, async || remount(&server, &place, "rw")).await;
}

in_each_home!(a_directory_that_is_removed_beneath_the_server_is_made_anew, User);
/// Whoever cleaned `/tmp` took the server with it, until it was started again.
async fn a_directory_that_is_removed_beneath_the_server_is_made_anew(homes: &[Home]) {
    for &home in homes {
        for settings in [&[("PRELOAD", "core")][..], &[("PRELOAD", "core"), NO_NAMESPACES]] {
            let (server, folder) = server_of(home, settings);
            let directory = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
            let writes = "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.savefig('a.png')\nopen('a', 'w').write('x')\nprint(open('a').read())";
            for whole in [true, false, true] {
                server.still_works().await;
                until(&server, "a spare", |engine| stage(engine, "core")["spares"] != 0).await;
                if whole {
                    std::fs::remove_dir_all(&directory).unwrap();
                } else {
                    let kernels = std::fs::read_dir(&directory).unwrap().flatten();
                    for entry in kernels.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"k")) {
                        std::fs::remove_dir_all(entry.path()).unwrap();
                    }
                }
                let begun = Instant::now();
                for _ in 0..3 {
                    let mut result = server.run(writes).await;
                    // What was running when the directory was made anew may be lost, and says so.
                    while result["error"]["code"] == "internal" && begun.elapsed() < PATIENCE {
                        result = server.run(writes).await;
                    }
                    let both = (result["stdout"].as_str(), result["stderr"].as_str());
                    assert_eq!(both, (Some("x\n"), Some("")), "{home:?} {settings:?} {whole}: {result}");
                }
                assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
            }
            drop(server);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{home:?} {settings:?}");
        }
    }
}

/// A connection that is there before the server can take no more.
struct Connection {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    host: String,
    _task: tokio::task::JoinSet<hyper::Result<()>>,
}

impl Connection {
    async fn open(server: &Server) -> Self {
        let stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut task = tokio::task::JoinSet::new();
        task.spawn(connection);
        Self { sender, host: server.address.clone(), _task: task }
    }

    async fn request(&mut self, method: &str, path: &str, body: String) -> (u16, String) {
        let request = Request::builder().method(method).uri(path).header("host", &self.host);
        let request = request.header("content-type", "application/json").body(Full::new(body.into())).unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn run(&mut self, code: &str) -> Value {
        let params = json!({"name": "execute_python", "arguments": {"code": code}});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let (status, text) = self.request("POST", "/mcp", body.to_string()).await;
        assert_eq!(status, 200, "{text}");
        told(&last_event(&text))
    }
}

/// Sets the limit on descriptors of a process, and gives what it was.
fn limit_files(pid: rustix::process::Pid, current: u64) -> Rlimit {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    // None where it is unlimited.
    let maximum = line.split_whitespace().nth(1).unwrap().parse().ok();
    rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap()
}

/// `EMFILE` was told without a word of which limit it is.
#[tokio::test]
async fn a_server_without_descriptors_tells_so_and_serves_when_it_has_some() {
    let (server, log) = Server::with_log(Home::Caller, &[("PRELOAD", "core"), ("SPARE_KERNELS", "1")], None);
    server.still_works().await;
    until(&server, "a spare", |engine| stage(engine, "core")["spares"] == 1).await;
    let mut connection = Connection::open(&server).await;
    assert_eq!(connection.request("GET", "/health/live", String::new()).await.0, 200);
    let pid = rustix::process::Pid::from_raw(server.pid()).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    // The spare's are free again after its call, and another kernel needs more than these.
    let before = limit_files(pid, open - 4);
    let begun = Instant::now();
    let mut result = connection.run("print(2+3)").await;
    while result["success"] == true {
        result = connection.run("print(2+3)").await;
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    let message = result["error"]["message"].as_str().unwrap();
    assert!(message.contains("Too many open files") && message.contains("`ulimit -n`"), "{result}");
    let found = serde_json::from_str::<Value>(&connection.request("GET", "/health", String::new()).await.1).unwrap();
    assert!(stage(&found["engine"], "core")["reason"].as_str().unwrap().contains("`ulimit -n`"), "{found}");
    assert_eq!(connection.request("GET", "/health/live", String::new()).await.0, 200);
    rustix::process::prlimit(Some(pid), Resource::Nofile, before).unwrap();
    // A start that was under way may still fail.
    while server.run("1").await["success"] != true {
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }
    server.still_works().await;
    until(&server, "all is well", |engine| stage(engine, "core")["reason"].is_null()).await;
    let said = log.lock().unwrap().len();
    assert!(said <= MOST_LINES, "{:#?}", log.lock().unwrap());
}

/// Clients that only sit there had all descriptors, and no call ran.
#[tokio::test]
async fn connections_leave_descriptors_for_calls() {
    let settings = [("PRELOAD", "core"), ("MAX_CONNECTIONS", "4096"), ("MAX_CONCURRENCY", "8")];
    let (server, log) = Server::with_log(Home::Caller, &settings, Some(1024));
    server.still_works().await;
    let raised = Rlimit { current: Some(4096), maximum: rustix::process::getrlimit(Resource::Nofile).maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).unwrap();
    let sitting = (0..1100).map(|_| std::net::TcpStream::connect(&server.address).unwrap()).collect::<Vec<_>>();
    let codes = (0..16).map(|number| server.run_with(json!({"code": format!("import time; time.sleep(0.3); print({number})")})));
    for (number, result) in futures_util::future::join_all(codes).await.into_iter().enumerate() {
        assert_eq!(result["stdout"], format!("{number}\n"), "{result}");
    }
    drop(sitting);
    let said = log.lock().unwrap().join("\n");
    assert!(!said.contains("open files (os error"), "{said}");
}

/// What the kernel said of a fork was not told to whom it helps.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn a_machine_without_processes_is_told_and_the_server_serves_when_it_has_some() {
    for settings in [&[("PRELOAD", "core")][..], &[("PRELOAD", "core"), NO_NAMESPACES]] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        let place = [("TMPDIR", folder.path().to_str().unwrap())];
        let (server, log) = Server::with_log(Home::User, &[settings, &place].concat(), None);
        server.still_works().await;
        let zygote = only_zygote(&folder, "zygote core").await;
        let processes = |most: &str| {
            let mut command = Command::new("prlimit");
            command.args(["--pid", &zygote.to_string(), &format!("--nproc={most}:")]).uid(homes::USER).gid(homes::USER);
            assert!(command.status().unwrap().success());
        };
        processes("1");
        let words = ["the zygote could not fork", "Resource temporarily unavailable", "no more memory or processes"];
        is_told_and_over(&server, &log, &words, async || processes("4000")).await;
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_server_for_which_no_users_are_left_says_so_and_what_asks_for_them() {
    let inside = program();
    let mut command = Command::new("unshare");
    // Another server has them all.
    let script = "mkdir -p /run/code-interpreter && mount -t tmpfs -o mode=700 users /run/code-interpreter && \
                  for first in $(seq 61184 200 65183) $(seq 70000 200 73999); do \
                  flock --no-fork /run/code-interpreter/users-$first sleep 60 & done; \
                  while [ $(ls /run/code-interpreter | wc -l) -lt 40 ] || flock --nonblock /run/code-interpreter/users-73800 true; \
                  do sleep 0.05; done; \"$0\" \"$@\"; ended=$?; kill $(jobs -p); exit $ended";
    command.args(["--mount", "bash", "-c", script]).arg(inside.get_program()).args(["serve", "--port", "0"]);
    command.env_clear().envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("other servers have the users of kernels") && said.contains("0 are free"), "{said}");
    assert!(said.contains("MAX_CONCURRENCY") && said.contains("SPARE_KERNELS"), "{said}");
}

#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn a_folder_of_packages_that_becomes_read_only_is_told_and_used_when_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let place = folder.path().join("packages");
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let (url, uv) = (index.url(), homes::repository().join("build/tools/bin/uv").display().to_string());
    let settings = [("PACKAGE_DIR", place.to_str().unwrap()), ("PACKAGE_INDEX", &*url), ("UV", &*uv)];
    let (server, ..) = on_a_small_disk(&place, "755", &settings);
    server.still_works().await;
    let call = json!({"code": "import good_one; print(good_one.__version__)", "requirements": ["good-one"]});
    remount(&server, &place, "ro");
    let result = server.run_with(call.clone()).await;
    let error = &result["error"];
    assert_eq!((&error["code"], &error["type"]), (&json!("package_error"), &json!("failed")), "{result}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("read-only") && message.contains("PACKAGE_DIR"), "{message}");
    server.still_works().await;
    remount(&server, &place, "rw");
    assert_eq!(server.run_with(call).await["stdout"], "1.0\n");
}

/// It was waited for a minute each time, and nobody was told.
#[tokio::test]
async fn an_interpreter_that_cant_be_started_is_told_and_served_with_when_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let tree = crate::faults::tree_with(folder.path(), &[]);
    let (server, log) =
        Server::with_log(Home::Caller, &[(&variable("PYTHON_TREE"), tree.to_str().unwrap()), ("PRELOAD", "core")], None);
    server.still_works().await;
    let python = tree.join("python/bin/python3");
    let away = folder.path().join("away");
    std::fs::rename(&python, &away).unwrap();
    let before = log.lock().unwrap().len();
    crate::faults::kill_holders(&server);
    let begun = Instant::now();
    // The first may have been given a process that has ended by now.
    let mut message = refusal(&server).await;
    while begun.elapsed() < PATIENCE && !message.contains("starting the interpreter: No such file") {
        message = refusal(&server).await;
    }
    assert!(message.contains("starting the interpreter: No such file"), "{message}");
    let found = health(&server).await;
    assert!(stage(&found["engine"], "core")["reason"].as_str().unwrap().contains("No such file"), "{found}");
    assert_eq!(server.request("GET", "/health/ready", &[], "").await.0, 503);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let said = log.lock().unwrap()[before..].to_vec();
    assert!(said.len() <= MOST_LINES, "{said:#?}");
    std::fs::rename(&away, &python).unwrap();
    until(&server, "it serves again", |engine| stage(engine, "core")["state"] == "ready").await;
    server.still_works().await;
}
