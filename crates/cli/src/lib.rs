//! The command line: `serve`, `stdio`, `run` and `doctor`, and the settings they share.
//!
//! Rule: logs go to standard error; standard output belongs to the protocol or to the code that was run.

mod attack;
mod deployment;
mod doctor;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use settings::{EngineSettings, HttpSettings};

/// Runs Python for AI assistants, isolated and already warm.
#[derive(Debug, Parser)]
#[command(name = "code-interpreter", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve MCP over HTTP.
    Serve {
        #[command(flatten)]
        engine: EngineSettings,
        #[command(flatten)]
        http: HttpSettings,
    },
    /// Serve MCP on standard input and output, for desktop clients.
    Stdio {
        #[command(flatten)]
        engine: EngineSettings,
    },
    /// Run one piece of Python.
    Run {
        #[command(flatten)]
        engine: EngineSettings,
        #[command(flatten)]
        arguments: run::RunArguments,
    },
    /// Try the interpreter and show which protections hold.
    Doctor {
        #[command(flatten)]
        engine: EngineSettings,
        #[command(flatten)]
        http: HttpSettings,
        /// Send the bundled hostile programs and requests and say what stopped each.
        #[arg(long)]
        attack: bool,
        /// Print what the attacks came to as JSON.
        #[arg(long, requires = "attack")]
        json: bool,
        /// Attack the deployment with this MCP endpoint instead of an engine of its own.
        #[arg(long, requires = "attack")]
        url: Option<String>,
        /// A header for the deployment, such as `x-api-key: …`.
        #[arg(long, requires = "url")]
        header: Vec<String>,
    },
    /// Print the reference of all settings, from which .env.example and the README's table are made.
    #[command(hide = true)]
    Settings {
        /// `env` or `markdown`.
        format: String,
    },
}

/// The whole program.
pub fn main() -> ExitCode {
    // The weakest source of settings; a variable that is set already stays. Before any thread exists.
    let dotenv = dotenvy::from_filename(".env");
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOG").unwrap_or_else(|_| "warn,cli=info,server=info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(server::LogLines::Text).with_ansi(false).init();
    if let Err(error) = dotenv
        && !error.not_found()
    {
        return fail(&format!(".env: {error}"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let code = runtime.block_on(dispatch(cli.command));
    // A read of standard input that never ends must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    code
}

async fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Serve { engine, http } => report(serve(&engine, &http).await),
        Command::Stdio { engine } => report(stdio(&engine).await),
        Command::Run { engine, arguments } => run::run(&engine, &arguments).await,
        Command::Doctor { attack: true, json, url: Some(url), header, .. } => match deployment::Deployment::new(url, &header) {
            Ok(deployment) => attack::attack(deployment, json).await,
            Err(message) => fail(&message),
        },
        Command::Doctor { engine, http, attack, json, .. } => doctor::doctor(&engine, &http, attack, json).await,
        Command::Settings { format } => print_settings(&format),
    }
}

async fn serve(settings: &EngineSettings, http: &HttpSettings) -> Result<(), String> {
    let options = http.options()?;
    let listener = tokio::net::TcpListener::bind((http.host.as_str(), http.port))
        .await
        .map_err(|error| format!("HOST={} PORT={}: {error}", http.host, http.port))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let interpreter = settings.start(false, Vec::new()).await?;
    tracing::info!("serving MCP at http://{address}/lambda/mcp/");
    server::serve(listener, &interpreter, &options, stop_signal()).await;
    Ok(())
}

async fn stdio(settings: &EngineSettings) -> Result<(), String> {
    let interpreter = settings.start(false, Vec::new()).await?;
    tokio::select! {
        result = server::serve_stdio(interpreter) => result,
        () = stop_signal() => Ok(()),
    }
}

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn print_settings(format: &str) -> ExitCode {
    match settings::reference(format) {
        Some(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        None => fail(&format!("settings: format must be env or markdown, not {format}")),
    }
}

/// Completes on SIGINT or SIGTERM.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}

fn report(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command that failed")]
fn fail(message: &str) -> ExitCode {
    eprintln!("code-interpreter: {message}");
    ExitCode::from(2)
}
