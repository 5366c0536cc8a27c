//! `code-interpreter run`: one piece of Python, its output where a person expects it.
//!
//! Rule: exit codes are the contract's: 0, 1 (Python error), 124 (timeout), 137 (killed by a limit), else the code's own.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use interpreter::Preload;
use protocol::{Arguments, OutputEvent, Stream};
use serde_json::value::{RawValue, to_raw_value};

use settings::EngineSettings;

use crate::output;

/// What to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArguments {
    /// A file, or - for standard input.
    #[arg(required_unless_present = "code", conflicts_with = "code")]
    file: Option<PathBuf>,
    /// The code itself.
    #[arg(long)]
    code: Option<String>,
    /// Print the result as JSON, as the MCP tool gives it.
    #[arg(long)]
    json: bool,
    /// Seconds after which the run is killed.
    #[arg(long)]
    timeout: Option<f64>,
    /// A JSON object the code finds as `input_data`.
    #[arg(long)]
    input_data: Option<String>,
    /// A package the code needs, such as humanize>=4; may be given many times.
    #[arg(long = "requirement")]
    requirements: Vec<String>,
    /// A folder for the figures (figure-1.png …).
    #[arg(long)]
    figures: Option<PathBuf>,
}

pub(crate) async fn run(settings: &EngineSettings, arguments: &RunArguments, code: String) -> ExitCode {
    match run_code(settings, arguments, code).await {
        Ok(code) => code,
        Err(message) => crate::fail(&message),
    }
}

async fn run_code(settings: &EngineSettings, arguments: &RunArguments, code: String) -> Result<ExitCode, String> {
    let mut config = settings.config()?;
    // One cell needs one stage: nothing else is imported.
    config.preload = Preload::for_code(&code);
    let interpreter = settings.start_with(config, true, Vec::new()).await?;
    let mut call = vec![("code", to_raw_value(&code))];
    if let Some(seconds) = arguments.timeout {
        call.push(("timeout", to_raw_value(&seconds)));
    }
    if let Some(text) = &arguments.input_data {
        let text = RawValue::from_string(text.clone()).map_err(|error| format!("--input-data: not JSON: {error}"))?;
        call.push(("input_data", Ok(text)));
    }
    call.push(("requirements", to_raw_value(&arguments.requirements)));
    let call = call.into_iter().map(|(name, value)| Ok((name.to_owned(), value.map_err(|error| format!("{name}: {error}"))?)));
    let call = Arguments::new(call.collect::<Result<Vec<_>, String>>()?).map_err(|error| error.to_string())?;
    let request = interpreter.check(call).map_err(|error| error.to_string())?;
    let longest = request.limits.timeout.as_secs_f64();
    // A model is given what can be had; a person can say what is meant instead.
    if let Some(asked) = arguments.timeout.filter(|asked| *asked > longest) {
        return Err(format!("timeout: must be more than 0 and at most {longest} seconds, not {asked}; MAX_TIMEOUT allows more"));
    }
    let live = !arguments.json;
    let mut show = |event: OutputEvent<'_>| match event.stream {
        Stream::Stdout if live => output::out(event.bytes),
        Stream::Notice => output::error([b"note: ", event.bytes].concat()),
        Stream::Stderr if live => output::error(event.bytes),
        _ => {}
    };
    let outcome = interpreter.execute(request, &mut show).await;
    let figures = save_figures(arguments, &outcome.images)?;
    let result = &outcome.result;
    if arguments.json {
        output::out(serde_json::to_string_pretty(&outcome.answer()).map_err(|error| error.to_string())? + "\n");
    } else {
        if let Some(value) = &result.result {
            output::out(format!("{value}\n"));
        }
        if let Some(error) = &result.error {
            let told = error.traceback.clone();
            output::error(told.unwrap_or_else(|| format!("{}: {}\n", error.code.as_str(), error.message)));
        }
        for note in result.warnings.iter().chain(&figures) {
            output::error(format!("note: {note}\n"));
        }
    }
    Ok(ExitCode::from(u8::try_from(result.exit_code & 0xFF).unwrap_or(1)))
}

/// The code, from wherever the arguments have it.
pub(crate) fn read_code(arguments: &RunArguments) -> Result<String, String> {
    match (&arguments.code, &arguments.file) {
        (Some(code), _) => Ok(code.clone()),
        (None, Some(path)) if path.as_os_str() != "-" => {
            std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        }
        _ => {
            let mut code = String::new();
            std::io::stdin().read_to_string(&mut code).map_err(|error| format!("standard input: {error}"))?;
            Ok(code)
        }
    }
}

fn save_figures(arguments: &RunArguments, images: &[protocol::Image]) -> Result<Vec<String>, String> {
    let Some(folder) = &arguments.figures else {
        let note = format!("{} figures were made; --figures DIR saves them", images.len());
        return Ok(if images.is_empty() { Vec::new() } else { vec![note] });
    };
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut notes = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let extension = if image.mime_type == "image/jpeg" { "jpg" } else { "png" };
        let path = folder.join(format!("figure-{}.{extension}", number + 1));
        std::fs::write(&path, &image.bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        notes.push(format!("saved {}", path.display()));
    }
    Ok(notes)
}
