//! What a kernel sends, and how it is decoded: `kind: u8, length: u32 (little endian), payload`.
//!
//! Rule: the length is checked before a byte of the payload is stored.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The longest payload of a frame, in bytes. The largest honest one is an image of 5 MB.
pub(crate) const MAX_PAYLOAD: usize = 6 << 20;
/// The longest report: an honest one has a value, a traceback and notes, of 64,000 characters at most the first two.
pub(crate) const MAX_REPORT: usize = 1 << 20;

/// What a frame takes besides its payload, in bytes.
pub(crate) const HEADER: usize = 5;

/// The first byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Handover = b'H',
    Ready = b'R',
    Begun = b'B',
    Stdout = b'O',
    Stderr = b'E',
    Image = b'I',
    Report = b'V',
    End = b'Z',
    Sync = b'S',
}

impl Kind {
    pub(crate) const ALL: [Self; 9] =
        [Self::Handover, Self::Ready, Self::Begun, Self::Stdout, Self::Stderr, Self::Image, Self::Report, Self::End, Self::Sync];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The longest payload, in bytes.
    fn longest(self) -> usize {
        if matches!(self, Self::Report | Self::End) { MAX_REPORT } else { MAX_PAYLOAD }
    }
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Comes with a descriptor, before any code has run.
    Handover,
    /// The kernel can take a job.
    Ready,
    /// The next thing that runs is the code: until here all that went wrong was ours.
    Begun,
    /// Text for stdout.
    Stdout(Bytes),
    /// Text for stderr.
    Stderr(Bytes),
    /// `mime NUL bytes`
    Image(Bytes),
    /// The code has run to its end; a JSON [`Report`].
    Report(Bytes),
    /// Its threads and exit handlers have ended, too; what of the report that has changed.
    End(Bytes),
    /// Asks for the raw pipes to be emptied, and for a byte in return.
    Sync,
}

/// What the kernel claims about the cell it ran.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) value: Option<String>,
    pub(crate) error: Option<ReportedError>,
    pub(crate) exit: Option<u8>,
    #[serde(default, deserialize_with = "first_warnings")]
    pub(crate) warnings: Vec<String>,
}

/// As many as are ever told: a megabyte of empty ones would take eight in memory.
pub(crate) const MAX_WARNINGS: usize = 100;

fn first_warnings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct First;
    impl<'de> Visitor<'de> for First {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of warnings")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut first = Vec::new();
            while first.len() < MAX_WARNINGS {
                let Some(warning) = list.next_element()? else { return Ok(first) };
                first.push(warning);
            }
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }
    deserializer.deserialize_seq(First)
}

impl Report {
    /// What came of threads and exit handlers changes only what the code itself has left open.
    pub(crate) fn amend(&mut self, later: Self) {
        self.error = self.error.take().or(later.error);
        self.exit = self.exit.or(later.exit);
    }
}

/// What an exception is taken for. Nothing else is for a kernel to say.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
pub(crate) enum Raised {
    PythonError,
    MemoryLimit,
    PolicyDenied,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields)]
pub(crate) struct ReportedError {
    pub(crate) code: Raised,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) traceback: String,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
}

/// The kernel broke the framing: nothing after it can be understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BrokenFraming;

/// Takes the next whole frame out of `buffer`; `None` when more bytes are needed.
pub(crate) fn next(buffer: &mut BytesMut) -> Result<Option<Frame>, BrokenFraming> {
    let Some((&kind, length)) = buffer.split_first().and_then(|(kind, rest)| Some((kind, rest.first_chunk::<4>()?))) else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    let kind = Kind::of(kind).filter(|kind| length <= kind.longest()).ok_or(BrokenFraming)?;
    if buffer.len() < HEADER + length {
        buffer.reserve(HEADER + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER);
    let payload = buffer.split_to(length).freeze();
    Ok(Some(match kind {
        Kind::Handover => Frame::Handover,
        Kind::Ready => Frame::Ready,
        Kind::Begun => Frame::Begun,
        Kind::Stdout => Frame::Stdout(payload),
        Kind::Stderr => Frame::Stderr(payload),
        Kind::Image => Frame::Image(payload),
        Kind::Report => Frame::Report(payload),
        Kind::End => Frame::End(payload),
        Kind::Sync => Frame::Sync,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_or_not_at_all() {
        let mut buffer = BytesMut::from(&b"O\x02\0\0\0hiR\0\0\0\0E\x05\0\0\0par"[..]);
        assert_eq!(next(&mut buffer), Ok(Some(Frame::Stdout(Bytes::from_static(b"hi")))));
        assert_eq!(next(&mut buffer), Ok(Some(Frame::Ready)));
        assert_eq!(next(&mut buffer), Ok(None));
        buffer.extend_from_slice(b"ts");
        assert_eq!(next(&mut buffer), Ok(Some(Frame::Stderr(Bytes::from_static(b"parts")))));
        assert_eq!(next(&mut buffer), Ok(None));
    }

    #[test]
    fn a_length_above_the_cap_or_an_unknown_kind_is_refused_before_anything_is_stored() {
        assert_eq!(next(&mut BytesMut::from(&b"O\xff\xff\xff\x7f"[..])), Err(BrokenFraming));
        assert_eq!(next(&mut BytesMut::from(&b"{\"k\":\"done\"}"[..])), Err(BrokenFraming));
        assert_eq!(next(&mut BytesMut::from(&b"Z\0\0\x20\0"[..])), Err(BrokenFraming), "a report of 2 MB");
    }

    #[test]
    fn a_report_of_any_number_of_warnings_costs_what_the_first_of_them_do() {
        for count in [0, MAX_WARNINGS - 1, MAX_WARNINGS, MAX_WARNINGS + 1, 250_000] {
            let text = serde_json::json!({"warnings": vec![""; count], "value": "1"}).to_string();
            let report = serde_json::from_str::<Report>(&text).expect("a report");
            assert_eq!((report.warnings.len(), report.value.as_deref()), (count.min(MAX_WARNINGS), Some("1")));
            assert!(report.warnings.capacity() <= 2 * MAX_WARNINGS);
        }
    }
}
