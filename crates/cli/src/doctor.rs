//! `code-interpreter doctor`: runs a cell and shows which protections hold on this machine; with `--attack` it tries them.

use std::process::ExitCode;
use std::sync::Arc;

use protocol::Silent;
use serde_json::{Map, Value};
use server::{Call, Door, DoorRules, LayerState, Service};
use tokio::net::TcpListener;

use crate::deployment::Deployment;
use crate::output;
use settings::{EngineSettings, HttpSettings};

pub(crate) async fn doctor(settings: &EngineSettings, http: &HttpSettings, attack: bool, json: bool) -> ExitCode {
    let service = match settings.start(true, DoorRules::default()).await {
        Ok(service) => service,
        Err(message) => return crate::fail(&message),
    };
    if attack {
        return attack_own_door(&service, http, json).await.unwrap_or_else(|message| crate::fail(&message));
    }
    let call = Map::from_iter([("code".to_owned(), Value::String("print(2+3)".to_owned()))]);
    let Ok(request) = service.check(call) else { return crate::fail("the test cell was refused") };
    let outcome = service.execute(&Call::new(Door::CommandLine), request, &mut Silent).await;
    let works = outcome.result.success && outcome.result.stdout == "5\n";
    let environment = service.environment();
    output::out(format!(
        "python    {} ({} packages)\nplatform  {}\nrun       {}\n",
        environment.python_version,
        environment.installed_packages.len(),
        environment.platform,
        if works { "works" } else { "FAILS" }
    ));
    for layer in &environment.sandbox {
        let state = match layer.state {
            LayerState::Active => "active",
            LayerState::Refused => "REFUSED",
            LayerState::NotApplicable => "n/a",
            LayerState::Off => "off",
            LayerState::Unknown => "unknown",
        };
        let reason = layer.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        output::out(format!("{state:<9} {}: {}{reason}\n", layer.name, layer.effect));
        if layer.state == LayerState::Refused {
            output::out(format!("          {}\n", settings::hint(layer.name, &service)));
        }
    }
    if works { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Opens a door as these settings have it, but on the loopback, and attacks that.
async fn attack_own_door(service: &Arc<Service>, http: &HttpSettings, json: bool) -> Result<ExitCode, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let deployment = Deployment::new(format!("http://{address}/mcp"), &[])?;
    let options = http.options()?;
    let never = std::future::pending();
    tokio::select! {
        code = crate::attack::attack(deployment, json) => Ok(code),
        () = server::serve(listener, service, &options, never) => Err("the door closed".to_owned()),
    }
}
