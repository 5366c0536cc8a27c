//! Keeps a holder, and the stages above it.
//!
//! Rules: a holder that ends is replaced, at once or nearly: everybody waits for it. What was above it ends with it. While
//! none can be started, callers and the log are told why.

use std::process::Child;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use protocol::Layer;
use sandbox::{Cgroup, Pidfd};

use super::{Inner, START_PATIENCE};
use crate::error::because;
use crate::probe::{Probe, Probes};
use crate::told::Told;
use crate::zygote::{self, Holder, HolderConfig, LONGEST_PAUSE_OF_FIRST, Process, STAGES, Stages, Zygote};

/// What the zygotes and their spares may take together: the whole stack is 180 MB, and some of it is copied.
const WARM_BYTES: u64 = 1 << 30;
/// The most that a kernel may keep in a `/dev/shm` of its own.
const SHARED_MEMORY_BYTES: u64 = 256 << 20;
/// A holder that has served so long was sound: its end says nothing about the next one's.
const STEADY: Duration = Duration::from_secs(10);
/// After so many that never served, one after the other, callers are told why.
const MAX_FAILURES: u32 = 3;

/// A holder's process, the group that it is in, and itself.
type Started = (Child, Option<Arc<Cgroup>>, Arc<Zygote>);

/// Starts a holder, waits for its end, starts the next. Runs on a thread of its own, the parent of all holders.
pub(super) fn keep_holder(engine: &Weak<Inner>, runtime: &tokio::runtime::Handle, stopped: &mpsc::Receiver<()>) {
    let pauses = || zygote::pauses(LONGEST_PAUSE_OF_FIRST);
    let (mut pause, mut told, mut failures) = (pauses(), Told::default(), 0);
    while let Some(inner) = engine.upgrade().filter(|inner| !inner.stopping.is_cancelled()) {
        // What the last holder's end has ended.
        inner.reaper.reap_strays();
        let started = Instant::now();
        let failed = match Inner::start_holder(&inner, runtime) {
            Ok((mut child, cgroup, zygote)) => {
                let (reaper, restarts) = (inner.reaper.clone(), inner.restarts.clone());
                drop(inner);
                let status = child.wait();
                reaper.release(i32::try_from(child.id()).unwrap_or(0));
                reaper.forget_zygotes();
                let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                if let Some(inner) = engine.upgrade() {
                    *inner.cgroup.write().unwrap_or_else(PoisonError::into_inner) = None;
                    inner.stages.send_replace(None);
                    let _context = runtime.enter();
                    inner.pools.iter().for_each(|pool| pool.clear());
                    if !inner.stopping.is_cancelled() {
                        restarts.fetch_add(1, Ordering::Relaxed);
                        if told.is_news(&how) {
                            tracing::warn!(status = how, "the holder of the zygotes ended; another is started");
                        }
                    }
                }
                drop(cgroup);
                let reason = || zygote.given_up().unwrap_or_else(|| format!("it ended before it served: {how}"));
                zygote.facts().is_none().then(reason)
            }
            Err(error) => {
                let reason = because("starting the interpreter", &error);
                if told.is_news(&reason) {
                    tracing::error!(reason, "the interpreter could not be started");
                }
                Some(reason)
            }
        };
        failures = if failed.is_some() { failures + 1 } else { 0 };
        if failures >= MAX_FAILURES
            && let Some(inner) = engine.upgrade()
        {
            inner.failure.send_replace(failed);
        }
        if started.elapsed() > STEADY {
            pause = pauses();
        }
        // Also the end of the engine ends the pause.
        if stopped.recv_timeout(pause.next().unwrap_or(STEADY)) == Err(mpsc::RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

impl Inner {
    /// Starts a holder, and above it the stages.
    fn start_holder(inner: &Arc<Self>, runtime: &tokio::runtime::Handle) -> std::io::Result<Started> {
        let config = HolderConfig {
            tree: &inner.tree,
            users: inner.users.all(),
            shared_memory_bytes: inner.config.limits.memory_bytes.min(SHARED_MEMORY_BYTES),
            reaper: &inner.reaper,
            state_dir: inner.state_dir.path(),
            isolation: &inner.isolation,
            inherits_orphans: inner.protection.subreaper,
        };
        let Holder { zygote, child } = Holder::start(&config, runtime)?;
        let pid = i32::try_from(child.id()).unwrap_or(0);
        *inner.holder.lock().unwrap_or_else(PoisonError::into_inner) = Pidfd::open(pid);
        // While Python still starts, and so before it forks anything.
        let cgroup = inner.make_cgroup().and_then(|cgroup| cgroup.add(pid).map(|()| Arc::new(cgroup)));
        *inner.cgroup.write().unwrap_or_else(PoisonError::into_inner) = cgroup.as_ref().ok().cloned();
        inner.out_of_memory_kills.store(0, Ordering::Relaxed);
        let probe = cgroup.as_ref().map_or_else(Probe::from, |_| Probe::Held);
        *inner.cgroup_probe.write().unwrap_or_else(PoisonError::into_inner) = probe;
        let _context = runtime.enter();
        tokio::spawn(Self::open(Arc::downgrade(inner), zygote.clone()));
        Ok((child, cgroup.ok(), zygote))
    }

    /// Opens the stages as soon as the holder serves, and keeps them for as long as it does.
    async fn open(engine: Weak<Self>, holder: Arc<Zygote>) {
        let served = tokio::time::timeout(START_PATIENCE, holder.serving()).await;
        let Some(inner) = engine.upgrade() else { return holder.end() };
        match served {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return holder.end(),
            Err(_) => return holder.give_up(format!("it did not serve within {} s", START_PATIENCE.as_secs())),
        }
        inner.failure.send_replace(None);
        inner.reaper.know_zygotes(holder.pid());
        if let Some(heir) = holder.facts().and_then(|facts| facts.heir) {
            inner.reaper.orphans_go_to(heir);
        }
        let stages = Arc::new(Stages::new(holder.clone(), inner.pools.len(), inner.restarts.clone()));
        inner.stages.send_replace(Some(stages.clone()));
        for (index, stage) in STAGES.iter().enumerate().take(inner.pools.len()) {
            let (engine, stages, holder, stopping) = (engine.clone(), stages.clone(), holder.clone(), inner.stopping.clone());
            tokio::spawn(async move {
                let refill = || {
                    if let Some(inner) = engine.upgrade() {
                        Self::refill(&inner, index);
                    }
                };
                tokio::select! {
                    biased;
                    // By handle: where nothing ends them with the holder, code may have stopped them.
                    () = stopping.cancelled() => stages.end(),
                    _ = holder.ended() => stages.end(),
                    () = stages.keep(index, stage.name, refill) => {}
                }
            });
        }
    }

    /// The group around all kernels: room for every call at its limits, and for what is warm.
    fn make_cgroup(&self) -> std::io::Result<Cgroup> {
        if !self.isolation.is_on(Layer::Cgroup) {
            return Err(std::io::ErrorKind::Unsupported.into());
        }
        let limits = &self.config.limits;
        let calls = (self.config.max_concurrency + self.config.spares * self.pools.len()) as u64;
        let memory_bytes = limits.memory_bytes.saturating_add(WARM_BYTES / 16).saturating_mul(calls).saturating_add(WARM_BYTES);
        Cgroup::make(memory_bytes, limits.processes.saturating_add(2).saturating_mul(calls).saturating_add(64))
    }

    /// Whether the kernel has ended processes of the group since `kills` was seen.
    pub(super) fn memory_ran_out(&self, kills: u64) -> bool {
        let cgroup = self.cgroup.read().unwrap_or_else(PoisonError::into_inner).clone();
        let now = cgroup.map_or(0, |cgroup| cgroup.out_of_memory_kills());
        self.out_of_memory_kills.fetch_max(now, Ordering::Relaxed);
        now > kills
    }

    /// What came of trying the layers: as the holder tells it, with the rest.
    pub(super) fn probes(&self, tried: Probes) -> Probes {
        let mut probes = self.isolation.complete(tried);
        if self.isolation.is_on(Layer::Cgroup) {
            probes.set(Layer::Cgroup, *self.cgroup_probe.read().unwrap_or_else(PoisonError::into_inner));
        }
        probes
    }
}
