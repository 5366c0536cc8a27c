//! The files that code leaves: they come back, and nothing else does.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Home, Server, program_in, variable};

/// With and without namespaces, root and not, with every layer and with few.
fn homes() -> Vec<(Home, &'static [(&'static str, &'static str)])> {
    const NO_NAMESPACES: &[(&str, &str)] = &[("DISABLE_LAYERS", "namespaces")];
    let all = [
        (Home::Caller, &[][..]),
        (Home::Caller, NO_NAMESPACES),
        (Home::User, &[]),
        (Home::User, NO_NAMESPACES),
        (Home::NoLandlock, NO_NAMESPACES),
        (Home::Lambda, &[]),
        (Home::Strict, &[]),
    ];
    all.into_iter().filter(|(home, _)| *home == Home::Caller || homes::is_root()).collect()
}

/// Runs code by `run --json --files`: its result, and what was saved.
fn run(home: Home, settings: &[(&str, &str)], code: &str) -> (Value, BTreeMap<String, Vec<u8>>) {
    let place = tempfile::tempdir().unwrap();
    if home != Home::Caller {
        std::os::unix::fs::chown(place.path(), Some(homes::USER), Some(homes::USER)).unwrap();
    }
    let folder = place.path().join("out");
    let mut command = program_in(home);
    command.envs(settings.iter().map(|(name, value)| (variable(name), value)));
    command.args(["run", "--json", "--code", code, "--files"]).arg(&folder);
    let output = command.output().unwrap();
    let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let mut files = BTreeMap::new();
    read_all(&folder, "", &mut files);
    (result, files)
}

fn read_all(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_all(&entry.path(), &format!("{name}/"), files);
        } else {
            assert!(entry.file_type().unwrap().is_file(), "{name}");
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}

fn warnings(result: &Value) -> String {
    result["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn files_come_back_in_every_home() {
    let code = "import os\nos.makedirs('plots/old')\nopen('table.csv', 'w').write('a,b\\n1,2\\n')\n\
                with open('plots/old/p.png', 'wb') as f: f.write(bytes(range(256)) * 400)\nopen('empty', 'w').close()\n\
                os.makedirs('.cache'); open('.cache/x', 'w').write('x'); open('.hidden', 'w').write('x')\n\
                os.makedirs('__pycache__'); open('__pycache__/m.pyc', 'w').write('x')\nprint('done')";
    for (home, off) in homes() {
        let (result, files) = run(home, off, code);
        assert_eq!((&result["stdout"], warnings(&result)), (&"done\n".into(), String::new()), "{home:?} {off:?}: {result:#}");
        assert_eq!(files.keys().collect::<Vec<_>>(), ["empty", "plots/old/p.png", "table.csv"], "{home:?} {off:?}");
        assert_eq!(files["table.csv"], b"a,b\n1,2\n", "{home:?} {off:?}");
        assert_eq!((files["plots/old/p.png"].len(), files["empty"].len()), (102_400, 0), "{home:?} {off:?}");
    }
}

/// A run that leaves a file open has it flushed by the interpreter's end elsewhere; here it was lost with the process.
#[test]
fn what_was_written_to_files_that_are_still_open_is_in_them() {
    for end in ["", "\n1/0", "\nimport sys; sys.exit(3)"] {
        let code = format!("f = open('text', 'w')\nf.write('kept')\nb = open('bytes', 'wb')\nb.write(b'kept, too'){end}");
        let (_, files) = run(Home::Caller, &[], &code);
        assert_eq!((&files["text"][..], &files["bytes"][..]), (&b"kept"[..], &b"kept, too"[..]), "{end}");
    }
    // What waits for a reader is not waited for.
    let code = "import os\nr, w = os.pipe()\nf = os.fdopen(w, 'wb', 1 << 20)\nf.write(bytes(900_000))\nopen('a', 'w').write('a')\nprint(1)";
    let (result, files) = run(Home::Caller, &[("DEFAULT_TIMEOUT", "20")], code);
    assert_eq!((&result["success"], files.len()), (&true.into(), 1), "{result:#}");
}

#[test]
fn files_come_back_from_runs_that_ended_badly() {
    let start = "import sys\nopen('partial.csv', 'w').write('1\\n')\n";
    for (end, code) in [
        ("while True: pass", "timeout"),
        ("1/0", "python_error"),
        ("import os; os._exit(3)", "exited"),
        ("import ctypes; ctypes.string_at(0)", "crashed"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory_limit"),
        ("for i in range(9):\n    with open(f'big{i}', 'wb') as f: f.write(bytes(4 << 20))\nwhile True: pass", "disk_limit"),
        // What it starts is dead before its files are read.
        (
            "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        while True: open('child', 'w').write('x')\nwhile True: pass",
            "timeout",
        ),
    ] {
        let settings = [("DEFAULT_TIMEOUT", "3"), ("MAX_DISK_MB", "16"), ("MAX_PROCESSES", "10")];
        let (result, files) = run(Home::Caller, &settings, &format!("{start}{end}"));
        assert_eq!(result["error"]["code"], code, "{result:#}");
        assert_eq!(files.get("partial.csv").map(Vec::as_slice), Some(&b"1\n"[..]), "{result:#}");
    }
}

/// Whatever a program makes of its directory, only plain files of its own come out of it.
#[test]
fn nothing_but_plain_files_of_the_call_comes_back() {
    let code = "import os, socket\nmade = []\ndef attempt(name, make):\n    try: make(); made.append(name)\n    except Exception as e: pass\n\
                open('good', 'w').write('good')\n\
                attempt('link', lambda: os.symlink('/etc/passwd', 'link'))\n\
                attempt('up', lambda: os.symlink('..', 'up'))\n\
                attempt('hard', lambda: os.link('/etc/passwd', 'hard'))\n\
                attempt('twice', lambda: (open('twice', 'w').close(), os.link('twice', '.other')))\n\
                attempt('fifo', lambda: os.mkfifo('fifo'))\n\
                attempt('null', lambda: os.mknod('null', 0o20666, os.makedev(1, 3)))\n\
                attempt('socket', lambda: socket.socket(socket.AF_UNIX).bind('socket'))\n\
                attempt('swapped', lambda: (os.mkdir('swapped'), os.rename('swapped', '.swapped'), os.symlink('/etc', 'swapped')))\n\
                attempt('closed', lambda: (open('closed', 'w').close(), os.chmod('closed', 0)))\n\
                for name in ('line\\nfeed', 'escape\\x1b[2J', 'sur\\udcff', 'back\\\\slash', 'turn\\u202e'):\n    \
                    attempt(ascii(name), lambda: open(name, 'w').close())\n\
                attempt('sparse', lambda: os.truncate(os.open('.sparse', os.O_CREAT | os.O_RDWR), 10 << 30))\n\
                for _ in range(50): os.mkdir('deep'); os.chdir('deep')\n\
                open('bottom', 'w').write('x')\nprint(*made, sep='\\n')";
    for (home, off) in homes() {
        let (result, files) = run(home, off, code);
        let told = warnings(&result);
        assert_eq!(result["success"], true, "{home:?} {off:?}: {result:#}");
        assert_eq!(files.keys().collect::<Vec<_>>(), ["good"], "{home:?} {off:?}: {told}");
        assert_eq!(files["good"], b"good");
        let made = result["stdout"].as_str().unwrap().lines().collect::<Vec<_>>();
        assert!(
            made.len() >= 9 && ["link", "swapped", "twice"].iter().all(|name| made.contains(name)),
            "{home:?} {off:?}: {made:?}"
        );
        assert!(["'null'", "null", "hard", "sparse"].iter().all(|name| !made.contains(name)), "{home:?} {off:?}: {made:?}");
        assert!(told.contains("only plain files with plain names") && told.contains("more"), "{home:?} {off:?}: {told}");
        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
    }
}

#[test]
fn a_directory_that_was_closed_or_removed_holds_up_nothing() {
    for (home, off) in homes() {
        for code in ["open('a', 'w')\nimport os; os.chmod('.', 0)", "import os, shutil; shutil.rmtree(os.getcwd(), True)\n1"] {
            let (result, files) = run(home, off, code);
            assert_eq!((&result["success"], files.len()), (&true.into(), 0), "{home:?} {off:?}: {result:#}");
            let told = warnings(&result);
            assert_eq!(told.contains("can't be read"), code.contains("chmod"), "{home:?} {off:?}: {told}");
        }
    }
}

/// A model that writes files in a loop gets the first of them, and is told of the rest.
#[tokio::test]
async fn many_and_large_files_are_counted_and_named() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_FILES_BYTES", "1000"), ("MAX_DISK_MB", "100")]);
    let many = server.run("for i in range(10_000): open(f'{i:05}.txt', 'w').close()").await;
    assert_eq!(many["success"], true, "{many:#}");
    assert!(warnings(&many).contains("9936 more files do not come back"), "{many:#}");
    let large =
        server.run("import os\nfor i in range(20):\n    with open(f'{i:02}.bin', 'wb') as f: f.truncate(1 << 40 >> 13)").await;
    let told = warnings(&large);
    assert!(told.contains("00.bin (134217728 bytes)") && told.contains("and 12 more"), "{told}");
    assert!(told.contains("MAX_FILES_BYTES") && !told.contains("09.bin"), "{told}");
    // What a client of MCP gets of one that is small enough.
    let answer = server.call("execute_python", json!({"code": "open('ä.csv', 'w').write('a,b\\n')"})).await;
    let resource = json!({"uri": "file:///mnt/data/%C3%A4.csv", "mimeType": "text/csv", "text": "a,b\n"});
    assert_eq!(answer["result"]["content"][1], json!({"type": "resource", "resource": resource}), "{answer:#}");
    let none = server.run("print(1)").await;
    assert_eq!(none["warnings"], json!([]));
}

/// What comes from a terminal's user goes below the folder that was named.
#[test]
fn a_person_is_told_of_files_and_where_they_were_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/out");
    let code = "open('a.txt', 'w').write('a' * 1_000_000)\nopen('b\\x1b[31m', 'w').write('b')\n1";
    let output = program_in(Home::Caller).args(["run", "--code", code]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("note: 1 file was left; --files DIR saves it\n"), "{told}");
    assert!(told.contains("a.txt (1000000 bytes)") && told.contains("its name") && !told.contains('\x1b'), "{told}");
    let output = program_in(Home::Caller).args(["run", "--code", code, "--files"]).arg(&path).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(&format!("note: saved {}\n", path.join("a.txt").display())) && !told.contains('\x1b'), "{told}");
    assert_eq!(std::fs::read(path.join("a.txt")).unwrap().len(), 1_000_000, "whole, above MAX_FILES_BYTES");
    // What can't be saved costs neither the value nor goes unsaid.
    std::fs::remove_file(path.join("a.txt")).unwrap();
    std::fs::create_dir(path.join("a.txt")).unwrap();
    let output = program_in(Home::Caller).args(["run", "--code", code, "--files"]).arg(&path).output().unwrap();
    assert_eq!((&output.stdout[..], output.status.success()), (&b"1\n"[..], false), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("\"a.txt\" below"));
}
