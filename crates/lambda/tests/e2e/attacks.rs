//! Code that goes for the function itself: its Runtime API, its secrets, its life, the next caller.

use serde_json::json;

use super::function::Function;

/// Speaks to the Runtime API, whose address code can find by trying the ports of its machine.
const SPEAK: &str = r"
import http.client
def ask(method, path, body=None):
    try:
        connection = http.client.HTTPConnection(input_data['api'], timeout=1)
        connection.request(method, '/2018-06-01/runtime/' + path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(300).decode('utf-8', 'replace')
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__
";

fn with_network() -> Function {
    // As in a function without a VPC: the Runtime API is on the loopback.
    Function::with(&[("ALLOW_NETWORK", "true"), ("DEFAULT_TIMEOUT", "30")], &[])
}

#[test]
fn the_runtime_api_is_closed_while_code_runs() {
    let function = with_network();
    let code = format!("{SPEAK}\nprint(*ask('GET', 'invocation/next'))");
    let arguments = json!({"code": code, "input_data": {"api": function.runtime_api}});
    for accept in ["text/event-stream", "application/json"] {
        let result = function.run_with(&arguments, &[("accept", accept), ("x-api-key", "secret-key")]);
        let stdout = result["stdout"].as_str().unwrap();
        assert!(stdout.starts_with("403 ") && stdout.contains("InvalidStateTransition"), "{result:#}");
        assert!(!stdout.contains("secret-key") && !stdout.contains("requestContext"), "the event can be read: {result:#}");
    }
}

#[test]
fn an_answer_can_not_be_forged() {
    let function = with_network();
    // The id of its own invocation is in the event, which the code can't read; the one before it is its best guess.
    let forge = format!(
        "{SPEAK}\nforged = '{{\"statusCode\": 200, \"body\": \"forged\"}}'\n\
         for path in ('invocation/' + input_data['id'] + '/response', 'invocation/' + input_data['id'] + '/error', 'init/error'):\n    \
         print(ask('POST', path, forged)[0])\nprint('to the end')"
    );
    for round in 1..=3 {
        let id = function.request_ids().last().cloned().unwrap_or_default();
        let result = function.run_with(&json!({"code": forge, "input_data": {"api": function.runtime_api, "id": id}}), &[]);
        let stdout = result["stdout"].as_str().unwrap();
        assert!(stdout.ends_with("to the end\n") && !stdout.contains("202"), "{round}: {result:#}");
    }
    assert_eq!(function.run("2 + 3")["result"], "5");
}

#[test]
fn the_function_can_not_be_read_by_its_own_user() {
    let function = Function::start();
    let code = "import os\npid = os.getppid()\nwhile open(f'/proc/{pid}/comm').read().startswith('python'):\n    \
                pid = int(open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1])\n\
                for name in ('environ', 'maps', 'mem', 'auxv'):\n    try: print('OPEN', open(f'/proc/{pid}/{name}', 'rb').read(1 if name == 'mem' else 40))\n    \
                except OSError as error: print(name, type(error).__name__)\n\
                try: print('OPEN', os.listdir(f'/proc/{pid}/fd'))\nexcept OSError as error: print('fd', type(error).__name__)\n\
                print(os.environ.get('AWS_SECRET_ACCESS_KEY'))";
    let result = function.run(code);
    let expected =
        "environ PermissionError\nmaps PermissionError\nmem PermissionError\nauxv PermissionError\nfd PermissionError\nNone\n";
    assert_eq!(result["stdout"], expected, "{result:#}");
    let (_, _, text) = function.post("/lambda/mcp/", &[], &super::function::call("get_environment_info", &json!({})));
    let environment = super::function::told(&text);
    let state = |name: &str| {
        environment["sandbox"].as_array().unwrap().iter().find(|layer| layer["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(
        (state("non_dumpable_supervisor"), state("response_lock"), state("seccomp")),
        (json!("active"), json!("active"), json!("refused"))
    );
}

#[test]
fn nothing_is_left_for_the_next_caller() {
    let function = with_network();
    let leave = "import os, tempfile, time\n\
                 engine = os.path.dirname(os.environ['TMPDIR']); root = os.path.dirname(engine)\n\
                 for place in (root, engine, engine + '/matplotlib'): open(place + '/left', 'w').write('x')\n\
                 for home in os.listdir(engine):\n    \
                     if home[0] == 'k': open(f'{engine}/{home}/utils.py', 'w').write('left = True')\n\
                 own = int(os.path.basename(os.environ['TMPDIR'])[1:])\n\
                 for number in (own + 1, own + 2, own + 3, own + 9, own + 1000, 2 ** 64 - 1):\n    \
                     os.makedirs(f'{engine}/k{number}', exist_ok=True); open(f'{engine}/k{number}/left', 'w').write('x')\n\
                 os.makedirs(root + '/deep/er'); os.chmod(root + '/deep', 0)\n\
                 if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(600)\n    os._exit(0)\n\
                 print(os.path.exists(engine + '/left'))";
    let look = "import os\nengine = os.path.dirname(os.environ['TMPDIR']); root = os.path.dirname(engine)\n\
                try: import utils\nexcept ImportError: pass\nelse: print('OPEN utils')\n\
                found = [os.path.join(place, name) for place, _, names in os.walk(root) for name in names]\n\
                print([name for name in found if 'fontlist' not in name])";
    for _ in 0..3 {
        let result = function.run(leave);
        assert_eq!(result["stdout"], "True\n", "{result:#}");
        let left = std::fs::read_dir(function.temporary.path()).unwrap().flatten().map(|entry| entry.file_name());
        let left = left.filter(|name| !name.to_string_lossy().starts_with("code-interpreter-")).collect::<Vec<_>>();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(function.run(look)["stdout"], "[]\n");
    }
}

/// Key rings are the machine's, and keys that are there when a function starts are left alone.
fn forget_keys() {
    if homes::is_root() {
        let (tree, []) = homes::reachable([]);
        let clear = "import ctypes, os\nkeyctl = 250 if os.uname().machine == 'x86_64' else 219\n\
                     for ring in (-4, -5): ctypes.CDLL(None).syscall(keyctl, 7, ring)";
        let mut python = super::function::alone(&tree.join("python/bin/python3"));
        assert!(python.args(["-I", "-S", "-c", clear]).status().unwrap().success());
    }
}

/// They are no files and end with no process: System V objects, POSIX message queues, keys.
#[test]
fn what_is_left_without_a_file_is_gone_for_the_next_caller() {
    forget_keys();
    let function = Function::start();
    let numbers = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nX86 = os.uname().machine == 'x86_64'\n\
                   add_key, keyctl = (248, 250) if X86 else (217, 219)\n";
    // The segment may be read by nobody and belongs to somebody else; the ring is the zygote's session, for kernels to come.
    let leave = "made = [libc.shmget(4242, 4096, 0o1000), libc.shmget(4243, 4096, 0o1666), libc.msgget(4242, 0o1666), libc.semget(4242, 1, 0o1666)]\n\
                 owner = (ctypes.c_char * 256)()\nlibc.shmctl(made[1], 2, owner)\n\
                 ctypes.c_uint.from_buffer(owner, 4).value = 65534\nprint(libc.shmctl(made[1], 1, owner))\n\
                 print(all(number >= 0 for number in made))\n\
                 print(libc.mq_open(b'/left', 0o102, 0o666, None), ctypes.get_errno())\n\
                 for ring in (-4, -5, -3): libc.syscall(add_key, b'user', b'left', b'x', 1, ring)\n\
                 libc.syscall(keyctl, 18)";
    let look = "print([line for kind in ('shm', 'msg', 'sem') for line in open('/proc/sysvipc/' + kind).read().splitlines()[1:]])\n\
                print(libc.mq_open(b'/left', 0, 0, None) >= 0)\n\
                print([libc.syscall(keyctl, 10, ring, b'user', b'left', 0) >= 0 for ring in (-4, -5, -3)])";
    for _ in 0..2 {
        let result = function.run(&format!("{numbers}{leave}"));
        assert_eq!(result["stdout"], "0\nTrue\n-1 24\n", "{result:#}");
        let result = function.run(&format!("{numbers}{look}"));
        assert_eq!(result["stdout"], "[]\nFalse\n[False, False, False]\n", "{result:#}");
    }
}

#[test]
fn an_engine_whose_directory_was_harmed_serves_the_next_call() {
    let function = Function::start();
    let engine = "import os, shutil\nengine = os.path.dirname(os.environ['TMPDIR'])\n";
    for harm in [
        "shutil.rmtree(engine, ignore_errors=True)",
        "os.chmod(engine, 0)",
        "os.rename(engine, engine + '-away')",
        "shutil.rmtree(engine, ignore_errors=True); open(engine, 'w')",
        "for number in range(1, 60): os.makedirs(f'{engine}/k{number}/x', exist_ok=True)",
    ] {
        function.run(&format!("{engine}{harm}"));
        for _ in 0..2 {
            assert_eq!(function.run("import os\nopen('a', 'w').write('a')\n2 + 3")["result"], "5", "{harm}");
        }
    }
}

#[test]
fn a_function_whose_code_kills_it_works_again() {
    let function = Function::start();
    let kill = "import os\npid = os.getppid()\nwhile open(f'/proc/{pid}/comm').read().startswith('python'):\n    \
                pid = int(open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1])\nos.kill(pid, 9)\nimport time; time.sleep(9)";
    let (_, _, text) = function.post("/lambda/mcp/", &[], &super::function::call("execute_python", &json!({"code": kill})));
    assert!(!text.contains("\"success\":true"), "{text}");
    assert_eq!(function.run("2 + 3")["result"], "5");
}

/// A child that `clone` made its zygote's read and changed the next caller's file, and took the next event.
#[test]
fn a_process_that_is_born_outside_of_its_call_is_gone_for_the_next_caller() {
    let function = Function::start();
    let born = "import ctypes, glob, os, platform, time\nplaces = os.path.dirname(os.getcwd()) + '/k*/secret'\n\
                number = 56 if platform.machine() == 'x86_64' else 220\n\
                for _ in range(3):\n    pid = ctypes.CDLL(None).syscall(number, 0x8000 | 17, 0, 0, 0, 0)\n    if pid == 0:\n        \
                until = time.time() + 20\n        while time.time() < until:\n            \
                for path in glob.glob(places): open(path, 'w').write('CHANGED')\n            time.sleep(.005)\n        os._exit(0)\n\
                pid > 0";
    assert_eq!(function.run(born)["result"], "True", "nothing refuses it there");
    for _ in 0..3 {
        let next = "import time\nopen('secret', 'w').write('of the next caller')\ntime.sleep(.3)\nopen('secret').read()";
        assert_eq!(function.run(next)["result"], "'of the next caller'");
    }
}

/// One call lowered what the zygotes may have, and every later one failed.
#[test]
fn a_function_whose_processes_were_bounded_by_code_gives_way_to_a_new_one() {
    let function = Function::start();
    for harm in [
        "resource.prlimit(os.getppid(), resource.RLIMIT_DATA, (40 << 20,) * 2)",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    ] {
        let code = json!({"code": format!("import os, resource\n{harm}")});
        function.post("/lambda/mcp/", &[], &super::function::call("execute_python", &code));
        for _ in 0..2 {
            assert_eq!(function.run("2 + 3")["result"], "5", "{harm}");
        }
    }
}

/// The zygotes are of the code's own user there: those that were killed or stopped serve the next call again.
#[test]
fn zygotes_that_were_harmed_are_replaced_or_go_on() {
    let function = Function::with(&[("PRELOAD", "data")], &[]);
    for imports in ["", "import pandas"] {
        for signal in ["SIGKILL", "SIGSTOP"] {
            let harm = format!("{imports}\nimport os, signal\nos.kill(os.getppid(), signal.{signal})");
            function.run(&harm);
            for code in ["2 + 3", "import pandas\n2 + 3"] {
                assert_eq!(function.run(code)["result"], "5", "{imports:?} {signal}");
            }
        }
    }
}

/// A spare kernel waits for the next caller, and is of the same user too.
#[test]
fn spare_kernels_that_were_harmed_do_not_harm_the_next_call() {
    let function = Function::start();
    for signal in ["SIGKILL", "SIGSTOP"] {
        let harm = format!(
            "import os, signal, time\nme, zygote = os.getpid(), os.getppid()\n\
             def parent(pid): return int(open(f'/proc/{{pid}}/stat').read().rsplit(')', 1)[1].split()[1])\n\
             end, harmed = time.time() + 2, 0\n\
             while time.time() < end and not harmed:\n    \
                 for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):\n        \
                     try:\n            \
                         if pid != me and parent(pid) == zygote: os.kill(pid, signal.{signal}); harmed += 1\n        \
                     except OSError: pass\n\
             print(harmed > 0)"
        );
        assert_eq!(function.run(&harm)["stdout"], "True\n", "{signal}");
        for _ in 0..3 {
            assert_eq!(function.run("2 + 3")["result"], "5", "{signal}");
        }
    }
}
