//! A kernel's channel: what it sends as frames, what its processes write to descriptors 1 and 2, and the memory it shares.
//!
//! Rules: one look at the descriptors takes no more than a small portion, however much comes. Frames are read before pipes,
//! and pipes only for what waited there before the frames were read: together with the harness (see `streams.py`) that keeps
//! the order of all output. What was sent is never taken for unsent, and so is told once.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use protocol::Stream;
use rustix::event::{PollFd, PollFlags, Timespec};
use sandbox::SupervisorDescriptors;
use tokio::io::unix::AsyncFd;

use super::intake::{Asked, Intake};
use crate::wire::frames::{self, Frame};
use crate::wire::{SHARED_HEADER, SHARED_SIZE};

const READ_SIZE: usize = 16 << 10;
/// The most that a pipe can hold (`fs.pipe-max-size`): what comes after it came later.
const PIPE_BYTES: u64 = 1 << 20;
/// After this many frames or rounds a flood lets the clock have a look.
const FRAMES_AT_ONCE: usize = 1024;
const ROUNDS_AT_ONCE: usize = 64;

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// What one look at the descriptors brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing more waits.
    Idle,
    /// There is more to read.
    More,
    /// The end frame came.
    Ended,
    /// The process has ended without one.
    Died,
    /// More has come than may.
    TooMuch,
    /// The kernel broke the framing.
    Nonsense,
}

/// The supervisor's side of it.
pub(super) struct Channel {
    socket: AsyncFd<OwnedFd>,
    pipes: [AsyncFd<OwnedFd>; 2],
    death: Arc<AsyncFd<OwnedFd>>,
    shared: std::fs::File,
    buffer: BytesMut,
    socket_open: bool,
    pipes_open: [bool; 2],
    /// How much of each stream came as frames since the cell began: as the harness counts it.
    framed: [u32; 2],
}

impl Channel {
    pub(super) fn new(descriptors: SupervisorDescriptors, death: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: sandbox::watched(descriptors.channel)?,
            pipes: [sandbox::watched(descriptors.stdout)?, sandbox::watched(descriptors.stderr)?],
            death: Arc::new(sandbox::watched(death)?),
            shared: descriptors.shared.into(),
            buffer: BytesMut::new(),
            socket_open: true,
            pipes_open: [true; 2],
            framed: [0; 2],
        })
    }

    /// Waits for the kernel's word that it is warm, and gives what it has handed over; none when it died first.
    pub(super) async fn warmed(&mut self) -> Option<Option<OwnedFd>> {
        let mut handed_over = None;
        loop {
            clear(&self.socket);
            match frames::next(&mut self.buffer) {
                Ok(Some(Frame::Ready)) => return Some(handed_over),
                Ok(Some(Frame::Handover)) => continue,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return None,
            }
            // No user code has run in it yet: what it hands over is what it should be.
            match sandbox::receive(self.socket.get_ref(), READ_SIZE) {
                Ok((bytes, fds)) if !bytes.is_empty() => {
                    self.buffer.extend_from_slice(&bytes);
                    handed_over = fds.into_iter().next().or(handed_over);
                    continue;
                }
                Ok(_) => {
                    let mut text = vec![0; 4096];
                    let length = rustix::io::read(self.pipes[1].get_ref(), &mut text).unwrap_or(0);
                    // Without a word it was ended with its zygote.
                    if length > 0 {
                        tracing::error!(stderr = %String::from_utf8_lossy(&text[..length]), "a kernel died before it was ready");
                    }
                    return None;
                }
                Err(_) => {}
            }
            if self.socket.readable().await.is_err() {
                return None;
            }
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(self.death.get_ref(), PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&NO_TIME)), Ok(0))
    }

    pub(super) fn death(&self) -> impl Future<Output = ()> + Send + use<> {
        let death = self.death.clone();
        async move {
            let _ = death.readable().await;
        }
    }

    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(self.socket.get_ref(), bytes, rustix::net::SendFlags::NOSIGNAL) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::AGAIN) => {
                    let mut guard = self.socket.writable().await?;
                    let _ = guard.try_io(|socket| {
                        let sent = rustix::net::send(socket.get_ref(), bytes, rustix::net::SendFlags::NOSIGNAL)?;
                        bytes = &bytes[sent..];
                        Ok(())
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A cell is about to be sent.
    pub(super) fn begin(&mut self) {
        self.framed = [0; 2];
    }

    pub(super) async fn something_to_read(&self) {
        std::future::poll_fn(|context| {
            let socket = self.socket_open && self.socket.poll_read_ready(context).is_ready();
            let pipe =
                |index: usize, context: &mut _| self.pipes_open[index] && self.pipes[index].poll_read_ready(context).is_ready();
            let pipes = [pipe(0, context), pipe(1, context)];
            let death = self.death.poll_read_ready(context).is_ready();
            if socket || pipes != [false; 2] || death { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    /// Takes a portion of what waits.
    pub(super) fn drain(&mut self, intake: &mut Intake<'_>) -> Step {
        // Cleared before reading, so that what comes later wakes us again.
        for fd in [&self.socket, &self.pipes[0], &self.pipes[1]] {
            clear(fd);
        }
        let mut frames_left = FRAMES_AT_ONCE;
        for _ in 0..ROUNDS_AT_ONCE {
            let waiting = [0, 1].map(|index: usize| sandbox::waiting_bytes(self.pipes[index].get_ref()));
            let mut progress = waiting != [0, 0];
            let mut asked = Asked::Nothing;
            while asked == Asked::Nothing && frames_left > 0 {
                match frames::next(&mut self.buffer) {
                    Ok(Some(frame)) => {
                        frames_left -= 1;
                        progress = true;
                        asked = self.frame(frame, intake);
                    }
                    Ok(None) => match self.socket_open.then(|| self.read_socket()) {
                        Some(Ok(true)) => {
                            progress = true;
                            frames_left -= 1;
                        }
                        Some(Ok(false)) => self.socket_open = false,
                        Some(Err(_)) | None => break,
                    },
                    Err(_) => asked = Asked::Nonsense,
                }
                if intake.is_too_much() {
                    return Step::TooMuch;
                }
            }
            let whole = matches!(asked, Asked::ToSync | Asked::ToEnd);
            for (index, waiting) in waiting.into_iter().enumerate() {
                self.read_pipe(index, waiting, whole, intake);
            }
            if intake.is_too_much() {
                return Step::TooMuch;
            }
            match asked {
                Asked::Nonsense => return Step::Nonsense,
                Asked::ToEnd => return Step::Ended,
                Asked::ToSync => {
                    let _ = rustix::net::send(self.socket.get_ref(), b".", rustix::net::SendFlags::NOSIGNAL);
                }
                Asked::Nothing if frames_left == 0 => return Step::More,
                Asked::Nothing if !progress => {
                    if !self.is_alive() {
                        return Step::Died;
                    }
                    self.notice_closed_pipes();
                    return Step::Idle;
                }
                Asked::Nothing => {}
            }
        }
        Step::More
    }

    /// After the kernel's end: what is still in the socket, the pipes and the memory shared with it.
    pub(super) fn leftovers(&mut self, intake: &mut Intake<'_>) {
        while self.socket_open && matches!(self.read_socket(), Ok(true)) && self.buffer.len() < 2 * frames::MAX_PAYLOAD {}
        while let Ok(Some(frame)) = frames::next(&mut self.buffer) {
            self.frame(frame, intake);
        }
        for index in 0..2 {
            self.read_pipe(index, 0, true, intake);
        }
        for (index, stream) in STREAMS.into_iter().enumerate() {
            if let Some(text) = self.unsent(index) {
                intake.text(stream, text.into());
            }
        }
    }

    /// What a stream has in shared memory, unless it was ended between sending it and saying so there.
    fn unsent(&self, index: usize) -> Option<Vec<u8>> {
        let region = index as u64 * SHARED_SIZE / 2;
        let mut header = [0; 8];
        self.shared.read_exact_at(&mut header, region).ok()?;
        let [length, sent] = [0, 4].map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
        if length == 0 || sent != self.framed[index] {
            return None;
        }
        let length = u64::from(length).min(SHARED_SIZE / 2 - SHARED_HEADER);
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        self.shared.read_exact_at(&mut text, region + SHARED_HEADER).ok()?;
        Some(text)
    }

    fn frame(&mut self, frame: Frame, intake: &mut Intake<'_>) -> Asked {
        let (index, length) = match &frame {
            Frame::Stdout(text) => (0, text.len()),
            Frame::Stderr(text) => (1, text.len()),
            _ => (0, 0),
        };
        self.framed[index] = self.framed[index].wrapping_add(u32::try_from(length).unwrap_or(0));
        intake.frame(frame)
    }

    /// True when bytes came, false at the end of the stream.
    fn read_socket(&mut self) -> rustix::io::Result<bool> {
        let mut bytes = [0; READ_SIZE];
        let read = rustix::io::read(self.socket.get_ref(), &mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(read > 0)
    }

    /// Reads `waiting` bytes of a raw pipe, or all that a pipe can hold: whoever writes meanwhile does so later.
    fn read_pipe(&mut self, index: usize, mut waiting: u64, whole: bool, intake: &mut Intake<'_>) {
        let pipe = self.pipes[index].get_ref();
        let mut bytes = [0; READ_SIZE];
        let mut taken = 0;
        loop {
            if waiting == 0 && whole && taken < PIPE_BYTES {
                waiting = sandbox::waiting_bytes(pipe);
            }
            let size = usize::try_from(waiting).unwrap_or(READ_SIZE).min(READ_SIZE);
            if size == 0 {
                return;
            }
            match rustix::io::read(pipe, &mut bytes[..size]) {
                Ok(read @ 1..) => {
                    intake.raw(STREAMS[index], &bytes[..read]);
                    waiting -= read as u64;
                    taken += read as u64;
                }
                _ => return,
            }
        }
    }

    /// A closed pipe is readable for ever: it must not be waited for.
    fn notice_closed_pipes(&mut self) {
        let mut fds = [0, 1].map(|index: usize| PollFd::new(self.pipes[index].get_ref(), PollFlags::IN));
        let _ = rustix::event::poll(&mut fds, Some(&NO_TIME));
        let open = [0, 1].map(|index: usize| {
            let events = fds[index].revents();
            !events.contains(PollFlags::HUP) || events.contains(PollFlags::IN)
        });
        self.pipes_open = open;
    }
}

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

fn clear(fd: &AsyncFd<OwnedFd>) {
    let _ = fd.try_io(tokio::io::Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
