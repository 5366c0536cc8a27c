//! The engine's own parts fail: zygotes and the holder die, libraries can't be imported.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Home, Server, names_of_servers, processes_named, program, variable};
use crate::soak::{groups, inventory};

const PROGRAMS: (&str, &str) = ("ALLOW_SUBPROCESS", "true");
const NO_NAMESPACES: (&str, &str) = ("DISABLE_LAYERS", "namespaces");

/// Matplotlib's two font files, which a zygote has open when the one that it was forked from had read them.
const FONT_FILES: usize = 2;
/// How long a server may take to serve again.
const RECOVERY: Duration = Duration::from_secs(2);

/// A server whose processes can be told from all others, and where it keeps them.
fn server_in(settings: &[(&str, &str)]) -> (Server, TempDir) {
    server_of(Home::Caller, settings)
}

pub(crate) fn server_of(home: Home, settings: &[(&str, &str)]) -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let server = Server::with(home, &[settings, &[("TMPDIR", folder.path().to_str().unwrap())]].concat());
    (server, folder)
}

/// The first process of a call's PID namespace bears its zygote's title, and is none.
fn is_first_of_a_call(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers = numbers.split_whitespace().collect::<Vec<_>>();
    numbers.len() > 2 && numbers.last() == Some(&"1")
}

/// The processes of a server whose title begins so.
fn titled(folder: &TempDir, title: &str) -> Vec<rustix::process::Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let titles = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, std::fs::read_to_string(entry.path().join("cmdline")).ok()?))
    });
    let names = names_of_servers(folder.path().to_str().unwrap());
    let ours = titles.filter(|(pid, line)| {
        let is_its = line.starts_with(&format!("code-interpreter: {title}")) && names.iter().any(|name| line.contains(name));
        is_its && !is_first_of_a_call(*pid)
    });
    ours.filter_map(|(pid, _)| rustix::process::Pid::from_raw(pid)).collect()
}

/// The one process with this title; for a moment what it forks has it, too.
pub(crate) async fn only_zygote(folder: &TempDir, title: &str) -> rustix::process::Pid {
    loop {
        if let [only] = titled(folder, title)[..] {
            return only;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kill_all(folder: &TempDir, title: &str) -> usize {
    let found = titled(folder, title);
    found.iter().filter(|pid| rustix::process::kill_process(**pid, Signal::KILL).is_ok()).count()
}

pub(crate) async fn health(server: &Server) -> Value {
    serde_json::from_str(&server.request("GET", "/health", &[], "").await.1).unwrap()
}

/// What a cell runs that is to be found among the machine's processes when it has begun, and how it is named there.
fn findable(server: &Server, seconds: u32) -> (String, String) {
    let marker = format!("{seconds}.{}", server.pid());
    (format!("import subprocess\nprint('begun')\nsubprocess.run(['sleep', '{marker}'])\nprint('ended')"), marker)
}

async fn until_found(marker: &str) {
    while processes_named(marker).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Until the server says so of itself.
pub(crate) async fn until(server: &Server, what: &str, holds: impl Fn(&Value) -> bool) {
    let wait = async {
        while !holds(&health(server).await["engine"]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // A stage that has ended again and again is tried once a minute.
    tokio::time::timeout(Duration::from_secs(90), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn stage<'a>(engine: &'a Value, name: &str) -> &'a Value {
    engine["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap()
}

async fn all_ready(server: &Server) {
    until(server, "all stages are ready", |engine| {
        engine["stages"].as_array().unwrap().iter().all(|stage| stage["state"] == "ready")
    })
    .await;
}

/// The holder is the child of the server, or of the stub that is.
pub(crate) fn kill_holders(server: &Server) {
    let children = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
    for task in children {
        let below = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in below.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// A copy of the tree in which these modules of the stack are this instead.
pub(crate) fn tree_with(folder: &Path, modules: &[(&str, &str)]) -> PathBuf {
    let tree = PathBuf::from(program().get_envs().find(|(name, _)| *name == &*variable("PYTHON_TREE")).unwrap().1.unwrap());
    let copy = folder.join("tree");
    // Of links where it can be.
    let script = "chmod 755 \"$0\"; cp -rlL \"$1\" \"$2\" 2>/dev/null || { rm -rf \"$2\"; cp -rL \"$1\" \"$2\"; }";
    assert!(Command::new("sh").arg("-c").arg(script).arg(folder).arg(tree).arg(&copy).status().unwrap().success());
    for (name, text) in modules {
        let module = copy.join("site").join(name);
        std::fs::remove_dir_all(&module).unwrap();
        std::fs::create_dir(&module).unwrap();
        std::fs::write(module.join("__init__.py"), text).unwrap();
    }
    copy
}

/// A module that waits for a file of this name in its tree, wherever that is for it.
fn waits_for(name: &str) -> String {
    format!(
        "import os, sys, time\nwhile not os.path.exists(os.path.join(os.path.dirname(sys.prefix), '{name}')): time.sleep(0.01)\n"
    )
}

/// C10: `print(2+3)` was down because scikit-learn, or numpy on an old processor, was.
#[tokio::test]
async fn a_library_that_cant_be_imported_fails_its_stage_alone() {
    let raises = "raise RuntimeError('this CPU is too old')";
    let dies = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)";
    for (module, text, failed, reason) in [
        ("sklearn", raises, "science", "RuntimeError: this CPU is too old"),
        ("numpy", dies, "data", "its process was ended by SIGILL while it imported numpy"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree_with(folder.path(), &[(module, text)]);
        let server = Server::with(Home::Caller, &[(&variable("PYTHON_TREE"), tree.to_str().unwrap()), ("SPARE_KERNELS", "1")]);
        let result = server.run("print(2+3)").await;
        assert_eq!(result["stdout"], "5\n", "{module}: {result}");
        until(&server, "the stage has failed", |engine| stage(engine, failed)["state"] == "failed").await;
        let engine = health(&server).await["engine"].clone();
        assert_eq!(stage(&engine, failed)["reason"], reason, "{engine}");
        assert_eq!(stage(&engine, "core")["state"], "ready", "{engine}");
        // Those above it fail after it.
        while health(&server).await["status"] != "degraded" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(server.request("GET", "/health/ready", &[], "").await, (200, r#"{"status":"ready"}"#.to_owned()));
        if module == "sklearn" {
            // The code that needs it is told what is wrong, and code that needs its neighbours is not.
            let result = server.run("import sklearn").await;
            assert!(result["error"]["message"].as_str().unwrap().contains("too old"), "{result}");
            let result = server.run("import scipy, pandas\npandas.Series([1, 2]).sum()").await;
            assert_eq!(result["result"], "np.int64(3)", "{result}");
        }
        server.still_works().await;
    }
}

/// C12: four calls that waited for scikit-learn held all permits, and `print` waited with them.
#[tokio::test]
async fn calls_that_wait_for_a_stage_hold_up_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("tree/gate");
    let waits = waits_for("gate");
    let tree = tree_with(folder.path(), &[("sklearn", &waits)]);
    let variable = variable("PYTHON_TREE");
    let settings = [(&*variable, tree.to_str().unwrap()), ("MAX_CONCURRENCY", "2")];
    let server = Server::with(Home::Caller, &settings);
    let waiting =
        async { tokio::join!(server.run("import sklearn"), server.run("import sklearn"), server.run("import sklearn")) };
    let others = async {
        until(&server, "three calls wait", |engine| engine["queued"] == 3).await;
        for _ in 0..3 {
            server.still_works().await;
        }
        let engine = health(&server).await["engine"].clone();
        assert_eq!((&engine["queued"], &stage(&engine, "science")["state"]), (&3.into(), &"starting".into()), "{engine}");
        std::fs::write(gate, "").unwrap();
    };
    let ((first, second, third), ()) = tokio::join!(waiting, others);
    for result in [first, second, third] {
        assert_eq!(result["success"], true, "{result}");
    }
}

/// A zygote's death took every kernel with it, and all other zygotes.
#[tokio::test]
async fn a_zygote_that_dies_takes_no_call_with_it_and_is_replaced_alone() {
    let (server, folder) = server_in(&[("PRELOAD", "data"), ("MAX_CONCURRENCY", "4"), PROGRAMS]);
    all_ready(&server).await;
    let data = only_zygote(&folder, "zygote data").await;
    let (code, marker) = findable(&server, 2);
    let call = server.run(&code);
    let kill = async {
        until_found(&marker).await;
        rustix::process::kill_process(only_zygote(&folder, "zygote core").await, Signal::KILL).unwrap();
        server.still_works().await;
    };
    let (result, ()) = tokio::join!(call, kill);
    assert_eq!(result["stdout"], "begun\nended\n", "{result}");
    all_ready(&server).await;
    assert_eq!(only_zygote(&folder, "zygote data").await, data);
    only_zygote(&folder, "zygote core").await;
    assert_eq!(health(&server).await["engine"]["restarts"], 1);
}

/// C10: `/health` was 200 always, and said `ok` while stages still started.
#[tokio::test]
async fn health_tells_load_balancers_what_is() {
    let place = tempfile::tempdir().unwrap();
    let gate = place.path().join("tree/gate");
    let waits = waits_for("gate");
    let tree = tree_with(place.path(), &[("pandas", &waits)]);
    let (server, folder) = server_in(&[(&*variable("PYTHON_TREE"), tree.to_str().unwrap()), ("PRELOAD", "data")]);
    server.still_works().await;
    assert_eq!(health(&server).await["status"], "starting");
    assert_eq!(server.request("GET", "/health/ready", &[], "").await.0, 200, "code that needs no library runs");
    std::fs::write(gate, "").unwrap();
    until(&server, "the stage serves", |engine| stage(engine, "data")["state"] == "ready").await;
    assert_eq!(health(&server).await["status"], "ok");
    // Without an interpreter nothing runs, and the server is alive.
    std::fs::remove_file(tree.join("python/bin/python3")).unwrap();
    for holder in titled(&folder, "holder") {
        let _ = rustix::process::kill_process(holder, Signal::KILL);
    }
    let gone = async {
        while server.request("GET", "/health/ready", &[], "").await.0 != 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it says that nothing runs");
    assert_eq!(server.request("GET", "/health/live", &[], "").await.0, 200);
}

/// C11: `crashed`, as if the code had done it.
#[tokio::test]
async fn a_call_that_loses_its_process_by_our_fault_is_told_so() {
    for settings in [&[("PRELOAD", "core"), PROGRAMS][..], &[("PRELOAD", "core"), PROGRAMS, NO_NAMESPACES]] {
        let (server, folder) = server_in(settings);
        let (code, marker) = findable(&server, 60);
        let call = server.run(&code);
        let kill = async {
            until_found(&marker).await;
            assert!(kill_all(&folder, "holder") > 0);
        };
        let (result, ()) = tokio::join!(call, kill);
        assert_eq!(result["error"]["code"], "internal", "{settings:?} {result}");
        assert!(result["error"]["message"].as_str().unwrap().contains("in the server's log"), "{result}");
        server.still_works().await;
    }
}

/// Kills what a round names: one of them or all.
async fn kill_victims(folder: &TempDir, victim: &str, seed: u64) {
    let Some(importing) = victim.strip_prefix("importing ") else {
        let found = titled(folder, victim);
        let one = found.len().checked_sub(1).map_or(0, |last| (seed >> 40) as usize % (last + 1));
        let all = seed & (1 << 60) != 0;
        for (index, pid) in found.into_iter().enumerate() {
            if all || index == one {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        return;
    };
    // It has its title before it imports.
    kill_all(folder, importing);
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if kill_all(folder, importing) > 0 {
            return;
        }
    }
}

/// What a call does and must print.
async fn own_answer(server: &Server, number: u64, may_crash: bool) {
    let code = match number % 4 {
        0 => format!("print({number})"),
        1 => format!("import pandas\nprint({number})"),
        2 => format!("import time\ntime.sleep(0.02)\nprint({number})"),
        _ => format!("x = sum(range(400_000))\nprint({number})"),
    };
    let result = server.run(&code).await;
    let own = result["stdout"] == format!("{number}\n") && result["success"] == true;
    let code = &result["error"]["code"];
    assert!(own || code == "internal" || code == "crashed" && may_crash, "{number}: {result}");
}

/// Whatever of the engine dies, also while it still imports: each call gets its own answer or `internal`, the server serves
/// within two seconds, and nothing is left. `make kill` does it with the whole stack and many times.
#[tokio::test]
async fn killing_at_random_costs_at_most_the_calls_that_run() {
    let rounds = std::env::var("KILL_ROUNDS").ok().and_then(|rounds| rounds.parse::<u64>().ok());
    let (preload, recovery, stages) = match rounds {
        Some(_) => ("all", RECOVERY, &["core", "data", "plot", "science"][..]),
        // Beside other tests.
        None => ("data", RECOVERY * 5, &["core", "data"][..]),
    };
    let of = |what: &'static str| stages.iter().map(move |stage| format!("{what} {stage}"));
    let victims = of("zygote").chain(of("kernel")).chain(of("importing zygote").skip(1)).chain(["holder".to_owned()]);
    let victims = victims.collect::<Vec<_>>();
    for settings in [&[][..], &[NO_NAMESPACES]] {
        let settings = [settings, &[("PRELOAD", preload), ("MAX_CONCURRENCY", "4")]].concat();
        let (server, folder) = server_in(&settings);
        all_ready(&server).await;
        let before = settled(&server, &folder).await;
        let over = std::cell::Cell::new(false);
        let load = async {
            let mut number = 1_000_000;
            while !over.get() {
                own_answer(&server, number, true).await;
                number += 1;
            }
        };
        let killing = async {
            let mut seed = 0x9E37_79B9_u64;
            let mut longest = Duration::ZERO;
            for round in 0..rounds.unwrap_or(12) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let victim = &*victims[(seed >> 33) as usize % victims.len()];
                let one = |number| own_answer(&server, round * 8 + number, victim.starts_with("kernel"));
                let kill = async {
                    tokio::time::sleep(Duration::from_micros(seed >> 49)).await;
                    kill_victims(&folder, victim, seed).await;
                    let killed = Instant::now();
                    while server.run("print(2+3)").await["stdout"] != "5\n" {}
                    killed.elapsed()
                };
                let (took, ..) = tokio::join!(kill, one(0), one(1), one(2), one(3));
                assert!(took < recovery, "round {round}: {victim} was killed, and the server served after {took:?}");
                longest = longest.max(took);
            }
            over.set(true);
            longest
        };
        let (longest, ()) = tokio::join!(killing, load);
        eprintln!("{settings:?}: served after {longest:?} at most");
        all_ready(&server).await;
        let quarantined = health(&server).await["engine"]["quarantined"].clone();
        let (mut before, mut after) = (before, settled(&server, &folder).await);
        let [had, has] = [&mut before, &mut after].map(|found| found.remove("descriptors of its processes").unwrap());
        assert!(has <= had + FONT_FILES, "{had} descriptors became {has}");
        assert_eq!((after, quarantined), (before, 0.into()));
        let (path, pid) = (folder.path().to_str().unwrap().to_owned(), server.pid());
        drop(server);
        assert_eq!(processes_named(&path), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(groups(Path::new("/sys/fs/cgroup"), pid), 0);
    }
}

/// What there is of the server once nothing changes any more.
async fn settled(server: &Server, folder: &TempDir) -> std::collections::BTreeMap<&'static str, usize> {
    let now = || {
        let mut now = inventory(server, folder.path());
        // The machine's.
        now.remove("shared memory");
        now.remove("mounts");
        now
    };
    let mut last = now();
    let mut same = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let next = now();
        same = if next == last { same + 1 } else { 0 };
        if same == 5 {
            break;
        }
        last = next;
    }
    last
}
