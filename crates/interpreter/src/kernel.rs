//! One kernel: its process, its descriptors, and what must go when it goes.
//!
//! Rules: a kernel that is dropped is killed, with everything it started, and its directory and user come back after that;
//! also when the runtime that was to do so shuts down. How a cell runs in it is in `run`.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use protocol::Stream;
use sandbox::{KernelProcess, Reaper, SupervisorDescriptors};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::collected::Collected;
use crate::frames::{self, Frame};
use crate::home::Home;
use crate::pool::Spare;

/// Size of the memory in which a kernel keeps output it has not sent: as in `streams.py`.
pub(crate) const SHARED_SIZE: u64 = 1 << 16;
const SHARED_HEADER: u64 = 8;
const READ_SIZE: usize = 16 << 10;
/// The most that a pipe can hold (`fs.pipe-max-size`): what comes after it came later.
const PIPE_BYTES: u64 = 1 << 20;

/// A kernel that has warmed itself and waits for its cell.
pub(crate) struct Kernel {
    pub(crate) process: Arc<KernelProcess>,
    pub(crate) channel: AsyncFd<OwnedFd>,
    pub(crate) stdout: AsyncFd<OwnedFd>,
    pub(crate) stderr: AsyncFd<OwnedFd>,
    pub(crate) death: AsyncFd<OwnedFd>,
    shared: std::fs::File,
    pub(crate) exited: oneshot::Receiver<i32>,
    pub(crate) baseline_bytes: u64,
    /// Whether the supervisor may look at what its processes have open.
    pub(crate) sees_descriptors: bool,
    /// Whether all sockets of its network namespace are its own.
    pub(crate) own_network: bool,
    /// The shared memory that is the kernel's own, where it has some.
    pub(crate) shared_memory: Option<Arc<OwnedFd>>,
    pub(crate) buffer: BytesMut,
    pub(crate) channel_open: bool,
    pub(crate) pipes_open: [bool; 2],
    pub(crate) remains: Option<Remains>,
}

/// How a kernel can be looked at from outside.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    /// What it got from its zygote by fork, in bytes.
    pub(crate) baseline_bytes: u64,
    /// Whether what its processes have open is in sight.
    pub(crate) descriptors: bool,
    /// Whether it has a network of its own.
    pub(crate) own_network: bool,
}

/// What must go when the kernel goes: its processes, then its home.
pub(crate) struct Remains {
    process: Arc<KernelProcess>,
    reaper: Arc<Reaper>,
    pub(crate) home: Option<Home>,
    pub(crate) dead: bool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        let dead = self.dead || self.reaper.kill_tree(&self.process);
        if let Some(home) = self.home.take().filter(|_| !dead) {
            tracing::error!(pid = self.process.pid, "processes of a call could not be ended");
            home.quarantine();
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // Off this thread, which may be the runtime's: a tree may take its time. What a runtime that shuts down does not run
        // any more it drops, and that does the same.
        let remains = self.remains.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(remains));
        }
    }
}

impl Spare for Kernel {
    fn is_alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut fds = [PollFd::new(self.death.get_ref(), PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }
}

impl Kernel {
    /// Takes charge of a kernel its zygote has just forked.
    pub(crate) fn new(
        process: KernelProcess,
        descriptors: SupervisorDescriptors,
        death: OwnedFd,
        exited: oneshot::Receiver<i32>,
        seen: Seen,
        reaper: Arc<Reaper>,
        home: Home,
    ) -> io::Result<Self> {
        let process = Arc::new(process);
        let remains = Remains { process: process.clone(), reaper, home: Some(home), dead: false };
        Ok(Self {
            process,
            channel: sandbox::watched(descriptors.channel)?,
            stdout: sandbox::watched(descriptors.stdout)?,
            stderr: sandbox::watched(descriptors.stderr)?,
            death: sandbox::watched(death)?,
            shared: descriptors.shared.into(),
            exited,
            baseline_bytes: seen.baseline_bytes,
            sees_descriptors: seen.descriptors,
            own_network: seen.own_network,
            shared_memory: None,
            buffer: BytesMut::new(),
            channel_open: true,
            pipes_open: [true; 2],
            remains: Some(remains),
        })
    }

    /// Waits for the kernel's word that it is warm; false when it died first, with what it wrote to stderr logged.
    pub(crate) async fn warmed(&mut self) -> bool {
        loop {
            clear(&self.channel);
            match frames::next(&mut self.buffer) {
                Ok(Some(Frame::Ready)) => return true,
                Ok(Some(Frame::Handover)) => continue,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return false,
            }
            // No user code has run in it yet: what it hands over is what it should be.
            match sandbox::receive(self.channel.get_ref(), READ_SIZE) {
                Ok((bytes, fds)) if !bytes.is_empty() => {
                    self.buffer.extend_from_slice(&bytes);
                    self.shared_memory = fds.into_iter().next().map(Arc::new).or(self.shared_memory.take());
                    continue;
                }
                Ok(_) => {
                    let mut text = vec![0; 4096];
                    let length = rustix::io::read(self.stderr.get_ref(), &mut text).unwrap_or(0);
                    // Without a word it was ended with its zygote.
                    if length > 0 {
                        tracing::error!(stderr = %String::from_utf8_lossy(&text[..length]), "a kernel died before it was ready");
                    }
                    return false;
                }
                Err(_) => {}
            }
            if self.channel.readable().await.is_err() {
                return false;
            }
        }
    }

    pub(crate) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(self.channel.get_ref(), bytes, rustix::net::SendFlags::NOSIGNAL) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::AGAIN) => {
                    let mut guard = self.channel.writable().await?;
                    let _ = guard.try_io(|channel| {
                        let sent = rustix::net::send(channel.get_ref(), bytes, rustix::net::SendFlags::NOSIGNAL)?;
                        bytes = &bytes[sent..];
                        Ok(())
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// True when bytes came, false at the end of the stream.
    pub(crate) fn read_channel(&mut self) -> rustix::io::Result<bool> {
        let mut bytes = [0; READ_SIZE];
        let read = rustix::io::read(self.channel.get_ref(), &mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(read > 0)
    }

    /// Reads `waiting` bytes of a raw pipe, or all that a pipe can hold: whoever writes meanwhile does so later.
    pub(crate) fn read_pipe(&mut self, index: usize, mut waiting: u64, whole: bool, collected: &mut Collected<'_>) {
        let (fd, stream) = if index == 0 { (&self.stdout, Stream::Stdout) } else { (&self.stderr, Stream::Stderr) };
        let mut bytes = [0; READ_SIZE];
        let mut taken = 0;
        loop {
            if waiting == 0 && whole && taken < PIPE_BYTES {
                waiting = sandbox::waiting_bytes(fd.get_ref());
            }
            let size = usize::try_from(waiting).unwrap_or(READ_SIZE).min(READ_SIZE);
            if size == 0 {
                return;
            }
            match rustix::io::read(fd.get_ref(), &mut bytes[..size]) {
                Ok(read @ 1..) => {
                    collected.text(stream, &bytes[..read]);
                    waiting -= read as u64;
                    taken += read as u64;
                }
                _ => return,
            }
        }
    }

    /// Ends every process of the kernel.
    pub(crate) async fn kill(&mut self) {
        let Some(remains) = &mut self.remains else { return };
        if remains.reaper.kill_alone(&self.process) {
            remains.dead = true;
            return;
        }
        let (process, reaper) = (self.process.clone(), remains.reaper.clone());
        remains.dead = tokio::task::spawn_blocking(move || reaper.kill_tree(&process)).await.unwrap_or(false);
    }

    /// After a kill: what is still in the channel, the pipes and the memory shared with the kernel.
    pub(crate) fn collect_leftovers(&mut self, collected: &mut Collected<'_>) {
        while self.channel_open && matches!(self.read_channel(), Ok(true)) && self.buffer.len() < 2 * frames::MAX_PAYLOAD {}
        while let Ok(Some(frame)) = frames::next(&mut self.buffer) {
            collected.frame(frame);
        }
        for index in 0..2 {
            self.read_pipe(index, 0, true, collected);
        }
        for (region, stream) in [(0, Stream::Stdout), (SHARED_SIZE / 2, Stream::Stderr)] {
            let mut length = [0; 4];
            if self.shared.read_exact_at(&mut length, region).is_ok() {
                let length = u64::from(u32::from_le_bytes(length)).min(SHARED_SIZE / 2 - SHARED_HEADER);
                let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
                if self.shared.read_exact_at(&mut text, region + SHARED_HEADER).is_ok() {
                    collected.text(stream, &text);
                }
            }
        }
    }
}

pub(crate) fn clear(fd: &AsyncFd<OwnedFd>) {
    let _ = fd.try_io(tokio::io::Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
