//! What numbers settings take.
//!
//! Rule: a number that can't be meant, or that a sum or a clock can't hold, is refused in words at the start. Nothing after
//! it has to reckon with one.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// A day: no clock can be asked to wait for ever.
const MAX_SECONDS: f64 = 86_400.0;
/// A hundred years.
const MAX_DAYS: f64 = 36_500.0;
/// 16 TB. Shifted to bytes it leaves room for sums.
pub(crate) const MAX_MB: u64 = 16 << 20;
/// As many processes as Linux can number.
pub(crate) const MAX_PROCESSES: u64 = 4 << 20;
/// 1 GB, of what is kept in memory.
pub(crate) const MAX_KEPT_BYTES: usize = 1 << 30;

/// MB on disk or in memory.
pub(crate) fn megabytes(text: &str) -> Result<u64, String> {
    whole(text, 1..=MAX_MB)
}

/// A whole number within the range.
pub(crate) fn whole<T: FromStr + PartialOrd + std::fmt::Display>(text: &str, range: RangeInclusive<T>) -> Result<T, String> {
    let number = text.trim().parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
}

/// Above 0, and no more than a day.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    positive(text, "seconds", MAX_SECONDS)
}

/// Seconds, or none.
pub(crate) fn pause(text: &str) -> Result<f64, String> {
    if text.trim().parse() == Ok(0.0) {
        return Ok(0.0);
    }
    seconds(text).map_err(|_| format!("must be a number of seconds from 0 to {MAX_SECONDS}"))
}

pub(crate) fn days(text: &str) -> Result<f64, String> {
    positive(text, "days", MAX_DAYS)
}

fn positive(text: &str, unit: &str, most: f64) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| *number <= most);
    // One that rounds to no time at all is none either.
    let number = number.filter(|number| Duration::try_from_secs_f64(*number).is_ok_and(|time| !time.is_zero()));
    number.ok_or_else(|| format!("must be a number of {unit} above 0, and at most {most}"))
}
