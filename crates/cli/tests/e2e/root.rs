//! The root, the names and the network that a call has to itself, where namespaces are to be had.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::client::{Home, Server};

const CORE: (&str, &str) = ("PRELOAD", "core");

/// One that every user can write to.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    folder
}

/// Runs what prints a line for each thing that is not as it should be.
async fn finds_nothing_wrong(home: Home, settings: &[(&str, &str)], checks: &str) {
    let code = format!(
        "import os, sys\ndef check(what, fact):\n    if not fact: print(what)\n\
         def refused(action):\n    try: action()\n    except OSError: return True\n\
         {checks}\nprint('all looked at')"
    );
    let result = Server::with(home, settings).run_with(json!({"code": code, "timeout": 10})).await;
    assert_eq!(result["stdout"], "all looked at\n", "{home:?} {result:#}");
}

in_each_home!(a_call_sees_its_own_root_and_nothing_of_the_machine, User, NoLandlock);
async fn a_call_sees_its_own_root_and_nothing_of_the_machine(homes: &[Home]) {
    let checks = "import getpass, pwd, socket, tempfile\n\
         check('root', not {'root', 'home', 'run', 'srv', 'boot', 'work'} & set(os.listdir('/')))\n\
         check('what is in it', os.listdir('/mnt') == ['data'] and os.listdir('/mnt/data') == [] == os.listdir('/tmp'))\n\
         check('directories', os.getcwd() == os.environ['HOME'] == os.path.expanduser('~') == '/mnt/data')\n\
         check('temporary', tempfile.gettempdir() == os.environ['TMPDIR'] == '/tmp')\n\
         check('user', getpass.getuser() == pwd.getpwuid(os.getuid()).pw_name == 'sandbox')\n\
         check('names', {p.pw_name for p in pwd.getpwall()} == {'sandbox', 'root', 'nobody'})\n\
         check('host', socket.gethostname() == os.uname().nodename == 'sandbox')\n\
         check('devices', set(os.listdir('/dev')) == {'null', 'zero', 'full', 'random', 'urandom', 'fd', 'stdin', 'stdout', 'stderr', 'shm'})\n\
         known = repr((sys.path, sys.executable, os.__file__, dict(os.environ), open('/proc/self/cmdline').read(), open('/proc/self/maps').read(), open('/proc/mounts').read()))\n\
         check('paths of the server', '/code-interpreter-' not in known and '/work/' not in known and '/home/' not in known)\n\
         for path in ('/', '/usr', '/etc', '/mnt', '/var', '/dev', '/opt/code-interpreter', os.path.dirname(os.__file__)):\n    \
         check(path, refused(lambda: open(path + '/x', 'w')) and refused(lambda: os.chmod(path, 0o777)) and refused(lambda: os.utime(path)))\n\
         for path in ('/tmp/x', '/mnt/data/x', '/dev/shm/x'):\n    \
         open(path, 'w').write('x'); check(path, open(path).read() == 'x')\n\
         open('/dev/null', 'w').write('x'); check('random', len(open('/dev/urandom', 'rb').read(8)) == 8)";
    for &home in homes {
        finds_nothing_wrong(home, &[CORE], checks).await;
    }
}

in_each_home!(a_process_finds_itself_and_its_output_in_proc, User);
async fn a_process_finds_itself_and_its_output_in_proc(homes: &[Home]) {
    let checks = "pid = str(os.getpid())\n\
         check('own number', os.readlink('/proc/self') == pid and open('/proc/self/stat').read().split()[0] == pid)\n\
         check('own directory', os.readlink('/proc/self/cwd') == '/mnt/data' and os.path.exists('/proc/self/exe'))\n\
         check('own descriptors', '0' in os.listdir('/proc/self/fd'))\n\
         open('/dev/stderr', 'w').write('by path\\n')\n\
         child = os.fork()\n\
         if child == 0:\n    open('/dev/stderr', 'w').write('of a child\\n'); os._exit(0)\n\
         check('child', os.waitpid(child, 0) == (child, 0))";
    for &home in homes {
        finds_nothing_wrong(home, &[CORE], checks).await;
        let result = Server::with(home, &[CORE]).run("open('/dev/stdout', 'w').write('by path\\n')").await;
        assert_eq!(result["stdout"], "by path\n", "{home:?} {result:#}");
    }
}

in_each_home!(servers_and_clients_inside_a_call_talk_to_each_other_and_to_nobody_else, User);
async fn servers_and_clients_inside_a_call_talk_to_each_other_and_to_nobody_else(homes: &[Home]) {
    let serve = "import asyncio, http.server, socket, threading, urllib.request\n\
         server = http.server.ThreadingHTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler)\n\
         threading.Thread(target=server.serve_forever, daemon=True).start()\n\
         open('page', 'w').write('hello')\n\
         print(urllib.request.urlopen('http://localhost:8000/page').read())\n\
         async def talk():\n    async def answer(r, w): w.write(await r.readline()); await w.drain(); w.close()\n    \
         s = await asyncio.start_server(answer, 'localhost', 0)\n    \
         r, w = await asyncio.open_connection(*s.sockets[0].getsockname()[:2]); w.write(b'line\\n')\n    return await r.readline()\n\
         print(asyncio.run(talk()))\n\
         a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in 'ab')\n\
         a.bind(('127.0.0.1', 0)); b.sendto(b'datagram', a.getsockname()); print(a.recv(9))";
    let ask = "import socket\ntry: print(socket.create_connection(('127.0.0.1', 8000), 1))\nexcept ConnectionRefusedError: print('refused')";
    for &home in homes {
        let folder = open_folder();
        let server = Server::with(home, &[CORE, ("MAX_CONCURRENCY", "2"), ("TMPDIR", folder.path().to_str().unwrap())]);
        let told = server.run(serve).await;
        assert_eq!(told["stdout"], "b'hello'\nb'line\\n'\nb'datagram'\n", "{home:?} {told:#}");
        let stays = format!("{serve}\nimport time; open('up', 'w').close(); time.sleep(8)");
        let is_up = || {
            let in_it = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
            in_it(folder.path().to_owned()).flat_map(in_it).any(|kernel| kernel.join("data/up").exists())
        };
        let asking = async {
            while !is_up() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            server.run(ask).await
        };
        let asked = tokio::select! {
            result = server.run_with(json!({"code": stays, "timeout": 9})) => panic!("it was to run on: {result:#}"),
            asked = asking => asked,
        };
        assert_eq!(asked["stdout"], "refused\n", "{home:?} {asked:#}");
    }
}

in_each_home!(temporary_files_count_and_do_not_come_back, User);
async fn temporary_files_count_and_do_not_come_back(homes: &[Home]) {
    for &home in homes {
        let folder = open_folder();
        let server = Server::with(home, &[CORE, ("MAX_DISK_MB", "20"), ("TMPDIR", folder.path().to_str().unwrap())]);
        let large = "for n in range(5): open(f'/tmp/{n}', 'wb').write(bytes(8 << 20))\nimport time; time.sleep(9)";
        assert_eq!(server.run(large).await["error"]["code"], "disk_limit", "{home:?}");
        let left = "import os, tempfile\nprint(os.listdir('/tmp'))\nos.makedirs('/tmp/a/b'); os.chmod('/tmp/a', 0)\n\
                    tempfile.NamedTemporaryFile(delete=False).write(b'x')\nopen('kept.txt', 'w').write('kept')";
        let answer = server.call("execute_python", json!({"code": left})).await;
        let text = answer["result"]["content"].to_string();
        assert!(text.contains("[]\\\\n") && text.contains("file:///mnt/data/kept.txt"), "{home:?} {answer:#}");
        assert_eq!(text.matches("file:///").count(), 1, "{home:?} {answer:#}");
        drop(server);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{home:?}");
    }
}

in_each_home!(matplotlib_is_quiet_and_quick_also_where_it_comes_late, User);
/// Its configuration, with the fonts that it knows, is the tree's; it wants a directory that it may write to.
async fn matplotlib_is_quiet_and_quick_also_where_it_comes_late(homes: &[Home]) {
    let code = "name = 'matplotlib'\nm = __import__(name)\nimport importlib\nimportlib.import_module(name + '.font_manager')\n\
                import os\nprint(os.access(m.get_configdir(), os.W_OK), any('fontlist' in n for n in os.listdir(m.get_cachedir())), os.listdir('.'))";
    for &home in homes {
        let server = Server::with(home, &[("PRELOAD", "core"), ("DEFAULT_TIMEOUT", "30")]);
        let result = server.run(code).await;
        assert_eq!(
            (result["stdout"].as_str(), result["stderr"].as_str()),
            (Some("True True []\n"), Some("")),
            "{home:?} {result:#}"
        );
    }
}
