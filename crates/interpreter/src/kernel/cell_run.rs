//! The run of one cell in a kernel: clock, limits and usage.
//!
//! Rule: whatever the kernel sends and however much of it, the clock and the limits are looked at between two small portions,
//! and however long nobody can take what comes. What a cell used is the system's word, never the kernel's.

use std::pin::pin;
use std::time::Duration;

use protocol::{CellRequest, ErrorCode, EventSink};
use tokio::time::Instant;

use super::Kernel;
use super::channel::Step;
use super::files::Files;
use super::frames::Report;
use super::intake::Intake;
use super::job;
use super::watch::Watch;

/// How long the zygote may take to report a dead kernel's status.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// One cell, and what it is run with.
#[derive(Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) request: &'a CellRequest,
    /// What the restricted policy lets it import.
    pub(crate) authorized_imports: &'a [String],
    pub(crate) cores: usize,
    /// Further cells are to find what this one leaves: the kernel lives on, if it can.
    pub(crate) is_kept: bool,
}

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

/// What is known of a run when it is over.
pub(crate) struct Finished {
    pub(crate) ending: Ending,
    /// Whether the code was begun with, by the kernel's word.
    pub(crate) begun: bool,
    /// What the kernel said of the code, if it came to its end.
    pub(crate) report: Option<Report>,
    /// What came before the code was begun with.
    pub(crate) early: Vec<u8>,
    pub(crate) images_dropped: usize,
    pub(crate) files: Files,
    pub(crate) elapsed: Duration,
    /// Of all its processes, where it could still be asked for.
    pub(crate) cpu: Option<Duration>,
    /// Above what the kernel had when it was ready.
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Kernel {
    /// Runs the cell; what it prints and shows goes to `events`. Nothing of the kernel is alive when this comes back, unless
    /// it is kept and the cell came to its end.
    pub(crate) async fn run(&mut self, cell: Cell<'_>, events: &mut dyn EventSink) -> Finished {
        let limits = cell.request.limits;
        // Where nothing holds signals back, other code may have stopped it while it waited.
        self.process.handle.resume();
        let started = Instant::now();
        let deadline = started + limits.timeout;
        let deadline = cell.request.deadline.map_or(deadline, |latest| deadline.min(latest.into()));
        let mut intake = Intake::new(&limits, events);
        let job = job::encode(&cell);
        self.channel.begin();
        let sent = tokio::time::timeout_at(deadline, self.channel.send(&job)).await;
        // It may be as large as a request, and the run may be long.
        drop(job);
        let mut ending = match sent {
            Ok(Ok(())) => self.supervise(&cell, deadline, &mut intake).await,
            // It died while it took the job: the status tells how.
            Ok(Err(_)) => Ending::Died(None),
            Err(_) => Ending::Killed(ErrorCode::Timeout),
        };
        let elapsed = started.elapsed();
        let (mut cpu, mut peak_memory_bytes) = (self.process.cpu_time(), self.process.peak_memory_bytes());
        let ended = matches!(ending, Ending::Ended);
        if !(ended && cell.is_kept) {
            self.kill().await;
        }
        if !ended {
            self.channel.leftovers(&mut intake);
        }
        intake.finish();
        if let Ending::Died(status) = &mut ending {
            let exit = tokio::time::timeout(STATUS_PATIENCE, &mut self.exited).await.ok().and_then(Result::ok);
            *status = exit.map(|exit| exit.status);
            // It may have gone before it could be asked.
            (cpu, peak_memory_bytes) =
                (cpu.or(exit.map(|exit| exit.cpu)), peak_memory_bytes.or(exit.map(|exit| exit.peak_memory_bytes)));
        }
        let cpu_before = std::mem::replace(&mut self.cpu_before, cpu);
        let cpu = cpu.zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
        let peak_memory_bytes = peak_memory_bytes.map(|peak| peak.saturating_sub(self.resident_bytes));
        let files = if self.is_dead() { self.take_files(&limits).await } else { Files::default() };
        let Intake { images_dropped, report, begun, early, .. } = intake;
        Finished { ending, begun, report, early, images_dropped, files, elapsed, cpu, peak_memory_bytes }
    }

    /// Reads what comes until the cell ends, dies, or meets a limit. The clock and the watch are polled before the reader.
    async fn supervise(&mut self, cell: &Cell<'_>, deadline: Instant, intake: &mut Intake<'_>) -> Ending {
        let mut clock = pin!(tokio::time::sleep_until(deadline));
        let mut watch = pin!(Watch::over(self, &cell.request.limits).exceeded());
        let mut more = false;
        loop {
            let reading = async {
                intake.has_room().await;
                if more {
                    tokio::task::yield_now().await;
                } else {
                    self.channel.something_to_read().await;
                }
            };
            tokio::select! {
                biased;
                () = clock.as_mut() => return Ending::Killed(ErrorCode::Timeout),
                limit = watch.as_mut() => return Ending::Killed(limit),
                () = reading => {}
            }
            match self.channel.drain(intake) {
                Step::Ended => return Ending::Ended,
                Step::Died => return Ending::Died(None),
                Step::TooMuch => return Ending::Killed(ErrorCode::OutputLimit),
                Step::Nonsense => return Ending::BrokeFraming,
                Step::More => more = true,
                Step::Idle => more = false,
            }
        }
    }
}
