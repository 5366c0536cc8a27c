//! Kernels that wait for a call: how many there are, and what becomes of them meanwhile.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::client::{Home, Server, names_of_servers};

const CORE: (&str, &str) = ("PRELOAD", "core");
const NO_NAMESPACES: (&str, &str) = ("DISABLE_LAYERS", "namespaces");

/// How many spares the server says it has.
async fn spares(server: &Server) -> u64 {
    let health: Value = serde_json::from_str(&server.request("GET", "/health", &[], "").await.1).unwrap();
    health["engine"]["stages"][0]["spares"].as_u64().unwrap()
}

async fn until_there_are(server: &Server, count: u64) {
    let wait = async {
        while spares(server).await != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("never: {count} spares"));
}

/// The spare kernels of a server that has no call.
fn kernels(directory: &std::path::Path) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let titles = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, std::fs::read_to_string(entry.path().join("cmdline")).ok()?))
    });
    let names = names_of_servers(directory.to_str().unwrap());
    let is_its = |line: &str| line.starts_with("code-interpreter: kernel") && names.iter().any(|name| line.contains(name));
    let ours = titles.filter(|(_, line)| is_its(line));
    ours.filter_map(|(pid, _)| Pid::from_raw(pid)).collect()
}

/// They counted as ready, and nobody noticed before the next call.
#[tokio::test]
async fn spares_that_die_are_replaced_before_anybody_asks_for_one() {
    for settings in [&[CORE][..], &[CORE, NO_NAMESPACES]] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        let place = ("TMPDIR", folder.path().to_str().unwrap());
        let server = Server::with(Home::Caller, &[settings, &[place, ("SPARE_KERNELS", "3")]].concat());
        until_there_are(&server, 3).await;
        let before = kernels(folder.path());
        assert_eq!(before.len(), 3);
        for pid in &before {
            rustix::process::kill_process(*pid, Signal::KILL).unwrap();
        }
        until_there_are(&server, 0).await;
        until_there_are(&server, 3).await;
        let after = kernels(folder.path());
        assert!(after.len() == 3 && after.iter().all(|pid| !before.contains(pid)), "{settings:?}: {before:?} {after:?}");
        server.still_works().await;
    }
}

/// There were 1,000 users for 1,024 calls, and descriptors for 165.
#[tokio::test]
async fn the_largest_settings_start() {
    let server = Server::with(Home::Caller, &[CORE, ("MAX_CONCURRENCY", "1024"), ("SPARE_KERNELS", "8")]);
    server.still_works().await;
    until_there_are(&server, 8).await;
}

/// A program of the server's user that has so many threads; it ends with its standard input.
fn program_with_threads(count: u32) -> Child {
    let (tree, []) = homes::reachable([]);
    let code = format!(
        "import sys, threading\nthreading.stack_size(65536)\nfor _ in range({count}):\n    \
         threading.Thread(target=threading.Event().wait, daemon=True).start()\nprint('up', flush=True)\nsys.stdin.read()"
    );
    let mut command = Command::new(tree.join("python/bin/python3"));
    command.args(["-I", "-S", "-c", &code]).uid(homes::USER).gid(homes::USER).current_dir("/");
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    program
}

/// `RLIMIT_NPROC` counts all threads of the user. They were counted for each 64th kernel: somebody opens an editor, and up
/// to 64 calls could start no thread.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn programs_that_a_user_starts_take_no_processes_from_calls() {
    let server = Server::with(Home::User, &[CORE, NO_NAMESPACES]);
    server.still_works().await;
    until_there_are(&server, 1).await;
    let code = "import threading\nthreads = [threading.Thread(target=print, args=('.',)) for _ in range(40)]\n\
                for thread in threads: thread.start()\nfor thread in threads: thread.join()\n'all'";
    let mut editors = vec![program_with_threads(400)];
    assert_eq!(server.run(code).await["result"], "'all'", "a spare has room for an editor");
    editors.push(program_with_threads(800));
    let mut calls = 0;
    while server.run(code).await["result"] != json!("'all'") {
        calls += 1;
        assert!(calls < 40, "new kernels are told how many there are");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for mut editor in editors {
        editor.kill().unwrap();
        editor.wait().unwrap();
    }
}
