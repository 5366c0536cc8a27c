//! The Lambda function: the same service as `code-interpreter serve`, behind API Gateway.
//!
//! Rule: the kernel's own walls are closed to a function, so this process does for itself what it can. Nobody of its user
//! can read it; the response is open, and the Runtime API closed, before user code runs; nothing of that code is left
//! when the response ends.

mod api;
mod door;
mod events;
mod guard;
mod lock;
mod probes;
mod runtime;
mod workspace;

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use lambda_http::{Error, service_fn};
use server::{DoorRules, Service};
use settings::{EngineSettings, HttpSettings, LambdaSettings, LogFormat, LogSettings, Names, ResponseLock, Signals};

use crate::api::Api;
use crate::door::Door;
use crate::events::Events;
use crate::lock::Lock;
use crate::probes::Probes;
use crate::workspace::Workspace;

/// How long the end may take: Lambda gives half a second, and then kills.
const END_PATIENCE: Duration = Duration::from_millis(400);

/// All settings come from the environment.
#[derive(Debug, Parser)]
struct Settings {
    #[command(flatten)]
    engine: EngineSettings,
    #[command(flatten)]
    http: HttpSettings,
    #[command(flatten)]
    lambda: LambdaSettings,
    #[command(flatten)]
    log: LogSettings,
}

/// The whole program.
pub fn main() -> ExitCode {
    let readable = sandbox::start_again_unreadable();
    let settings = settings::from_environment::<Settings>(Names::Both);
    let log = settings.as_ref().ok().and_then(|(settings, _)| settings.log.log.as_deref());
    settings::start_log(log, "warn,lambda=info,server=info", LogFormat::Json);
    if let Err(error) = &readable {
        tracing::warn!(%error, "user code can read this process's memory and environment");
    }
    let result = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::from).and_then(|runtime| {
        let result = runtime.block_on(serve(settings, readable.is_ok()));
        // Kernels that are just being started end with their tasks, and the engine's directory with the last of them.
        runtime.shutdown_timeout(END_PATIENCE);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the function can't work");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Result<(Settings, Vec<String>), String>, unreadable: bool) -> Result<(), Error> {
    let (settings, notes) = settings?;
    for note in notes {
        tracing::warn!("{note}");
    }
    let streaming = settings.lambda.response_streaming;
    let api = Api::from_environment()?;
    let events = Arc::new(Events::new(api.clone()));
    let asked = settings.lambda.lock()?;
    let lock = match asked {
        ResponseLock::Off => None,
        _ => Some(Arc::new(Lock::new(events.clone(), asked == ResponseLock::Require))),
    };
    let switch = if streaming { "RESPONSE_LOCK" } else { "RESPONSE_STREAMING" };
    let layer = lock.as_ref().map_or_else(|| lock::off(&format!("{switch} is off")), |lock| lock.layer());
    // The Python stack is imported meanwhile: a client's first message does not wait for it.
    let service = settings.engine.start(false, DoorRules { layers: vec![layer], guarded: true }).await?;
    let stopped = stop_signal().await?;
    let locked = lock.is_some();
    if !locked {
        tracing::warn!("{switch} is off: user code can read its own event and forge its answer");
    }
    let workspace = Workspace::of_function([service.state_dir(), service.packages().directory()]);
    let emptied = workspace.as_ref().map(Workspace::leftovers);
    tokio::spawn(Probes { unreadable, lock: asked, emptied }.tell(service.clone()));
    let door = door(&settings, &service, lock, workspace, &api)?;
    tokio::select! {
        result = async {
            if locked {
                runtime::run(&events, &door).await
            } else if streaming {
                let service = service_fn(move |request| answer(door.clone(), request, Door::stream));
                lambda_http::run_with_streaming_response(service).await
            } else {
                lambda_http::run(service_fn(move |request| answer(door.clone(), request, Door::buffer))).await
            }
        } => result,
        Err(refused) = settings.engine.refuse_root(&service) => Err(refused.into()),
        () = stopped => Ok(()),
    }
}

fn door(
    settings: &Settings,
    service: &Arc<Service>,
    lock: Option<Arc<Lock>>,
    workspace: Option<Workspace>,
    api: &Api,
) -> Result<Arc<Door>, Error> {
    let mut options = settings.http.options()?;
    // API Gateway answers to its own names only.
    options.names = options.names.of_any_host();
    let library_to = if lock.is_some() { None } else { api.socket_address() };
    Ok(Arc::new(Door::new(server::router(service, &options), service.clone(), lock, workspace, library_to)))
}

async fn answer<F, R>(door: Arc<Door>, request: lambda_http::Request, how: F) -> Result<R, Infallible>
where
    F: AsyncFn(&Door, lambda_http::Request) -> R,
{
    Ok(how(&door, request).await)
}

/// Completes on a signal that ends the program. Lambda sends SIGTERM only to a function that has an extension: this one asks
/// for nothing else.
async fn stop_signal() -> Result<impl Future<Output = ()>, Error> {
    let extension = lambda_extension::Extension::new().with_events(&[]).with_extension_name("stop-signal").register().await?;
    let mut signals = Signals::listen()?;
    Ok(async move {
        let running = async {
            // Its end is no reason to stop.
            let _ = extension.run().await;
            std::future::pending::<()>().await;
        };
        tokio::select! { _ = signals.next() => {}, () = running => {} }
        signals.let_go();
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    /// Review S1: a route beside MCP would have run code without the response lock and without the wipe.
    #[tokio::test]
    async fn code_of_a_call_that_came_past_the_guard_is_not_run() {
        let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../../build/tree");
        let settings = Settings::try_parse_from(["bootstrap", "--python-tree", tree, "--preload", "core"]).expect("settings");
        let rules = DoorRules { layers: Vec::new(), guarded: true };
        let service = settings.engine.start(true, rules).await.expect("it starts");
        let router = server::router(&service, &settings.http.options().expect("options"));
        for (tool, arguments) in
            [("execute_python", r#"{"code": "print(2+3)"}"#), ("install_packages", r#"{"packages": ["six"]}"#)]
        {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
            );
            let request = http::Request::post("/mcp").header("host", "localhost").header("content-type", "application/json");
            let response = router.clone().oneshot(request.body(Body::from(body)).expect("a request")).await.expect("an answer");
            let bytes = response.into_body().collect().await.expect("a body").to_bytes();
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains("nothing guards it, and was not run"), "{tool}: {text}");
        }
    }
}
