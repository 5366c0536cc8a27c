//! A function of the test's own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running function; stopped when dropped.
pub(crate) struct Function {
    gateway: Child,
    url: String,
    /// Address of the Runtime API.
    pub(crate) runtime_api: String,
    log: Arc<Mutex<Vec<String>>>,
    /// What the function has as `/tmp`.
    pub(crate) temporary: TempDir,
}

impl Drop for Function {
    fn drop(&mut self) {
        self.stop();
    }
}

/// AWS's emulator, as the SAM command line brings it.
fn emulator() -> PathBuf {
    let lib = homes::repository().join("build/aws/lib");
    let name = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let pythons = std::fs::read_dir(&lib).unwrap_or_else(|_| panic!("{} is not there: `make aws`", lib.display()));
    let inside = format!("site-packages/samcli/local/rapid/aws-lambda-rie-{name}");
    pythons.flatten().map(|python| python.path().join(&inside)).find(|path| path.exists()).unwrap()
}

/// Starts a program as a function's user, and in an IPC namespace of its own: a function has its machine to itself.
pub(crate) fn alone(program: &Path) -> Command {
    if !homes::is_root() {
        return Command::new(program);
    }
    let user = homes::USER.to_string();
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--ipc", "setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]).arg(program);
    command
}

impl Function {
    /// With the smallest stack.
    pub(crate) fn start() -> Self {
        Self::with(&[], &[])
    }

    pub(crate) fn with(settings: &[(&str, &str)], gateway: &[&str]) -> Self {
        Self::within(Some(super::JAIL), settings, gateway)
    }

    /// On a kernel that refuses what this jail does, or nothing.
    pub(crate) fn within(jail_mode: Option<&str>, settings: &[(&str, &str)], gateway: &[&str]) -> Self {
        let bootstrap = Path::new(env!("CARGO_BIN_EXE_bootstrap"));
        let built = bootstrap.parent().unwrap();
        let programs = [bootstrap, &homes::jail_beside(bootstrap), &emulator(), &built.join("examples/local_gateway")];
        let (tree, [bootstrap, jail, emulator, local_gateway]) = homes::reachable(programs);
        let temporary = tempfile::tempdir().unwrap();
        let mut command = alone(&local_gateway);
        command.arg("--rie").arg(emulator).arg("--bootstrap").arg(bootstrap).args(gateway);
        if let Some(mode) = jail_mode {
            command.arg("--launcher").arg(format!("{} {mode}", jail.display()));
        }
        if homes::is_root() {
            std::os::unix::fs::chown(temporary.path(), Some(homes::USER), Some(homes::USER)).unwrap();
        }
        command.env_clear().env("PATH", "/usr/bin:/bin").env("PYTHON_TREE", tree).env("TMPDIR", temporary.path());
        command.env("PRELOAD", "core").envs(settings.iter().copied()).current_dir("/").stdin(Stdio::null());
        let (reader, writer) = std::io::pipe().unwrap();
        let gateway = command.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
        drop(command);
        let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut after = |words: &str| {
            let mut lines = lines.by_ref().inspect(|line| eprintln!("{line}"));
            lines.find_map(|line| line.strip_prefix(words).map(str::to_owned)).expect("the gateway says what is where")
        };
        let runtime_api = after("the Runtime API is at ");
        let url = after("serving ");
        let heard = log.clone();
        std::thread::spawn(move || {
            for line in lines {
                eprintln!("{line}");
                heard.lock().unwrap().push(line);
            }
        });
        Self { gateway, url, runtime_api, log, temporary }
    }

    /// Sends one request to a path of the stage: status, content type and body.
    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
        post(&format!("{}{path}", self.url), headers, body)
    }

    /// Calls `execute_python`: the result.
    pub(crate) fn run(&self, code: &str) -> Value {
        self.run_with(&json!({"code": code}), &[])
    }

    pub(crate) fn run_with(&self, arguments: &Value, headers: &[(&str, &str)]) -> Value {
        let (status, _, text) = self.post("/lambda/mcp/", headers, &call("execute_python", arguments));
        assert_eq!(status, 200, "{text}");
        told(&text)
    }

    /// Waits until the log has a line that holds all of these.
    pub(crate) fn wait_for_log(&self, parts: &[&str]) -> String {
        let from = Instant::now();
        loop {
            let lines = self.log.lock().unwrap().clone();
            if let Some(line) = lines.into_iter().find(|line| parts.iter().all(|part| line.contains(part))) {
                return line;
            }
            assert!(from.elapsed() < PATIENCE, "the log has no line with {parts:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ids of the invocations so far.
    pub(crate) fn request_ids(&self) -> Vec<String> {
        let lines = self.log.lock().unwrap().clone();
        lines.iter().filter_map(|line| Some(line.strip_prefix("START RequestId: ")?.split(' ').next()?.to_owned())).collect()
    }

    /// Ends the environment as Lambda does.
    pub(crate) fn stop(&mut self) {
        if self.gateway.try_wait().unwrap().is_none() {
            let pid = rustix::process::Pid::from_child(&self.gateway);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        self.gateway.wait().unwrap();
    }
}

/// Sends one request: status, content type and body.
pub(crate) fn post(url: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().into();
    let mut request = agent.post(url).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send(body).unwrap();
    let content_type = response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), content_type.unwrap_or_default(), response.body_mut().read_to_string().unwrap())
}

pub(crate) fn call(tool: &str, arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}).to_string()
}

/// What a tool answered: the JSON text that its result begins with.
pub(crate) fn told(body: &str) -> Value {
    let answer = message(body);
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {body}"));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The message of the last event of a stream, or of a plain body.
pub(crate) fn message(body: &str) -> Value {
    let data = body.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap_or(body);
    serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {body}"))
}
