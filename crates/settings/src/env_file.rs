//! Settings from an `.env` file: the weakest source of them.
//!
//! Rule: a file that somebody names may set whatever the registry knows. The one of the folder one stands in may be
//! anybody's, a cloned repository's: it sets nothing that decides over security. Nothing gets from a file into the
//! process's environment, where other programs and libraries would find it, and what is left out is told.

use std::io::Read;
use std::path::Path;

use clap::{Arg, Command};

use crate::ORDINARY;

/// More is no file of settings.
const MAX_BYTES: u64 = 1 << 20;
/// How many names one line of the log tells.
const MAX_NAMES: usize = 10;
const OF_THE_FOLDER: &str = ".env";

/// What a file sets.
#[derive(Debug, Default)]
pub struct EnvFile {
    values: Vec<(String, String)>,
    notes: Vec<String>,
}

impl EnvFile {
    /// A file that somebody has named.
    ///
    /// # Errors
    /// When it can't be read, with its name, and the line and setting where it is one's fault.
    pub fn named(path: &Path) -> Result<Self, String> {
        if !path.is_file() {
            return Err(format!("{}: there is no such file", path.display()));
        }
        Self::read(path, false)
    }

    /// `.env` of the working directory, and of no folder above it; empty when there is none.
    ///
    /// # Errors
    /// As [`EnvFile::named`].
    pub fn of_the_folder() -> Result<Self, String> {
        let path = Path::new(OF_THE_FOLDER);
        // A folder of that name is somebody's virtual environment.
        if path.is_file() { Self::read(path, true) } else { Ok(Self::default()) }
    }

    /// The command with these values in the place of defaults: flags and environment are stronger.
    #[must_use]
    pub fn apply(&self, mut command: Command) -> Command {
        let value_of = |argument: &Arg| Some((argument.get_id().clone(), self.value(argument.get_env()?.to_str()?)?.to_owned()));
        for (id, value) in command.get_arguments().filter_map(value_of).collect::<Vec<_>>() {
            command = command.mut_arg(id, |argument| argument.default_value(value));
        }
        let names = command.get_subcommands().map(|command| command.get_name().to_owned()).collect::<Vec<_>>();
        names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |command| self.apply(command)))
    }

    /// What was left out, in one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether it sets anything.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn read(path: &Path, is_anybodys: bool) -> Result<Self, String> {
        let registry = crate::registry();
        let settings = registry.get_arguments().filter_map(|argument| Some((argument.get_env()?.to_str()?, argument)));
        let settings = settings.collect::<Vec<_>>();
        let (mut file, mut refused, mut unknown) = (Self::default(), Vec::new(), Vec::new());
        for (name, value) in parse(path)? {
            match settings.iter().find(|(known, _)| *known == name) {
                None => unknown.push(name),
                Some((_, argument)) if is_anybodys && argument.get_help_heading() != Some(ORDINARY) => refused.push(name),
                Some((_, argument)) => {
                    check(argument, &value).map_err(|reason| format!("{}: {name}: {reason}", path.display()))?;
                    if file.value(&name).is_none() {
                        file.values.push((name, value));
                    }
                }
            }
        }
        if !refused.is_empty() {
            file.notes.push(format!(
                "{}: what decides over security is not taken from the folder one stands in: {}. Set it in the environment, \
                 or name the file: --env-file {0}",
                path.display(),
                list(refused.iter().cloned())
            ));
        }
        if !unknown.is_empty() {
            let known = settings.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            let told = list(unknown.iter().map(|name| match nearest(name, &known) {
                Some(known) => format!("{} ({known}?)", shown(name)),
                None => shown(name),
            }));
            file.notes.push(format!("{}: not settings, and left out: {told}", path.display()));
        }
        Ok(file)
    }
}

/// Name and value of each line; messages hold none of a file's contents, which may be secrets.
fn parse(path: &Path) -> Result<Vec<(String, String)>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{}: more than {MAX_BYTES} bytes: that is no file of settings", path.display()));
    }
    let line_at = |offset: usize| bytes[..offset].split(|byte| *byte == b'\n').count();
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| format!("{}: line {}: it must be UTF-8", path.display(), line_at(error.valid_up_to())))?;
    let text = text.trim_start_matches('\u{feff}');
    let lines = dotenvy::from_read_iter(text.as_bytes()).map(|line| {
        line.map_err(|error| match error {
            dotenvy::Error::LineParse(line, _) => {
                let offset = std::str::from_utf8(&bytes).ok().and_then(|text| text.find(line.trim_end())).unwrap_or(0);
                format!(
                    "{}: line {}: it must be NAME=value, with values that have blanks or quotes in quotes",
                    path.display(),
                    line_at(offset)
                )
            }
            other => format!("{}: {other}", path.display()),
        })
    });
    lines.collect()
}

/// Whether the setting takes the value, as a flag would.
fn check(argument: &Arg, value: &str) -> Result<(), String> {
    let flag = format!("--{}={value}", argument.get_long().unwrap_or_default());
    let command = Command::new("").no_binary_name(true).disable_help_flag(true).arg(argument.clone());
    let refused = command.try_get_matches_from([flag]).err().map(|error| error.to_string());
    // The reason without the usage.
    refused.map_or(Ok(()), |text| Err(text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").to_owned()))
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (strsim::osa_distance(name, known), *known));
    near.min().filter(|(distance, _)| *distance <= 2.max(name.len() / 5)).map(|(_, known)| known)
}

fn shown(name: &str) -> String {
    name.chars().take(60).collect()
}

fn list(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(MAX_NAMES);
    let told = names.take(MAX_NAMES).collect::<Vec<_>>().join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: Serve,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Serve {
        Serve {
            #[command(flatten)]
            engine: crate::EngineSettings,
            #[command(flatten)]
            http: crate::HttpSettings,
        },
    }

    fn file(contents: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), contents).expect("written");
        file
    }

    #[test]
    fn a_file_stands_in_for_defaults_of_every_kind_and_a_flag_is_stronger() {
        let file = file("export PORT=81\nALLOWED_HOSTS='a,b'\nALLOW_NETWORK=true\nMAX_QUEUE=7\nMIN_PACKAGE_AGE=3\nUV=\n");
        let values = EnvFile::named(file.path()).expect("read");
        let command = values.apply(Program::command());
        let matches = command.try_get_matches_from(["x", "serve", "--max-queue", "9"]).expect("arguments");
        let Program { command: Serve::Serve { engine, http } } = Program::from_arg_matches(&matches).expect("settings");
        assert_eq!((http.port, engine.max_queue, engine.allow_network), (81, 9, true));
        assert_eq!(http.allowed_hosts, ["a", "b"]);
        assert_eq!((engine.packages.min_package_age, engine.packages.uv), (Some(3.0), Some("".into())));
    }

    #[test]
    fn what_decides_over_security_is_left_out_of_a_file_that_nobody_named() {
        let file = file("PORT=81\nDISABLE_LAYERS=seccomp\nPYTHON_TREE=/evil\nLD_PRELOAD=/evil.so\nMAX_MEMROY_MB=64\n");
        let values = EnvFile::read(file.path(), true).expect("read");
        assert_eq!(values.values, [("PORT".to_owned(), "81".to_owned())]);
        assert!(values.notes[0].contains("DISABLE_LAYERS, PYTHON_TREE."), "{:?}", values.notes);
        assert!(values.notes[1].ends_with("left out: LD_PRELOAD, MAX_MEMROY_MB (MAX_MEMORY_MB?)"), "{:?}", values.notes);
    }

    #[test]
    fn a_bad_file_is_named_with_its_line() {
        let error = |contents: &[u8]| EnvFile::named(file(contents).path()).expect_err("refused");
        assert!(error(b"PORT=1\nX=\xe9\n").ends_with(": line 2: it must be UTF-8"));
        let error_of_syntax = error(b"PORT=1\n\nsecret words\n");
        assert!(error_of_syntax.contains(": line 3: ") && !error_of_syntax.contains("secret"), "{error_of_syntax}");
        assert!(error(b"PORT=1\nPORT=x\n").contains(": PORT: invalid value 'x' for '--port <PORT>'"));
        assert!(EnvFile::named(Path::new("/nowhere/.env")).expect_err("refused").starts_with("/nowhere/.env: "));
    }
}
