//! Spare kernels of one stage.
//!
//! Rule: a call finds a spare ready; the next one is started when the call is over or has run for a while, so that the
//! two don't fight for a core.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::kernel::Kernel;

/// After so many starts have failed while it waited, a caller is told why.
const MAX_FAILURES: u64 = 3;

/// What a pool keeps.
pub(crate) trait Spare {
    /// False when it has died while it waited.
    fn is_alive(&self) -> bool;
}

impl Spare for Kernel {
    fn is_alive(&self) -> bool {
        self.is_alive()
    }
}

/// Ready kernels, and how many are on their way.
pub(crate) struct Pool<K> {
    target: usize,
    state: Mutex<State<K>>,
    available: Semaphore,
    /// How many starts have failed, and why the last one did.
    failures: watch::Sender<(u64, String)>,
}

struct State<K> {
    ready: VecDeque<K>,
    coming: usize,
    waiting: usize,
}

/// Counts a caller that waits for a kernel, also when it gives up.
struct Waiter<'a, K>(&'a Pool<K>);

impl<K> Drop for Waiter<'_, K> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl<K> Pool<K> {
    /// Keeps `target` spares.
    pub(crate) fn new(target: usize) -> Self {
        let state = State { ready: VecDeque::new(), coming: 0, waiting: 0 };
        Self { target, state: Mutex::new(state), available: Semaphore::new(0), failures: watch::Sender::new((0, String::new())) }
    }

    /// Takes a kernel, waiting for one if need be; `refill` is called when there is none.
    ///
    /// # Errors
    /// Why kernels can't be started.
    pub(crate) async fn take(&self, refill: impl Fn()) -> Result<K, String>
    where
        K: Spare,
    {
        let mut failures = self.failures.subscribe();
        let before = failures.borrow().0;
        loop {
            self.lock().waiting += 1;
            let waiter = Waiter(self);
            if self.ready() == 0 {
                refill();
            }
            tokio::select! {
                biased;
                permit = self.available.acquire() => {
                    // The semaphore is never closed.
                    if let Ok(permit) = permit {
                        permit.forget();
                    }
                }
                failed = failures.wait_for(|(count, _)| *count >= before + MAX_FAILURES) => {
                    return Err(failed.map(|failed| failed.1.clone()).unwrap_or_default());
                }
            }
            drop(waiter);
            let kernel = self.lock().ready.pop_front();
            if let Some(kernel) = kernel
                && kernel.is_alive()
            {
                return Ok(kernel);
            }
        }
    }

    /// A start has failed; it is tried again.
    pub(crate) fn failed(&self, reason: &str) {
        self.failures.send_modify(|(count, last)| {
            *count += 1;
            reason.clone_into(last);
        });
    }

    /// How many kernels must be started now; they count as coming from here on.
    pub(crate) fn claim_missing(&self) -> usize {
        let mut state = self.lock();
        let missing = (self.target + state.waiting).saturating_sub(state.ready.len() + state.coming);
        state.coming += missing;
        missing
    }

    /// A kernel that was coming is here.
    pub(crate) fn arrived(&self, kernel: K) {
        let mut state = self.lock();
        state.coming -= 1;
        state.ready.push_back(kernel);
        drop(state);
        self.available.add_permits(1);
    }

    /// Throws away all spares.
    pub(crate) fn clear(&self) {
        let dead = std::mem::take(&mut self.lock().ready);
        // With what stands for them: who finds one without a kernel behind it looks again for nothing.
        self.available.forget_permits(dead.len());
        drop(dead);
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool for each stage.
pub(crate) type Pools = Vec<Arc<Pool<Kernel>>>;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A kernel that is dead when its number is even.
    #[derive(Debug, PartialEq)]
    struct Numbered(u32);

    impl Spare for Numbered {
        fn is_alive(&self) -> bool {
            self.0 % 2 == 1
        }
    }

    #[tokio::test]
    async fn what_waits_and_what_comes_decides_how_many_are_started() {
        let pool = Pool::<Numbered>::new(2);
        assert_eq!((pool.claim_missing(), pool.claim_missing()), (2, 0));
        pool.arrived(Numbered(1));
        assert_eq!(pool.claim_missing(), 0);
        assert_eq!(pool.take(|| ()).await, Ok(Numbered(1)));
        assert_eq!(pool.claim_missing(), 1);
        // A caller that gives up is counted no more.
        let asked = AtomicUsize::new(0);
        pool.arrived(Numbered(3));
        pool.arrived(Numbered(5));
        pool.clear();
        let waits = pool.take(|| {
            asked.fetch_add(pool.claim_missing(), Ordering::Relaxed);
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), waits).await.is_err());
        assert_eq!((asked.load(Ordering::Relaxed), pool.claim_missing()), (3, 0), "two spares, and one for the caller");
    }

    #[tokio::test]
    async fn dead_spares_are_passed_over() {
        let pool = Pool::new(1);
        for number in [2, 4, 5] {
            pool.claim_missing();
            pool.lock().coming = 1;
            pool.arrived(Numbered(number));
        }
        assert_eq!(pool.take(|| ()).await, Ok(Numbered(5)));
        assert_eq!(pool.ready(), 0);
    }

    /// C10: a caller waited for sixty seconds and was told to look into the log.
    #[tokio::test]
    async fn a_caller_is_told_why_kernels_cant_be_started() {
        let pool = Pool::<Numbered>::new(1);
        pool.failed("of the past");
        let told = async {
            tokio::task::yield_now().await;
            for _ in 0..MAX_FAILURES {
                pool.failed("the disk is full");
            }
        };
        let (taken, ()) = tokio::join!(pool.take(|| ()), told);
        assert_eq!(taken, Err("the disk is full".to_owned()));
    }
}
