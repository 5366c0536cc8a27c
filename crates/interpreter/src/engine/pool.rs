//! Spare kernels of one stage.
//!
//! Rules: a call finds a spare ready; the next one is started when the call is over or has run for a while, so that the
//! two don't fight for a core. Where there is none, callers get what comes in the order in which they asked, whatever becomes
//! of the kernels meanwhile. Only what lives counts as ready.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::kernel::Kernel;
use crate::told::Told;

/// After so many starts have failed, one after the other, callers are told why.
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
pub(crate) struct Pool<K: Spare> {
    target: usize,
    state: Mutex<State<K>>,
    failures: watch::Sender<Failures>,
}

#[derive(Default)]
struct Failures {
    count: u64,
    /// Since a kernel came.
    streak: u64,
    /// Why the last start has failed.
    reason: String,
    told: Told,
}

struct State<K> {
    ready: VecDeque<K>,
    coming: usize,
    /// Who waits, in order. Nobody does while a kernel is ready.
    waiting: VecDeque<oneshot::Sender<Given<K>>>,
    /// How often all spares were thrown away.
    era: u64,
}

/// A kernel on its way to the caller that it is for.
struct Given<K> {
    kernel: K,
    era: u64,
}

/// A caller's place.
struct Place<'a, K: Spare> {
    pool: &'a Pool<K>,
    given: oneshot::Receiver<Given<K>>,
}

impl<K: Spare> Drop for Place<'_, K> {
    /// What has come for a caller that has given up is for the next one.
    fn drop(&mut self) {
        self.given.close();
        if let Ok(Given { kernel, era }) = self.given.try_recv() {
            let mut state = self.pool.lock();
            let surplus = if state.era == era { state.give(kernel, self.pool.target) } else { Some(kernel) };
            drop(state);
            drop(surplus);
        }
    }
}

impl<K: Spare> State<K> {
    /// To whom waits, or among the spares; gives back what is one too many, because whoever it was for has gone.
    fn give(&mut self, mut kernel: K, target: usize) -> Option<K> {
        while let Some(caller) = self.waiting.pop_front() {
            match caller.send(Given { kernel, era: self.era }) {
                Ok(()) => return None,
                Err(back) => kernel = back.kernel,
            }
        }
        if self.alive() >= target {
            return Some(kernel);
        }
        self.ready.push_back(kernel);
        None
    }

    fn alive(&self) -> usize {
        self.ready.iter().filter(|kernel| kernel.is_alive()).count()
    }
}

impl<K: Spare> Pool<K> {
    /// Keeps `target` spares.
    pub(crate) fn new(target: usize) -> Self {
        let state = State { ready: VecDeque::new(), coming: 0, waiting: VecDeque::new(), era: 0 };
        Self { target, state: Mutex::new(state), failures: watch::Sender::new(Failures::default()) }
    }

    /// Takes a kernel, waiting for one if need be; `refill` is called when there is none.
    ///
    /// # Errors
    /// Why kernels can't be started.
    pub(crate) async fn take(&self, refill: impl Fn()) -> Result<K, String> {
        let mut failures = self.failures.subscribe();
        let told_at = {
            let now = failures.borrow();
            // Where none has come for a while, one more failure tells as much.
            now.count + if now.streak < MAX_FAILURES { MAX_FAILURES } else { 1 }
        };
        loop {
            let mut place = match self.ready_or_place() {
                Ok(kernel) => return Ok(kernel),
                Err(place) => place,
            };
            refill();
            tokio::select! {
                biased;
                Ok(Given { kernel, era }) = &mut place.given => {
                    if kernel.is_alive() && self.lock().era == era {
                        return Ok(kernel);
                    }
                }
                failed = failures.wait_for(|failures| failures.count >= told_at) => {
                    return Err(failed.map(|failed| failed.reason.clone()).unwrap_or_default());
                }
            }
        }
    }

    fn ready_or_place(&self) -> Result<K, Place<'_, K>> {
        // Dropped when the lock is free again: the end of a kernel may take its time.
        let mut dead = Vec::new();
        let mut state = self.lock();
        while let Some(kernel) = state.ready.pop_front() {
            if kernel.is_alive() {
                return Ok(kernel);
            }
            dead.push(kernel);
        }
        let (give, given) = oneshot::channel();
        state.waiting.push_back(give);
        Err(Place { pool: self, given })
    }

    /// A start has failed; it is tried again. True when the log has not been told.
    pub(crate) fn failed(&self, reason: &str) -> bool {
        let mut is_news = false;
        self.failures.send_modify(|failures| {
            failures.count += 1;
            failures.streak += 1;
            reason.clone_into(&mut failures.reason);
            is_news = failures.told.is_news(reason);
        });
        is_news
    }

    /// A start has come to its end: true when the log was told that others failed.
    pub(crate) fn has_recovered(&self) -> bool {
        let mut was_told = false;
        self.failures.send_if_modified(|failures| {
            failures.streak = 0;
            was_told = failures.told.is_over();
            false
        });
        was_told
    }

    /// Why no kernel comes, when none does.
    pub(crate) fn failing(&self) -> Option<String> {
        let failures = self.failures.borrow();
        (failures.streak >= MAX_FAILURES).then(|| failures.reason.clone())
    }

    /// Whether one that was to come is needed no more, because whoever waited for it has gone. Then it does not count as coming.
    pub(crate) fn gives_up(&self) -> bool {
        let mut state = self.lock();
        state.waiting.retain(|caller| !caller.is_closed());
        let is_surplus = state.alive() + state.coming > self.target + state.waiting.len();
        state.coming -= usize::from(is_surplus);
        is_surplus
    }

    /// How many kernels must be started now; they count as coming from here on.
    pub(crate) fn claim_missing(&self) -> usize {
        let mut state = self.lock();
        state.waiting.retain(|caller| !caller.is_closed());
        let missing = (self.target + state.waiting.len()).saturating_sub(state.alive() + state.coming);
        state.coming += missing;
        missing
    }

    /// What changes when all spares are thrown away.
    pub(crate) fn era(&self) -> u64 {
        self.lock().era
    }

    /// A kernel that was coming is here. False when it is dead, or was begun with in another era: then it still comes.
    pub(crate) fn arrived(&self, kernel: K, era: u64) -> bool {
        let mut state = self.lock();
        let is_good = state.era == era && kernel.is_alive();
        if is_good {
            state.coming -= 1;
            let surplus = state.give(kernel, self.target);
            drop(state);
            drop(surplus);
        }
        is_good
    }

    /// Throws away spares that have died while they waited; true when there were some.
    pub(crate) fn bury(&self) -> bool {
        let mut state = self.lock();
        let (alive, dead) = std::mem::take(&mut state.ready).into_iter().partition::<VecDeque<_>, _>(Spare::is_alive);
        state.ready = alive;
        drop(state);
        !dead.is_empty()
    }

    /// Throws away all spares, and whatever else was begun with before.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        state.era += 1;
        let all = std::mem::take(&mut state.ready);
        drop(state);
        drop(all);
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().alive()
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool for each stage.
pub(crate) type Pools = Vec<Arc<Pool<Kernel>>>;

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// A kernel that is dead when its number is even.
    #[derive(Debug, PartialEq)]
    struct Numbered(u32);

    impl Spare for Numbered {
        fn is_alive(&self) -> bool {
            self.0 % 2 == 1
        }
    }

    fn arrive(pool: &Pool<Numbered>, number: u32) {
        pool.lock().coming += 1;
        assert!(pool.arrived(Numbered(number), pool.era()));
    }

    /// Puts spares that die in a pool.
    fn with_spares(numbers: &[u32]) -> Pool<Numbered> {
        let pool = Pool::new(numbers.len());
        pool.lock().ready.extend(numbers.iter().copied().map(Numbered));
        pool
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn what_waits_and_what_comes_decides_how_many_are_started() {
        let pool = Pool::<Numbered>::new(2);
        assert_eq!((pool.claim_missing(), pool.claim_missing()), (2, 0));
        assert!(pool.arrived(Numbered(1), 0));
        assert_eq!(pool.claim_missing(), 0);
        assert_eq!(pool.take(|| ()).await, Ok(Numbered(1)));
        assert_eq!(pool.claim_missing(), 1);
        // A caller that gives up is counted no more.
        let asked = AtomicUsize::new(0);
        assert!(pool.arrived(Numbered(3), 0) && pool.arrived(Numbered(5), 0));
        pool.clear();
        let waits = pool.take(|| {
            asked.fetch_add(pool.claim_missing(), Ordering::Relaxed);
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), waits).await.is_err());
        assert_eq!((asked.load(Ordering::Relaxed), pool.claim_missing()), (3, 0), "two spares, and one for the caller");
    }

    /// They were counted as ready, so that none was started in their place.
    #[tokio::test]
    async fn dead_spares_count_for_nothing() {
        let pool = with_spares(&[2, 5, 4]);
        assert_eq!((pool.ready(), pool.claim_missing()), (1, 2));
        assert_eq!((pool.bury(), pool.bury()), (true, false));
        assert_eq!((pool.take(|| ()).await, pool.ready()), (Ok(Numbered(5)), 0));
        let pool = with_spares(&[2, 4, 5]);
        assert_eq!(pool.take(|| ()).await, Ok(Numbered(5)));
    }

    /// Whoever met a kernel that had died, or a permit without one, went to the end of the queue.
    #[test]
    fn callers_are_served_in_the_order_in_which_they_came() {
        let pool = with_spares(&[2]);
        let [mut first, mut second, mut third] = std::array::from_fn(|_| Box::pin(pool.take(|| ())));
        for caller in [&mut first, &mut second, &mut third] {
            assert!(poll(caller.as_mut()).is_pending());
        }
        pool.clear();
        arrive(&pool, 1);
        pool.clear();
        arrive(&pool, 3);
        assert_eq!(poll(third.as_mut()), Poll::Pending);
        assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(Numbered(3))));
        // What came before the second clearing is not to be used.
        assert_eq!(poll(first.as_mut()), Poll::Pending);
        arrive(&pool, 5);
        arrive(&pool, 7);
        assert_eq!([poll(third.as_mut()), poll(first.as_mut())], [5, 7].map(|number| Poll::Ready(Ok(Numbered(number)))));
        assert_eq!(pool.ready(), 0);
    }

    #[test]
    fn what_comes_for_a_caller_that_gives_up_is_for_the_next_one() {
        let pool = Pool::new(1);
        let mut second = Box::pin(pool.take(|| ()));
        {
            let mut first = pin!(pool.take(|| ()));
            assert!(poll(first.as_mut()).is_pending());
            assert!(poll(second.as_mut()).is_pending());
            arrive(&pool, 1);
        }
        assert_eq!(poll(second.as_mut()), Poll::Ready(Ok(Numbered(1))));
        {
            let mut last = pin!(pool.take(|| ()));
            assert!(poll(last.as_mut()).is_pending());
            arrive(&pool, 3);
        }
        assert_eq!(pool.ready(), 1);
    }

    #[test]
    fn what_was_begun_before_all_was_thrown_away_is_not_used() {
        let pool = Pool::new(1);
        let era = pool.era();
        assert_eq!(pool.claim_missing(), 1);
        pool.clear();
        assert!(!pool.arrived(Numbered(1), era) && !pool.arrived(Numbered(2), pool.era()));
        assert_eq!((pool.ready(), pool.claim_missing()), (0, 0), "it still comes");
        assert!(pool.arrived(Numbered(3), pool.era()));
        assert_eq!(pool.ready(), 1);
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
        assert_eq!(pool.failing(), Some("the disk is full".to_owned()));
        // Who comes now need not wait for three more.
        let once_more = async {
            tokio::task::yield_now().await;
            pool.failed("the disk is full")
        };
        let (taken, is_news) = tokio::join!(pool.take(|| ()), once_more);
        assert_eq!((taken, is_news), (Err("the disk is full".to_owned()), false));
        assert!(pool.has_recovered() && pool.failing().is_none() && !pool.has_recovered());
    }

    /// Each caller's try went on when the caller had gone, and all came when the cause went.
    #[test]
    fn what_was_to_come_for_callers_that_have_gone_is_given_up() {
        let pool = Pool::<Numbered>::new(1);
        {
            let mut callers: [_; 3] = std::array::from_fn(|_| Box::pin(pool.take(|| ())));
            for caller in &mut callers {
                assert!(poll(caller.as_mut()).is_pending());
            }
            assert_eq!(pool.claim_missing(), 4);
            assert!(!pool.gives_up(), "all are waited for");
        }
        assert_eq!(std::array::from_fn(|_| pool.gives_up()), [true, true, true, false]);
        assert_eq!(pool.claim_missing(), 0, "the spare still comes");
        // One that came all the same is no second spare.
        arrive(&pool, 1);
        arrive(&pool, 3);
        assert_eq!(pool.ready(), 1);
    }
}
