//! Settings from an `.env` file: the weakest source of them.
//!
//! Rule: a file that somebody names may set whatever the registry knows. The one of the folder one stands in may be
//! anybody's, a cloned repository's: it sets nothing that decides over security. Nothing gets from a file into the
//! process's environment, where other programs and libraries would find it, and what is left out is told. Names are taken
//! with the prefix of variables and without, whoever reads the file: it is about this program only.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

use clap::{Arg, Command};

use crate::variables::{PREFIX, is_empty};
use crate::{ORDINARY, env_lines};

/// More is no file of settings.
const MAX_BYTES: u64 = 1 << 20;
/// How many names one line of the log tells.
const MAX_NAMES: usize = 10;
const OF_THE_FOLDER: &str = ".env";

/// What a file sets.
#[derive(Debug, Default)]
pub struct EnvFile {
    /// By the names without prefix; of two values of a setting the one to be taken is first.
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

    /// What was left out, in one line each.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A setting's value.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn read(path: &Path, is_anybodys: bool) -> Result<Self, String> {
        let registry = crate::registry();
        let settings = registry.get_arguments().filter_map(|argument| Some((argument.get_env()?.to_str()?, argument)));
        let settings = settings.collect::<Vec<_>>();
        let (mut file, mut refused, mut unknown) = (Self::default(), Vec::new(), Vec::new());
        let mut lines = parse(path)?;
        lines.sort_by_key(|(name, _)| !name.starts_with(PREFIX));
        for (written, value) in lines {
            let name = written.strip_prefix(PREFIX).unwrap_or(&written);
            match settings.iter().find(|(known, _)| *known == name) {
                None => unknown.push(name.to_owned()),
                Some((_, argument)) if is_anybodys && argument.get_help_heading() != Some(ORDINARY) => {
                    refused.push(name.to_owned());
                }
                Some(_) if is_empty(OsStr::new(&value)) => {}
                Some((_, argument)) => {
                    check(argument, OsStr::new(&value)).map_err(|reason| format!("{}: {written}: {reason}", path.display()))?;
                    file.values.push((name.to_owned(), value));
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
    env_lines::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|line| format!("{}: line {line}: it must be {}", path.display(), env_lines::FORM))
}

/// Whether the setting takes the value, as a flag would.
pub(crate) fn check(argument: &Arg, value: &OsStr) -> Result<(), String> {
    let mut flag = OsString::from(format!("--{}=", argument.get_long().unwrap_or_default()));
    flag.push(value);
    let command = Command::new("").no_binary_name(true).disable_help_flag(true).arg(argument.clone());
    let refused = command.try_get_matches_from([flag]).err().map(|error| error.to_string());
    // The reason without the usage.
    refused.map_or(Ok(()), |text| {
        Err(text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ").trim_end().to_owned())
    })
}

pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|known| (strsim::osa_distance(name, known), *known));
    near.min().filter(|(distance, _)| *distance <= 2.max(name.len() / 5) && *distance < name.len()).map(|(_, known)| known)
}

pub(crate) fn shown(name: &str) -> String {
    name.chars().take(60).collect()
}

pub(crate) fn list(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(MAX_NAMES);
    let told = names.take(MAX_NAMES).collect::<Vec<_>>().join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser};

    use super::*;
    use crate::environment::{Names, Sources, flags_only};

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
        let file = file("export PORT=81\nALLOWED_HOSTS='a,b'\nALLOW_NETWORK=true\nMAX_QUEUE=7\nMIN_PACKAGE_AGE=3\nUV=off\n");
        let sources = Sources::new(Names::Prefixed, EnvFile::named(file.path()).expect("read"));
        let given = flags_only(Program::command()).get_matches_from(["x", "serve", "--max-queue", "9"]);
        let command = sources.apply(flags_only(Program::command()), &given).expect("values");
        let matches = command.try_get_matches_from(["x", "serve", "--max-queue", "9"]).expect("arguments");
        let Program { command: Serve::Serve { engine, http } } = Program::from_arg_matches(&matches).expect("settings");
        assert_eq!((http.port, engine.max_queue, engine.allow_network), (81, 9, true));
        assert_eq!(http.allowed_hosts, ["a", "b"]);
        assert_eq!((engine.packages.min_package_age, engine.packages.uv), (Some(3.0), Some("off".into())));
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
