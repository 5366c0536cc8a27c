//! What a cell means: values, output, figures, errors.

use std::fmt::Write;

use serde_json::json;

use crate::client::{Home, Server, told};

#[tokio::test]
async fn values_follow_jupyter_and_the_variable_result() {
    let server = Server::start();
    for (code, value) in [
        ("2+3", json!("5")),
        ("'a'", json!("'a'")),
        ("x = 1", json!(null)),
        ("2+3;", json!(null)),
        ("None", json!(null)),
        ("result = 2 + 3", json!("5")),
        ("result = 'a'", json!("a")),
        ("result = 1\n7", json!("7")),
        ("input_data", json!("{'a': [1, 2]}")),
        ("{'b': 1, 'a': (1,)}", json!("{'b': 1, 'a': (1,)}")),
        ("import asyncio\nasync def f(): return 8\nawait f()", json!("8")),
        ("import asyncio\nt = asyncio.create_task(asyncio.sleep(0, 9))\nawait t", json!("9")),
        ("class A:\n    def __repr__(self): return 1/0\nA()", json!("<A object; its repr raised ZeroDivisionError>")),
        ("class A:\n    def __repr__(self): return 5\nA()", json!("<A object; its repr raised TypeError>")),
        ("'\\ud800'", json!("'\\ud800'")),
        ("__name__", json!("'__main__'")),
    ] {
        let result = server.run_with(json!({"code": code, "input_data": {"a": [1, 2]}})).await;
        assert_eq!(result["result"], value, "{code}: {result:#}");
        assert_eq!(result["success"], true, "{code}: {result:#}");
    }
}

/// The number of an array's items was taken for that of its bytes.
#[tokio::test]
async fn whatever_has_bytes_can_be_written_to_the_buffer() {
    let server = Server::start();
    let code = "import array, sys\nfor i in range(400): print(i)\nwords = array.array('I', [0x64636261] * 3)\n\
                print(sys.stdout.buffer.write(words), sys.stdout.buffer.write(memoryview(words)[::2]))\n\
                try: sys.stdout.buffer.write('text')\nexcept TypeError: print('refused')";
    let result = server.run(code).await;
    assert!(result["stdout"].as_str().unwrap().ends_with("399\nabcdabcdabcdabcdabcd12 8\nrefused\n"), "{result}");
}

/// A cell that ended with a comment that ended with one showed nothing, and one with a comment behind it showed its value.
#[tokio::test]
async fn a_semicolon_hides_the_value_and_one_in_a_comment_does_not() {
    let server = Server::start();
    for code in ["2+3;  # quiet", "2+3 ;\n# quiet\n", "(2+3)\\\n;", "'é€';", "x = [\r\n]\r2+3;\r\n", "2+3;\u{c}", "(2+\n3);"] {
        assert_eq!(server.run(code).await["result"], json!(null), "{code:?}");
    }
    for code in ["2+3  # note;", "(2+3)\n\n# note;\n", "'\u{2028}'; 2+3", "2;\n(2+\n3)", "2+3 # ;\\"] {
        assert_eq!(server.run(code).await["result"], "5", "{code:?}");
    }
}

/// Lines were also parted where the compiler parts none, and tracebacks showed others than those that had failed.
#[tokio::test]
async fn lines_in_tracebacks_are_the_compilers() {
    let server = Server::start();
    for before in ["a = '\u{2028}\u{85}\u{1c}\u{b}'\n", "\u{c}b = 1\n", "c = 2\r\n", "d = 3\r"] {
        let result = server.run(&format!("{before}def f():\n    return 1 / 0\nf()")).await;
        let traceback = result["error"]["traceback"].as_str().unwrap();
        let shown = traceback.replace(['^', '~'], "");
        let shown = shown.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("|");
        let expected = "Traceback (most recent call last):|File \"<cell>\", line 4, in <module>|f()|File \"<cell>\", line 3, in f|\
                        return 1 / 0|ZeroDivisionError: division by zero";
        assert_eq!((shown.as_str(), &result["error"]["line"]), (expected, &json!(3)), "{before:?}");
    }
}

/// By its bare name it was taken for Python's, or the policy's, own.
#[tokio::test]
async fn an_exception_is_no_limit_because_of_its_name() {
    let server = Server::start();
    for name in ["MemoryError", "PolicyDenied"] {
        let result = server.run(&format!("class {name}(Exception): pass\nraise {name}('mine')")).await;
        let error = &result["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!("python_error"), &json!(name)), "{result}");
    }
    let result = server.run("class Full(MemoryError): pass\nraise Full").await;
    assert_eq!(result["error"]["code"], "memory_limit", "{result}");
    let restricted = json!({"code": "import os", "policy": "restricted"});
    assert_eq!(server.run_with(restricted).await["error"]["code"], "policy_denied");
}

#[tokio::test]
async fn a_huge_value_is_cut() {
    let server = Server::start();
    for code in ["list(range(10**6))", "'a' * 10**7", "result = 'b' * 10**7", "{i: i for i in range(10**5)}"] {
        let result = server.run(code).await;
        assert!(result["result"].as_str().unwrap().len() < 70_000, "{code}");
    }
}

#[tokio::test]
async fn output_of_python_c_code_and_subprocesses_keeps_its_order() {
    let server = Server::with_subprocesses(Home::Caller);
    let code = "import os, subprocess, sys\n\
                for i in range(600):\n    print(i)\n    if i % 100 == 0:\n        i < 300 and os.write(1, b'raw\\n')\n        \
                subprocess.run(['echo', 'sub'])\n        os.system('echo shell')\n        sys.stdout.buffer.write(b'bytes\\n')\n";
    let result = server.run(code).await;
    let mut expected = String::new();
    for i in 0..600 {
        writeln!(expected, "{i}").unwrap();
        if i % 100 == 0 {
            expected += if i < 300 { "raw\nsub\nshell\nbytes\n" } else { "sub\nshell\nbytes\n" };
        }
    }
    assert_eq!(result["stdout"], expected, "{}", result["stderr"]);
}

#[tokio::test]
async fn stderr_is_apart_and_children_made_by_fork_print_too() {
    let server = Server::start();
    let code = "import os, sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.stdout.flush()\n\
                if os.fork() == 0:\n    print('child')\n    os._exit(0)\nos.wait()\nprint('parent')";
    let result = server.run(code).await;
    assert_eq!(result["stdout"], "out\nchild\nparent\n");
    assert_eq!(result["stderr"], "err\n");
}

#[tokio::test]
async fn a_fork_that_comes_out_of_the_cell_does_not_answer_for_it() {
    let server = Server::start();
    let result = server.run("import os\nif os.fork(): os.wait()\nprint(os.getpid() > 0)").await;
    assert_eq!(result["stdout"], "True\nTrue\n");
}

#[tokio::test]
async fn tracebacks_show_the_cells_lines_and_none_of_ours() {
    let server = Server::start();
    let result = server.run("def f(x):\n    return 1 / x\n\nprint('before')\nf(0)").await;
    let error = &result["error"];
    assert_eq!(
        (error["code"].as_str(), error["type"].as_str(), error["line"].as_u64()),
        (Some("python_error"), Some("ZeroDivisionError"), Some(2))
    );
    let traceback = error["traceback"].as_str().unwrap();
    assert!(traceback.starts_with("Traceback (most recent call last):\n  File \"<cell>\", line 5"), "{traceback}");
    assert!(traceback.contains("return 1 / x") && !traceback.contains("harness"), "{traceback}");
    assert_eq!((result["stdout"].as_str(), result["exit_code"].as_i64()), (Some("before\n"), Some(1)));
    let result = server.run("x = 1\ny = )").await;
    assert_eq!((result["error"]["type"].as_str(), result["error"]["line"].as_u64()), (Some("SyntaxError"), Some(2)));
    assert!(!result["error"]["traceback"].as_str().unwrap().contains("harness"));
    let result = server.run("async def f(): raise ValueError('\\ud800')\nawait f()").await;
    let traceback = result["error"]["traceback"].as_str().unwrap();
    assert!(!traceback.contains("asyncio") && traceback.contains("\\ud800"), "{traceback}");
}

#[tokio::test]
async fn python_habits_work() {
    let server = Server::with_subprocesses(Home::Caller);
    for (code, stdout) in [
        ("try: input()\nexcept EOFError: print('eof')", "eof\n"),
        ("print('\\ud800é')", "\\ud800é\n"),
        ("import atexit; atexit.register(print, 'bye')", "bye\n"),
        ("import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()", "late\n"),
        ("import multiprocessing as m\nwith m.Pool(2) as p: print(p.map(abs, [-1, -2]))", "[1, 2]\n"),
        ("from concurrent.futures import ThreadPoolExecutor as T\nwith T(4) as t: print(sum(t.map(abs, range(9))))", "36\n"),
        (
            "import dataclasses, pickle\n@dataclasses.dataclass\nclass A: x: int\nprint(pickle.loads(pickle.dumps(A(1))))",
            "A(x=1)\n",
        ),
        ("open('m.py', 'w').write('x = 5')\nimport m; print(m.x)", "5\n"),
        ("import os\nprint(os.getcwd() == os.environ['HOME'] == os.environ['PWD'])", "True\n"),
        ("import os, tempfile\nprint(tempfile.gettempdir() == os.environ['TMPDIR'])", "True\n"),
        ("import warnings; warnings.warn('w'); print('x' * 3)", "xxx\n"),
        ("import subprocess; print(subprocess.run(['echo', 'a'], capture_output=True, text=True).stdout)", "a\n\n"),
    ] {
        let result = server.run(code).await;
        assert_eq!(result["stdout"], stdout, "{code}: {result:#}");
        assert_eq!(result["success"], true, "{code}: {result:#}");
    }
    let result = server.run("exit()").await;
    assert_eq!(result["success"], true, "{result}");
}

#[tokio::test]
async fn a_large_source_and_a_large_output_are_carried_whole() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_OUTPUT_BYTES", "8000000")]);
    let source = format!("x = '{}'\nlen(x)", "a".repeat(5_000_000));
    assert_eq!(server.run(&source).await["result"], "5000000");
    let result = server.run("for i in range(10000): print('%099d' % i)").await;
    assert_eq!((result["stdout"].as_str().unwrap().len(), result["truncated"].as_bool()), (1_000_000, Some(false)));
}

#[tokio::test]
async fn output_past_the_cap_keeps_head_and_tail_and_counts_the_rest() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_OUTPUT_BYTES", "1000")]);
    let result = server.run("print('head')\nprint('x' * 5000)\nprint('tail')").await;
    let stdout = result["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("head\n") && stdout.ends_with("tail\n") && stdout.contains("[4011 bytes left out]"), "{stdout}");
    assert_eq!(result["dropped"], json!({"stdout_bytes": 4011, "stderr_bytes": 0}));
    assert_eq!(result["success"], true);
    // Each stream has as much, and no character is cut in two.
    let result = server.run("import sys\nprint('é' * 5000, file=sys.stderr)\nprint('out')").await;
    let stderr = result["stderr"].as_str().unwrap();
    assert!(stderr.starts_with('é') && stderr.ends_with("é\n") && stderr.contains("bytes left out"), "{stderr}");
    assert!(!stderr.contains('\u{fffd}') && result["stdout"] == "out\n", "{result}");
}

#[tokio::test]
async fn the_stack_works_and_repeats_no_random_numbers() {
    let server = Server::with(Home::Caller, &[]);
    let first = server.run("import numpy as np\nnp.random.rand()").await;
    let second = server.run("import numpy as np\nnp.random.rand()").await;
    assert_ne!(first["result"], second["result"]);
    let code = "import numpy as np, pandas as pd, scipy.stats, sklearn.ensemble, seaborn, requests, httpx, pydantic, jinja2\n\
                x = np.arange(200.).reshape(100, 2)\ny = (x[:, 0] > 50).astype(int)\n\
                m = sklearn.ensemble.RandomForestClassifier(n_jobs=2).fit(x, y)\n\
                h = sklearn.ensemble.HistGradientBoostingClassifier().fit(x, y)\n\
                print(m.score(x, y), h.score(x, y) > .9, pd.DataFrame(x).describe().shape, scipy.stats.norm.cdf(0))";
    let result = server.run(code).await;
    assert_eq!(result["stdout"], "1.0 True (8, 2) 0.5\n", "{result:#}");
    let (_, health) = server.request("GET", "/health", &[], "").await;
    let health: serde_json::Value = serde_json::from_str(&health).unwrap();
    for stage in health["engine"]["stages"].as_array().unwrap() {
        assert_eq!((&stage["state"], &stage["missing"]), (&json!("ready"), &json!([])));
    }
}

#[tokio::test]
async fn figures_come_once_each_and_in_order() {
    use base64::Engine as _;
    for preload in ["plot", "core"] {
        let server = Server::with(Home::Caller, &[("PRELOAD", preload)]);
        let code = "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt\n\
                    plt.figure(figsize=(2, 1)); plt.plot([1, 2]); plt.show(); plt.close()\n\
                    plt.figure(figsize=(3, 1)); plt.plot([2, 1])\n1/0";
        let answer = server.call("execute_python", json!({"code": code})).await;
        let content = answer["result"]["content"].as_array().unwrap();
        let widths = content[1..].iter().map(|image| {
            assert_eq!((&image["type"], &image["mimeType"]), (&json!("image"), &json!("image/png")));
            let png = base64::engine::general_purpose::STANDARD.decode(image["data"].as_str().unwrap()).unwrap();
            assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
            u32::from_be_bytes(png[16..20].try_into().unwrap())
        });
        assert_eq!(widths.collect::<Vec<_>>(), [200, 300], "{preload}");
        assert_eq!(answer["result"]["isError"], true);
        assert_eq!(told(&answer)["stderr"], "");
    }
}

/// C21: in the child an exception was not told, and `sys.exit(3)` was a success.
#[tokio::test]
async fn a_fork_that_leaves_the_cell_ends_as_pythons_own_does() {
    let server = Server::start();
    let code = |end: &str| {
        format!(
            "import atexit, os, sys\npid = os.fork()\nif pid == 0:\n    atexit.register(print, 'left')\n    {end}\n\
             else:\n    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
        )
    };
    for (end, status, says) in
        [("1 / 0", 1, "ZeroDivisionError"), ("sys.exit(3)", 3, ""), ("sys.exit('no')", 1, "no"), ("pass", 0, "")]
    {
        let result = server.run(&code(end)).await;
        assert_eq!(result["stdout"], format!("left\n{status}\n"), "{end}: {result}");
        assert!(result["stderr"].as_str().unwrap().contains(says), "{end}: {result}");
        assert_eq!(result["stderr"].as_str().unwrap().is_empty(), says.is_empty(), "{end}: {result}");
    }
}

/// C23: what had been sent and was still in the shared memory was told again.
#[tokio::test]
async fn what_was_printed_before_a_kill_is_told_once() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_OUTPUT_BYTES", "60000000")]);
    for round in 0..20 {
        let timeout = 0.05 + f64::from(round) * 0.003;
        let code = "import sys\ni = 0\nwhile True:\n    print(i, flush=True)\n    i += 1";
        let result = server.run_with(json!({"code": code, "timeout": timeout})).await;
        assert_eq!(result["error"]["code"], "timeout", "{result}");
        let lines = result["stdout"].as_str().unwrap().lines().map(|line| line.parse::<usize>().unwrap());
        assert_eq!(lines.enumerate().find(|(expected, line)| line != expected), None, "round {round}");
    }
}

/// What a spare had printed to warm itself counted as sent, and the cell's last words were taken for told.
#[tokio::test]
async fn last_words_in_a_kernel_that_has_warmed_itself_are_told() {
    let server = Server::start();
    for _ in 0..20 {
        // Enough for the next spare to be there and warm; where it is not, the test says less.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let result = server.run("import os\nprint('out', end='')\nprint('no newline', end='')\nos._exit(3)").await;
        assert_eq!((&result["stdout"], &result["exit_code"]), (&json!("outno newline"), &json!(3)), "{result}");
    }
}
