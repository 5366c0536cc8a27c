//! Spare kernels of one stage.
//!
//! Rule: a call finds a spare ready; the next one is started when the call is over or has run for a while, so that the
//! two don't fight for a core.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::kernel::Kernel;

/// Ready kernels, and how many are on their way.
pub(crate) struct Pool {
    target: usize,
    state: Mutex<State>,
    available: Semaphore,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Kernel>,
    coming: usize,
    waiting: usize,
}

/// Counts a caller that waits for a kernel, also when it gives up.
struct Waiter<'a>(&'a Pool);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Pool {
    /// Keeps `target` spares.
    pub(crate) fn new(target: usize) -> Self {
        Self { target, state: Mutex::default(), available: Semaphore::new(0) }
    }

    /// Takes a kernel, waiting for one if need be; `refill` is called when there is none.
    pub(crate) async fn take(&self, refill: impl Fn()) -> Kernel {
        loop {
            self.lock().waiting += 1;
            let waiter = Waiter(self);
            if self.ready() == 0 {
                refill();
            }
            // The semaphore is never closed.
            if let Ok(permit) = self.available.acquire().await {
                permit.forget();
            }
            drop(waiter);
            let kernel = self.lock().ready.pop_front();
            if let Some(kernel) = kernel
                && kernel.is_alive()
            {
                return kernel;
            }
        }
    }

    /// How many kernels must be started now; they count as coming from here on.
    pub(crate) fn claim_missing(&self) -> usize {
        let mut state = self.lock();
        let missing = (self.target + state.waiting).saturating_sub(state.ready.len() + state.coming);
        state.coming += missing;
        missing
    }

    /// A kernel that was coming is here.
    pub(crate) fn arrived(&self, kernel: Kernel) {
        let mut state = self.lock();
        state.coming -= 1;
        state.ready.push_back(kernel);
        drop(state);
        self.available.add_permits(1);
    }

    /// Throws away the spares of a family that has died.
    pub(crate) fn clear(&self) {
        let dead = std::mem::take(&mut self.lock().ready);
        drop(dead);
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool for each stage.
pub(crate) type Pools = Vec<Arc<Pool>>;
