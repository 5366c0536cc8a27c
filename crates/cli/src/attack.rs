//! `code-interpreter doctor --attack`: sends hostile programs and requests to a deployment, or to a server of its own,
//! and says what stopped each.
//!
//! Rule: an attack that gets through although a layer that should stop it is reported as active is a broken promise,
//! and the exit code says so. One that no active layer covers is open, and said to be open. One that does not say by what it
//! was stopped proves nothing, and counts as failed, too.

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use protocol::{ErrorCode, ExecutionError, ExecutionResult, Layer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::deployment::Deployment;
use crate::output;

const ATTACKS: &str = include_str!("../attacks/attacks.json");
/// A program prints a line that starts with this when its attack worked.
const GOT_THROUGH: &str = "OPEN";
/// And one that starts with this, with the reason, when it did not: its end alone says nothing.
const STOPPED: &str = "STOPPED";
const TIMEOUT_SECONDS: f64 = 2.0;
/// What the system says when it refuses something; any other exception is a mistake in the attack.
const REFUSALS: &[&str] = &[
    "PermissionError",
    "FileNotFoundError",
    "ProcessLookupError",
    "ConnectionRefusedError",
    "BlockingIOError",
    "OSError",
    "URLError",
    "gaierror",
    "ValueError",
];

#[derive(Deserialize)]
struct Suite {
    /// Put before every program.
    prelude: Vec<String>,
    attacks: Vec<Attack>,
}

#[derive(Deserialize)]
struct Attack {
    name: String,
    family: String,
    tries: String,
    /// Layers, or settings of the door, of which each stops it.
    #[serde(default)]
    stopped_by: Vec<Wall>,
    #[serde(flatten)]
    weapon: Weapon,
}

/// What stops an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Wall {
    Layer(Layer),
    Setting(DoorSetting),
}

/// A setting of the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum DoorSetting {
    AllowedHosts,
    AllowedOrigins,
}

impl fmt::Display for Wall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Layer(layer) => layer.as_str(),
            Self::Setting(DoorSetting::AllowedHosts) => "ALLOWED_HOSTS",
            Self::Setting(DoorSetting::AllowedOrigins) => "ALLOWED_ORIGINS",
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Weapon {
    Program(Program),
    Request { request: HostileRequest },
}

/// Code for the interpreter.
#[derive(Deserialize)]
struct Program {
    code: Vec<String>,
    /// Error codes of which one must end it; none for a program that looks whether it got through.
    #[serde(default)]
    expect: Vec<String>,
    /// What it may take: longer where the machine must have time to do what is to be stopped.
    #[serde(default = "usual_seconds")]
    seconds: f64,
    /// A second call that looks for what the first one left.
    then: Option<Vec<String>>,
}

fn usual_seconds() -> f64 {
    TIMEOUT_SECONDS
}

/// A request for the door, which must refuse it.
#[derive(Deserialize)]
struct HostileRequest {
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The whole body; a call that would run `print('OPEN')` when there is none.
    body: Option<String>,
    /// Arguments of such a call, as JSON text: it may be text that is none.
    arguments: Option<String>,
    /// Stands for `%` in the body, this many times.
    #[serde(default)]
    fill: (String, usize),
    /// The argument that the refusal, or a warning that it had no effect, must name.
    field: Option<String>,
    /// The reason of a refusal that is a result.
    reason: Option<String>,
}

/// How an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It did not get through.
    Stopped,
    /// It got through, and no active layer is said to stop it.
    Open,
    /// It got through a layer that is said to be active, or the engine was harmed.
    Broken,
    /// The program itself failed: it proves nothing.
    Inconclusive,
}

#[derive(Serialize)]
struct Finding<'a> {
    name: &'a str,
    family: &'a str,
    tries: &'a str,
    verdict: Verdict,
    detail: String,
}

/// Runs every attack.
pub(crate) async fn attack(deployment: Deployment, as_json: bool) -> ExitCode {
    let target = Target(Arc::new(deployment));
    let suite: Suite = match serde_json::from_str(ATTACKS) {
        Ok(suite) => suite,
        Err(error) => return crate::fail(&format!("the bundled attacks can't be read: {error}")),
    };
    let active = match target.active_layers().await {
        Ok(active) => active,
        Err(error) => return crate::fail(&error),
    };
    let mut findings = Vec::new();
    for attack in &suite.attacks {
        let finding = match try_one(&target, &suite.prelude, attack, &active).await {
            Ok(finding) => finding,
            Err(error) => return crate::fail(&format!("{}: {error}", attack.name)),
        };
        if !as_json {
            show(&finding);
        }
        findings.push(finding);
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let failed = count(Verdict::Broken) + count(Verdict::Inconclusive);
    summarise(&findings, as_json, failed, count(Verdict::Open));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is attacked, for tasks that must not block.
#[derive(Clone)]
struct Target(Arc<Deployment>);

impl Target {
    /// The layers that are reported as active, of those that this program knows.
    async fn active_layers(&self) -> Result<Vec<Wall>, String> {
        let environment = self.call("get_environment_info", json!({})).await?;
        let layers = environment["sandbox"].as_array().ok_or("the deployment does not report its layers")?;
        let active = layers.iter().filter(|layer| layer["state"] == "active");
        Ok(active.filter_map(|layer| layer["name"].as_str()?.parse().ok().map(Wall::Layer)).collect())
    }

    async fn run(&self, code: &str, seconds: f64) -> Result<ExecutionResult, String> {
        let result = self.call("execute_python", json!({"code": code, "timeout": seconds})).await?;
        serde_json::from_value(result).map_err(|error| error.to_string())
    }

    /// Calls a tool: its structured result.
    async fn call(&self, tool: &'static str, arguments: Value) -> Result<Value, String> {
        self.blocking(move |deployment| deployment.call(tool, &arguments)).await
    }

    /// Sends a body as it is: the status and the text of the answer.
    async fn send(&self, headers: BTreeMap<String, String>, body: String) -> Result<(u16, String), String> {
        self.blocking(move |deployment| deployment.send(&headers, &body)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Deployment) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let target = self.clone();
        tokio::task::spawn_blocking(move || request(&target.0)).await.map_err(|error| error.to_string())?
    }
}

impl HostileRequest {
    fn body(&self) -> String {
        let (filling, times) = &self.fill;
        let arguments = self.arguments.as_deref().unwrap_or(r#"{"code": "print('OPEN')"}"#);
        let call = || {
            let params = format!(r#"{{"name": "execute_python", "arguments": {arguments}}}"#);
            format!(r#"{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {params}}}"#)
        };
        let body = self.body.clone().unwrap_or_else(call);
        if filling.is_empty() { body } else { body.replace('%', &filling.repeat(*times)) }
    }

    /// Whether the answer is a refusal, for the right reason.
    fn judge(&self, status: u16, text: &str) -> (bool, String) {
        let message = crate::deployment::last_message(text);
        let error = &message["error"];
        let said = format!("HTTP {status}: {}", error["message"].as_str().unwrap_or(text).chars().take(80).collect::<String>());
        let refused = (400..500).contains(&status) || (status == 200 && error["code"].is_i64());
        let told = crate::deployment::told(&message);
        let result = &told["error"];
        if let Some(reason) = &self.reason {
            let said = format!("{}: {}", result["type"], result["message"].as_str().unwrap_or(text));
            return (result["type"] == reason.as_str(), said.chars().take(100).collect());
        }
        let Some(field) = &self.field else { return (refused, said) };
        if refused {
            return (error["data"]["field"] == field.as_str(), said);
        }
        // As a result: by an error or, where the argument had no effect, or another one, by a warning.
        let lines = result["message"].as_str().into_iter();
        let mut lines = lines.chain(told["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str));
        let named = lines.find(|line| line.starts_with(&format!("{field}: ")));
        (named.is_some(), named.unwrap_or(text).chars().take(100).collect())
    }
}

fn show(finding: &Finding<'_>) {
    let verdict = match finding.verdict {
        Verdict::Stopped => "stopped",
        Verdict::Open => "OPEN",
        Verdict::Broken => "BROKEN",
        Verdict::Inconclusive => "UNCLEAR",
    };
    output::out(format!("{verdict:<8} {:<28} {}: {}\n", finding.name, finding.tries, finding.detail));
}

fn summarise(findings: &[Finding<'_>], as_json: bool, failed: usize, open: usize) {
    if as_json {
        output::out(format!("{}\n", json!(findings)));
    } else {
        output::out(format!("\n{} attacks: {failed} broke a promise or proved nothing, {open} are open here\n", findings.len()));
    }
}

async fn try_one<'a>(target: &Target, prelude: &[String], attack: &'a Attack, active: &[Wall]) -> Result<Finding<'a>, String> {
    let (mut verdict, mut detail) = match &attack.weapon {
        Weapon::Program(program) => {
            let source = |code: &[String]| [prelude, code].concat().join("\n");
            let first = target.run(&source(&program.code), program.seconds).await?;
            match &program.then {
                None => judge(attack, program, &first, active),
                Some(_) if first.error.as_ref().is_some_and(|error| !is_refusal(error)) => {
                    (Verdict::Inconclusive, first.error.map(|error| error.message).unwrap_or_default())
                }
                Some(then) => judge(attack, program, &target.run(&source(then), program.seconds).await?, active),
            }
        }
        Weapon::Request { request } => {
            match target.send(request.headers.clone(), request.body()).await.map(|(status, text)| request.judge(status, &text)) {
                Ok((true, said)) => (Verdict::Stopped, said),
                Ok((false, said)) => got_through(attack, active, &said),
                // Refused before it was read to its end: whether the server still lives shows below.
                Err(closed) => (Verdict::Stopped, closed),
            }
        }
    };
    if target.run("print(2+3)", TIMEOUT_SECONDS).await?.stdout != "5\n" {
        (verdict, detail) = (Verdict::Broken, "the next call did not work".to_owned());
    }
    Ok(Finding { name: &attack.name, family: &attack.family, tries: &attack.tries, verdict, detail })
}

fn got_through(attack: &Attack, active: &[Wall], what: &str) -> (Verdict, String) {
    match attack.stopped_by.iter().find(|layer| active.contains(layer)) {
        Some(layer) => (Verdict::Broken, format!("{layer} is active, and yet: {what}")),
        None if attack.stopped_by.is_empty() => (Verdict::Broken, what.to_owned()),
        None => {
            let walls = attack.stopped_by.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            (Verdict::Open, format!("would be stopped by {walls}"))
        }
    }
}

fn judge(attack: &Attack, program: &Program, result: &ExecutionResult, active: &[Wall]) -> (Verdict, String) {
    let last_word = result.stdout.lines().last().unwrap_or_default();
    if let Some(through) = result.stdout.lines().find(|line| line.starts_with(GOT_THROUGH)) {
        return got_through(attack, active, through);
    }
    let Some(error) = &result.error else {
        let verdict = match (program.expect.is_empty(), last_word.starts_with(STOPPED)) {
            (false, _) => Verdict::Broken,
            (true, true) => Verdict::Stopped,
            (true, false) => Verdict::Inconclusive,
        };
        return (verdict, last_word.to_owned());
    };
    if !program.expect.is_empty() {
        let expected = program.expect.iter().any(|code| code == error.code.as_str());
        return (
            if expected { Verdict::Stopped } else { Verdict::Broken },
            format!("{}: {}", error.code.as_str(), error.message),
        );
    }
    (if is_refusal(error) { Verdict::Stopped } else { Verdict::Inconclusive }, format!("{}: {}", error.kind, error.message))
}

fn is_refusal(error: &ExecutionError) -> bool {
    error.code == ErrorCode::PythonError && REFUSALS.contains(&error.kind.as_str())
}
