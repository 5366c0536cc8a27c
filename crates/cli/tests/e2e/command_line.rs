//! `run` and `doctor`.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::client::program;

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
    assert!(text(&output.stderr).contains("timeout: must be more than 0 and at most 120 seconds, not 500"));
    let output = program().args(["run", "--code", "1"]).env("PYTHON_TREE", "/nowhere").output().unwrap();
    assert!(text(&output.stderr).contains("no Python tree at /nowhere"));
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
fn settings_come_from_flags_then_environment_then_a_dotenv_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "DEFAULT_TIMEOUT=0.25\n").unwrap();
    let limit = |configure: &dyn Fn(&mut std::process::Command)| {
        let mut command = program();
        command.current_dir(folder.path()).args(["run", "--code", "while True: pass", "--json"]);
        configure(&mut command);
        let result: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        result["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(limit(&|_| {}).contains("0.25 s"));
    assert!(
        limit(&|command| {
            command.env("DEFAULT_TIMEOUT", "0.5");
        })
        .contains("0.5 s")
    );
    assert!(
        limit(&|command| {
            command.env("DEFAULT_TIMEOUT", "0.5").args(["--default-timeout", "0.75"]);
        })
        .contains("0.75 s")
    );
}

#[test]
fn doctor_reports_a_working_interpreter_and_its_layers() {
    let output = program().args(["doctor", "--preload", "core"]).output().unwrap();
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}");
    assert!(report.contains("run       works") && report.contains("active    scrubbed_environment"), "{report}");
}
