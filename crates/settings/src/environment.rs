//! Where settings come from besides flags: the process's environment and an `.env` file.
//!
//! Rule: of several values of a setting a flag's is taken, else the environment's `CODE_INTERPRETER_PORT`, else its `PORT`,
//! else that of a file. One that is empty counts as not set, wherever it is. A program that is started in any environment
//! reads the prefixed names only, since `UV` or `POLICY` may mean something else there. clap itself reads no variable.

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::EnvFile;
use crate::env_file::{check, list, nearest, shown};
use crate::variables::{PREFIX, is_empty};

const HELP: &str = "Each setting is read from the environment, too, by its name with CODE_INTERPRETER_ in front, and by `serve` and \
                    `doctor` also without it; the prefixed one wins, and an empty value counts as not set.";

/// Which variables are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// With the prefix and without: the environment is a server's own.
    Both,
    /// With the prefix only: the environment may be anybody's.
    Prefixed,
}

/// The command without variables: what clap finds in its arguments are flags and defaults. Its help names the variables.
#[must_use]
pub fn flags_only(command: Command) -> Command {
    let has_settings = command.get_arguments().any(|argument| argument.get_env().is_some() && !argument.is_global_set());
    let command = command
        .mut_args(|argument| {
            let Some(name) = argument.get_env().map(|name| name.to_string_lossy().into_owned()) else { return argument };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            argument.env(Resettable::Reset).help(format!("{help} [env: {PREFIX}{name}]"))
        })
        .mut_subcommands(flags_only);
    if has_settings { command.after_help(HELP) } else { command }
}

/// A program that takes no flags.
///
/// # Errors
/// The first variable that can't be used.
pub fn from_environment<T: CommandFactory + FromArgMatches>(names: Names) -> Result<(T, Vec<String>), String> {
    let sources = Sources::new(names, EnvFile::default());
    let command = flags_only(T::command());
    let matches = sources.apply(command, &ArgMatches::default())?.try_get_matches_from([""]);
    let settings = matches.and_then(|matches| T::from_arg_matches(&matches)).map_err(|error| error.to_string())?;
    Ok((settings, sources.notes()))
}

/// The environment and a file.
#[derive(Debug)]
pub struct Sources {
    names: Names,
    variables: Vec<(OsString, OsString)>,
    file: EnvFile,
}

impl Sources {
    /// This process's environment, and after it the file.
    pub fn new(names: Names, file: EnvFile) -> Self {
        Self { names, variables: std::env::vars_os().filter(|(_, value)| !is_empty(value)).collect(), file }
    }

    /// The command with their values in the place of defaults. What is among the arguments they were `given` is not looked at.
    ///
    /// # Errors
    /// The first variable that its setting can't be, with its name.
    pub fn apply(&self, command: Command, given: &ArgMatches) -> Result<Command, String> {
        let registry = crate::registry();
        let settings = registry.get_arguments().filter_map(|argument| Some((argument, argument.get_env()?.to_str()?)));
        settings.filter(|(argument, _)| !is_given(argument, given)).try_fold(command, |command, (argument, name)| {
            Ok(match self.value(argument, name)? {
                Some(value) => with_default(command, argument, &value),
                None => command,
            })
        })
    }

    /// What was left out, in one line each.
    pub fn notes(&self) -> Vec<String> {
        let registry = crate::registry();
        let known = registry.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect::<Vec<_>>();
        let mut notes = self.file.notes().to_vec();
        let prefixed = self.variables.iter().filter_map(|(name, _)| name.to_str()?.strip_prefix(PREFIX));
        let unknown = prefixed.filter(|name| !known.contains(name)).map(|name| match nearest(name, &known) {
            Some(known) => format!("{PREFIX}{} ({PREFIX}{known}?)", shown(name)),
            None => format!("{PREFIX}{}", shown(name)),
        });
        let unknown = unknown.collect::<Vec<_>>();
        if !unknown.is_empty() {
            notes.push(format!("not settings, and left out: {}", list(unknown.into_iter())));
        }
        // What was meant for this program is not left out in silence. Names of one word are other programs', too.
        let plain = known.iter().filter(|name| self.names == Names::Prefixed && name.contains('_'));
        let plain = plain.filter(|name| self.variable(name).is_some() && self.variable(&format!("{PREFIX}{name}")).is_none());
        let plain = plain.map(|name| (*name).to_owned()).collect::<Vec<_>>();
        if !plain.is_empty() {
            let names = list(plain.into_iter());
            notes.push(format!("read with the prefix {PREFIX} only here, and left out: {names}"));
        }
        notes
    }

    /// The setting's value, when it can be one.
    fn value(&self, argument: &Arg, name: &str) -> Result<Option<OsString>, String> {
        let prefixed = format!("{PREFIX}{name}");
        let names = [&prefixed, name];
        let read = if self.names == Names::Both { &names[..] } else { &names[..1] };
        for name in read {
            if let Some(value) = self.variable(name) {
                check(argument, value).map_err(|reason| format!("{name}: {reason}"))?;
                return Ok(Some(value.to_owned()));
            }
        }
        Ok(self.file.value(name).map(OsString::from))
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }
}

fn is_given(argument: &Arg, matches: &ArgMatches) -> bool {
    let here =
        matches.ids().any(|id| id == argument.get_id() && matches.value_source(id.as_str()) == Some(ValueSource::CommandLine));
    here || matches.subcommand().is_some_and(|(_, matches)| is_given(argument, matches))
}

fn with_default(command: Command, setting: &Arg, value: &OsStr) -> Command {
    command
        .mut_args(
            |argument| {
                if argument.get_id() == setting.get_id() { argument.default_value(value.to_owned()) } else { argument }
            },
        )
        .mut_subcommands(|command| with_default(command, setting, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AllSettings, EngineSettings, HttpSettings};

    fn sources(names: Names, variables: &[(&str, &str)]) -> Sources {
        let variables = variables.iter().filter(|(_, value)| !is_empty(OsStr::new(value)));
        Sources {
            names,
            variables: variables.map(|(name, value)| (name.into(), value.into())).collect(),
            file: EnvFile::default(),
        }
    }

    fn parsed<T: FromArgMatches>(sources: &Sources, flags: &[&str]) -> Result<T, String> {
        let command = flags_only(crate::registry());
        let arguments = [&["settings"], flags].concat();
        let given = command.clone().try_get_matches_from(&arguments).map_err(|error| error.to_string())?;
        let matches = sources.apply(command, &given)?.try_get_matches_from(&arguments).map_err(|error| error.to_string())?;
        T::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_then_the_prefixed_name_then_the_plain_one_which_not_everybody_reads() {
        let both = [("CODE_INTERPRETER_PORT", "81"), ("PORT", "82"), ("MAX_QUEUE", "7"), ("LOG", "debug")];
        let port = |names, flags: &[&str]| parsed::<HttpSettings>(&sources(names, &both), flags).expect("settings").port;
        assert_eq!((port(Names::Both, &[]), port(Names::Both, &["--port", "83"])), (81, 83));
        let queue = |names| parsed::<EngineSettings>(&sources(names, &both), &[]).expect("settings").max_queue;
        assert_eq!((queue(Names::Both), queue(Names::Prefixed)), (7, 64));
        let plain = sources(Names::Prefixed, &both);
        assert_eq!(plain.notes(), ["read with the prefix CODE_INTERPRETER_ only here, and left out: MAX_QUEUE"]);
        let wrong = |names| {
            parsed::<AllSettings>(&sources(names, &[("PORT", "x"), ("CODE_INTERPRETER_MAX_QUEUE", "-1")]), &["--max-queue", "1"])
        };
        assert!(wrong(Names::Both).expect_err("a word").starts_with("PORT: invalid value 'x' for '--port <PORT>'"));
        assert!(wrong(Names::Prefixed).is_ok(), "one is not read, and the other not needed");
    }

    /// `MAX_QUEUE=` was no number, `ALLOWED_HOSTS=` nobody, and `UV=` pip.
    #[test]
    fn a_value_that_is_empty_counts_as_not_set_for_every_setting() {
        let registry = crate::registry();
        let usual = format!("{:?}", parsed::<AllSettings>(&sources(Names::Both, &[]), &[]).expect("settings"));
        for name in registry.get_arguments().filter_map(|argument| argument.get_env()?.to_str()) {
            let prefixed = format!("{PREFIX}{name}");
            for empty in ["", " "] {
                let unset = parsed::<AllSettings>(&sources(Names::Both, &[(name, empty), (&prefixed, empty)]), &[]).expect(name);
                assert_eq!(format!("{unset:?}"), usual, "{name}");
            }
        }
        let beside = [("CODE_INTERPRETER_PORT", ""), ("PORT", "82")];
        assert_eq!(parsed::<HttpSettings>(&sources(Names::Both, &beside), &[]).expect("settings").port, 82);
    }

    #[test]
    fn a_slip_in_a_prefixed_name_is_told_with_the_name_that_was_meant() {
        let variables = [("CODE_INTERPRETER_MAX_TIMEOUTS", "5"), ("CODE_INTERPRETER_", "x"), ("MAX_TIMEOUTS", "5")];
        let told = "not settings, and left out: CODE_INTERPRETER_MAX_TIMEOUTS (CODE_INTERPRETER_MAX_TIMEOUT?), CODE_INTERPRETER_";
        assert_eq!(sources(Names::Both, &variables).notes(), [told]);
    }

    /// `MAX_MEMORY_MB` was shifted to bytes and wrapped, `MAX_TIMEOUT` was more than a clock can hold.
    #[test]
    fn no_number_that_can_not_hold_is_taken_by_any_setting() {
        let registry = crate::registry();
        let is_taken = |argument: &Arg, text: &str| check(argument, OsStr::new(text));
        let numbers = registry.get_arguments().filter(|argument| {
            argument.get_env().is_some() && is_taken(argument, "20").is_ok() && is_taken(argument, "x").is_err()
        });
        let mut count = 0;
        for argument in numbers {
            count += 1;
            for absurd in ["18446744073709551615", "17592186044417", "1e18", "1e300", "inf", "NaN", "-1", "-0.5", "1e-300"] {
                let reason = is_taken(argument, absurd).expect_err(absurd);
                assert!(reason.contains(" for '--"), "{}: {reason}", argument.get_id());
            }
        }
        assert!(count > 15, "{count} settings are numbers");
    }

    #[test]
    fn help_names_the_variable_and_shows_none_of_their_values() {
        let help = flags_only(crate::registry()).render_long_help().to_string();
        assert!(help.contains("[env: CODE_INTERPRETER_PACKAGE_INDEX]") && help.contains(HELP), "{help}");
    }
}
