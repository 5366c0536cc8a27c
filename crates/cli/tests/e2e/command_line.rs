//! `run` and `doctor`.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::client::{Home, program, program_in, program_with_descriptors, variable};

fn run(arguments: &[&str]) -> Output {
    program().arg("run").args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn output_value_and_error_go_where_a_person_expects_them() {
    let output = run(&["--code", "import sys\nprint('out')\nprint('err', file=sys.stderr)\n2+3"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(0), "out\n5\n".to_owned(), "err\n".to_owned())
    );
    let output = run(&["--code", "1/0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).ends_with("ZeroDivisionError: division by zero\n"));
}

#[test]
fn the_end_of_the_engine_says_nothing_on_stderr() {
    for _ in 0..20 {
        assert_eq!(text(&run(&["--code", "pass"]).stderr), "");
    }
}

#[test]
fn exit_codes_tell_how_it_ended() {
    assert_eq!(run(&["--code", "while True: pass", "--timeout", "0.5"]).status.code(), Some(124));
    assert_eq!(run(&["--code", "import sys; sys.exit(3)"]).status.code(), Some(3));
    assert_eq!(run(&["--code", "while True: print('x' * 10**6)"]).status.code(), Some(137));
    let output = run(&["--json", "--code", "x = bytearray(200 << 20)", "--max-memory-mb", "100"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["error"]["code"], "memory_limit", "{result}");
}

#[test]
fn code_comes_from_a_file_or_standard_input_and_data_with_it() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all("input_data['a'] + 1".as_bytes()).unwrap();
    let output = run(&[file.path().to_str().unwrap(), "--input-data", "{\"a\": 41}"]);
    assert_eq!(text(&output.stdout), "42\n");
    let mut child = program().args(["run", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"print('piped')").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "piped\n");
}

#[test]
fn wrong_arguments_name_the_field() {
    let output = run(&["--code", "1", "--timeout", "500"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("timeout: must be more than 0 and at most 120 seconds, not 500; MAX_TIMEOUT allows more")
    );
    let output = run(&["--code", "1", "--input-data", "{'a': 1}"]);
    assert!(text(&output.stderr).contains("input_data: must be JSON: "), "{}", text(&output.stderr));
    let output = program().args(["run", "--code", "1"]).env(variable("PYTHON_TREE"), "/nowhere").output().unwrap();
    assert!(text(&output.stderr).contains("no Python tree at /nowhere"));
}

/// Whoever reads JSON got an empty standard output, and words on the other.
#[test]
fn with_json_wrong_arguments_are_told_in_json() {
    for (flag, value, told) in [
        ("--timeout", "500", "timeout: must be more than 0 and at most 120 seconds, not 500; MAX_TIMEOUT allows more"),
        ("--timeout=-1", "", "timeout: must be more than 0 and at most 120 seconds, not -1"),
        ("--input-data", "[1]", "input_data: must be a JSON object, not an array"),
        ("--input-data", "x", "input_data: must be JSON: expected value at line 1 column 1"),
    ] {
        let output = run(&["--json", "--code", "1", flag, value].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>());
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        assert_eq!((&result["error"]["code"], &result["error"]["message"]), (&"invalid_argument".into(), &told.into()));
        assert_eq!((output.status.code(), &result["exit_code"], text(&output.stderr)), (Some(1), &1.into(), String::new()));
    }
}

#[test]
fn what_is_not_saved_is_counted_in_words_that_fit() {
    for (count, told) in
        [(1, "note: 1 file was left; --files DIR saves it\n"), (2, "note: 2 files were left; --files DIR saves them\n")]
    {
        let code = format!("for n in range({count}): open(str(n), 'w').close()");
        assert_eq!(text(&run(&["--code", &code]).stderr), told);
    }
}

#[test]
fn figures_are_saved_where_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let output = run(&["--code", "import matplotlib.pyplot as plt\nplt.plot([1, 2])", "--figures", path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(std::fs::read(folder.path().join("figure-1.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn settings_come_from_flags_then_environment_then_a_named_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("settings"), "DEFAULT_TIMEOUT=0.25\nALLOW_SUBPROCESS=true\nMAX_MEMROY_MB=64\n").unwrap();
    let limit = |configure: &dyn Fn(&mut std::process::Command)| {
        let mut command = program();
        command.current_dir(folder.path()).args(["run", "--code", "while True: pass", "--json", "--env-file", "settings"]);
        configure(&mut command);
        let result: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        result["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(limit(&|_| {}).contains("0.25 s"));
    assert!(
        limit(&|command| {
            command.env(variable("DEFAULT_TIMEOUT"), "0.5");
        })
        .contains("0.5 s")
    );
    assert!(
        limit(&|command| {
            command.env(variable("DEFAULT_TIMEOUT"), "0.5").args(["--default-timeout", "0.75"]);
        })
        .contains("0.75 s")
    );
    let mut command = program();
    command.current_dir(folder.path()).args(["--env-file", "settings", "run", "--code", "import os; os.system('echo ran')"]);
    let output = command.output().unwrap();
    assert_eq!(text(&output.stdout), "ran\n0\n", "a file that is named sets everything");
    assert!(text(&output.stderr).contains("settings: not settings, and left out: MAX_MEMROY_MB (MAX_MEMORY_MB?)"));
}

/// C18: any project's `ALLOW_SUBPROCESS`, `POLICY` or `UV` changed a program that an assistant had started there.
#[test]
fn run_and_stdio_read_the_prefixed_names_only_and_a_server_both() {
    let code = "import os\ntry: os.system('echo ran')\nexcept PermissionError: print('refused')";
    let set = [("ALLOW_SUBPROCESS", "true"), ("POLICY", "nonsense"), ("PYTHON_TREE", "/nowhere"), ("LOG", "off")];
    let output = program().args(["run", "--code", code]).envs(set).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(text(&output.stdout), "refused\n", "{told}");
    assert!(told.contains("read with the prefix CODE_INTERPRETER_ only here, and left out: ALLOW_SUBPROCESS\n"), "{told}");
    let stdio = program().arg("stdio").envs(set).env(variable("PRELOAD"), "core").stdin(Stdio::null()).output().unwrap();
    assert!(!text(&stdio.stderr).contains("nonsense") && !text(&stdio.stderr).contains("/nowhere"), "{}", text(&stdio.stderr));
    let mut command = program();
    command.args(["run", "--code", code]).env(variable("ALLOW_SUBPROCESS"), "true").env(variable("LOG"), "error").envs(set);
    let output = command.output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("ran\n", ""));
    // `doctor` stands for a server: its environment is its own.
    let doctor = |name: String, value: &str| {
        let output = program().args(["doctor", "--preload", "core"]).env("POLICY", "open").env(name, value).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert!(doctor("ALLOW_NETWORK".to_owned(), "true").1.contains("ALLOW_NETWORK is on"));
    let (status, _, told) = doctor("MAX_QUEUE".to_owned(), "-1");
    assert!(
        status == Some(2) && told.contains("MAX_QUEUE: ") && told.contains("must be a whole number from 0 to 65536"),
        "{told}"
    );
    let (status, _, told) = doctor(variable("POLICY"), "nonsense");
    assert!(
        status == Some(2) && told.contains("CODE_INTERPRETER_POLICY: ") && told.contains("must be open or restricted"),
        "{told}"
    );
    let (status, _, told) = doctor(variable("MAX_TIMEOUTS"), "1");
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("CODE_INTERPRETER_MAX_TIMEOUTS (CODE_INTERPRETER_MAX_TIMEOUT?)"), "{told}");
}

/// C18: a cloned repository's `.env` turned off the walls and let programs run, from two folders up too.
#[test]
fn the_env_file_of_the_folder_one_stands_in_or_above_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("project/deep");
    std::fs::create_dir_all(&deep).unwrap();
    for place in [folder.path(), &deep] {
        let lines = "ALLOW_SUBPROCESS=true\nDISABLE_LAYERS=namespaces,landlock,seccomp\nPOLICY=nonsense\nPYTHON_TREE=/nowhere\n";
        std::fs::write(place.join(".env"), lines).unwrap();
    }
    for directory in [deep, folder.path().join("project")] {
        let mut command = program();
        command.current_dir(&directory).args([
            "run",
            "--code",
            "import os\ntry: os.system('id')\nexcept PermissionError: print('refused')",
        ]);
        let output = command.output().unwrap();
        assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("refused\n", ""));
        let stdio = program()
            .current_dir(&directory)
            .arg("stdio")
            .env(variable("PRELOAD"), "core")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!text(&stdio.stderr).contains("nonsense"), "{}", text(&stdio.stderr));
        let doctor = program().current_dir(&directory).args(["doctor", "--preload", "core"]).output().unwrap();
        assert!(text(&doctor.stdout).contains("no_subprocess: "), "{}", text(&doctor.stderr));
        assert!(!text(&doctor.stdout).contains("ALLOW_SUBPROCESS is on"), "{}", text(&doctor.stdout));
    }
}

#[test]
fn a_bad_env_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad");
    for (contents, told) in [
        (&b"PORT=1\nX=\xe9\n"[..], "bad: line 2: it must be UTF-8"),
        (b"PORT=1\nno assignment\n", "bad: line 2: it must be NAME=value"),
        (b"POLICY=always\n", "bad: POLICY: invalid value 'always'"),
    ] {
        std::fs::write(&path, contents).unwrap();
        let output = program().args(["run", "--code", "1", "--env-file"]).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(told), "{}", text(&output.stderr));
    }
    let output = program().args(["run", "--code", "1", "--env-file", "/nowhere/x"]).output().unwrap();
    assert!(text(&output.stderr).contains("/nowhere/x: there is no such file"));
}

/// C18: `build/tree/python/bin/python3` of the folder one stood in was run as the zygote, outside of every layer.
#[test]
fn no_tree_is_taken_from_the_folder_one_stands_in() {
    let folder = tempfile::tempdir().unwrap();
    let (evil, ran) = (folder.path().join("evil"), folder.path().join("ran"));
    let python = evil.join("build/tree/python/bin/python3");
    hostile_program(&python, &ran);
    // Away from the checkout, in whose build folder it would find a good one first.
    let installed = folder.path().join("code-interpreter");
    std::fs::copy(program().get_program(), &installed).unwrap();
    let mut command = std::process::Command::new(&installed);
    command.env_clear().current_dir(&evil).args(["run", "--code", "1"]);
    let output = command.output().unwrap();
    if !std::path::Path::new("/opt/code-interpreter").exists() {
        assert_eq!(output.status.code(), Some(2));
        let beside = folder.path().join("tree");
        let told = format!("no Python tree at {}, ", beside.display());
        assert!(text(&output.stderr).contains(&told), "{}", text(&output.stderr));
    }
    assert!(!ran.exists());
}

/// An empty or relative entry of PATH is the folder one stands in.
#[test]
fn no_uv_is_taken_from_the_folder_one_stands_in() {
    let folder = tempfile::tempdir().unwrap();
    let (evil, ran) = (folder.path().join("evil"), folder.path().join("ran"));
    hostile_program(&evil.join("uv"), &ran);
    let tree = program().get_envs().find(|(name, _)| **name == *variable("PYTHON_TREE")).unwrap().1.unwrap().to_owned();
    // Another way to the tree, beside which there is no uv.
    std::os::unix::fs::symlink(tree, folder.path().join("tree")).unwrap();
    std::os::unix::fs::symlink("/", evil.join("bin")).unwrap();
    let mut command = program();
    command.env(variable("PYTHON_TREE"), folder.path().join("tree")).env("PATH", ":.:../evil").current_dir(&evil);
    command
        .env(variable("PACKAGE_DIR"), folder.path().join("packages"))
        .env(variable("PACKAGE_INDEX"), "http://127.0.0.1:1/simple")
        .env(variable("ALLOW_ROOT"), "true");
    let output = command.args(["run", "--code", "1", "--requirement", "humanize"]).output().unwrap();
    assert!(text(&output.stderr).contains("package_error"), "{}", text(&output.stderr));
    assert!(!ran.exists());
}

/// A program that makes a file when it is run.
fn hostile_program(path: &std::path::Path, mark: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n: > {}\n", mark.display())).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// `LOG=verbose` was silence: the word was taken for the name of a part.
#[test]
fn an_unknown_log_value_is_told_and_is_not_silence() {
    let output =
        program().args(["run", "--code", "1", "--disable-layer", "seccomp"]).env(variable("LOG"), "verbose").output().unwrap();
    let told = text(&output.stderr);
    assert!(told.contains("LOG: \"verbose\" is no level; it must be one of off, error, warn, info, debug, trace"), "{told}");
    assert!(told.contains("DISABLE_LAYERS leaves off seccomp"), "{told}");
}

/// Newcomer 19: 5 error lines a second for 30 seconds, and none of them named the limit.
#[test]
fn a_limit_on_descriptors_that_is_too_low_is_refused_in_words() {
    let output = program_with_descriptors(Home::Caller, "64", Some("64")).args(["run", "--code", "1"]).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("(`ulimit -n`) is 64, and 1024 are needed for MAX_CONCURRENCY="), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    let output = program_with_descriptors(Home::Caller, "1024", Some("2048"))
        .args(["run", "--code", "1", "--max-concurrency", "1024"])
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("is 2048, and "), "{}", text(&output.stderr));
    let output =
        program_with_descriptors(Home::Caller, "1024", Some("1024")).args(["run", "--code", "print(2+3)"]).output().unwrap();
    assert_eq!(text(&output.stdout), "5\n", "the usual one is enough");
}

/// Newcomer 18: it went on until its timeout, and printing into a closed pipe was a panic.
#[test]
fn a_reader_that_goes_away_ends_the_command() {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::process::ExitStatusExt;
    let code = "import itertools\nfor n in itertools.count(): print(n, flush=True)";
    for arguments in [&["run", "--timeout", "100", "--code", code][..], &["doctor", "--preload", "core"], &["settings", "env"]] {
        let mut command = program();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        if arguments[0] == "run" {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert_eq!(line, "0\n");
        }
        drop(stdout);
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        let status = child.wait().unwrap();
        // What is short may have gone into the pipe before it was closed.
        let by_signal = status.signal() == Some(13) || arguments[0] == "settings" && status.success();
        assert!(by_signal, "{arguments:?}: {status:?} {told}");
        assert_eq!(told, "", "{arguments:?}");
    }
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program().args(["run", "--code", "print(1)"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("standard output: "), "{}", text(&output.stderr));
}

#[test]
fn doctor_reports_a_working_interpreter_and_its_layers() {
    let output = program().args(["doctor", "--preload", "core"]).output().unwrap();
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert!(report.contains("run       works") && report.contains("active    scrubbed_environment"), "{report}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn doctor_says_of_each_refused_layer_how_to_have_it() {
    // As an ordinary user on a kernel that refuses nearly all.
    let output = program_in(Home::Lambda).args(["doctor", "--preload", "core"]).output().unwrap();
    let report = text(&output.stdout);
    let lines = report.lines().collect::<Vec<_>>();
    let refused = (0..lines.len()).filter(|at| lines[*at].starts_with("REFUSED")).collect::<Vec<_>>();
    assert!(refused.len() > 5, "{report}");
    for at in refused {
        assert!(lines[at + 1].starts_with("          "), "{}: {report}", lines[at]);
    }
}
