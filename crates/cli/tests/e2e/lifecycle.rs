//! How a server starts and ends: from which settings, as whom, and what is left of it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::json;
use tempfile::TempDir;

use crate::client::{Home, Server, processes_named, program, program_in, program_with_descriptors, variable};

/// A temporary folder that every user can reach, and `home` can write to.
fn temporary(home: Home) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if home != Home::Caller {
        std::os::unix::fs::chown(folder.path(), Some(homes::USER), Some(homes::USER)).unwrap();
    }
    folder
}

/// The directories that servers have in the folder.
fn state_dirs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("code-interpreter-"))
        .map(|entry| entry.path())
        .collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// Everything of a server with this temporary folder: its zygotes' command lines name a directory in it.
fn processes_of(folder: &Path) -> Vec<String> {
    processes_named(folder.to_str().unwrap())
}

/// Newcomer 17: Ctrl-C on `run`, and SIGHUP and SIGQUIT on all, left the directory with what the code had written.
#[test]
fn a_signal_ends_a_command_with_all_its_processes_and_directories() {
    let code = "import os, time\nopen('secret', 'w').write('x')\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: time.sleep(1000)\n        os._exit(0)\nprint('up', flush=True)\ntime.sleep(1000)";
    let folder = temporary(Home::Caller);
    for (arguments, up) in [
        (&["run", "--timeout", "100", "--code", code][..], "up"),
        (&["stdio"], ""),
        (&["serve"], ""),
        (&["doctor", "--attack"], ""),
    ] {
        for number in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
            let mut command = program();
            command.args(arguments).env("TMPDIR", folder.path()).env("PORT", "0").env(variable("PRELOAD"), "core");
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // Open to the end: waiting would close it, and that ends `stdio` too.
            let _input = child.stdin.take();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            if up.is_empty() {
                let kernel = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"k");
                let has_kernel =
                    |directory: &PathBuf| std::fs::read_dir(directory).unwrap().flatten().any(|entry| kernel(&entry.file_name()));
                wait_until("a kernel", || state_dirs(folder.path()).iter().any(has_kernel));
            } else {
                assert_eq!(lines.next().unwrap().unwrap(), up);
            }
            signal(&child, number);
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(number.as_raw()), "{arguments:?}: {status:?}");
            assert_eq!(state_dirs(folder.path()), Vec::<PathBuf>::new(), "{arguments:?} {number:?}");
            wait_until("the zygotes end", || processes_of(folder.path()).is_empty());
        }
    }
}

/// What `nohup` and a shell's `&` ignore is meant to be outlived.
#[test]
fn a_signal_that_was_ignored_from_the_start_stays_ignored() {
    let usual = program();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""]).arg(usual.get_program()).env_clear();
    command.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
    let code = "import time\nprint('up', flush=True)\ntime.sleep(2)\nprint('end')";
    let mut child = command.args(["run", "--code", code]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    signal(&child, Signal::HUP);
    signal(&child, Signal::INT);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((line.as_str(), rest.as_str()), ("up\n", "end\n"));
}

/// What user code leaves running where no PID namespace ends with it: daemons that were forked, and a program.
fn busy(mark: &str) -> String {
    format!(
        "import os, subprocess, time\nopen('secret', 'w').write('x')\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            if _: os.chdir('/')\n            time.sleep(1000)\n        os._exit(0)\n\
         subprocess.Popen(['/bin/sleep', '{mark}'], start_new_session=True)\n\
         try: open('/dev/shm/{mark}', 'w').write('x')\nexcept OSError: pass\nprint('up')\ntime.sleep(1000)"
    )
}

async fn what_a_killed_server_leaves_is_removed(home: Home, layers: &str, mark: &str) {
    let folder = temporary(home);
    let start = || {
        let place = folder.path().to_str().unwrap();
        Server::with(home, &[("TMPDIR", place), ("PRELOAD", "core"), ("ALLOW_SUBPROCESS", "true"), ("DISABLE_LAYERS", layers)])
    };
    let server = start();
    let code = busy(mark);
    {
        let call = server.run_with(json!({"code": code, "timeout": 100}));
        let running = async {
            while !processes_named(mark).iter().any(|line| line.starts_with("/bin/sleep")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! { result = call => panic!("{result}"), () = running => {} }
        // The call goes on: the server is killed with it.
        server.kill();
    }
    let left = processes_of(folder.path());
    assert!(left.len() >= 3 && processes_named(mark).len() == 1, "the test leaves something: {left:?}");
    let dead = state_dirs(folder.path());
    assert_eq!(dead.len(), 1);
    let next = start();
    wait_until("the directory goes", || !dead[0].exists());
    let name = dead[0].to_str().unwrap();
    assert_eq!((processes_named(name), processes_named(mark)), (Vec::new(), Vec::new()));
    assert!(!Path::new("/dev/shm").join(mark).exists());
    next.still_works().await;
    drop(next);
    assert_eq!(state_dirs(folder.path()), Vec::<PathBuf>::new());
}

/// C14: the directory with the call's files stayed for ever, and without PID namespaces six processes.
#[tokio::test]
async fn the_next_start_removes_what_a_killed_server_has_left() {
    what_a_killed_server_leaves_is_removed(Home::Caller, "namespaces", "7201173").await;
}

#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn the_next_start_removes_what_an_ordinary_users_killed_server_has_left() {
    what_a_killed_server_leaves_is_removed(Home::User, "namespaces", "7201174").await;
}

/// Also while they start at once; and nothing that is not a dead server's of the same user.
#[tokio::test]
async fn no_start_removes_what_is_somebody_elses() {
    what_is_not_left_is_kept(false).await;
}

#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn no_start_removes_what_another_users_server_has_left() {
    what_is_not_left_is_kept(true).await;
}

async fn what_is_not_left_is_kept(also_of_another_user: bool) {
    let folder = temporary(Home::Caller);
    let place = folder.path();
    let dead = |name: &str| {
        let directory = place.join(name);
        std::fs::create_dir_all(directory.join("k1/closed")).unwrap();
        std::fs::write(directory.join(".server"), "").unwrap();
        std::fs::set_permissions(directory.join("k1/closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
        directory
    };
    let (unmarked, elsewhere, link) = (place.join("code-interpreter-work"), dead("other"), place.join("code-interpreter-link"));
    std::fs::create_dir(&unmarked).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    let mut kept = vec![unmarked, elsewhere, link];
    if also_of_another_user {
        let foreign = dead("code-interpreter-foreign");
        std::os::unix::fs::chown(&foreign, Some(homes::USER), Some(homes::USER)).unwrap();
        kept.push(foreign);
    }
    let left = (0..20).map(|number| dead(&format!("code-interpreter-{number:06}"))).collect::<Vec<_>>();
    let settings = [("TMPDIR", place.to_str().unwrap()), ("PRELOAD", "core")];
    let start = || Server::with(Home::Caller, &settings);
    let servers = std::thread::scope(|scope| {
        let started = [scope.spawn(start), scope.spawn(start)];
        started.map(|server| server.join().unwrap())
    });
    wait_until("the dead ones go", || left.iter().all(|directory| !directory.exists()));
    for server in &servers {
        server.still_works().await;
        server.still_works().await;
    }
    drop(servers);
    for path in kept {
        assert!(path.symlink_metadata().is_ok(), "{}", path.display());
    }
}

/// A program that is to end by itself: its status and what it said.
fn ended(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Newcomer 14: in root's own home the code was root, and nobody was told.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_server_that_is_root_does_not_run_code_as_root() {
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let tree = program().get_envs().find(|(name, _)| **name == *variable("PYTHON_TREE")).unwrap().1.unwrap().to_owned();
    std::os::unix::fs::symlink(tree, closed.path().join("tree")).unwrap();
    let told = format!("`chmod o+x {}`", closed.path().display());
    for (name, value) in [(&*variable("PYTHON_TREE"), closed.path().join("tree")), ("TMPDIR", closed.path().to_owned())] {
        for arguments in [&["run", "--code", "import os; os.getuid()"][..], &["serve"], &["stdio"], &["doctor"]] {
            let mut command = program();
            // With mounts of its own a call finds both at places that are open.
            command.env(variable("DISABLE_LAYERS"), "namespaces");
            command.env(name, &value).env(variable("PRELOAD"), "core").env("PORT", "0").args(arguments);
            // An open standard input: nothing else must end it.
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let _input = child.stdin.take();
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(2), "{arguments:?}: {said}");
            assert!(said.contains(&told) && said.contains("ALLOW_ROOT=true"), "{arguments:?}: {said}");
        }
    }
    let mut command = program();
    command.env("TMPDIR", closed.path()).env(variable("DISABLE_LAYERS"), "namespaces").args([
        "run",
        "--allow-root",
        "--code",
        "import os; os.getuid()",
    ]);
    let (status, stdout, stderr) = ended(&mut command);
    assert_eq!((status, stdout.as_str()), (Some(0), "0\n"), "{stderr}");
    assert!(stderr.contains("ALLOW_ROOT is on"), "{stderr}");
}

/// Newcomer 12: an application's `.env` made `serve` listen on all addresses.
#[tokio::test]
async fn serve_takes_from_the_env_file_of_its_folder_what_decides_nothing_over_security() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "MAX_OUTPUT_BYTES=77\nHOST=0.0.0.0\nALLOW_SUBPROCESS=true\nLOG=off\nDATABASE_URL=x\nMAX_MEMROY_MB=64\n";
    std::fs::write(folder.path().join(".env"), lines).unwrap();
    let serve = |more: &[&str]| {
        let mut command = program();
        command.arg("serve").args(more).env("PORT", "0").env("PRELOAD", "core").current_dir(folder.path());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        for line in lines {
            let last = line.contains("serving MCP");
            said.push(line);
            if last {
                break;
            }
        }
        (child, said)
    };
    let (mut child, said) = serve(&[]);
    signal(&child, Signal::TERM);
    child.wait().unwrap();
    assert!(said[0].contains("from the folder one stands in: HOST, ALLOW_SUBPROCESS, LOG."), "{said:?}");
    assert!(said[1].contains("left out: DATABASE_URL, MAX_MEMROY_MB (MAX_MEMORY_MB?)"), "{said:?}");
    assert!(said[2].contains("http://127.0.0.1:"), "{said:?}");
    let mut command = program();
    command.env("PRELOAD", "core").current_dir(folder.path());
    let result = Server::of(command).run("print('x' * 1000)").await;
    assert!(result["truncated"] == true && result["stdout"].as_str().unwrap().len() < 500, "{result}");
    // What a person names is another matter.
    std::fs::write(folder.path().join("mine"), "ALLOW_SUBPROCESS=true\n").unwrap();
    let mut command = program();
    command.env("PRELOAD", "core").current_dir(folder.path()).args(["--env-file", "mine"]);
    let result = Server::of(command).run("import os; os.system('exit 3')").await;
    assert_eq!(result["result"], "768", "{result}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn serve_says_which_layers_are_refused_and_how_to_have_them() {
    let mut command = program_in(Home::Lambda);
    command.arg("serve").env("PORT", "0").env("PRELOAD", "core").stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    for layer in ["namespaces", "landlock", "seccomp"] {
        let line = lines.by_ref().find(|line| line.contains(&format!("the layer {layer} is refused"))).unwrap();
        assert!(line.contains("Let the server") || line.contains("It needs"), "{line}");
    }
    signal(&child, Signal::TERM);
    child.wait().unwrap();
}

/// 1,200 descriptors in sockets that nobody reads from kept the server from sending any to its zygotes: no call was answered
/// while that one lived.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn descriptors_in_flight_of_one_call_do_not_hold_up_another() {
    let folder = temporary(Home::User);
    let mut command = program_with_descriptors(Home::User, "1024", None);
    command.env("PRELOAD", "core").env("MAX_CONCURRENCY", "4").env("TMPDIR", folder.path());
    let server = Server::of(command);
    server.still_works().await;
    let code = "import os, socket, array, time\nn = 0; keep = []\nr, w = os.pipe()\ntry:\n    for k in range(40):\n        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); keep += [a, b]\n        a.setblocking(False)\n        for _ in range(8):\n            a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [r] * 200))]); n += 200\nexcept OSError as e: print(repr(e))\nopen('flying', 'w').write(str(n))\nprint(n, flush=True)\ntime.sleep(5)";
    let others = async {
        // Each of these needs a new kernel.
        let state = state_dirs(folder.path()).remove(0);
        let flying = || std::fs::read_dir(&state).unwrap().flatten().any(|entry| entry.path().join("data/flying").exists());
        while !flying() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let from = Instant::now();
        for _ in 0..8 {
            server.still_works().await;
        }
        from.elapsed()
    };
    let (attack, took) = tokio::join!(server.run_with(json!({"code": code, "timeout": 20})), others);
    let flying = attack["stdout"].as_str().unwrap().lines().last().unwrap().parse::<u32>().unwrap();
    assert!(flying >= 1000, "{attack}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}
