//! From a request to a kernel that may run it.
//!
//! Rule: a call waits no longer than its own deadline, and while a stage is being started it holds nothing that another call
//! could use.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::{Ended, ErrorCode, Event, EventSink};
use tokio::sync::SemaphorePermit;

use super::Inner;
use crate::answer;
use crate::kernel::Kernel;
use crate::zygote::Process;

/// A kernel for a call that may run now.
pub(super) struct Admitted<'a> {
    pub(super) _permit: SemaphorePermit<'a>,
    pub(super) kernel: Kernel,
    pub(super) stage: usize,
}

/// Why a call gets no kernel.
pub(super) enum Refused {
    Full,
    NoKernel(String),
    NotInTime,
}

/// Counts a call that waits.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    /// The highest stage up to this one that serves.
    pub(super) async fn usable(&self, stage: usize) -> Result<usize, String> {
        let (mut warm, mut failure) = (self.stages.subscribe(), self.failure.subscribe());
        loop {
            let serving = warm.borrow_and_update().clone();
            let usable = async {
                if let Some(stages) = &serving {
                    return stages.usable(stage).await.map(|(stage, _)| stage);
                }
                let failed = failure.wait_for(Option::is_some).await;
                Err(failed.ok().and_then(|reason| reason.clone()).unwrap_or_default())
            };
            tokio::select! {
                found = usable => return found,
                changed = warm.changed() => changed.map_err(|_| "the engine has ended")?,
            }
        }
    }

    /// A kernel, and the permit to use it. While the stage is being started, no permit is held: others need none of it.
    /// `events` hears that the call waits for others.
    pub(super) async fn admit<'a>(
        inner: &'a Arc<Self>,
        wanted: usize,
        events: &mut dyn EventSink,
    ) -> Result<Admitted<'a>, Refused> {
        let mut queued = None;
        loop {
            if inner.stages.borrow().as_ref().is_none_or(|stages| stages.is_starting(wanted)) {
                inner.queue(&mut queued)?;
            }
            let stage = inner.usable(wanted).await.map_err(Refused::NoKernel)?;
            let permit = if let Ok(permit) = inner.permits.try_acquire() {
                permit
            } else {
                inner.queue(&mut queued)?;
                let (run, wait) = (inner.config.max_concurrency, inner.queued.load(Ordering::Relaxed));
                events.push(Event::Notice(format!("waiting for others to end: {run} calls run, and {wait} wait")));
                inner.permits.acquire().await.map_err(|_| Refused::NotInTime)?
            };
            // It waits no more: what is left to do for it is ours.
            queued = None;
            let Some(stages) = inner.stages.borrow().clone() else { continue };
            tokio::select! {
                biased;
                kernel = inner.pools[stage].take(|| Self::refill(inner, stage)) => {
                    return kernel.map(|kernel| Admitted { _permit: permit, kernel, stage }).map_err(Refused::NoKernel);
                }
                () = stages.leaves(stage) => {}
                _ = stages.holder().ended() => {}
            }
            // It was in already: however many wait, it waits with them.
            queued = Some(inner.count_in());
        }
    }

    /// A place among the calls that wait, unless all are taken.
    fn queue<'a>(&'a self, place: &mut Option<Queued<'a>>) -> Result<(), Refused> {
        if place.is_none() {
            let queued = self.count_in();
            if self.queued.load(Ordering::Relaxed) > self.config.max_queue {
                return Err(Refused::Full);
            }
            *place = Some(queued);
        }
        Ok(())
    }

    fn count_in(&self) -> Queued<'_> {
        self.queued.fetch_add(1, Ordering::Relaxed);
        Queued(&self.queued)
    }

    /// What becomes of a call that gets no kernel.
    pub(super) fn refused(&self, refused: Refused) -> Ended {
        match refused {
            Refused::Full => {
                let (runs, waits) = (self.config.max_concurrency, self.config.max_queue);
                Ended::refused(ErrorCode::Busy, format!("{runs} calls run and {waits} wait; try again later"))
            }
            Refused::NoKernel(reason) => answer::fault(&format!("no process could be started for the code: {reason}")),
            Refused::NotInTime if self.permits.available_permits() == 0 => {
                let runs = self.config.max_concurrency;
                Ended::refused(
                    ErrorCode::Busy,
                    format!("{runs} calls run, and none ended in the time of this one; try again later"),
                )
            }
            Refused::NotInTime => answer::fault("no process could be had for the code in the time of the call"),
        }
    }
}
