//! `code-interpreter run`: one piece of Python, its output where a person expects it.
//!
//! Rule: exit codes are the contract's: 0, 1 (Python error), 124 (timeout), 137 (killed by a limit), else the code's own.
//! Who asks for JSON gets JSON, also when an argument can't be used.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::{Context, Poll};

use clap::Args;
use interpreter::Preload;
use protocol::{ArgumentError, Arguments, CellRequest, ErrorCode, Event, EventSink, Outcome, OutputFile, Stream};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use server::{Call, Door, DoorRules};
use settings::EngineSettings;

use crate::output;

/// What figures may take that go into a folder.
const MAX_FIGURES_BYTES: usize = 128 << 20;

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
    /// A folder for the figures (figure-1.png …), which come as they are, whatever `MAX_IMAGES_BYTES` says.
    #[arg(long)]
    figures: Option<PathBuf>,
    /// A folder for the files that the code leaves, which come whole, whatever `MAX_FILES_BYTES` says; files of the same name
    /// are replaced.
    #[arg(long)]
    files: Option<PathBuf>,
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
    // A folder holds more than an answer.
    if arguments.figures.is_some() {
        config.limits.images_bytes = config.limits.images_bytes.max(MAX_FIGURES_BYTES);
    }
    if arguments.files.is_some() {
        config.limits.files_bytes = usize::try_from(config.limits.disk_bytes).unwrap_or(usize::MAX);
    }
    let service = settings.start_with(config, true, DoorRules::default()).await?;
    let request = call(arguments, &code).and_then(|call| service.check(call));
    let request = match request.and_then(|request| within(request, arguments.timeout)) {
        Ok(request) => request,
        Err(error) if arguments.json => {
            let outcome = Outcome::refused_as(ErrorCode::InvalidArgument, "ArgumentError", error.to_string());
            return tell(&outcome);
        }
        Err(error) => return Err(error.to_string()),
    };
    let outcome = service.execute(&Call::new(Door::CommandLine), request, &mut Live { output: !arguments.json }).await;
    let mut saved = Vec::new();
    // What can't be saved is told after the result, which it must not cost.
    let all_saved =
        save_figures(arguments, &outcome.images, &mut saved).and_then(|()| save_files(arguments, &outcome.files, &mut saved));
    let result = &outcome.result;
    if arguments.json {
        let code = tell(&outcome)?;
        return all_saved.map(|()| code);
    }
    if let Some(value) = &result.result {
        output::out(format!("{value}\n"));
    }
    if let Some(error) = &result.error {
        let told = error.traceback.clone();
        output::error(told.unwrap_or_else(|| format!("{}: {}\n", error.code.as_str(), error.message)));
    }
    for note in result.warnings.iter().chain(&saved) {
        output::error(format!("note: {note}\n"));
    }
    all_saved.map(|()| exit_code(&outcome))
}

/// What the tool would be called with.
fn call(arguments: &RunArguments, code: &str) -> Result<Arguments, ArgumentError> {
    fn member(name: &str, value: &impl Serialize) -> Result<(String, Box<RawValue>), ArgumentError> {
        let value = to_raw_value(value).map_err(|error| ArgumentError::new(name, error.to_string()))?;
        Ok((name.to_owned(), value))
    }
    let mut call = vec![member("code", &code)?, member("requirements", &arguments.requirements)?];
    if let Some(seconds) = arguments.timeout {
        call.push(member("timeout", &seconds)?);
    }
    if let Some(text) = &arguments.input_data {
        let data = RawValue::from_string(text.clone());
        let data = data.map_err(|error| ArgumentError::new("input_data", format!("must be JSON: {error}")))?;
        call.push(("input_data".to_owned(), data));
    }
    Arguments::new(call)
}

/// A model is given what can be had; a person can say what is meant instead.
fn within(request: CellRequest, timeout: Option<f64>) -> Result<CellRequest, ArgumentError> {
    let longest = request.limits.timeout.as_secs_f64();
    match timeout.filter(|asked| *asked > longest) {
        Some(asked) => {
            let problem = format!("must be more than 0 and at most {longest} seconds, not {asked}; MAX_TIMEOUT allows more");
            Err(ArgumentError::new("timeout", problem))
        }
        None => Ok(request),
    }
}

/// Prints an outcome as the tool would answer it.
fn tell(outcome: &Outcome) -> Result<ExitCode, String> {
    output::out(serde_json::to_string_pretty(&outcome.answer()).map_err(|error| error.to_string())? + "\n");
    Ok(exit_code(outcome))
}

fn exit_code(outcome: &Outcome) -> ExitCode {
    ExitCode::from(u8::try_from(outcome.result.exit_code & 0xFF).unwrap_or(1))
}

/// Shows what is heard of the code while it runs.
struct Live {
    /// Also what it prints.
    output: bool,
}

impl EventSink for Live {
    /// What waits to be written is bounded by what the engine lets a run print.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn push(&mut self, event: Event) {
        match event {
            Event::Output { stream: Stream::Stdout, bytes } if self.output => output::out(bytes),
            Event::Output { stream: Stream::Stderr, bytes } if self.output => output::error(bytes),
            Event::Notice(text) | Event::Package(text) => output::error(format!("note: {text}\n")),
            // They are shown with the result.
            Event::Output { .. } | Event::Display(_) | Event::Ended(_) => {}
        }
    }
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
            io::stdin().read_to_string(&mut code).map_err(|error| format!("standard input: {error}"))?;
            Ok(code)
        }
    }
}

/// How what nobody asked for can be had.
fn unsaved(count: usize, what: &str, became: &str, flag: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what} was {became}; {flag} DIR saves it")),
        _ => Some(format!("{count} {what}s were {became}; {flag} DIR saves them")),
    }
}

fn save_figures(arguments: &RunArguments, images: &[protocol::Image], notes: &mut Vec<String>) -> Result<(), String> {
    let Some(folder) = &arguments.figures else {
        notes.extend(unsaved(images.len(), "figure", "made", "--figures"));
        return Ok(());
    };
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for (number, image) in images.iter().enumerate() {
        let extension = if image.mime_type == "image/jpeg" { "jpg" } else { "png" };
        let path = folder.join(format!("figure-{}.{extension}", number + 1));
        std::fs::write(&path, &image.bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        notes.push(format!("saved {}", path.display()));
    }
    Ok(())
}

fn save_files(arguments: &RunArguments, files: &[OutputFile], notes: &mut Vec<String>) -> Result<(), String> {
    let Some(folder) = &arguments.files else {
        notes.extend(unsaved(files.len(), "file", "left", "--files"));
        return Ok(());
    };
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for file in files.iter().filter(|file| file.is_whole()) {
        let path = save_file(folder, file).map_err(|error| format!("{:?} below {}: {error}", file.name, folder.display()))?;
        notes.push(format!("saved {}", path.display()));
    }
    Ok(())
}

/// Below the folder and nowhere else: a name has no way out of it, and no link that is in it is followed.
fn save_file(folder: &Path, file: &OutputFile) -> io::Result<PathBuf> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    if !file.name.split('/').all(plain) {
        return Err(io::Error::other("not the name of a file in a folder"));
    }
    let mut path = folder.to_owned();
    let mut parts = file.name.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        if parts.peek().is_some()
            && let Err(error) = std::fs::create_dir(&path)
            && !path.symlink_metadata().is_ok_and(|found| found.is_dir())
        {
            return Err(error);
        }
    }
    // What is there is replaced and not written to: it may be a link, or have another name elsewhere.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => File::create_new(&path)?.write_all(&file.bytes)?,
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> OutputFile {
        OutputFile { name: name.to_owned(), mime_type: "text/plain".to_owned(), bytes: b"new".to_vec(), size: 3 }
    }

    #[test]
    fn files_are_saved_below_the_folder_and_nowhere_else() {
        let place = tempfile::tempdir().expect("a directory");
        let (folder, outside) = (place.path().join("out"), place.path().join("outside"));
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::create_dir_all(&outside).expect("made");
        std::fs::write(outside.join("kept"), "old").expect("written");
        std::os::unix::fs::symlink(&outside, folder.join("link")).expect("made");
        std::os::unix::fs::symlink(outside.join("kept"), folder.join("linked")).expect("made");
        std::fs::hard_link(outside.join("kept"), folder.join("second")).expect("made");
        for name in ["", ".", "..", "../a", "/a", "a/../../b", "a//b", "a/", "link/a", "link/deeper/a", "a\nb", "a\x1b[2Jb"] {
            assert!(save_file(&folder, &file(name)).is_err(), "{name:?}");
        }
        for name in ["a", "b/c/d", "b/c/e", "linked", "second", "b/c/d"] {
            let path = save_file(&folder, &file(name)).expect(name);
            assert_eq!((path, std::fs::read(folder.join(name)).expect(name)), (folder.join(name), b"new".to_vec()));
        }
        assert_eq!(std::fs::read(outside.join("kept")).expect("kept"), b"old");
        assert_eq!((std::fs::read_dir(&outside).expect("a list").count(), place.path().join("a").exists()), (1, false));
    }
}
