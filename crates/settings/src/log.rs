//! What is logged, to standard error.
//!
//! Rule: a value that can't be understood is told and never means silence.

use std::ffi::OsStr;

use clap::Args;
use server::LogLines;
use tracing_subscriber::EnvFilter;

use crate::SECURITY;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is logged.
#[derive(Args, Clone, Debug)]
pub struct LogSettings {
    /// What is logged to standard error: off, error, warn, info, debug or trace, also for one part (warn,server=debug).
    #[arg(long, env = "LOG", help_heading = SECURITY, global = true)]
    pub log: Option<std::ffi::OsString>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For a log service.
    Json,
}

/// rmcp calls it an error when a client goes away before its answer, and warns of each error that is answered: neither is
/// one of the server's. Who names rmcp hears it all.
const LEFT_OUT: &str = "rmcp::service=off";

/// Starts the log. `default`: what is logged when `wanted` is empty or can't be understood.
pub fn start_log(wanted: Option<&OsStr>, default: &str, format: LogFormat) {
    let (filter, refused) = match wanted.map(parse) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(reason)) => (None, Some(reason)),
        None => (None, None),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(format!("{LEFT_OUT},{default}"))));
    match format {
        LogFormat::Text => builder.with_writer(LogLines::Text).with_ansi(false).init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_span_list(false).with_writer(LogLines::Json).init();
        }
    }
    if let Some(reason) = refused {
        tracing::warn!("LOG: {reason}; logging {default}");
    }
}

/// The filter; none when nothing is asked for. A word alone would be taken for the name of a part, and silence all others.
fn parse(wanted: &OsStr) -> Result<Option<EnvFilter>, String> {
    let wanted = wanted.to_str().ok_or("it is not UTF-8")?;
    for rule in wanted.split(',').map(str::trim).filter(|rule| !rule.is_empty()) {
        let level = rule.rsplit_once('=').map_or(rule, |(_, level)| level);
        if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            let shown = level.chars().take(40).collect::<String>();
            return Err(format!("{shown:?} is no level; it must be one of {}, or PART=LEVEL", LEVELS.join(", ")));
        }
    }
    if wanted.trim().is_empty() {
        return Ok(None);
    }
    let wanted = if wanted.contains("rmcp") { wanted.to_owned() } else { format!("{LEFT_OUT},{wanted}") };
    EnvFilter::try_new(wanted).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_goes_away_is_no_error() {
        use tracing::level_filters::LevelFilter;
        use tracing_subscriber::layer::SubscriberExt as _;

        let logged = |wanted: &str| {
            let filter = parse(OsStr::new(wanted)).expect("a filter").expect("one");
            tracing::subscriber::with_default(tracing_subscriber::registry().with(filter), || {
                assert!(LevelFilter::current() >= LevelFilter::ERROR);
                (tracing::enabled!(target: "rmcp::service", tracing::Level::ERROR), tracing::enabled!(tracing::Level::WARN))
            })
        };
        assert_eq!(logged("info"), (false, true));
        assert_eq!(logged("warn,server=debug"), (false, true));
        assert_eq!(logged("warn,rmcp=error"), (true, true));
    }

    #[test]
    fn a_slip_is_told_and_a_filter_taken() {
        for taken in ["debug", "WARN", "warn,server=debug", "off", "hyper::proto=trace,info", " info "] {
            assert!(parse(OsStr::new(taken)).is_ok_and(|filter| filter.is_some()), "{taken}");
        }
        assert!(parse(OsStr::new("")).is_ok_and(|filter| filter.is_none()));
        for refused in ["verbose", "server=verbose", "warn,servre", "1=2"] {
            assert!(parse(OsStr::new(refused)).is_err(), "{refused}");
        }
    }
}
