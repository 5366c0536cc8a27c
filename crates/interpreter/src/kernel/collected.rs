//! What has come out of a run.
//!
//! Rule: everything that is kept is bounded by number and by bytes, and everything that comes is counted, whatever becomes
//! of it.

use bytes::Bytes;
use protocol::{Image, Limits, OutputEvent, Stream};

use super::capture::Captured;
use super::frames::{self, Frame, Report};

/// Pictures that are kept, as the harness keeps to it.
pub(crate) const MAX_IMAGES: usize = 32;

/// What has come out so far.
pub(crate) struct Collected<'a> {
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    pub(crate) images: Vec<Image>,
    /// What further pictures may take.
    images_left: usize,
    pub(crate) images_dropped: usize,
    pub(crate) report: Option<Report>,
    /// Whether the code was begun with.
    pub(crate) begun: bool,
    /// What may still come, whatever becomes of it, in bytes; none when more has come than may.
    room: Option<u64>,
    on_output: &'a mut (dyn FnMut(OutputEvent<'_>) + Send),
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

impl<'a> Collected<'a> {
    pub(crate) fn new(limits: &Limits, on_output: &'a mut (dyn FnMut(OutputEvent<'_>) + Send)) -> Self {
        Self {
            stdout: Captured::new(limits.output_cap_bytes),
            stderr: Captured::new(limits.output_cap_bytes),
            images: Vec::new(),
            images_left: limits.images_bytes,
            images_dropped: 0,
            report: None,
            begun: false,
            room: Some(limits.output_hard_limit_bytes),
            on_output,
        }
    }

    pub(crate) fn text(&mut self, stream: Stream, bytes: &[u8]) {
        self.has_come(bytes.len());
        if bytes.is_empty() {
            return;
        }
        match stream {
            Stream::Stdout => self.stdout.push(bytes),
            Stream::Stderr => self.stderr.push(bytes),
            // Never a kernel's.
            Stream::Notice => return,
        }
        (self.on_output)(OutputEvent { stream, bytes });
    }

    pub(crate) fn frame(&mut self, frame: Frame) -> Asked {
        self.has_come(frames::HEADER);
        match frame {
            Frame::Begun => self.begun = true,
            Frame::Stdout(text) => self.text(Stream::Stdout, &text),
            Frame::Stderr(text) => self.text(Stream::Stderr, &text),
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
        let room = if self.images.len() < MAX_IMAGES { self.images_left } else { 0 };
        if let Some((mime_type, bytes)) = picture.filter(|(_, bytes)| bytes.len() <= room) {
            self.images_left -= bytes.len();
            self.images.push(Image { mime_type, bytes: bytes.to_vec() });
        } else {
            self.has_come(payload.len());
            self.images_dropped += 1;
        }
    }

    fn report(&mut self, payload: &Bytes, asked: Asked) -> Asked {
        self.has_come(payload.len());
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
