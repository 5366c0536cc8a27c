//! Limits that code tries to get around: by sending so much that nobody looks, and by keeping what nobody counts.

use serde_json::{Value, json};

use crate::client::{Home, Server};

const NO_NAMESPACES: (&str, &str) = ("DISABLE_LAYERS", "namespaces");
const SMALL: [(&str, &str); 3] = [("PRELOAD", "core"), ("MAX_MEMORY_MB", "128"), ("MAX_DISK_MB", "64")];
/// A process of the code that sends frames of five bytes for ever.
const FLOOD: &str =
    "import os, time\nif os.fork() == 0:\n    frames = b'S\\0\\0\\0\\0' * 20_000\n    while True: os.write(500, frames)\n";

/// With mounts of its own and without.
fn places(homes: &[Home]) -> Vec<(Home, Vec<(&'static str, &'static str)>)> {
    let with = |more: &[(&'static str, &'static str)]| [&SMALL[..], more].concat();
    homes.iter().flat_map(|&home| [(home, with(&[])), (home, with(&[NO_NAMESPACES]))]).collect()
}

async fn each_is_ended(homes: &[Home], programs: &[(&str, String, &str)]) {
    for (home, settings) in places(homes) {
        let server = Server::with(home, &settings);
        for (name, code, expected) in programs {
            // Time enough for a busy machine to do what is to be stopped.
            let timeout = if *expected == "timeout" { 4 } else { 30 };
            let result = server.run_with(json!({"code": code, "timeout": timeout})).await;
            assert_eq!(result["error"]["code"], *expected, "{home:?} {settings:?} {name}: {result:#}");
            server.still_works().await;
        }
        let (_, health) = server.request("GET", "/health", &[], "").await;
        assert!(health.contains("\"restarts\":0") && health.contains("\"quarantined\":0"), "{health}");
    }
}

in_each_home!(a_flood_of_small_frames_switches_no_limit_off, User);
/// While frames came, nobody looked at memory, files and processes.
async fn a_flood_of_small_frames_switches_no_limit_off(homes: &[Home]) {
    let memory = "for i in range(3):\n    if os.fork() == 0:\n        b = bytearray(100 << 20)\n        for k in range(0, len(b), 4096): b[k] = 1\n        time.sleep(9)\ntime.sleep(9)";
    let files = "for i in range(3): open(f'f{i}', 'wb').write(bytes(30 << 20))\ntime.sleep(9)";
    each_is_ended(
        homes,
        &[
            ("memory", format!("{FLOOD}{memory}"), "memory_limit"),
            ("files", format!("{FLOOD}{files}"), "disk_limit"),
            (
                "frames alone",
                "import os\nf = b'O\\0\\0\\0\\0' * 200_000\nwhile True: os.write(500, f)".to_owned(),
                "output_limit",
            ),
            (
                "time",
                "import os, time\nwhile True:\n    os.write(500, b'S\\0\\0\\0\\0' * 10)\n    time.sleep(.001)".to_owned(),
                "timeout",
            ),
        ],
    )
    .await;
}

in_each_home!(what_has_no_name_is_counted, User);
/// Unlinked files, memory files and buffers of sockets were in no count.
async fn what_has_no_name_is_counted(homes: &[Home]) {
    let unlinked = "import os, time\nkept = []\nfor i in range(3):\n    f = open(f'f{i}', 'wb'); os.unlink(f'f{i}'); kept.append(f)\n    f.write(bytes(30 << 20)); f.flush()\ntime.sleep(9)";
    let memory = "import os, time\nkept = []\nfor i in range(6):\n    f = os.memfd_create('m'); kept.append(f)\n    os.write(f, bytes(40 << 20))\ntime.sleep(9)";
    let sockets = "import socket, time\nkept = []\nfor i in range(490):\n    pair = socket.socketpair(); kept.append(pair)\n    for end in pair:\n        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24); end.setblocking(False)\n        try:\n            while True: end.send(bytes(60_000))\n        except BlockingIOError: pass\ntime.sleep(9)";
    let leaderless = "import ctypes, os, threading, time\ndef work():\n    kept = []\n    for i in range(6):\n        f = os.memfd_create('m'); kept.append(f)\n        os.write(f, bytes(40 << 20))\n    time.sleep(9)\nif os.fork() == 0:\n    threading.Thread(target=work, daemon=True).start()\n    ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)\ntime.sleep(9)";
    let nameless = "import ctypes, os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        ctypes.CDLL(None).prctl(15, b'\\xff\\xfe', 0, 0, 0)\n        b = bytearray(100 << 20)\n        for k in range(0, len(b), 4096): b[k] = 1\n        time.sleep(9)\ntime.sleep(9)";
    let tables = "import ctypes, time\nmap_ = ctypes.CDLL(None).mmap\nmap_.restype, map_.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]\nsize = 1 << 38\nat = map_(None, size, 1, 0x4022, -1, 0)\nfor a in range(at, at + size, 2 << 20): ctypes.c_char.from_address(a).value\ntime.sleep(9)";
    let closed = "import os, time\nos.mkdir('w'); os.chdir('w'); os.chmod('..', 0)\nfor i in range(3): open(f'f{i}', 'wb').write(bytes(30 << 20))\ntime.sleep(9)";
    let hides = "import ctypes, time\nprint(ctypes.CDLL(None).prctl(4, 0, 0, 0, 0))\n";
    each_is_ended(
        homes,
        &[
            ("unlinked files", unlinked.to_owned(), "disk_limit"),
            ("memory files", memory.to_owned(), "memory_limit"),
            ("buffers of sockets", sockets.to_owned(), "memory_limit"),
            ("memory files of one that hides", format!("{hides}{memory}"), "memory_limit"),
            ("memory files of a process whose first thread has ended", leaderless.to_owned(), "memory_limit"),
            ("memory of a process whose name is no text", nameless.to_owned(), "memory_limit"),
            ("page tables", tables.to_owned(), "memory_limit"),
            ("files in a directory that is closed", closed.to_owned(), "disk_limit"),
            (
                "instances of epoll",
                "import select, time\nkept = [select.epoll() for _ in range(300)]\ntime.sleep(9)".to_owned(),
                "process_limit",
            ),
        ],
    )
    .await;
}

in_each_home!(connections_that_nobody_accepts_are_counted, User);
/// Data that was sent to somebody who never accepts it is in no process. Without a network of its own there is nobody to send to.
async fn connections_that_nobody_accepts_are_counted(homes: &[Home]) {
    let code = "import socket, time\ns = socket.socket(socket.AF_UNIX); s.bind('x'); s.listen(2000)\n\
                for _ in range(1500):\n    c = socket.socket(socket.AF_UNIX); c.setblocking(False); c.connect('x')\n    \
                try:\n        while True: c.send(bytes(60_000))\n    except BlockingIOError: pass\n    c.close()\ntime.sleep(9)";
    for &home in homes {
        let server = Server::with(home, &SMALL);
        let result = server.run(code).await;
        assert_eq!(result["error"]["code"], "memory_limit", "{home:?} {result:#}");
        server.still_works().await;
    }
}

in_each_home!(processes_that_come_and_go_are_no_violation, User);
/// A process that was just ending counted as one that hides.
async fn processes_that_come_and_go_are_no_violation(homes: &[Home]) {
    let code = "import os\nfrom concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import Pool\n\
                for _ in range(3):\n    with Pool(4) as p: p.map(abs, range(50))\n\
                with ProcessPoolExecutor(4) as p: list(p.map(abs, range(50)))\n\
                for _ in range(100):\n    if os.fork() == 0: os._exit(0)\n    os.wait()\nprint('whole')";
    for &home in homes {
        let server = Server::with(home, &[("PRELOAD", "core"), ("DEFAULT_TIMEOUT", "30")]);
        for _ in 0..8 {
            let result = server.run(code).await;
            assert_eq!(result["stdout"], "whole\n", "{home:?} {result:#}");
        }
    }
}

in_each_home!(shared_memory_is_bounded_everywhere, User);
async fn shared_memory_is_bounded_everywhere(homes: &[Home]) {
    let fill = "import os, time\nwritten = 0\ntry:\n    for i in range(9):\n        with open(f'/dev/shm/full{i}', 'wb') as f: written += f.write(bytes(40 << 20))\nexcept OSError as e: print(e)\ntime.sleep(1)\nprint(written >> 20)";
    for (home, settings) in places(homes) {
        let server = Server::with(home, &settings);
        let result = server.run(fill).await;
        let written = result["stdout"].as_str().unwrap().lines().last().and_then(|line| line.parse::<u64>().ok());
        let ended = result["error"]["code"] == "memory_limit";
        assert!(ended || written.is_some_and(|megabytes| megabytes <= 128), "{home:?} {settings:?} {result:#}");
        server.still_works().await;
    }
}

/// Three million pictures of ten bytes cost the server a gigabyte.
#[tokio::test]
async fn what_a_kernel_sends_costs_the_server_a_bounded_amount() {
    let server = Server::start();
    server.still_works().await;
    let before = peak_megabytes(&server);
    let png = "b'\\x89PNG\\r\\n\\x1a\\n' + bytes(4 << 20)";
    let programs = [
        "frames = (b'I' + (10).to_bytes(4, 'little') + b'image/png\\0') * 100_000\nfor _ in range(33): send(frames)".to_owned(),
        format!("frame = b'image/png\\0' + {png}\nfor _ in range(8): send(b'I' + len(frame).to_bytes(4, 'little') + frame)"),
        "body = json.dumps({'value': 'x' * (1 << 20), 'warnings': ['w' * 100] * 8000}).encode()\nsend(b'V' + len(body).to_bytes(4, 'little') + body)".to_owned(),
        "body = json.dumps({'warnings': [''] * 400_000}).encode()\nsend(b'V' + len(body).to_bytes(4, 'little') + body)".to_owned(),
    ];
    let send =
        "import json, os\ndef send(data):\n    view = memoryview(data)\n    while view: view = view[os.write(500, view):]\n";
    for program in programs {
        let answer = server.call("execute_python", json!({"code": format!("{send}{program}\nprint('sent')")})).await;
        let images = answer["result"]["content"].as_array().unwrap().iter().filter(|block| block["type"] == "image").count();
        assert!(images <= 32 && answer.to_string().len() < 24 << 20, "{images} {}", answer.to_string().len());
        server.still_works().await;
    }
    let grown = peak_megabytes(&server) - before;
    assert!(grown < 64, "the server grew by {grown} MB");
}

/// A dozen pages of values, tracebacks and notes are what an answer may have of each, whoever wrote them.
#[tokio::test]
async fn a_forged_report_is_as_short_as_an_honest_one() {
    let server = Server::start();
    let forge = "import json, os, time\nbody = json.dumps({'value': 'x' * 1_000_000, 'warnings': ['w' * 5000] * 150}).encode()\n\
                 os.write(500, b'Z' + len(body).to_bytes(4, 'little') + body)\ntime.sleep(60)";
    let result = server.run(forge).await;
    let lengths = |value: &Value| value.as_str().map_or(0, str::len);
    assert!(lengths(&result["result"]) <= 65_000, "{}", lengths(&result["result"]));
    let warnings = result["warnings"].as_array().unwrap();
    assert!(warnings.len() <= 100 && warnings.iter().all(|warning| lengths(warning) <= 2000));
}

fn peak_megabytes(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}
