//! A server of the test's own, and a client for it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// Who runs the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// Whoever runs the tests.
    Caller,
    /// An ordinary user. Needs root to become one.
    User,
    /// An ordinary user on a kernel without Landlock. Needs root to become one.
    NoLandlock,
    /// A user for whom the kernel refuses prctl, as inside a Lambda function. Needs root to become one.
    Lambda,
    /// The same, where everything is refused that was never confirmed to be granted there. Needs root to become one.
    Strict,
}

/// The program, the tree and the jail, at places that every user can reach.
fn installation() -> &'static (PathBuf, PathBuf, PathBuf) {
    static PLACES: OnceLock<(PathBuf, PathBuf, PathBuf)> = OnceLock::new();
    PLACES.get_or_init(|| {
        let program = Path::new(env!("CARGO_BIN_EXE_code-interpreter"));
        let (tree, [program, jail]) = homes::reachable([program, &homes::jail_beside(program)]);
        (program, tree, jail)
    })
}

/// A setting's variable, by the name that every command reads.
pub(crate) fn variable(setting: &str) -> String {
    format!("CODE_INTERPRETER_{setting}")
}

/// The program with the tree named, to be given its arguments.
pub(crate) fn program() -> Command {
    program_in(Home::Caller)
}

fn in_jail(jail: &Path, mode: &str, program: &Path) -> Command {
    let mut command = Command::new(jail);
    command.arg(mode).arg(program);
    command
}

pub(crate) fn program_in(home: Home) -> Command {
    let (program, tree, jail) = installation();
    let mut command = match home {
        Home::User | Home::Lambda | Home::Strict | Home::NoLandlock if !homes::is_root() => panic!("{home:?} needs root"),
        Home::Caller | Home::User => Command::new(program),
        // prctl answers EPERM for everything below the jail.
        Home::Lambda => in_jail(jail, "lambda", program),
        Home::Strict => in_jail(jail, "strict", program),
        Home::NoLandlock => in_jail(jail, "no-landlock", program),
    };
    if home != Home::Caller {
        command.uid(homes::USER).gid(homes::USER);
    }
    command.env_clear().env(variable("PYTHON_TREE"), tree).env("PATH", "/usr/bin:/bin").env("SECRET_KEY", "of-the-server");
    // Of the tests' own, and for each home another: its user owns it.
    command.env(variable("PACKAGE_DIR"), std::env::temp_dir().join(format!("code-interpreter-test-packages-{home:?}")));
    command.current_dir("/");
    command
}

/// The program behind a shell that sets the soft limit on its descriptors, and the hard one when there is one.
pub(crate) fn program_with_descriptors(home: Home, soft: &str, hard: Option<&str>) -> Command {
    let usual = program_in(home);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -Sn $0 && { [ -z $1 ] || ulimit -Hn $1; } && shift && exec \"$@\"", soft, hard.unwrap_or("")]);
    command.arg(usual.get_program()).args(usual.get_args());
    let environment = usual.get_envs().filter_map(|(name, value)| Some((name, value?)));
    command.env_clear().envs(environment).current_dir("/");
    if home != Home::Caller {
        command.uid(homes::USER).gid(homes::USER);
    }
    command
}

/// A running server; stopped when dropped.
pub(crate) struct Server {
    child: Mutex<Child>,
    pub(crate) address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        if child.try_wait().unwrap().is_none() {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            child.wait().unwrap();
        }
    }
}

impl Server {
    /// With the smallest stack.
    pub(crate) fn start() -> Self {
        Self::with(Home::Caller, &[("PRELOAD", "core")])
    }

    /// With the smallest stack, and leave to start programs.
    pub(crate) fn with_subprocesses(home: Home) -> Self {
        Self::with(home, &[("PRELOAD", "core"), ("DEFAULT_TIMEOUT", "10"), ("ALLOW_SUBPROCESS", "true")])
    }

    pub(crate) fn with(home: Home, settings: &[(&str, &str)]) -> Self {
        Self::with_log(home, settings, None).0
    }

    /// And the lines it logs; `files`: how many descriptors it may have.
    pub(crate) fn with_log(home: Home, settings: &[(&str, &str)], files: Option<u32>) -> (Self, Arc<Mutex<Vec<String>>>) {
        let mut command = program_in(home);
        if let Some(files) = files {
            let limited = command;
            command = Command::new("sh");
            command
                .arg("-c")
                .arg(format!("ulimit -n {files}; exec \"$@\""))
                .arg("sh")
                .arg(limited.get_program())
                .args(limited.get_args());
            command.env_clear().envs(limited.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
        }
        // By the plain names, which a server reads, too, where the prefixed one is not there.
        for (name, value) in settings {
            command.env_remove(variable(name)).env(name, value);
        }
        Self::logged(command)
    }

    /// Of a command that lacks nothing but its arguments.
    pub(crate) fn of(command: Command) -> Self {
        Self::logged(command).0
    }

    pub(crate) fn logged(mut command: Command) -> (Self, Arc<Mutex<Vec<String>>>) {
        command.arg("serve").env(variable("PORT"), "0");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map(Result::unwrap)
            .inspect(|line| eprintln!("{line}"))
            .find_map(|line| Some(line.split_once("http://")?.1.split_once('/')?.0.to_owned()))
            .expect("the server names its address");
        let log = Arc::<Mutex<Vec<String>>>::default();
        let kept = log.clone();
        // Whatever it says later must not fill the pipe.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| {
                eprintln!("{line}");
                kept.lock().unwrap().push(line);
            });
        });
        (Self { child: Mutex::new(child), address }, log)
    }

    /// As when the machine runs out of memory: nothing can be cleaned up.
    pub(crate) fn kill(mut self) {
        let child = self.child.get_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// How it has ended, once it has by itself.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.lock().unwrap().id()).unwrap()
    }

    /// One request on a connection of its own: status and body.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, String) {
        let (status, _, body) = self.request_with_headers(method, path, headers, body).await;
        (status, body)
    }

    /// The same with the answer's headers.
    pub(crate) async fn request_with_headers(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, HeaderMap, String) {
        let stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        // Dropped with the request: then its client has gone.
        let mut connections = tokio::task::JoinSet::new();
        connections.spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", &self.address);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Calls a tool as curl users do, without a handshake: the JSON-RPC answer.
    pub(crate) async fn call(&self, tool: &str, arguments: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}});
        let (status, text) = self.request("POST", "/mcp", &[("content-type", "application/json")], body.to_string()).await;
        assert_eq!(status, 200, "{text}");
        last_event(&text)
    }

    /// Runs code: the result.
    pub(crate) async fn run(&self, code: &str) -> Value {
        self.run_with(json!({"code": code})).await
    }

    pub(crate) async fn run_with(&self, arguments: Value) -> Value {
        let answer = self.call("execute_python", arguments).await;
        told(&answer)
    }

    /// That the next call works, and in an interpreter of its own.
    pub(crate) async fn still_works(&self) {
        let result = self.run("print(2+3)").await;
        assert_eq!((result["stdout"].as_str(), result["success"].as_bool()), (Some("5\n"), Some(true)), "{result}");
    }
}

/// Command lines of live processes that hold `marker`; of one that is a folder, also those that name a server's directory in
/// it: in a root of their own processes know no more of it.
pub(crate) fn processes_named(marker: &str) -> Vec<String> {
    let markers = names_of_servers(marker);
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    // When its first thread has ended, a process's own line is empty.
    let line = |entry: std::fs::DirEntry| {
        let threads = std::fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten();
        let mut lines = threads.filter_map(|thread| std::fs::read(thread.path().join("cmdline")).ok());
        lines.find(|line| !line.is_empty())
    };
    entries
        .filter_map(line)
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| markers.iter().any(|marker| line.contains(marker)))
        .collect()
}

/// A folder's path, and the names of servers' directories in it.
pub(crate) fn names_of_servers(folder: &str) -> Vec<String> {
    let inside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = inside.map(|entry| entry.file_name().into_string().unwrap());
    inside.filter(|name| name.starts_with("code-interpreter-")).chain([folder.to_owned()]).collect()
}

/// What a tool answered: the JSON text that its result begins with.
pub(crate) fn told(answer: &Value) -> Value {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {answer}"));
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The message of the last event of a stream, or of a plain JSON body.
pub(crate) fn last_event(body: &str) -> Value {
    let data = body.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap_or(body);
    serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {body}"))
}
