//! The command line: `serve`, `stdio`, `run` and `doctor`, and the settings they share.
//!
//! Rule: logs go to standard error; standard output belongs to the protocol or to the code that was run. However a command
//! ends, by itself, by a signal or because nobody reads what it writes, the engine has ended first.

mod attack;
mod deployment;
mod doctor;
mod output;
mod run;

use std::convert::Infallible;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use server::{DoorRules, Service};
use settings::{EngineSettings, EnvFile, HttpSettings, LogFormat, LogSettings, MessageSettings, Names, Signals, Sources};
use tokio_util::sync::CancellationToken;

/// How long what runs beside the engine may take to end. A read of standard input never does.
const TASKS_PATIENCE: Duration = Duration::from_millis(500);
/// How long the engine may take to end every process and to remove what they wrote.
const ENGINE_PATIENCE: Duration = Duration::from_secs(30);
/// What the end of a reader means to a program that writes to it.
const SIGPIPE: i32 = 13;

/// Runs Python for AI assistants, isolated and already warm.
#[derive(Debug, Parser)]
#[command(name = "code-interpreter", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Take settings from this file, NAME=value in each line; flags and the environment are stronger.
    #[arg(long, global = true, value_name = "FILE")]
    env_file: Option<PathBuf>,
    #[command(flatten)]
    log: LogSettings,
}

/// How a command ended.
enum End {
    With(ExitCode),
    Signal(i32),
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
        #[command(flatten)]
        messages: MessageSettings,
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
    let (cli, notes) = match read_arguments() {
        Ok(read) => read,
        Err(message) => return fail(&message),
    };
    settings::start_log(cli.log.log.as_deref(), "warn,cli=info,server=info", LogFormat::Text);
    for note in notes {
        tracing::warn!("{note}");
    }
    // Standard input is read while signals still end the process by themselves.
    let code = match &cli.command {
        Command::Run { arguments, .. } => run::read_code(arguments),
        _ => Ok(String::new()),
    };
    let code = match code {
        Ok(code) => code,
        Err(message) => return fail(&message),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    let end = runtime.block_on(run_until_it_ends(cli.command, code));
    runtime.shutdown_timeout(TASKS_PATIENCE);
    if !interpreter::wait_for_engines(ENGINE_PATIENCE) {
        tracing::warn!("the engine has not ended in time; the next start removes what it leaves");
    }
    match end {
        End::With(code) => code,
        End::Signal(signal) => settings::die_of(signal),
    }
}

/// Runs the command to its end, or to that which a signal or a reader that has gone makes of it.
async fn run_until_it_ends(command: Command, code: String) -> End {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return End::With(fail(&format!("signals can't be heard: {error}"))),
    };
    let drains = matches!(command, Command::Serve { .. });
    let stop = CancellationToken::new();
    let mut work = pin!(dispatch(command, code, stop.clone()));
    let end = tokio::select! {
        signal = signals.next() => {
            if drains {
                stop.cancel();
                tokio::select! {
                    _ = signals.next() => {}
                    _ = &mut work => {}
                }
            }
            End::Signal(signal)
        }
        reason = output::broken() => match reason {
            ErrorKind::BrokenPipe => End::Signal(SIGPIPE),
            reason => End::With(fail(&format!("standard output: {reason}"))),
        },
        code = &mut work => End::With(code),
    };
    signals.let_go();
    end
}

/// The arguments, with the values of the environment and an `.env` file in the place of defaults, and what was left out of
/// them. `stdio` and `run` are started in environments and folders that are somebody else's.
fn read_arguments() -> Result<(Cli, Vec<String>), String> {
    let command = settings::flags_only(Cli::command());
    let given = command.clone().get_matches();
    let names = match given.subcommand_name() {
        Some("serve" | "doctor") => Names::Both,
        _ => Names::Prefixed,
    };
    let file = match (given.get_one::<PathBuf>("env_file"), given.subcommand_name()) {
        (Some(path), _) => EnvFile::named(path)?,
        (None, Some("serve")) => EnvFile::of_the_folder()?,
        _ => EnvFile::default(),
    };
    let sources = Sources::new(names, file);
    let matches = sources.apply(command, &given)?.get_matches();
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    Ok((cli, sources.notes()))
}

/// `stop`: what runs is to be brought to its end, and nothing new begun with.
async fn dispatch(command: Command, code: String, stop: CancellationToken) -> ExitCode {
    let code = match command {
        Command::Serve { engine, http } => report(serve(&engine, &http, stop).await),
        Command::Stdio { engine, messages } => report(stdio(&engine, messages.max_body_bytes).await),
        Command::Run { engine, arguments } => run::run(&engine, &arguments, code).await,
        Command::Doctor { attack: true, json, url: Some(url), header, .. } => match deployment::Deployment::new(url, &header) {
            Ok(deployment) => attack::attack(deployment, json).await,
            Err(message) => fail(&message),
        },
        Command::Doctor { engine, http, attack, json, .. } => doctor::doctor(&engine, &http, attack, json).await,
        Command::Settings { format } => print_settings(&format),
    };
    output::written().await;
    code
}

async fn serve(settings: &EngineSettings, http: &HttpSettings, stop: CancellationToken) -> Result<(), String> {
    let options = http.options()?;
    let listener = tokio::net::TcpListener::bind((http.host.as_str(), http.port))
        .await
        .map_err(|error| format!("HOST={} PORT={}: {error}", http.host, http.port))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let service = tokio::select! {
        // Where layers are insisted on, it waits for the interpreter.
        () = stop.cancelled() => return Ok(()),
        service = settings.start(false, DoorRules::default()) => service?,
    };
    settings::warn_of_reach(address);
    tracing::info!("serving MCP at http://{address}/lambda/mcp/");
    tokio::select! {
        () = server::serve(listener, &service, &options, stop.cancelled_owned()) => Ok(()),
        Err(refused) = watch_start(settings, &service) => Err(refused),
    }
}

/// Says once the interpreter is up which layers are missing. Ends only when the server must not run.
async fn watch_start(settings: &EngineSettings, service: &Service) -> Result<Infallible, String> {
    settings.refuse_root(service).await?;
    settings::warn_of_refused(service);
    std::future::pending().await
}

async fn stdio(settings: &EngineSettings, max_line_bytes: usize) -> Result<(), String> {
    let service = settings.start(false, DoorRules::default()).await?;
    tokio::select! {
        result = server::serve_stdio(service.clone(), max_line_bytes) => result,
        Err(refused) = watch_start(settings, &service) => Err(refused),
    }
}

fn print_settings(format: &str) -> ExitCode {
    match settings::reference(format) {
        Some(text) => {
            output::out(text);
            ExitCode::SUCCESS
        }
        None => fail(&format!("settings: format must be env or markdown, not {format}")),
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
