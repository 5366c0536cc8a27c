//! What is heard of a call while it runs, and the outcome that it comes to.
//!
//! Rule: an [`Outcome`] is folded from its events and knows nothing besides: whoever hears them all, hears all of it. A
//! listener that can take no more says so, and the code then waits for it, with its clock running on; nothing is dropped for
//! a slow one but what it drops itself.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::captured::Captured;
use crate::{Dropped, ErrorCode, ExecutionError, Image, Outcome, OutputFile, PackageReport, Usage};

/// Which stream a piece of output belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One thing that is heard of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The code has printed something.
    Output {
        /// Where.
        stream: Stream,
        /// What. It may end inside of a character.
        bytes: Bytes,
    },
    /// The code has shown something.
    Display(MimeBundle),
    /// What the caller may want to know while it waits: a sentence.
    Notice(String),
    /// What an installer does for the call: a sentence.
    Package(String),
    /// The call is over: nothing comes after it.
    Ended(Arc<Ended>),
}

/// One thing that was shown, in each form that there is of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MimeBundle(pub Vec<Image>);

impl MimeBundle {
    /// The form that an outcome has it in.
    pub fn image(&self) -> Option<&Image> {
        self.0.iter().find(|form| form.mime_type.starts_with("image/"))
    }
}

/// What is known of a call when it is over, besides what was heard before.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The value of the last expression, or else of the variable `result`, as text.
    pub value: Option<String>,
    /// Why it did not succeed; none when it did.
    pub error: Option<ExecutionError>,
    /// As [`ExecutionResult::exit_code`](crate::ExecutionResult::exit_code).
    pub exit_code: i32,
    /// Notes about the run.
    pub warnings: Vec<String>,
    /// Wall-clock milliseconds from the start of the cell to its end.
    pub execution_time_ms: f64,
    /// What came of `requirements`, when there were any.
    pub packages: Option<PackageReport>,
    /// What the run used.
    pub usage: Option<Usage>,
    /// Files that the code has left, in order.
    pub files: Vec<OutputFile>,
}

impl Ended {
    /// Of a call that never ran.
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::refused_as(code, code.as_str(), message)
    }

    /// The same, with a reason of its own.
    pub fn refused_as(code: ErrorCode, kind: &str, message: impl Into<String>) -> Self {
        let (kind, message) = (kind.to_owned(), message.into());
        Self {
            value: None,
            error: Some(ExecutionError { code, kind, message, traceback: None, line: None, column: None }),
            exit_code: 1,
            warnings: Vec::new(),
            execution_time_ms: 0.0,
            packages: None,
            usage: None,
            files: Vec::new(),
        }
    }
}

/// Where the events of one call go, one after the other.
pub trait EventSink: Send {
    /// Ready when there is room for more; else it wakes the task when there is. An event that comes all the same is taken.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()>;

    /// Takes an event.
    fn push(&mut self, event: Event);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl EventSink for Silent {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn push(&mut self, _: Event) {}
}

/// Makes an outcome of a call's events, and passes them on.
pub struct Fold<'a> {
    stdout: Captured,
    stderr: Captured,
    output_cap_bytes: usize,
    images: Vec<Image>,
    ended: Option<Arc<Ended>>,
    listener: &'a mut dyn EventSink,
}

impl<'a> Fold<'a> {
    /// Keeps `output_cap_bytes` of each stream.
    pub fn new(output_cap_bytes: usize, listener: &'a mut dyn EventSink) -> Self {
        let captured = || Captured::new(output_cap_bytes);
        Self { stdout: captured(), stderr: captured(), output_cap_bytes, images: Vec::new(), ended: None, listener }
    }

    /// What the events have come to; a fault of ours when the last of them is missing.
    pub fn outcome(self) -> Outcome {
        let ended = self.ended.map(Arc::unwrap_or_clone);
        let ended = ended.unwrap_or_else(|| Ended::refused(ErrorCode::Internal, "the call came to no end"));
        let mut outcome = Outcome::from(ended);
        outcome.images = self.images;
        let result = &mut outcome.result;
        let (stdout_bytes, stderr_bytes);
        (result.stdout, stdout_bytes) = self.stdout.finish();
        (result.stderr, stderr_bytes) = self.stderr.finish();
        if stdout_bytes + stderr_bytes > 0 {
            result.truncated = true;
            result.dropped = Some(Dropped { stdout_bytes, stderr_bytes });
            let cut = format!(
                "output was cut to {} bytes a stream: {stdout_bytes} bytes of stdout and {stderr_bytes} of stderr are missing",
                self.output_cap_bytes
            );
            result.warnings.insert(0, cut);
        }
        outcome
    }
}

impl EventSink for Fold<'_> {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.listener.poll_ready(context)
    }

    fn push(&mut self, event: Event) {
        match &event {
            Event::Output { stream: Stream::Stdout, bytes } => self.stdout.push(bytes),
            Event::Output { stream: Stream::Stderr, bytes } => self.stderr.push(bytes),
            Event::Display(bundle) => self.images.extend(bundle.image().cloned()),
            Event::Notice(_) | Event::Package(_) => {}
            Event::Ended(ended) => self.ended = Some(ended.clone()),
        }
        self.listener.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it hears.
    #[derive(Default)]
    struct Heard(Vec<Event>);

    impl EventSink for Heard {
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Ready(())
        }

        fn push(&mut self, event: Event) {
            self.0.push(event);
        }
    }

    fn ended() -> Ended {
        Ended { value: Some("5".to_owned()), error: None, exit_code: 0, ..Ended::refused(ErrorCode::Internal, "") }
    }

    fn output(stream: Stream, text: &'static str) -> Event {
        Event::Output { stream, bytes: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn an_outcome_is_what_its_events_come_to_and_the_listener_hears_all_of_them() {
        let image = Image { mime_type: "image/png", bytes: Bytes::from_static(b"png") };
        let events = [
            Event::Notice("waits".to_owned()),
            output(Stream::Stdout, "a"),
            output(Stream::Stderr, "e"),
            Event::Display(MimeBundle(vec![image.clone()])),
            output(Stream::Stdout, "b"),
            Event::Ended(Arc::new(ended())),
        ];
        let mut heard = Heard::default();
        let mut fold = Fold::new(100, &mut heard);
        for event in &events {
            fold.push(event.clone());
        }
        let outcome = fold.outcome();
        let result = &outcome.result;
        assert_eq!((result.stdout.as_str(), result.stderr.as_str(), result.result.as_deref()), ("ab", "e", Some("5")));
        assert!(result.success && result.warnings.is_empty() && !result.truncated, "{result:?}");
        assert_eq!((outcome.images, heard.0), (vec![image], events.to_vec()));
    }

    #[test]
    fn what_was_cut_is_told_before_all_other_notes() {
        let mut silent = Silent;
        let mut fold = Fold::new(4, &mut silent);
        fold.push(output(Stream::Stdout, "0123456789"));
        fold.push(Event::Ended(Arc::new(Ended { warnings: vec!["a note".to_owned()], ..ended() })));
        let result = fold.outcome().result;
        assert_eq!(result.dropped, Some(Dropped { stdout_bytes: 6, stderr_bytes: 0 }));
        assert_eq!(result.warnings[1], "a note");
        assert!(result.truncated && result.warnings[0].contains("6 bytes of stdout"), "{:?}", result.warnings);
    }

    #[test]
    fn a_call_without_an_end_is_our_fault() {
        let outcome = Fold::new(4, &mut Silent).outcome();
        assert_eq!(outcome.result.error.expect("an error").code, ErrorCode::Internal);
    }
}
