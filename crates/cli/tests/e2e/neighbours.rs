//! What one call can reach of another, of the machine, and of the time after it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use serde_json::json;

use crate::client::{Home, Server, processes_named};

type Settings = Vec<(&'static str, &'static str)>;

const CORE: (&str, &str) = ("PRELOAD", "core");
const NO_NAMESPACES: (&str, &str) = ("DISABLE_LAYERS", "namespaces");

fn open_to_all(directory: &std::path::Path) {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
}

in_each_home!(a_process_that_is_born_as_its_zygotes_child_does_not_outlive_its_call, User, Lambda, Strict);
/// A child that `clone` makes the zygote's is neither below the kernel nor an orphan: it read the next caller's files.
async fn a_process_that_is_born_as_its_zygotes_child_does_not_outlive_its_call(homes: &[Home]) {
    let without_filter = ("DISABLE_LAYERS", "namespaces,seccomp");
    let places = homes.iter().flat_map(|home| {
        let settings: Vec<Settings> = match home {
            Home::Caller => vec![vec![CORE, without_filter], vec![CORE], vec![CORE, NO_NAMESPACES]],
            Home::User => vec![vec![CORE, without_filter]],
            _ => vec![vec![CORE]],
        };
        settings.into_iter().map(|settings| (*home, settings))
    });
    let born = "import ctypes, os, platform, time\n\
                libc = ctypes.CDLL(None, use_errno=True)\n\
                number = 56 if platform.machine() == 'x86_64' else 220\n\
                made = 0\n\
                for _ in range(6):\n    pid = libc.syscall(number, 0x8000 | 17, 0, 0, 0, 0)\n    \
                if pid == 0:\n        os.setsid()\n        os.fork()\n        time.sleep(600)\n        os._exit(0)\n    made += pid > 0\n\
                print(made)";
    let disguised = "import ctypes, os, threading, time\n\
                     exit_thread = lambda: ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\n\
                     def daemon(disguise):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: disguise(); time.sleep(600)\n        os._exit(0)\n    os.wait()\n\
                     def rename():\n    try: open('/proc/self/comm', 'wb').write(b'\\xff\\xfe')\n    except OSError: ctypes.CDLL(None).prctl(15, b'\\xff\\xfe', 0, 0, 0)\n\
                     def behead(): threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); exit_thread()\n\
                     for disguise in (rename, rename, rename, behead, behead, behead): daemon(disguise)";
    for (home, settings) in places {
        let temporary = tempfile::tempdir().unwrap();
        open_to_all(temporary.path());
        let path = temporary.path().to_str().unwrap();
        // Everything forked from a zygote bears the path of the server's directory.
        let server = Server::with(home, &[&settings[..], &[("TMPDIR", path)]].concat());
        server.still_works().await;
        let before = processes_named(path).len();
        let made = server.run(born).await["stdout"].as_str().unwrap().trim().to_owned();
        if settings.contains(&without_filter) || matches!(home, Home::Lambda | Home::Strict) {
            assert_eq!(made, "6", "{home:?} {settings:?}: nothing refuses them there");
        }
        // A spare may be on its way, with the first process of its namespace.
        let after = processes_named(path);
        assert!(after.len() <= before + 2, "{home:?} {settings:?} {made}: {after:#?}");
        server.still_works().await;
        // Daemons that were taken for dead: one whose name is no text, and one whose first thread has ended.
        server.run(disguised).await;
        let after = processes_named(path);
        assert!(after.len() <= before + 2, "{home:?} {settings:?}: {after:#?}");
        server.still_works().await;
    }
}

in_each_home!(sockets_of_the_machine_are_out_of_reach, User, NoLandlock);
/// Landlock has no say about connections to a path: D-Bus, docker and ssh-agent answered.
async fn sockets_of_the_machine_are_out_of_reach(homes: &[Home]) {
    let code = |folder: &str| {
        format!(
            "import socket, os\n\
             def attempt(name, action):\n    try: action(); print(name, 'REACHED')\n    except OSError as e: print(name, type(e).__name__)\n\
             S, D = socket.SOCK_STREAM, socket.SOCK_DGRAM\n\
             def new(kind): return socket.socket(socket.AF_UNIX, kind)\n\
             attempt('stream', lambda: new(S).connect('{folder}/stream'))\n\
             attempt('seqpacket', lambda: new(socket.SOCK_SEQPACKET).connect('{folder}/stream'))\n\
             attempt('datagram', lambda: new(D).connect('{folder}/datagram'))\n\
             attempt('sendto', lambda: new(D).sendto(b'x', '{folder}/datagram'))\n\
             attempt('sendmsg', lambda: new(D).sendmsg([b'x'], [], 0, '{folder}/datagram'))\n\
             attempt('raw', lambda: new(socket.SOCK_RAW).sendto(b'x', '{folder}/datagram'))\n\
             attempt('pair', lambda: socket.socketpair(socket.AF_UNIX, D)[0].sendmsg([b'x'], [], 0, '{folder}/datagram'))\n\
             a, b = socket.socketpair(); a.send(b'x'); print('own', b.recv(1))"
        )
    };
    let temporary = tempfile::tempdir().unwrap();
    open_to_all(temporary.path());
    let folder = temporary.path().to_str().unwrap();
    let _stream = UnixListener::bind(temporary.path().join("stream")).unwrap();
    let datagram = UnixDatagram::bind(temporary.path().join("datagram")).unwrap();
    datagram.set_nonblocking(true).unwrap();
    for socket in ["stream", "datagram"] {
        open_to_all(&temporary.path().join(socket));
    }
    for &home in homes {
        for settings in [vec![CORE], vec![CORE, NO_NAMESPACES], vec![CORE, ("DISABLE_LAYERS", "namespaces,landlock")]] {
            let result = Server::with(home, &settings).run(&code(folder)).await;
            let stdout = result["stdout"].as_str().unwrap();
            assert!(!stdout.contains("REACHED") && stdout.contains("own b'x'"), "{home:?} {settings:?} {result:#}");
        }
    }
    assert!(datagram.recv(&mut [0; 1]).is_err(), "nothing has come");
    // The setting for those who need it; and the proof that the sockets can be reached.
    let open = Server::with(Home::Caller, &[CORE, NO_NAMESPACES, ("ALLOW_UNIX_SOCKETS", "true")]);
    let result = open.run(&code(folder)).await;
    assert!(result["stdout"].as_str().unwrap().contains("stream REACHED\n"), "{result:#}");
    assert!(datagram.recv(&mut [0; 1]).is_ok(), "something has come");
}

/// One key for all kernels of a stage: code of one call spoke to the manager of another.
#[tokio::test]
async fn each_call_has_an_authentication_key_of_its_own() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "all"), ("DEFAULT_TIMEOUT", "60")]);
    let code = "import sklearn, sys, multiprocessing.process as p\n\
                from multiprocessing import Manager\n\
                with Manager() as m: d = m.dict(); d['works'] = True; print(dict(d))\n\
                bytes(p.current_process().authkey).hex()";
    let [first, second] = [server.run(code).await, server.run(code).await];
    assert_eq!(first["stdout"], "{'works': True}\n", "{first:#}");
    assert_ne!(first["result"], second["result"]);
}

in_each_home!(nothing_of_a_call_that_runs_can_be_found_by_another, User);
/// Names of sockets and directories, and command lines with what is in them, were all to be read.
async fn nothing_of_a_call_that_runs_can_be_found_by_another(homes: &[Home]) {
    let victim = "import os, socket, subprocess, sys\ns = socket.socket(socket.AF_UNIX); s.bind('hunter2-socket'); s.listen()\n\
                  open('hunter2-file', 'w').write('hunter2')\n\
                  subprocess.Popen(['sleep', '30.4711'], env={'hunter2': 'hunter2'})\nprint('up')\nsys.stdout.flush()\n\
                  import time; time.sleep(8)";
    let look = "import glob, os\n\
                here = os.getcwd()\n\
                def read(path):\n    try: return open(path, errors='replace').read()\n    except OSError: return ''\n\
                seen = [p for p in ('/proc/net/unix', '/proc/self/net/unix', f'/proc/{os.getpid()}/task/{os.getpid()}/net/unix') if 'hunter2' in read(p)]\n\
                seen += [p for p in glob.glob('/proc/[0-9]*/cmdline') if '30.4711' in read(p)]\n\
                seen += [p for p in glob.glob('/proc/[0-9]*/environ') if 'hunter2' in read(p)]\n\
                try: seen += [n for n in os.listdir(os.path.dirname(here)) if n != os.path.basename(here)]\n\
                except OSError: pass\n\
                print(seen)";
    for &home in homes {
        for more in [vec![], vec![NO_NAMESPACES]] {
            let settings = [&[CORE, ("ALLOW_SUBPROCESS", "true"), ("MAX_CONCURRENCY", "2")][..], &more[..]].concat();
            let server = Server::with(home, &settings);
            let running = server.run_with(json!({"code": victim, "timeout": 9}));
            let looking = async {
                let up = || async { !processes_named("30.4711").is_empty() };
                while !up().await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                server.run(look).await
            };
            let looked = tokio::select! {
                result = running => panic!("it was to run on: {result:#}"),
                looked = looking => looked,
            };
            assert_eq!(looked["stdout"], "[]\n", "{home:?} {settings:?} {looked:#}");
        }
    }
}

in_each_home!(shared_memory_of_the_machine_is_out_of_reach, User, NoLandlock);
/// The server's own `/dev/shm` was open to the calls of a server that is root: they changed files of others in it.
async fn shared_memory_of_the_machine_is_out_of_reach(homes: &[Home]) {
    let file = tempfile::Builder::new().prefix("of-the-machine-").tempfile_in("/dev/shm").unwrap();
    std::fs::write(file.path(), "as it was").unwrap();
    open_to_all(file.path());
    let path = file.path().display();
    let code = format!(
        "import os\n\
         def attempt(action):\n    try: return action()\n    except OSError as e: return type(e).__name__\n\
         print([attempt(lambda: open('{path}').read()), attempt(lambda: open('{path}', 'w').write('changed')), \
         attempt(lambda: os.unlink('{path}')), attempt(lambda: os.listdir('/dev/shm'))])"
    );
    for &home in homes {
        let result = Server::with(home, &[CORE]).run(&code).await;
        let stdout = result["stdout"].as_str().unwrap();
        // What it may have made under that name is in memory of its own.
        assert!(!stdout.contains("as it was") && stdout.contains("Error"), "{home:?} {result:#}");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "as it was", "{home:?}");
    }
}

/// Landlock does not stop chmod: one line opened a user's keys, and another ended the server for good.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn a_users_own_files_keep_their_modes_and_a_closed_state_directory_is_mended() {
    let temporary = tempfile::tempdir().unwrap();
    open_to_all(temporary.path());
    let key = temporary.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&key, Some(homes::USER), Some(homes::USER)).unwrap();
    let path = key.display();
    let harm = format!(
        "import os\n\
         for action in (lambda: os.chmod('{path}', 0o644), lambda: os.utime('{path}', (0, 0)), lambda: os.setxattr('{path}', 'user.x', b'1'), lambda: os.stat('{path}')):\n    \
         try: action(); print('DONE')\n    except OSError as e: print(type(e).__name__)"
    );
    for home in [Home::User, Home::NoLandlock] {
        let result = Server::with(home, &[CORE]).run(&harm).await;
        assert!(!result["stdout"].as_str().unwrap().contains("DONE"), "{home:?} {result:#}");
        let metadata = key.metadata().unwrap();
        assert!(metadata.mode() & 0o777 == 0o600 && metadata.mtime() != 0);
    }
    let close = "import os\nfor path in ('.', 'matplotlib'):\n    try: os.chmod(os.path.join(os.path.dirname(os.getcwd()), path), 0)\n    except OSError: pass";
    for settings in [vec![CORE], vec![CORE, NO_NAMESPACES], vec![CORE, ("DISABLE_LAYERS", "namespaces,landlock")]] {
        let server = Server::with(Home::User, &settings);
        for _ in 0..3 {
            server.run(close).await;
            server.still_works().await;
        }
    }
}

in_each_home!(a_server_that_is_stopped_while_busy_leaves_no_process_and_no_directory, User, NoLandlock, Lambda, Strict);
/// SIGTERM found nobody to end what a call had started where no namespace ends it.
async fn a_server_that_is_stopped_while_busy_leaves_no_process_and_no_directory(homes: &[Home]) {
    for &home in homes {
        let temporary = tempfile::tempdir().unwrap();
        open_to_all(temporary.path());
        let path = temporary.path().to_str().unwrap();
        let server = Server::with(home, &[CORE, NO_NAMESPACES, ("TMPDIR", path)]);
        let code = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: time.sleep(600)\n        os._exit(0)\nopen('busy', 'w').close()\ntime.sleep(60)";
        let running = server.run_with(json!({"code": code, "timeout": 60}));
        let busy = async {
            let found = || {
                std::fs::read_dir(temporary.path())
                    .unwrap()
                    .flatten()
                    .flat_map(|entry| std::fs::read_dir(entry.path()).unwrap().flatten())
            };
            while !found().any(|kernel| kernel.path().join("busy").exists()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! { _ = running => panic!("it was to run on"), () = busy => {} }
        assert!(processes_named(path).len() >= 4);
        drop(server);
        assert_eq!(processes_named(path), Vec::<String>::new(), "{home:?}");
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "{home:?}");
    }
}
