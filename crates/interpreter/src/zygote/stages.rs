//! Keeps a zygote for each stage.
//!
//! Rule: a stage stands and falls by itself. One that can't import what it has to is `Failed`, with the reason, while the
//! others serve; what ends is started again, at once the first time and then after longer and longer pauses. Whoever waits
//! for a stage waits for one that is starting only. Nothing stands in for the first stage: it is always about to be there,
//! unless it can't be started at all.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::told::Told;

/// How long a stage may import: a cold disk is slow, a library that hangs does so for ever.
const IMPORT_PATIENCE: Duration = Duration::from_secs(60);
/// A zygote that has served so long was sound: its end says nothing about the next one's.
const STEADY: Duration = Duration::from_secs(10);
/// So many that end sooner, or can't even be forked, one after the other, and the stage has failed.
const MAX_UNSTEADY: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// What others stand in for: its libraries may take seconds of a processor each time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What everybody waits for, and costs little.
pub(crate) const LONGEST_PAUSE_OF_FIRST: Duration = Duration::from_millis(250);

/// A process that others are forked from: the holder, or a zygote. The seam at which the tests put one of their own.
pub(crate) trait Process: Send + Sync + Sized + 'static {
    /// Forks the zygote of `stage`, which imports what lies between it and stage `from`, this process's own; none for the
    /// holder.
    fn fork(&self, from: Option<usize>, stage: usize) -> impl Future<Output = Result<Arc<Self>, String>> + Send;
    /// Waits until it serves, or says why it won't.
    fn serving(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Waits for its end, and says why.
    fn ended(&self) -> impl Future<Output = String> + Send;
    /// Ends it.
    fn end(&self);
}

/// Ends a process unless it is kept: also when whoever waits for it is dropped, as when the holder ends meanwhile.
struct Unkept<P: Process>(Option<Arc<P>>);

impl<P: Process> Unkept<P> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl<P: Process> Drop for Unkept<P> {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.end();
        }
    }
}

/// How a stage stands.
#[derive(Debug)]
pub(crate) enum State<P> {
    Starting,
    Ready(Arc<P>),
    /// Tried again now and then; nobody waits for it.
    Failed(String),
}

impl<P> Clone for State<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Starting => Self::Starting,
            Self::Ready(process) => Self::Ready(process.clone()),
            Self::Failed(reason) => Self::Failed(reason.clone()),
        }
    }
}

/// The stages above one holder.
pub(crate) struct Stages<P> {
    holder: Arc<P>,
    states: Vec<watch::Sender<State<P>>>,
    /// How often a zygote that had served was started anew.
    restarts: Arc<AtomicU64>,
}

enum Failure {
    /// The process it should have been forked from went away.
    OfBase(String),
    Own(String),
}

impl<P: Process> Stages<P> {
    pub(crate) fn new(holder: Arc<P>, count: usize, restarts: Arc<AtomicU64>) -> Self {
        let states = (0..count).map(|_| watch::Sender::new(State::Starting)).collect();
        Self { holder, states, restarts }
    }

    pub(crate) fn holder(&self) -> &Arc<P> {
        &self.holder
    }

    pub(crate) fn state(&self, stage: usize) -> State<P> {
        self.states[stage].borrow().clone()
    }

    /// Whether a call that wants this stage has to wait for it.
    pub(crate) fn is_starting(&self, stage: usize) -> bool {
        matches!(*self.states[stage].borrow(), State::Starting)
    }

    /// The highest stage up to this one that serves, as soon as none of those above it is starting.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn usable(&self, wanted: usize) -> Result<(usize, Arc<P>), String> {
        let mut reason = String::new();
        for stage in (0..=wanted).rev() {
            let mut state = self.states[stage].subscribe();
            match &*state.wait_for(|state| !matches!(state, State::Starting)).await.map_err(|_| "the engine has ended")? {
                State::Ready(process) => return Ok((stage, process.clone())),
                State::Failed(why) => reason.clone_from(why),
                State::Starting => {}
            }
        }
        Err(reason)
    }

    /// Waits until the stage serves.
    pub(crate) async fn serves(&self, stage: usize) {
        let _ = self.states[stage].subscribe().wait_for(|state| matches!(state, State::Ready(_))).await;
    }

    /// Waits until the stage serves no more.
    pub(crate) async fn leaves(&self, stage: usize) {
        let _ = self.states[stage].subscribe().wait_for(|state| !matches!(state, State::Ready(_))).await;
    }

    /// Ends all zygotes.
    pub(crate) fn end(&self) {
        for state in &self.states {
            if let State::Ready(process) = &*state.borrow() {
                process.end();
            }
        }
        self.holder.end();
    }

    /// Starts the stage and keeps it started. `has_started` is called each time that it serves. Never ends by itself.
    pub(crate) async fn keep(&self, stage: usize, name: &str, has_started: impl Fn()) {
        let has_stand_in = stage > 0;
        let pauses = || pauses(if has_stand_in { LONGEST_PAUSE } else { LONGEST_PAUSE_OF_FIRST });
        let (mut pause, mut told) = (pauses(), Told::default());
        let (mut unsteady, mut refused) = (0, 0);
        loop {
            let begun = Instant::now();
            match self.start(stage).await {
                Ok(process) => {
                    refused = 0;
                    self.states[stage].send_replace(State::Ready(process.clone()));
                    has_started();
                    let reason = process.ended().await;
                    self.restarts.fetch_add(1, Ordering::Relaxed);
                    if begun.elapsed() > STEADY {
                        (pause, unsteady) = (pauses(), 0);
                    }
                    unsteady += 1;
                    if told.is_news(&reason) {
                        tracing::warn!(stage = name, reason, "a zygote has ended; another is started");
                    }
                    let failed = has_stand_in && unsteady >= MAX_UNSTEADY;
                    self.states[stage].send_replace(if failed { State::Failed(reason) } else { State::Starting });
                    if unsteady == 1 {
                        continue;
                    }
                }
                Err(Failure::OfBase(reason)) => {
                    tracing::debug!(stage = name, reason, "a zygote could not be forked");
                    refused += 1;
                    if refused >= MAX_UNSTEADY {
                        self.has_failed(stage, name, reason, &mut told);
                    }
                }
                Err(Failure::Own(reason)) => {
                    refused = 0;
                    self.has_failed(stage, name, reason, &mut told);
                }
            }
            sleep(pause.next().unwrap_or(LONGEST_PAUSE)).await;
        }
    }

    fn has_failed(&self, stage: usize, name: &str, reason: String, told: &mut Told) {
        if told.is_news(&reason) {
            tracing::error!(stage = name, reason, "a stage of the stack can't be had");
        }
        self.states[stage].send_replace(State::Failed(reason));
    }

    async fn start(&self, stage: usize) -> Result<Arc<P>, Failure> {
        let base = match stage.checked_sub(1) {
            Some(below) => self.usable(below).await.ok(),
            None => None,
        };
        let forked = match &base {
            Some((from, process)) => process.fork(Some(*from), stage).await,
            None => self.holder.fork(None, stage).await,
        };
        let process = forked.map_err(Failure::OfBase)?;
        let unkept = Unkept(Some(process.clone()));
        let served = match timeout(IMPORT_PATIENCE, process.serving()).await {
            Ok(served) => served,
            Err(_) => Err(format!("it had not imported its libraries after {} s", IMPORT_PATIENCE.as_secs())),
        };
        served.map_err(Failure::Own)?;
        unkept.keep();
        Ok(process)
    }
}

/// Before each further try: longer and longer.
pub(crate) fn pauses(longest: Duration) -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(longest).without_max_times().with_jitter().build()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// What becomes of the next process that is forked for a stage.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Serves,
        Breaks,
        Hangs,
        /// It is not even forked.
        Refused,
    }

    type Fates = Arc<Vec<Mutex<VecDeque<Fate>>>>;
    type Log = Arc<Mutex<Vec<String>>>;

    struct Fake {
        fate: Fate,
        ended: watch::Sender<bool>,
        fates: Fates,
        log: Log,
        forked: Arc<Mutex<Vec<Arc<Self>>>>,
    }

    impl Process for Fake {
        async fn fork(&self, from: Option<usize>, stage: usize) -> Result<Arc<Self>, String> {
            let fate = self.fates[stage].lock().expect("sound").pop_front().unwrap_or(Fate::Serves);
            let from = from.map_or("holder".to_owned(), |from| from.to_string());
            self.log.lock().expect("sound").push(format!("{stage} from {from}: {fate:?}"));
            if matches!(fate, Fate::Refused) || *self.ended.borrow() {
                return Err("refused".to_owned());
            }
            let (fates, log, forked) = (self.fates.clone(), self.log.clone(), self.forked.clone());
            let process = Arc::new(Self { fate, ended: watch::Sender::new(false), fates, log, forked });
            self.forked.lock().expect("sound").push(process.clone());
            Ok(process)
        }

        async fn serving(&self) -> Result<(), String> {
            match self.fate {
                Fate::Breaks => Err("RuntimeError: no such CPU".to_owned()),
                Fate::Hangs => std::future::pending().await,
                _ => Ok(()),
            }
        }

        async fn ended(&self) -> String {
            let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
            "was ended by SIGKILL".to_owned()
        }

        fn end(&self) {
            self.ended.send_replace(true);
        }
    }

    /// Three stages that are kept, the fates of what they fork, and what was forked.
    fn kept(fates: [&[Fate]; 3]) -> (Arc<Stages<Fake>>, Log) {
        let log = Log::default();
        let fates = Arc::new(fates.iter().map(|fates| Mutex::new(fates.iter().copied().collect())).collect::<Vec<_>>());
        let holder = Arc::new(Fake {
            fate: Fate::Serves,
            ended: watch::Sender::new(false),
            fates,
            log: log.clone(),
            forked: Arc::default(),
        });
        let stages = Arc::new(Stages::new(holder, 3, Arc::default()));
        for stage in 0..3 {
            let stages = stages.clone();
            tokio::spawn(async move { stages.keep(stage, "a stage", || ()).await });
        }
        (stages, log)
    }

    /// Ends the stage's process, and gives the next one.
    async fn end(stages: &Stages<Fake>, stage: usize) -> Arc<Fake> {
        let ended = serving(stages, stage, None).await;
        ended.end();
        serving(stages, stage, Some(&ended)).await
    }

    /// The stage's process, when it is another one than this.
    async fn serving(stages: &Stages<Fake>, stage: usize, than: Option<&Arc<Fake>>) -> Arc<Fake> {
        let mut now = stages.states[stage].subscribe();
        let other =
            |state: &State<Fake>| matches!(state, State::Ready(process) if than.is_none_or(|than| !Arc::ptr_eq(process, than)));
        match &*now.wait_for(other).await.expect("kept") {
            State::Ready(process) => process.clone(),
            _ => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_stage_is_forked_from_the_one_before_it() {
        let (stages, log) = kept([&[], &[], &[]]);
        assert!(matches!(stages.usable(2).await, Ok((2, _))));
        assert_eq!(*log.lock().expect("sound"), ["0 from holder: Serves", "1 from 0: Serves", "2 from 1: Serves"]);
    }

    /// C10: `print(2+3)` was down because scikit-learn was.
    #[tokio::test(start_paused = true)]
    async fn a_stage_that_cant_import_leaves_the_others_serving() {
        let (stages, log) = kept([&[], &[Fate::Breaks; 100], &[]]);
        assert!(matches!(stages.usable(0).await, Ok((0, _))));
        assert!(matches!(stages.usable(1).await, Ok((0, _))));
        assert!(matches!(stages.usable(2).await, Ok((2, _))));
        assert!(matches!(stages.state(1), State::Failed(reason) if reason == "RuntimeError: no such CPU"));
        assert!(log.lock().expect("sound").contains(&"2 from 0: Serves".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_library_that_hangs_while_it_is_imported_is_given_up() {
        let (stages, _) = kept([&[], &[Fate::Hangs], &[]]);
        let begun = Instant::now();
        assert!(matches!(stages.usable(1).await, Ok((0, _))));
        assert_eq!(begun.elapsed(), IMPORT_PATIENCE);
        // The next try is the one that serves.
        serving(&stages, 1, None).await;
    }

    /// Where nothing ends it with its parent, it went on to import, and served nobody for ever.
    #[tokio::test(start_paused = true)]
    async fn a_zygote_that_still_imports_ends_with_whoever_waits_for_it() {
        let fates = Arc::new(vec![Mutex::new(VecDeque::from([Fate::Hangs]))]);
        let (forked, log) = (Arc::<Mutex<Vec<Arc<Fake>>>>::default(), Log::default());
        let holder = Fake { fate: Fate::Serves, ended: watch::Sender::new(false), fates, log, forked: forked.clone() };
        let stages = Stages::new(Arc::new(holder), 1, Arc::default());
        assert!(timeout(IMPORT_PATIENCE / 2, stages.keep(0, "a stage", || ())).await.is_err());
        assert!(*forked.lock().expect("sound")[0].ended.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn a_zygote_that_ends_is_replaced_alone_and_at_once() {
        let (stages, log) = kept([&[], &[], &[]]);
        stages.usable(2).await.map(drop).expect("it serves");
        tokio::time::advance(STEADY * 2).await;
        let last = serving(&stages, 2, None).await;
        let begun = Instant::now();
        end(&stages, 1).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(Arc::ptr_eq(&serving(&stages, 2, None).await, &last), "it has nothing to do with it");
        assert_eq!((log.lock().expect("sound").len(), stages.restarts.load(Ordering::Relaxed)), (4, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_zygote_that_ends_again_and_again_is_started_after_longer_and_longer_pauses() {
        let (stages, log) = kept([&[], &[], &[]]);
        let begun = Instant::now();
        for _ in 0..11 {
            end(&stages, 1).await;
        }
        serving(&stages, 1, None).await.end();
        tokio::task::yield_now().await;
        assert!(matches!(stages.state(1), State::Failed(_)), "nobody waits for it any more");
        assert!(begun.elapsed() > FIRST_PAUSE * 1000, "{:?}", begun.elapsed());
        assert!(log.lock().expect("sound").len() < 20);
    }

    /// After ten ends no call was served for a minute, and after three each was refused.
    #[tokio::test(start_paused = true)]
    async fn the_first_zygote_is_there_again_soon_however_often_it_ends() {
        let (stages, _) = kept([&[], &[], &[]]);
        for _ in 0..50 {
            let begun = Instant::now();
            end(&stages, 0).await;
            // Jitter doubles it at most.
            assert!(begun.elapsed() <= 2 * LONGEST_PAUSE_OF_FIRST, "{:?}", begun.elapsed());
        }
        serving(&stages, 0, None).await.end();
        tokio::task::yield_now().await;
        assert!(stages.is_starting(0), "it is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fork_that_is_refused_is_no_failure_of_the_stage() {
        let (stages, _) = kept([&[Fate::Refused, Fate::Refused], &[], &[]]);
        assert!(matches!(stages.usable(2).await, Ok((2, _))));
    }

    /// Whoever waited for it did so for as long as the machine had no process to give.
    #[tokio::test(start_paused = true)]
    async fn forks_that_are_refused_again_and_again_are_told_of() {
        let (stages, _) = kept([&[Fate::Refused; 20], &[Fate::Refused; 20], &[Fate::Refused; 20]]);
        assert_eq!(stages.usable(2).await.map(drop), Err("refused".to_owned()));
        serving(&stages, 2, None).await;
        assert!(matches!(stages.usable(2).await, Ok((2, _))), "the cause has gone");
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_stage_a_call_is_told_why() {
        let (stages, _) = kept([&[Fate::Breaks; 100], &[Fate::Breaks; 100], &[Fate::Breaks; 100]]);
        assert_eq!(stages.usable(2).await.map(drop), Err("RuntimeError: no such CPU".to_owned()));
    }
}
