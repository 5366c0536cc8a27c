//! Kernels for the pools: started ahead, and again when a start has failed.
//!
//! Rules: a start comes to an end. One that takes too long is given up, and what it may have made is ended with it. A spare
//! that dies while it waits is replaced before anybody asks for it.

use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use protocol::Layer;
use sandbox::KernelProcess;
use tokio::sync::{oneshot, watch};

use super::purge::configure_matplotlib;
use super::{Inner, WarmStages};
use crate::error::because;
use crate::kernel::{Home, Kernel, Seen, mend_state_directory};
use crate::tree::MATPLOTLIB;
use crate::users::KernelUser;
use crate::wire::{ForkKernel, SHARED_SIZE};
use crate::zygote::{Process, STAGES, State, Zygote};

/// When the next spare is started: this long after the call that took one has ended, so that its answer goes first, or
/// after it has run this long. A fork beside a short call costs the call more than it gains.
const REFILL_AFTER_CALL: Duration = Duration::from_millis(1);
const REFILL_BESIDE_CALL: Duration = Duration::from_millis(15);
/// How long a kernel may take from being asked for to being ready: other code may have stopped it, or its zygote.
const KERNEL_START_PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries. The longest is short: whoever asks next finds that the cause has gone.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Before a spare that has died is replaced: what ended it may go on.
const MOURNING: Duration = Duration::from_millis(500);
/// How long a count of the user's threads is good for: it takes a look at all processes of the machine.
const COUNT_LIFE: Duration = Duration::from_secs(2);
/// What programs of the same user may start beside a spare that waits: an editor has hundreds of threads.
const MORE_THREADS: u64 = 512;

/// Threads that the server's user has, where kernels are that user's, and when they were counted.
#[derive(Default)]
pub(super) struct UserThreads(Mutex<Option<(Instant, u64)>>);

impl UserThreads {
    async fn count(&self) -> u64 {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, count)) = *lock()
            && when.elapsed() < COUNT_LIFE
        {
            return count;
        }
        let count = tokio::task::spawn_blocking(|| sandbox::threads_of_user(sandbox::user_id())).await.unwrap_or(0);
        *lock() = Some((Instant::now(), count));
        count
    }
}

impl Inner {
    /// Starts as many kernels as the stage's pool lacks.
    pub(super) fn refill(inner: &Arc<Self>, stage: usize) {
        for _ in 0..inner.pools[stage].claim_missing() {
            let (weak, stopping) = (Arc::downgrade(inner), inner.stopping.clone());
            let (epoch, stages) = (inner.epoch.subscribe(), inner.stages.subscribe());
            tokio::spawn(async move {
                // Dropped in the middle, a start ends what it may have made.
                stopping.run_until_cancelled(supply(weak, stage, epoch, stages)).await
            });
        }
    }

    /// Starts the next spare when what this returns is dropped, or the call has run for a while.
    pub(super) fn refill_later(inner: &Arc<Self>, stage: usize) -> oneshot::Sender<()> {
        let (running, ended) = oneshot::channel();
        let weak = Arc::downgrade(inner);
        tokio::spawn(async move {
            if tokio::time::timeout(REFILL_BESIDE_CALL, ended).await.is_ok() {
                tokio::time::sleep(REFILL_AFTER_CALL).await;
            }
            if let Some(inner) = weak.upgrade() {
                Self::refill(&inner, stage);
            }
        });
        running
    }

    async fn start_kernel(&self, stage: usize) -> Result<Kernel, String> {
        let stages = self.stages.borrow().clone().ok_or("the interpreter is being started")?;
        let State::Ready(zygote) = stages.state(stage) else { return Err("its stage is being started".to_owned()) };
        let started = tokio::time::timeout(KERNEL_START_PATIENCE, self.start_kernel_at(stages.holder(), &zygote)).await;
        started.unwrap_or_else(|_| Err(format!("it was not ready within {} s", KERNEL_START_PATIENCE.as_secs())))
    }

    async fn start_kernel_at(&self, holder: &Zygote, zygote: &Zygote) -> Result<Kernel, String> {
        let facts = holder.facts().cloned().ok_or("the holder does not serve")?;
        let contained = facts.probes.hold(Layer::Namespaces);
        if !contained {
            self.remember_bounds([holder, zygote].into_iter().filter_map(Zygote::pid));
        }
        let probes = self.probes(facts.probes);
        if let Some(lost) = self.held_at_first.get_or_init(|| probes.clone()).lost(&probes) {
            // It may have been refused for a moment only: the next holder tries again.
            holder.end();
            return Err(format!("the layer {lost} held at start and is refused since the zygotes were started again"));
        }
        self.state_dir.remove_what_remains();
        let user = if sandbox::is_root() && probes.hold(Layer::UserPerCall) {
            Some(self.users.take().ok_or("all users of kernels are in use, or quarantined (/health counts those)")?)
        } else if sandbox::is_root() && !self.config.allow_root {
            return Err("it would run as root, and ALLOW_ROOT is off".to_owned());
        } else {
            None
        };
        let of_directory = |error: io::Error| because("making a kernel's directory", &error);
        if self.state_dir.restore().map_err(of_directory)? {
            let matplotlib = self.state_dir.path().join(MATPLOTLIB);
            configure_matplotlib(self.state_dir.path(), &self.tree.matplotlib()).map_err(of_directory)?;
            if let Ok(landlock) = &self.isolation.landlock {
                landlock.renew(&matplotlib);
            }
            // What it has bound is the one that is gone.
            holder.end();
            return Err("the server's directory in the temporary folder (TMPDIR) was removed; it is made anew".to_owned());
        }
        mend_state_directory(self.state_dir.path()).map_err(of_directory)?;
        let home = self.make_home(user, contained).map_err(of_directory)?;
        let uid = home.user();
        let (ours, theirs) = sandbox::kernel_descriptors(SHARED_SIZE).map_err(|error| because("making descriptors", &error))?;
        let theirs = match &self.isolation.landlock {
            // In a root of their own all kernels have the same.
            Ok(landlock) if !contained => {
                let ruleset = landlock.ruleset(home.path(), uid.is_some());
                theirs.with_ruleset(ruleset.map_err(|error| because("making a Landlock rule set", &error))?)
            }
            _ => theirs,
        };
        let (directory, site) = (home.path(), self.tree.site());
        let processes = self.process_limit(uid.is_some()).await;
        let file_size_bytes = self.config.limits.file_size_bytes;
        let request = ForkKernel { dir: directory, uid, site: &site, file_size_bytes, processes };
        // Where its end is not the end of all it started, a child of the zygote that nobody knows must be told from it.
        let birth = (!contained).then(|| self.reaper.birth());
        let spawned = zygote.fork_kernel(request, &theirs).await?;
        drop(theirs);
        if let Some(birth) = birth {
            birth.announce(spawned.pid);
        }
        let death = spawned.handle.death().map_err(|error| error.to_string())?;
        let namespace = contained.then_some(spawned.first);
        let process = KernelProcess::new(spawned.pid, spawned.handle, uid.unwrap_or_else(sandbox::user_id), namespace);
        // As `let_the_supervisor_look` has it in `cage.py`: root may look anyway.
        let sees_descriptors = uid.is_some() || contained || probes.hold(Layer::Landlock);
        let own_network = contained && !self.config.allowed.network;
        let seen = Seen { baseline_bytes: zygote.baseline_bytes(), descriptors: sees_descriptors, own_network };
        let mut kernel = Kernel::new(process, ours, death, spawned.exited, seen, self.reaper.clone(), home)
            .map_err(|error| format!("watching a kernel: {error}"))?;
        if kernel.warmed().await { Ok(kernel) } else { Err("it died while it warmed itself".to_owned()) }
    }

    /// A directory that nobody has. Code of the server's own user can take names ahead.
    fn make_home(&self, user: Option<KernelUser>, own_root: bool) -> io::Result<Home> {
        loop {
            let name = format!("k{}", self.next_id.fetch_add(1, Ordering::Relaxed));
            if self.state_dir.path().join(&name).symlink_metadata().is_err() {
                return Home::make(&self.state_dir, &name, user, own_root);
            }
        }
    }

    fn remember_bounds(&self, zygotes: impl Iterator<Item = i32>) {
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in zygotes.chain([sandbox::process_id()]) {
            if let Entry::Vacant(new) = bounds.entry(pid)
                && let Some(found) = sandbox::bounds_of(pid)
            {
                new.insert(found);
            }
        }
    }

    /// `RLIMIT_NPROC` counts all threads of the user: a user of its own has none, a shared one has what it has now. What the
    /// call itself has is watched besides.
    async fn process_limit(&self, own_user: bool) -> u64 {
        let allowed = self.config.limits.processes;
        if own_user { allowed } else { allowed + MORE_THREADS + self.user_threads.count().await }
    }
}

/// Starts one kernel for the stage's pool, and tries until it is there.
async fn supply(inner: Weak<Inner>, stage: usize, mut epoch: watch::Receiver<u64>, mut stages: watch::Receiver<WarmStages>) {
    let backoff = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
    let mut pauses = backoff.without_max_times().build();
    loop {
        epoch.mark_unchanged();
        let serving = stages.borrow_and_update().clone();
        let ready = async {
            match &serving {
                Some(serving) => serving.serves(stage).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ready => {}
            changed = stages.changed() => if changed.is_ok() { continue } else { return },
        }
        let (engine, Some(inner)) = (inner.clone(), inner.upgrade()) else { return };
        let era = inner.pools[stage].era();
        let started = tokio::select! {
            started = inner.start_kernel(stage) => started,
            // What was begun before must not be used any more.
            _ = epoch.changed() => continue,
        };
        match started {
            Ok(kernel) => {
                let death = kernel.death();
                if inner.pools[stage].has_recovered() {
                    tracing::info!(stage = STAGES[stage].name, "kernels can be started again");
                }
                if inner.pools[stage].arrived(kernel, era) {
                    drop(inner);
                    death.await;
                    return replace(&engine, stage).await;
                }
            }
            // The zygotes end with the engine: no news.
            Err(_) if inner.stopping.is_cancelled() => return,
            Err(reason) => {
                if inner.pools[stage].failed(&reason) {
                    tracing::warn!(reason, stage = STAGES[stage].name, "a kernel could not be started; it is tried again");
                }
                if inner.pools[stage].gives_up() {
                    return;
                }
            }
        }
        drop(inner);
        tokio::select! {
            // A new holder is a new chance.
            () = tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)) => {}
            _ = stages.changed() => {}
        }
    }
}

/// After the death of a kernel: starts another if it has died as a spare. One that had a call was replaced meanwhile.
async fn replace(engine: &Weak<Inner>, stage: usize) {
    if engine.upgrade().is_some_and(|inner| inner.pools[stage].bury()) {
        tokio::time::sleep(MOURNING).await;
        if let Some(inner) = engine.upgrade() {
            Inner::refill(&inner, stage);
        }
    }
}
