//! What comes from a kernel while a cell runs, made into events.
//!
//! Rule: everything that comes is counted, whatever becomes of it, and nothing is passed on or kept that is not bounded by
//! number and by bytes. What comes before the code has begun is not the code's: nobody is told of it but the log.

use bytes::Bytes;
use protocol::{Event, EventSink, Image, Limits, MimeBundle, Stream};

use super::crash_frames::CrashFrames;
use super::frames::{self, Frame, Report};

/// Pictures that are passed on, as the harness keeps to it.
pub(crate) const MAX_IMAGES: usize = 32;
/// What is kept for the log of what came too early.
const MAX_EARLY_BYTES: usize = 4 << 10;

/// What has come so far.
pub(crate) struct Intake<'a> {
    /// Pictures that may still come.
    images_left: usize,
    /// What these may take.
    image_bytes_left: usize,
    pub(crate) images_dropped: usize,
    pub(crate) report: Option<Report>,
    /// Whether the code was begun with.
    pub(crate) begun: bool,
    /// What came before that.
    pub(crate) early: Vec<u8>,
    /// What may still come, whatever becomes of it, in bytes; none when more has come than may.
    room: Option<u64>,
    crash_frames: CrashFrames,
    events: &'a mut dyn EventSink,
}

/// What a frame asks of the supervisor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    ToSync,
    ToEnd,
    /// It can't be understood.
    Nonsense,
}

impl<'a> Intake<'a> {
    pub(crate) fn new(limits: &Limits, events: &'a mut dyn EventSink) -> Self {
        Self {
            images_left: MAX_IMAGES,
            image_bytes_left: limits.images_bytes,
            images_dropped: 0,
            report: None,
            begun: false,
            early: Vec::new(),
            room: Some(limits.output_hard_limit_bytes),
            crash_frames: CrashFrames::default(),
            events,
        }
    }

    /// Comes back when whoever hears the events can take more.
    pub(crate) async fn has_room(&mut self) {
        std::future::poll_fn(|context| self.events.poll_ready(context)).await;
    }

    /// What a process has written to a descriptor of its own accord.
    pub(crate) fn raw(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => self.text(stream, Bytes::copy_from_slice(bytes)),
            Stream::Stderr => {
                self.has_come(bytes.len());
                let rest = self.crash_frames.without(bytes);
                self.tell(stream, rest.into());
            }
        }
    }

    pub(crate) fn text(&mut self, stream: Stream, bytes: Bytes) {
        self.has_come(bytes.len());
        if stream == Stream::Stderr {
            self.finish();
            self.crash_frames.passed(&bytes);
        }
        self.tell(stream, bytes);
    }

    fn tell(&mut self, stream: Stream, bytes: Bytes) {
        if !self.begun {
            let room = MAX_EARLY_BYTES - self.early.len();
            self.early.extend_from_slice(&bytes[..bytes.len().min(room)]);
        } else if !bytes.is_empty() {
            self.events.push(Event::Output { stream, bytes });
        }
    }

    /// What comes next comes by another way, or nothing does: all that was held back is told.
    pub(crate) fn finish(&mut self) {
        let held = self.crash_frames.held();
        self.tell(Stream::Stderr, held.into());
    }

    pub(crate) fn frame(&mut self, frame: Frame) -> Asked {
        self.has_come(frames::HEADER);
        match frame {
            Frame::Begun => self.begun = true,
            Frame::Stdout(text) => self.text(Stream::Stdout, text),
            Frame::Stderr(text) => self.text(Stream::Stderr, text),
            Frame::Image(payload) => self.image(&payload),
            Frame::Report(payload) => return self.report(&payload, Asked::Nothing),
            Frame::End(payload) => return self.report(&payload, Asked::ToEnd),
            Frame::Sync => return Asked::ToSync,
            Frame::Handover | Frame::Ready => return Asked::Nonsense,
        }
        Asked::Nothing
    }

    fn image(&mut self, payload: &Bytes) {
        let picture = payload.iter().take(32).position(|byte| *byte == 0).and_then(|at| {
            let (mime_type, bytes) = (&payload[..at], &payload[at + 1..]);
            match mime_type {
                b"image/png" if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => Some(("image/png", bytes)),
                b"image/jpeg" if bytes.starts_with(b"\xff\xd8\xff") => Some(("image/jpeg", bytes)),
                _ => None,
            }
        });
        let room = if self.images_left > 0 { self.image_bytes_left } else { 0 };
        if let Some((mime_type, bytes)) = picture.filter(|(_, bytes)| bytes.len() <= room) {
            self.image_bytes_left -= bytes.len();
            self.images_left -= 1;
            // A copy: what else came with it must not be kept for as long.
            let image = Image { mime_type, bytes: Bytes::copy_from_slice(bytes) };
            self.events.push(Event::Display(MimeBundle(vec![image])));
        } else {
            self.has_come(payload.len());
            self.images_dropped += 1;
        }
    }

    fn report(&mut self, payload: &Bytes, asked: Asked) -> Asked {
        self.has_come(payload.len());
        if asked == Asked::Nothing && self.report.is_some() {
            // The code comes to its end once: reading a megabyte of them again and again would hold up everybody.
            return Asked::Nonsense;
        }
        let Ok(report) = serde_json::from_slice::<Report>(payload) else { return Asked::Nonsense };
        match &mut self.report {
            Some(first) => first.amend(report),
            None => self.report = Some(report),
        }
        asked
    }

    fn has_come(&mut self, bytes: usize) {
        self.room = self.room.and_then(|room| room.checked_sub(bytes as u64));
    }

    /// Whether more has come than may.
    pub(crate) fn is_too_much(&self) -> bool {
        self.room.is_none()
    }
}
