//! The doors, each by its real program: what a case comes to there.
//!
//! A new one has a name in [`NAMES`], a way to be opened in [`open`], and says how a case is asked.

use std::collections::BTreeMap;
use std::fs::{Permissions, read_dir};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Case;
use crate::index::Index;
use crate::lambda::function::{Function, alone, message, post};

/// Small enough that each limit is met soon, and one answer is longer than an event may be.
const SETTINGS: [(&str, &str); 11] = [
    ("PRELOAD", "core"),
    ("DEFAULT_TIMEOUT", "20"),
    ("MAX_TIMEOUT", "25"),
    ("MAX_MEMORY_MB", "128"),
    ("MAX_PROCESSES", "16"),
    ("MAX_DISK_MB", "5"),
    ("MAX_FILE_MB", "2"),
    ("MAX_OUTPUT_BYTES", "1100000"),
    ("OUTPUT_LIMIT_BYTES", "8000000"),
    ("MAX_IMAGES_BYTES", "60000"),
    ("MAX_FILES_BYTES", "20000"),
];

/// An answer, or why there is none to compare.
pub(super) type Answer = Result<Value, &'static str>;

/// There is no way to ask for it.
const NOT_ASKED: &str = "(can't be asked)";
/// What is no answer: its words are the door's own.
const IN_WORDS: &str = "(refused in words)";

/// Where answers come out.
pub(super) trait Door: Sync {
    fn ask(&self, case: &Case) -> Answer;

    /// How many cases are asked at the same time.
    fn at_once(&self) -> usize {
        1
    }
}

/// All doors. The others are held to the first.
pub(super) const NAMES: [&str; 6] = ["http", "sse", "stdio", "run", "lambda", "lambda-outside"];

pub(super) fn open(name: &str, index: &Index) -> Box<dyn Door> {
    let url = index.url();
    let settings = [&SETTINGS[..], &[("PACKAGE_INDEX", url.as_str())]].concat();
    match name {
        "http" => Box::new(Http::open(false, &settings)),
        "sse" => Box::new(Http::open(true, &settings)),
        "stdio" => Box::new(Piped::open(&settings)),
        "run" => Box::new(Run(Program::new(&settings))),
        "lambda" => Box::new(Lambda(Function::within(Some("lambda"), &settings, &[]))),
        "lambda-outside" => Box::new(Lambda(Function::within(None, &settings, &[]))),
        _ => panic!("there is no door {name}"),
    }
}

/// What a client of MCP is told. What it is told twice is the same both times. `cut`: structured content may be left out.
fn of_message(message: &Value, cut: bool) -> Value {
    if let Some(error) = message.get("error") {
        return json!({"protocol_error": error});
    }
    let result = &message["result"];
    let content = result["content"].as_array().unwrap_or_else(|| panic!("no content: {message}"));
    let mut answer: Value = serde_json::from_str(content[0]["text"].as_str().unwrap()).unwrap();
    match result.get("structuredContent") {
        Some(structured) => assert_eq!(structured, &answer),
        // Clients that prefer it would not see what comes beside it.
        None => assert!(cut || answer["images"] != 0 || answer["files"] != Value::Null, "no structured content: {message}"),
    }
    assert_eq!(result["isError"], answer.get("success") == Some(&json!(false)), "{message}");
    let (mut images, mut files) = (Vec::new(), Vec::new());
    for block in &content[1..] {
        if block["type"] == "image" {
            images.push(json!([block["mimeType"], block["data"]]));
            continue;
        }
        let resource = &block["resource"];
        let uri = resource["uri"].as_str().unwrap_or_else(|| panic!("neither an image nor a file: {block}"));
        let name = percent_decode_str(uri.strip_prefix("file:///mnt/data/").unwrap()).decode_utf8().unwrap();
        let named = answer["files"].as_array().unwrap().iter().find(|file| file["name"] == *name).unwrap();
        assert_eq!(named["mime_type"], resource["mimeType"], "{block}");
        let text = resource["text"].as_str().map(|text| BASE64.encode(text));
        files.push(json!([name, text.map_or_else(|| resource["blob"].clone(), Value::String)]));
    }
    add_contents(&mut answer, images, files);
    answer
}

/// What comes with a status and a type: what is refused before it is a call is no event.
fn of_body(status: u16, content_type: &str, body: &str, events: bool) -> Value {
    let answer = of_message(&message(body), events);
    let refused = answer.get("protocol_error").is_some();
    let expected = if events { "text/event-stream" } else { "application/json" };
    assert!(refused || (status, content_type) == (200, expected), "{status} {content_type} {body}");
    answer
}

fn add_contents(answer: &mut Value, images: Vec<Value>, files: Vec<Value>) {
    answer["contents_of_images"] = images.into();
    answer["contents_of_files"] = files.into();
}

/// `code-interpreter` with its settings, as an ordinary user.
struct Program {
    path: std::path::PathBuf,
    environment: BTreeMap<String, std::ffi::OsString>,
    /// Of this door alone.
    _place: TempDir,
}

fn owned_folder() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    if homes::is_root() {
        chown(place.path(), Some(homes::USER), Some(homes::USER)).unwrap();
    }
    place
}

impl Program {
    fn new(settings: &[(&str, &str)]) -> Self {
        let built = homes::built_beside(Path::new(env!("CARGO_BIN_EXE_bootstrap")), "code-interpreter");
        let (tree, [path]) = homes::reachable([&built]);
        let place = owned_folder();
        let named = settings.iter().map(|(name, value)| (format!("CODE_INTERPRETER_{name}"), value.into()));
        let mut environment = named.collect::<BTreeMap<_, _>>();
        environment.insert("CODE_INTERPRETER_PYTHON_TREE".to_owned(), tree.into());
        environment.insert("CODE_INTERPRETER_PACKAGE_DIR".to_owned(), place.path().join("packages").into());
        environment.insert("TMPDIR".to_owned(), place.path().into());
        environment.insert("PATH".to_owned(), "/usr/bin:/bin".into());
        Self { path, environment, _place: place }
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = alone(&self.path);
        command.arg(subcommand).env_clear().envs(&self.environment).current_dir("/");
        command
    }
}

/// Ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.0.wait().unwrap();
    }
}

/// `serve`, which answers in one piece of JSON or in events.
struct Http {
    events: bool,
    url: String,
    _running: Running,
    _program: Program,
}

impl Http {
    fn open(events: bool, settings: &[(&str, &str)]) -> Self {
        let program = Program::new(settings);
        let mut command = program.command("serve");
        command.env("CODE_INTERPRETER_PORT", "0").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.by_ref().inspect(|line| eprintln!("{line}")).find_map(|line| {
            let from = line.find("http://")?;
            Some(line[from..].trim().to_owned())
        });
        // Whatever it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
        let url = address.expect("the server names its address");
        Self { events, url, _running: Running(child), _program: program }
    }
}

impl Door for Http {
    fn ask(&self, case: &Case) -> Answer {
        let (accept, meta) = if self.events {
            ("text/event-stream", json!({"progressToken": case.name}))
        } else {
            ("application/json, text/event-stream", json!({}))
        };
        let (status, content_type, body) = post(&self.url, &[("accept", accept)], &case.message(1, &meta));
        Ok(of_body(status, &content_type, &body, self.events))
    }
}

/// The function behind its gateway.
struct Lambda(Function);

impl Door for Lambda {
    fn ask(&self, case: &Case) -> Answer {
        let (status, content_type, body) = self.0.post("/lambda/mcp/", &[], &case.message(1, &json!({})));
        Ok(of_body(status, &content_type, &body, false))
    }
}

/// `stdio`, one line each.
struct Piped {
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    asked: AtomicU64,
    _running: Running,
    _program: Program,
}

impl Piped {
    fn open(settings: &[(&str, &str)]) -> Self {
        let program = Program::new(settings);
        let mut child = program.command("stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pipes = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { pipes: Mutex::new(pipes), asked: AtomicU64::new(0), _running: Running(child), _program: program }
    }
}

impl Door for Piped {
    fn ask(&self, case: &Case) -> Answer {
        let (input, output) = &mut *self.pipes.lock().unwrap();
        // None may be used twice.
        let id = self.asked.fetch_add(1, Ordering::Relaxed);
        writeln!(input, "{}", case.message(id, &json!({}))).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line:?}", case.name));
        assert_eq!(message["id"], id, "{}: {line}", case.name);
        Ok(of_message(&message, false))
    }
}

/// `run --json`, an engine of its own for each case.
struct Run(Program);

impl Run {
    /// What asks for a case.
    fn flags(case: &Case) -> Option<Vec<String>> {
        if case.tool() != "execute_python" {
            return None;
        }
        let arguments: BTreeMap<String, &RawValue> = serde_json::from_str(case.other_arguments()).unwrap();
        let mut flags = Vec::new();
        for (name, text) in &arguments {
            let value: Option<Value> = serde_json::from_str(text.get()).ok();
            match (name.as_str(), value) {
                ("input_data", value) if value != Some(Value::Null) => flags.push(format!("--input-data={text}")),
                ("timeout", Some(Value::Number(number))) => flags.push(format!("--timeout={number}")),
                ("timeout" | "policy", Some(Value::String(word))) => flags.push(format!("--{name}={word}")),
                ("requirements", Some(Value::Array(all))) if all.iter().all(Value::is_string) => {
                    flags.extend(all.iter().map(|one| format!("--requirement={}", one.as_str().unwrap())));
                }
                _ => return None,
            }
        }
        Some(flags)
    }
}

impl Door for Run {
    fn at_once(&self) -> usize {
        4
    }

    fn ask(&self, case: &Case) -> Answer {
        let (Some(flags), Some(code)) = (Self::flags(case), case.code()) else { return Err(NOT_ASKED) };
        let folder = owned_folder();
        let (figures, files) = (folder.path().join("figures"), folder.path().join("files"));
        let mut command = self.0.command("run");
        command.args(["--json", "-"]).args(flags).arg("--figures").arg(&figures).arg("--files").arg(&files);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(code.as_bytes());
        let output = child.wait_with_output().unwrap();
        let status = output.status.code();
        if output.stdout.is_empty() {
            assert!(status == Some(2) && !output.stderr.is_empty(), "{output:?}");
            return Err(IN_WORDS);
        }
        let mut answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        assert_eq!(answer["exit_code"].as_i64().map(|code| code & 0xFF), status.map(i64::from), "{output:?}");
        let content = |path: &Path| std::fs::read(path).ok().map(|bytes| BASE64.encode(bytes));
        let images = (1..=read_dir(&figures).map_or(0, Iterator::count)).map(|number| {
            let kinds = [("png", "image/png"), ("jpg", "image/jpeg")];
            let found = kinds
                .iter()
                .find_map(|(ending, kind)| Some(json!([kind, content(&figures.join(format!("figure-{number}.{ending}")))?])));
            found.unwrap_or_else(|| panic!("there is no figure {number}"))
        });
        let images = images.collect();
        let named = answer["files"].as_array().cloned().unwrap_or_default();
        let files = named.iter().filter_map(|file| Some(json!([file["name"], content(&files.join(file["name"].as_str()?))?])));
        let files = files.collect();
        add_contents(&mut answer, images, files);
        Ok(answer)
    }
}
