//! One kernel: its descriptors, its process, and the run of a cell in it.
//!
//! Rules: frames are read before pipes, and pipes only for what waited there before the frames were read: together
//! with the harness (see `streams.py`) that keeps the order of all output. A kernel that is dropped is killed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::{CellRequest, CpuSeconds, ErrorCode, Image, Limits, OutputEvent, Policy, Stream};
use sandbox::{KernelProcess, Reaper, SupervisorDescriptors};
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

use crate::capture::Captured;
use crate::frames::{self, Frame, Report};
use crate::home::Home;

/// Size of the memory in which a kernel keeps output it has not sent: as in `streams.py`.
pub(crate) const SHARED_SIZE: u64 = 1 << 16;
const SHARED_HEADER: u64 = 8;
/// How often memory and processes of a run are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(25);
/// Files are looked at less often than memory: every 200 ms.
const DISK_EVERY: u32 = 8;
/// Above the limit by this much and the run is killed: what is below is left to Python's own `MemoryError`.
const MEMORY_SLACK_BYTES: u64 = 16 << 20;
/// How long the zygote may take to report a dead kernel's status.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
const READ_SIZE: usize = 16 << 10;
/// After this many rounds a flood lets the clock have a look.
const DRAIN_ROUNDS: usize = 64;
const MAX_IMAGES_BYTES: usize = 32 << 20;

/// How a run ended, by what the supervisor saw.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The end frame came.
    Reported(Box<Report>),
    /// The process ended without one: an exit code, or a negative signal number.
    Died(Option<i32>),
    /// It was killed for this reason.
    Killed(ErrorCode),
    /// The kernel broke the channel's framing and was killed.
    BrokeFraming,
}

/// What a run left.
pub(crate) struct Finished {
    pub(crate) ending: Ending,
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    pub(crate) images: Vec<Image>,
    pub(crate) images_dropped: usize,
    pub(crate) elapsed: Duration,
}

/// A kernel that has warmed itself and waits for its cell.
pub(crate) struct Kernel {
    process: Arc<KernelProcess>,
    channel: AsyncFd<OwnedFd>,
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
    death: AsyncFd<OwnedFd>,
    shared: std::fs::File,
    exited: oneshot::Receiver<i32>,
    baseline_bytes: u64,
    buffer: BytesMut,
    channel_open: bool,
    pipes_open: [bool; 2],
    remains: Remains,
}

/// What must go when the kernel goes: its processes, then its home.
struct Remains {
    process: Arc<KernelProcess>,
    reaper: Arc<Reaper>,
    home: Option<Home>,
    dead: bool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        let (process, reaper, home, dead) = (self.process.clone(), self.reaper.clone(), self.home.take(), self.dead);
        let clean = move || {
            if !dead {
                reaper.kill_tree(&process);
            }
            drop(home);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clean)),
            Err(_) => clean(),
        }
    }
}

/// What one look at the descriptors brought.
enum Step {
    /// Nothing more waits.
    Idle,
    /// There is more to read.
    More,
    /// The run is over.
    Ended(Ending),
}

/// What has come out so far.
struct Collected<'a> {
    stdout: Captured,
    stderr: Captured,
    images: Vec<Image>,
    images_bytes: usize,
    images_dropped: usize,
    on_output: &'a mut (dyn FnMut(OutputEvent<'_>) + Send),
}

impl Collected<'_> {
    fn text(&mut self, stream: Stream, bytes: &[u8]) {
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

    fn image(&mut self, payload: &Bytes) {
        let Some(at) = payload.iter().position(|byte| *byte == 0) else { return };
        let mime_type = match &payload[..at] {
            b"image/png" => "image/png",
            b"image/jpeg" => "image/jpeg",
            _ => return,
        };
        self.images_bytes += payload.len();
        if self.images_bytes > MAX_IMAGES_BYTES {
            self.images_dropped += 1;
        } else {
            self.images.push(Image { mime_type, bytes: payload[at + 1..].to_vec() });
        }
    }

    fn total(&self) -> u64 {
        self.stdout.total() + self.stderr.total()
    }
}

impl Kernel {
    /// Takes charge of a kernel its zygote has just forked.
    pub(crate) fn new(
        process: KernelProcess,
        descriptors: SupervisorDescriptors,
        death: OwnedFd,
        exited: oneshot::Receiver<i32>,
        baseline_bytes: u64,
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
            baseline_bytes,
            buffer: BytesMut::new(),
            channel_open: true,
            pipes_open: [true; 2],
            remains,
        })
    }

    /// Waits for the kernel's word that it is warm; false when it died first, with what it wrote to stderr logged.
    pub(crate) async fn warmed(&mut self) -> bool {
        loop {
            clear(&self.channel);
            match frames::next(&mut self.buffer) {
                Ok(Some(Frame::Ready)) => return true,
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return false,
            }
            match self.read_channel() {
                Ok(true) => continue,
                Ok(false) => {
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

    /// False when the kernel died while it waited.
    pub(crate) fn is_alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut fds = [PollFd::new(self.death.get_ref(), PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Runs the cell, and comes back when nothing of it is alive any more.
    pub(crate) async fn run(
        mut self,
        request: &CellRequest,
        authorized_imports: &[String],
        cores: usize,
        on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send),
    ) -> Finished {
        let limits = request.limits;
        let started = Instant::now();
        let deadline = started + limits.timeout;
        let deadline = request.deadline.map_or(deadline, |latest| deadline.min(latest.into()));
        let mut collected = Collected {
            stdout: Captured::new(limits.output_cap_bytes),
            stderr: Captured::new(limits.output_cap_bytes),
            images: Vec::new(),
            images_bytes: 0,
            images_dropped: 0,
            on_output,
        };
        let job = encode_job(request, authorized_imports, cores);
        // Where nothing holds signals back, other code may have stopped it while it waited.
        self.process.handle.resume();
        let mut ending = match tokio::time::timeout_at(deadline, self.send(&job)).await {
            Ok(Ok(())) => self.supervise(&limits, deadline, &mut collected).await,
            // It died while it took the job: the status tells how.
            Ok(Err(_)) => Ending::Died(None),
            Err(_) => Ending::Killed(ErrorCode::Timeout),
        };
        let elapsed = started.elapsed();
        self.kill().await;
        if !matches!(ending, Ending::Reported(_)) {
            self.collect_leftovers(&mut collected);
        }
        if let Ending::Died(status) = &mut ending {
            *status = tokio::time::timeout(STATUS_PATIENCE, &mut self.exited).await.ok().and_then(Result::ok);
        }
        let Collected { stdout, stderr, images, images_dropped, .. } = collected;
        Finished { ending, stdout, stderr, images, images_dropped, elapsed }
    }

    async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
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

    /// Reads what comes until the cell ends, dies, or meets a limit.
    async fn supervise(&mut self, limits: &Limits, deadline: Instant, collected: &mut Collected<'_>) -> Ending {
        let mut clock = pin!(tokio::time::sleep_until(deadline));
        let mut watch = tokio::time::interval_at(Instant::now() + WATCH_INTERVAL, WATCH_INTERVAL);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut more, mut looks) = (false, 0_u32);
        loop {
            if more {
                tokio::task::yield_now().await;
                if Instant::now() >= deadline {
                    return Ending::Killed(ErrorCode::Timeout);
                }
            } else {
                tokio::select! {
                    biased;
                    () = clock.as_mut() => return Ending::Killed(ErrorCode::Timeout),
                    _ = watch.tick() => {
                        looks += 1;
                        if let Some(code) = self.over_limit(limits, looks % DISK_EVERY == 0) {
                            return Ending::Killed(code);
                        }
                    }
                    () = self.something_to_read() => {}
                }
            }
            match self.drain(limits, collected) {
                Step::Ended(ending) => return ending,
                Step::More => more = true,
                Step::Idle => more = false,
            }
        }
    }

    async fn something_to_read(&self) {
        std::future::poll_fn(|context| {
            let channel = self.channel_open && self.channel.poll_read_ready(context).is_ready();
            let stdout = self.pipes_open[0] && self.stdout.poll_read_ready(context).is_ready();
            let stderr = self.pipes_open[1] && self.stderr.poll_read_ready(context).is_ready();
            let death = self.death.poll_read_ready(context).is_ready();
            if channel || stdout || stderr || death { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    fn over_limit(&self, limits: &Limits, disk_too: bool) -> Option<ErrorCode> {
        let usage = sandbox::usage_of_tree(self.process.pid, self.baseline_bytes);
        if usage.memory_bytes > limits.memory_bytes + MEMORY_SLACK_BYTES {
            Some(ErrorCode::MemoryLimit)
        } else if usage.threads > limits.processes + 1 {
            Some(ErrorCode::ProcessLimit)
        } else if disk_too
            && self.remains.home.as_ref().is_some_and(|home| home.disk_usage(limits.disk_bytes) > limits.disk_bytes)
        {
            Some(ErrorCode::DiskLimit)
        } else {
            None
        }
    }

    fn drain(&mut self, limits: &Limits, collected: &mut Collected<'_>) -> Step {
        // Cleared before reading, so that what comes later wakes us again.
        for fd in [&self.channel, &self.stdout, &self.stderr] {
            clear(fd);
        }
        for _ in 0..DRAIN_ROUNDS {
            let waiting = [sandbox::waiting_bytes(self.stdout.get_ref()), sandbox::waiting_bytes(self.stderr.get_ref())];
            let mut progress = waiting != [0, 0];
            let mut asked_to_sync = false;
            let mut report = None;
            loop {
                match frames::next(&mut self.buffer) {
                    Ok(Some(Frame::Stdout(text))) => collected.text(Stream::Stdout, &text),
                    Ok(Some(Frame::Stderr(text))) => collected.text(Stream::Stderr, &text),
                    Ok(Some(Frame::Image(payload))) => collected.image(&payload),
                    Ok(Some(Frame::End(payload))) => {
                        report = Some(payload);
                        break;
                    }
                    Ok(Some(Frame::Sync)) => {
                        asked_to_sync = true;
                        break;
                    }
                    Ok(Some(Frame::Ready)) | Err(_) => return Step::Ended(Ending::BrokeFraming),
                    Ok(None) => match self.channel_open.then(|| self.read_channel()) {
                        Some(Ok(true)) => progress = true,
                        Some(Ok(false)) => self.channel_open = false,
                        Some(Err(_)) | None => break,
                    },
                }
                if collected.total() > limits.output_hard_limit_bytes {
                    return Step::Ended(Ending::Killed(ErrorCode::OutputLimit));
                }
            }
            let whole = asked_to_sync || report.is_some();
            for (index, waiting) in waiting.into_iter().enumerate() {
                self.read_pipe(index, waiting, whole, collected);
            }
            if collected.total() > limits.output_hard_limit_bytes {
                return Step::Ended(Ending::Killed(ErrorCode::OutputLimit));
            }
            if let Some(payload) = report {
                return Step::Ended(match serde_json::from_slice(&payload) {
                    Ok(report) => Ending::Reported(Box::new(report)),
                    Err(_) => Ending::BrokeFraming,
                });
            }
            if asked_to_sync {
                let _ = rustix::net::send(self.channel.get_ref(), b".", rustix::net::SendFlags::NOSIGNAL);
            } else if !progress {
                if !self.is_alive() {
                    return Step::Ended(Ending::Died(None));
                }
                self.notice_closed_pipes();
                return Step::Idle;
            }
        }
        Step::More
    }

    /// True when bytes came, false at the end of the stream.
    fn read_channel(&mut self) -> rustix::io::Result<bool> {
        let mut bytes = [0; READ_SIZE];
        let read = rustix::io::read(self.channel.get_ref(), &mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(read > 0)
    }

    /// Reads `waiting` bytes of a raw pipe, or all there is.
    fn read_pipe(&mut self, index: usize, mut waiting: u64, whole: bool, collected: &mut Collected<'_>) {
        let (fd, stream) = if index == 0 { (&self.stdout, Stream::Stdout) } else { (&self.stderr, Stream::Stderr) };
        let mut bytes = [0; READ_SIZE];
        loop {
            if waiting == 0 && whole {
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
                }
                _ => return,
            }
        }
    }

    /// A closed pipe is readable for ever: it must not be waited for.
    fn notice_closed_pipes(&mut self) {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut fds = [PollFd::new(self.stdout.get_ref(), PollFlags::IN), PollFd::new(self.stderr.get_ref(), PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let open = [0, 1].map(|index: usize| {
            let events = fds[index].revents();
            !events.contains(PollFlags::HUP) || events.contains(PollFlags::IN)
        });
        self.pipes_open = open;
    }

    /// Ends every process of the kernel.
    async fn kill(&mut self) {
        if !self.remains.reaper.kill_alone(&self.process) {
            let (process, reaper) = (self.process.clone(), self.remains.reaper.clone());
            let _ = tokio::task::spawn_blocking(move || reaper.kill_tree(&process)).await;
        }
        self.remains.dead = true;
    }

    /// After a kill: what is still in the channel, the pipes and the memory shared with the kernel.
    fn collect_leftovers(&mut self, collected: &mut Collected<'_>) {
        while self.channel_open && matches!(self.read_channel(), Ok(true)) && self.buffer.len() < 2 * frames::MAX_PAYLOAD {}
        while let Ok(Some(frame)) = frames::next(&mut self.buffer) {
            match frame {
                Frame::Stdout(text) => collected.text(Stream::Stdout, &text),
                Frame::Stderr(text) => collected.text(Stream::Stderr, &text),
                Frame::Image(payload) => collected.image(&payload),
                Frame::Ready | Frame::End(_) | Frame::Sync => {}
            }
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

fn clear(fd: &AsyncFd<OwnedFd>) {
    let _ = fd.try_io(tokio::io::Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

fn encode_job(request: &CellRequest, authorized_imports: &[String], cores: usize) -> Vec<u8> {
    let packages = request.packages.as_ref();
    let job = json!({
        "code": request.code,
        "input_data": request.input_data,
        "authorized_imports": (request.policy == Policy::Restricted).then_some(authorized_imports),
        "packages": packages.map(|packages| json!({"directory": packages.directory, "separate": packages.separate})),
        "memory_bytes": request.limits.memory_bytes,
        "cpu_seconds": CpuSeconds::backstop(request.limits.timeout, cores).0,
    })
    .to_string();
    let length = u32::try_from(job.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], job.as_bytes()].concat()
}
