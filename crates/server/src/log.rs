//! Log lines that end.
//!
//! Rule: no client makes a line longer than it may be, whoever logs it.

use std::io::{self, Write};

use serde_json::json;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The longest line: enough for a traceback, and what `CloudWatch` shows at once.
const MAX_LINE_BYTES: usize = 4096;

/// Standard error, line by line: a line that is too long is cut, and says so.
#[derive(Clone, Copy, Debug)]
pub enum LogLines {
    /// For people.
    Text,
    /// For programs: a cut line is an object too, with what there was of it as `message`.
    Json,
}

/// One line.
pub struct LogLine {
    lines: LogLines,
    level: Level,
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = LogLine;

    fn make_writer(&'a self) -> LogLine {
        LogLine { lines: *self, level: Level::INFO }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LogLine {
        LogLine { lines: *self, level: *metadata.level() }
    }
}

impl Write for LogLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        match self.cut(line) {
            Some(cut) => stderr.write_all(cut.as_bytes())?,
            None => stderr.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl LogLine {
    /// The line as it is written, where it is too long.
    fn cut(&self, line: &[u8]) -> Option<String> {
        if line.len() <= MAX_LINE_BYTES {
            return None;
        }
        let start = String::from_utf8_lossy(&line[..MAX_LINE_BYTES]);
        let start = start.trim_end_matches(char::REPLACEMENT_CHARACTER);
        Some(match self.lines {
            LogLines::Text => format!("{start}… (cut: {} bytes)\n", line.len()),
            LogLines::Json => format!("{}\n", json!({"level": self.level.as_str(), "message": start, "cut_bytes": line.len()})),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let cut = |lines, text: &str| LogLine { lines, level: Level::WARN }.cut(text.as_bytes());
        assert_eq!(cut(LogLines::Text, &"a".repeat(MAX_LINE_BYTES)), None);
        let text = cut(LogLines::Text, &"é\"".repeat(1_000_000)).expect("it is cut");
        assert!(
            text.len() < MAX_LINE_BYTES + 100 && text.ends_with("… (cut: 3000000 bytes)\n"),
            "{}",
            &text[MAX_LINE_BYTES - 8..]
        );
        let text = cut(LogLines::Json, &"{\"\u{1}".repeat(1_000_000)).expect("it is cut");
        let line = serde_json::from_str::<serde_json::Value>(&text).expect("JSON on one line");
        assert_eq!((line["level"].as_str(), line["cut_bytes"].as_u64()), (Some("WARN"), Some(3_000_000)));
        assert!(text.len() < 8 * MAX_LINE_BYTES && text.matches('\n').count() == 1);
    }
}
