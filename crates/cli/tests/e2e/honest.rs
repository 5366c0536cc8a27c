//! Honest code that was ended, or whose value was lost.

use std::process::Command;

use serde_json::json;

use crate::client::{Home, Server, program, told};

in_each_home!(memory_that_forks_share_is_counted_once_and_their_own_each, User);
/// What a fork shares with its parent was counted for each of them.
async fn memory_that_forks_share_is_counted_once_and_their_own_each(homes: &[Home]) {
    let server = Server::with(Home::Caller, &[("PRELOAD", "data"), ("MAX_MEMORY_MB", "256"), ("DEFAULT_TIMEOUT", "60")]);
    let pool = "import multiprocessing as mp, time\nimport numpy as np\ndata = np.ones(12_500_000)\n\
                def f(i): time.sleep(.1); return float(data[i:i + 1000].sum())\nwith mp.Pool(4) as p: print(sum(p.map(f, range(16))))";
    for &home in homes {
        let server = Server::with(home, &[("PRELOAD", "data"), ("MAX_MEMORY_MB", "256"), ("DEFAULT_TIMEOUT", "60")]);
        let result = server.run(pool).await;
        assert_eq!(result["stdout"], "16000.0\n", "{home:?} {result:#}");
    }
    let greedy = "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        b = bytearray(100 << 20)\n        for k in range(0, len(b), 4096): b[k] = 1\n        time.sleep(20)\ntime.sleep(20)";
    assert_eq!(server.run(greedy).await["error"]["code"], "memory_limit");
}

/// Text of one thread landed within the picture of another, and the run ended as one that broke the protocol.
#[tokio::test]
async fn threads_may_print_while_figures_are_shown_and_the_cell_ends() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "plot"), ("DEFAULT_TIMEOUT", "60")]);
    let code = "import threading, time\nimport matplotlib.pyplot as plt, numpy as np\n\
                def talk():\n    n = 0\n    while True: n += 1; print('line', n); time.sleep(.0002)\n\
                for _ in range(3): threading.Thread(target=talk, daemon=True).start()\n\
                for _ in range(3):\n    plt.figure(figsize=(9, 7)); plt.imshow(np.random.rand(600, 800)); plt.show()\n'done'";
    for _ in 0..3 {
        let answer = server.call("execute_python", json!({"code": code})).await;
        let result = told(&answer);
        assert_eq!((&result["success"], &result["result"]), (&json!(true), &json!("'done'")), "{result:#}");
        let images = answer["result"]["content"].as_array().unwrap().iter().filter(|block| block["type"] == "image").count();
        assert_eq!(images, 3);
    }
}

/// A thread or an exit handler that never ended took the value, or the error, with it.
#[tokio::test]
async fn the_value_and_the_error_are_told_also_when_something_outlives_the_cell() {
    let server = Server::start();
    let thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n";
    let handler = "import atexit, time\natexit.register(time.sleep, 100)\n";
    for before in [thread, handler] {
        let result = server.run_with(json!({"code": format!("{before}6 * 7"), "timeout": 1})).await;
        assert_eq!((&result["error"]["code"], &result["result"]), (&json!("timeout"), &json!("42")), "{result:#}");
        assert_eq!(result["exit_code"], 124);
        let result = server.run_with(json!({"code": format!("{before}1 / 0"), "timeout": 1})).await;
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains("ZeroDivisionError: division by zero"), "{result:#}");
        assert_eq!(result["error"]["line"], 3);
    }
    let ends = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(.1), print('late'))).start()\n'value'";
    let result = server.run(ends).await;
    assert_eq!((&result["stdout"], &result["result"]), (&json!("late\n"), &json!("'value'")), "{result:#}");
}

/// There is none in a Lambda function: the code was told no more than "Function not implemented".
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn without_shared_memory_multiprocessing_says_what_to_use_instead() {
    let place = tempfile::tempdir().unwrap();
    let inside = program();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o mode=755 devices \"$0\" && for name in null zero random urandom; do \
                  touch \"$0/$name\" && mount --bind /dev/$name \"$0/$name\" || exit 1; done && mount --rbind \"$0\" /dev && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(place.path()).arg(inside.get_program());
    command.env_clear().envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
    // With namespaces each call has a /dev/shm of its own.
    command.env("PRELOAD", "core").env("DISABLE_LAYERS", "namespaces");
    let server = Server::of(command);
    for code in [
        "import multiprocessing as m\nm.Pool(2)",
        "from concurrent.futures import ProcessPoolExecutor as E\nlist(E(2).map(abs, [1]))",
        "import multiprocessing as m\nm.Queue()",
    ] {
        let result = server.run(code).await;
        assert!(result["error"]["traceback"].as_str().unwrap().contains("Use threads"), "{code}: {result}");
    }
    let result = server.run("from concurrent.futures import ThreadPoolExecutor as E\nlist(E(2).map(abs, [-1]))").await;
    assert_eq!(result["result"], "[1]", "{result}");
    let other = server.run("open('/nowhere')").await;
    assert!(!other["error"]["traceback"].as_str().unwrap().contains("Use threads"), "{other}");
}
