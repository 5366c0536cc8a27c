//! `code-interpreter doctor`: runs a cell and shows which protections hold on this machine; with `--attack` it tries them.

use std::process::ExitCode;
use std::sync::Arc;

use interpreter::Engine;
use serde_json::{Map, Value};
use server::{Interpreter, LayerState};

use crate::attack::Target;
use crate::settings::EngineSettings;

#[expect(clippy::print_stdout, reason = "a report for a person")]
pub(crate) async fn doctor(settings: &EngineSettings, attack: bool, json: bool) -> ExitCode {
    let interpreter = match start(settings).await {
        Ok(interpreter) => interpreter,
        Err(message) => return crate::fail(&message),
    };
    if attack {
        return crate::attack::attack(Arc::new(Target::Local(interpreter)), json).await;
    }
    let call = Map::from_iter([("code".to_owned(), Value::String("print(2+3)".to_owned()))]);
    let Ok(request) = interpreter.check(call) else { return crate::fail("the test cell was refused") };
    let outcome = interpreter.execute(&request, &mut |_| {}).await;
    let works = outcome.result.success && outcome.result.stdout == "5\n";
    let environment = interpreter.environment();
    println!("python    {} ({} packages)", environment.python_version, environment.installed_packages.len());
    println!("platform  {}", environment.platform);
    println!("run       {}", if works { "works" } else { "FAILS" });
    for layer in &environment.sandbox {
        let state = match layer.state {
            LayerState::Active => "active",
            LayerState::Refused => "REFUSED",
            LayerState::NotApplicable => "n/a",
            LayerState::Off => "off",
            LayerState::Unknown => "unknown",
        };
        let reason = layer.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        println!("{state:<9} {}: {}{reason}", layer.name, layer.effect);
    }
    if works { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn start(settings: &EngineSettings) -> Result<Arc<Interpreter>, String> {
    let engine = Engine::start(settings.config()?).await.map_err(|error| error.to_string())?;
    server::require(&engine.status(), settings.required_layers())?;
    Ok(Interpreter::new(engine, settings.max_timeout()?, settings.policy()))
}
