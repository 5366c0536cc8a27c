//! `code-interpreter doctor --attack`: runs hostile programs, here or against a deployment, and says
//! what stopped each.
//!
//! Rule: an attack that gets through although a layer that should stop it is reported as active is a broken promise,
//! and the exit code says so. One that no active layer covers is open, and said to be open.

use std::process::ExitCode;
use std::sync::Arc;

use protocol::{ErrorCode, ExecutionResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use server::{Interpreter, LayerState};

use crate::deployment::Deployment;

const ATTACKS: &str = include_str!("../attacks/attacks.json");
/// A program prints a line that starts with this when its attack worked.
const GOT_THROUGH: &str = "OPEN";
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
    code: Vec<String>,
    /// Layers of which each stops it.
    #[serde(default)]
    stopped_by: Vec<String>,
    /// Error codes of which one must end it; none for a program that looks whether it got through.
    #[serde(default)]
    expect: Vec<String>,
    /// A second call that looks for what the first one left.
    then: Option<Vec<String>>,
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

/// Where the attacks run.
pub(crate) enum Target {
    /// An engine in this process.
    Local(Arc<Interpreter>),
    /// A deployment, by the address of its MCP endpoint.
    Remote(Deployment),
}

/// Runs every attack.
pub(crate) async fn attack(target: Arc<Target>, as_json: bool) -> ExitCode {
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

impl Target {
    /// Names of the layers that are reported as active.
    async fn active_layers(self: &Arc<Self>) -> Result<Vec<String>, String> {
        match &**self {
            Self::Local(interpreter) => {
                let layers = interpreter.environment().sandbox.into_iter();
                Ok(layers.filter(|layer| layer.state == LayerState::Active).map(|layer| layer.name.to_owned()).collect())
            }
            Self::Remote(_) => {
                let environment = self.call("get_environment_info", json!({})).await?;
                let layers = environment["sandbox"].as_array().ok_or("the deployment does not report its layers")?;
                let active = layers.iter().filter(|layer| layer["state"] == "active");
                Ok(active.filter_map(|layer| layer["name"].as_str().map(str::to_owned)).collect())
            }
        }
    }

    async fn run(self: &Arc<Self>, code: &str) -> Result<ExecutionResult, String> {
        let call = json!({"code": code, "timeout": TIMEOUT_SECONDS});
        match (&**self, call) {
            (Self::Local(interpreter), Value::Object(call)) => {
                let request = interpreter.check(call).map_err(|error| error.to_string())?;
                Ok(interpreter.execute(&request, &mut |_| {}).await.result)
            }
            (_, call) => serde_json::from_value(self.call("execute_python", call).await?).map_err(|error| error.to_string()),
        }
    }

    /// Calls a tool of a deployment: its structured result.
    async fn call(self: &Arc<Self>, tool: &'static str, arguments: Value) -> Result<Value, String> {
        let target = self.clone();
        let call = move || match &*target {
            Self::Remote(deployment) => deployment.call(tool, &arguments),
            Self::Local(_) => Err("not a deployment".to_owned()),
        };
        tokio::task::spawn_blocking(call).await.map_err(|error| error.to_string())?
    }
}

#[expect(clippy::print_stdout, reason = "a report for a person")]
fn show(finding: &Finding<'_>) {
    let verdict = match finding.verdict {
        Verdict::Stopped => "stopped",
        Verdict::Open => "OPEN",
        Verdict::Broken => "BROKEN",
        Verdict::Inconclusive => "UNCLEAR",
    };
    println!("{verdict:<8} {:<28} {}: {}", finding.name, finding.tries, finding.detail);
}

#[expect(clippy::print_stdout, reason = "a report for a person")]
fn summarise(findings: &[Finding<'_>], as_json: bool, failed: usize, open: usize) {
    if as_json {
        println!("{}", json!(findings));
    } else {
        println!("\n{} attacks: {failed} broke a promise or proved nothing, {open} are open here", findings.len());
    }
}

async fn try_one<'a>(
    target: &Arc<Target>,
    prelude: &[String],
    attack: &'a Attack,
    active: &[String],
) -> Result<Finding<'a>, String> {
    let source = |code: &[String]| [prelude, code].concat().join("\n");
    let mut result = target.run(&source(&attack.code)).await?;
    if let Some(then) = &attack.then {
        result = target.run(&source(then)).await?;
    }
    let (mut verdict, mut detail) = judge(attack, &result, active);
    if target.run("print(2+3)").await?.stdout != "5\n" {
        (verdict, detail) = (Verdict::Broken, "the next call did not work".to_owned());
    }
    Ok(Finding { name: &attack.name, family: &attack.family, tries: &attack.tries, verdict, detail })
}

fn judge(attack: &Attack, result: &ExecutionResult, active: &[String]) -> (Verdict, String) {
    let last_word = result.stdout.lines().last().unwrap_or_default();
    if let Some(through) = result.stdout.lines().find(|line| line.starts_with(GOT_THROUGH)) {
        return match attack.stopped_by.iter().find(|layer| active.contains(layer)) {
            Some(layer) => (Verdict::Broken, format!("{layer} is active, and yet: {through}")),
            None => (Verdict::Open, format!("would be stopped by {}", attack.stopped_by.join(" or "))),
        };
    }
    let Some(error) = &result.error else {
        let ended = attack.expect.is_empty();
        return (if ended { Verdict::Stopped } else { Verdict::Broken }, last_word.to_owned());
    };
    if !attack.expect.is_empty() {
        let expected = attack.expect.iter().any(|code| code == error.code.as_str());
        return (
            if expected { Verdict::Stopped } else { Verdict::Broken },
            format!("{}: {}", error.code.as_str(), error.message),
        );
    }
    let refused = error.code == ErrorCode::PythonError && REFUSALS.contains(&error.kind.as_str());
    (if refused { Verdict::Stopped } else { Verdict::Inconclusive }, format!("{}: {}", error.kind, error.message))
}
