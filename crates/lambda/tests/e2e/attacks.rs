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
    let environment = super::function::message(&text)["result"]["structuredContent"].clone();
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
