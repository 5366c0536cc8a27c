//! The run of one cell in a kernel: clock, limits, and what comes out.
//!
//! Rules: whatever the kernel sends and however much of it, the clock and the limits are looked at between two small
//! portions, and everything that is kept is bounded by number and by bytes. Frames are read before pipes, and pipes only for
//! what waited there before the frames were read: together with the harness (see `streams.py`) that keeps the order of all
//! output.

use std::pin::pin;
use std::time::Duration;

use protocol::{CellRequest, ErrorCode, Image, Limits, OutputEvent};
use tokio::time::Instant;

use crate::capture::Captured;
use crate::collected::{Asked, Collected};
use crate::files::Files;
use crate::frames::{self, Report};
use crate::kernel::{Kernel, clear};
use crate::pool::Spare;
use crate::watch::Watch;

/// How long the zygote may take to report a dead kernel's status.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// After this many frames or rounds a flood lets the clock have a look.
const FRAMES_AT_ONCE: usize = 1024;
const ROUNDS_AT_ONCE: usize = 64;

/// How a run ended, by what the supervisor saw.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The end frame came.
    Ended,
    /// The process ended without one: an exit code, or a negative signal number; none where nobody could tell any more.
    Died(Option<i32>),
    /// It was killed for this reason.
    Killed(ErrorCode),
    /// The kernel broke the channel's framing and was killed.
    BrokeFraming,
}

/// What a run left.
pub(crate) struct Finished {
    pub(crate) ending: Ending,
    /// Whether the code was begun with, by the kernel's word.
    pub(crate) begun: bool,
    /// What the kernel said of the code, if it came to its end.
    pub(crate) report: Option<Report>,
    pub(crate) stdout: Captured,
    pub(crate) stderr: Captured,
    pub(crate) images: Vec<Image>,
    pub(crate) images_dropped: usize,
    pub(crate) files: Files,
    pub(crate) elapsed: Duration,
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

impl Kernel {
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
        let mut collected = Collected::new(&limits, on_output);
        let job = crate::job::encode(request, authorized_imports, cores);
        // Where nothing holds signals back, other code may have stopped it while it waited.
        self.process.handle.resume();
        let sent = tokio::time::timeout_at(deadline, self.send(&job)).await;
        // It may be as large as a request, and the run may be long.
        drop(job);
        let mut ending = match sent {
            Ok(Ok(())) => self.supervise(&limits, deadline, &mut collected).await,
            // It died while it took the job: the status tells how.
            Ok(Err(_)) => Ending::Died(None),
            Err(_) => Ending::Killed(ErrorCode::Timeout),
        };
        let elapsed = started.elapsed();
        self.kill().await;
        if !matches!(ending, Ending::Ended) {
            self.collect_leftovers(&mut collected);
        }
        if let Ending::Died(status) = &mut ending {
            *status = tokio::time::timeout(STATUS_PATIENCE, &mut self.exited).await.ok().and_then(Result::ok);
        }
        let files = self.take_files(&limits).await;
        let Collected { stdout, stderr, images, images_dropped, report, begun, .. } = collected;
        Finished { ending, begun, report, stdout, stderr, images, images_dropped, files, elapsed }
    }

    /// Reads what comes until the cell ends, dies, or meets a limit. The clock and the watch are polled before the reader, and
    /// no look at the descriptors takes longer than a small portion of frames.
    async fn supervise(&mut self, limits: &Limits, deadline: Instant, collected: &mut Collected<'_>) -> Ending {
        let mut clock = pin!(tokio::time::sleep_until(deadline));
        let mut watch = pin!(Watch::over(self, limits).exceeded());
        let mut more = false;
        loop {
            let reading = async {
                if more {
                    tokio::task::yield_now().await;
                } else {
                    self.something_to_read().await;
                }
            };
            tokio::select! {
                biased;
                () = clock.as_mut() => return Ending::Killed(ErrorCode::Timeout),
                limit = watch.as_mut() => return Ending::Killed(limit),
                () = reading => {}
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

    fn drain(&mut self, limits: &Limits, collected: &mut Collected<'_>) -> Step {
        // Cleared before reading, so that what comes later wakes us again.
        for fd in [&self.channel, &self.stdout, &self.stderr] {
            clear(fd);
        }
        let mut frames_left = FRAMES_AT_ONCE;
        for _ in 0..ROUNDS_AT_ONCE {
            let waiting = [sandbox::waiting_bytes(self.stdout.get_ref()), sandbox::waiting_bytes(self.stderr.get_ref())];
            let mut progress = waiting != [0, 0];
            let mut asked = Asked::Nothing;
            while asked == Asked::Nothing && frames_left > 0 {
                match frames::next(&mut self.buffer) {
                    Ok(Some(frame)) => {
                        frames_left -= 1;
                        progress = true;
                        asked = collected.frame(frame);
                    }
                    Ok(None) => match self.channel_open.then(|| self.read_channel()) {
                        Some(Ok(true)) => {
                            progress = true;
                            frames_left -= 1;
                        }
                        Some(Ok(false)) => self.channel_open = false,
                        Some(Err(_)) | None => break,
                    },
                    Err(_) => asked = Asked::Nonsense,
                }
                if collected.is_too_much(limits) {
                    return Step::Ended(Ending::Killed(ErrorCode::OutputLimit));
                }
            }
            let whole = matches!(asked, Asked::ToSync | Asked::ToEnd);
            for (index, waiting) in waiting.into_iter().enumerate() {
                self.read_pipe(index, waiting, whole, collected);
            }
            if collected.is_too_much(limits) {
                return Step::Ended(Ending::Killed(ErrorCode::OutputLimit));
            }
            match asked {
                Asked::Nonsense => return Step::Ended(Ending::BrokeFraming),
                Asked::ToEnd => return Step::Ended(Ending::Ended),
                Asked::ToSync => {
                    let _ = rustix::net::send(self.channel.get_ref(), b".", rustix::net::SendFlags::NOSIGNAL);
                }
                Asked::Nothing if frames_left == 0 => return Step::More,
                Asked::Nothing if !progress => {
                    if !self.is_alive() {
                        return Step::Ended(Ending::Died(None));
                    }
                    self.notice_closed_pipes();
                    return Step::Idle;
                }
                Asked::Nothing => {}
            }
        }
        Step::More
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
}
