//! Kernels for the pools: started ahead, and again when a start has failed.
//!
//! Rule: a start comes to an end. One that takes too long is given up, and what it may have made is ended with it.

use std::collections::hash_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sandbox::KernelProcess;
use serde_json::json;
use tokio::sync::oneshot;

use super::{Inner, RESTART_PAUSE};
use crate::home::{self, Home};
use crate::isolation::Isolation;
use crate::kernel::{Kernel, SHARED_SIZE, Seen};
use crate::stage::STAGES;
use crate::zygote::{Link, StageState};

/// When the next spare is started: this long after the call that took one has ended, so that its answer goes first, or
/// after it has run this long. A fork beside a short call costs the call more than it gains.
const REFILL_AFTER_CALL: Duration = Duration::from_millis(1);
const REFILL_BESIDE_CALL: Duration = Duration::from_millis(15);
/// How long a kernel may take from being asked for to being ready: other code may have stopped it, or its zygote.
const KERNEL_START_PATIENCE: Duration = Duration::from_secs(15);

impl Inner {
    /// Starts as many kernels as the stage's pool lacks.
    pub(super) fn refill(inner: &Arc<Self>, stage: usize) {
        for _ in 0..inner.pools[stage].claim_missing() {
            let weak = Arc::downgrade(inner);
            tokio::spawn(async move {
                while let Some(inner) = weak.upgrade().filter(|inner| !inner.stopping.load(Ordering::Relaxed)) {
                    let epoch = inner.epoch.load(Ordering::Acquire);
                    match inner.start_kernel(stage).await {
                        Ok(kernel) if inner.epoch.load(Ordering::Acquire) != epoch => drop(kernel),
                        Ok(kernel) => return inner.pools[stage].arrived(kernel),
                        // The zygotes end with the engine: no news.
                        Err(_) if inner.stopping.load(Ordering::Relaxed) => return,
                        Err(error) => {
                            tracing::warn!(error, stage = STAGES[stage].name, "a kernel could not be started");
                            drop(inner);
                            tokio::time::sleep(RESTART_PAUSE).await;
                        }
                    }
                }
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

    /// The stage's link in the running family, once it is ready.
    pub(super) async fn link(&self, stage: usize) -> Arc<Link> {
        loop {
            let mut generation = self.generation.subscribe();
            let family = self.family.read().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(family) = family
                && family.links[stage].ready().await
            {
                return family.links[stage].clone();
            }
            let _ = generation.changed().await;
        }
    }

    async fn start_kernel(&self, stage: usize) -> Result<Kernel, String> {
        let link = self.link(stage).await;
        let started = tokio::time::timeout(KERNEL_START_PATIENCE, self.start_kernel_at(&link)).await;
        started.unwrap_or_else(|_| Err(format!("it was not ready within {} s", KERNEL_START_PATIENCE.as_secs())))
    }

    async fn start_kernel_at(&self, link: &Link) -> Result<Kernel, String> {
        let StageState::Ready { held, heir, baseline_bytes, processes, .. } = link.state() else {
            return Err("the zygote died".to_owned());
        };
        let contained = held.get("namespaces") == Some(&0);
        if !contained {
            self.remember_bounds(&processes);
            self.reaper.know_zygotes(processes);
        }
        if let Some(heir) = heir {
            self.reaper.orphans_go_to(heir);
        }
        let held = self.held(held);
        if let Some(lost) = Isolation::lost(self.held_at_first.get_or_init(|| held.clone()), &held) {
            // It may have been refused for a moment only: the next family tries again.
            if let Some(zygote) = &*self.zygote.lock().unwrap_or_else(PoisonError::into_inner) {
                zygote.kill();
            }
            return Err(format!("the layer {lost} held at start and is refused since the zygotes were started again"));
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let user = if sandbox::is_root() && held.get("user_per_call") == Some(&0) {
            Some(self.users.take().ok_or("every kernel user is in use")?)
        } else if sandbox::is_root() && !self.config.allow_root {
            return Err("it would run as root, and ALLOW_ROOT is off".to_owned());
        } else {
            None
        };
        home::mend_state_directory(self.state_dir.path()).map_err(|error| format!("mending the state directory: {error}"))?;
        let home = Home::make(&self.state_dir, &format!("k{id}"), user)
            .map_err(|error| format!("making a kernel's directory: {error}"))?;
        let uid = home.user();
        let (ours, theirs) = sandbox::kernel_descriptors(SHARED_SIZE).map_err(|error| format!("making descriptors: {error}"))?;
        let theirs = match &self.isolation.landlock {
            Ok(landlock) => {
                let ruleset = landlock.ruleset(home.path(), uid.is_some());
                theirs.with_ruleset(ruleset.map_err(|error| format!("making a Landlock rule set: {error}"))?)
            }
            Err(_) => theirs,
        };
        let request = json!({
            "id": id, "dir": home.path(), "uid": uid, "site": self.tree.site(),
            "file_size_bytes": self.config.limits.file_size_bytes,
            "processes": self.process_limit(id, uid.is_some()),
        });
        // Where its end is not the end of all it started, a child of the zygote that nobody knows must be told from it.
        let birth = (!contained).then(|| self.reaper.birth());
        let spawned = link.spawn(id, request.to_string().as_bytes(), &theirs).await?;
        drop(theirs);
        if let Some(birth) = birth {
            birth.announce(spawned.pid);
        }
        let death = spawned.handle.death().map_err(|error| error.to_string())?;
        let process = KernelProcess::new(spawned.pid, spawned.handle, uid.unwrap_or_else(sandbox::user_id), contained);
        // As `let_the_supervisor_look` has it in `cage.py`: root may look anyway.
        let sees_descriptors = uid.is_some() || contained || held.get("landlock") == Some(&0);
        let own_network = contained && !self.config.allowed.network;
        let seen = Seen { baseline_bytes, descriptors: sees_descriptors, own_network };
        let mut kernel = Kernel::new(process, ours, death, spawned.exited, seen, self.reaper.clone(), home)
            .map_err(|error| format!("watching a kernel: {error}"))?;
        if kernel.warmed().await { Ok(kernel) } else { Err("it died while it warmed itself".to_owned()) }
    }

    fn remember_bounds(&self, zygotes: &[i32]) {
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in zygotes.iter().copied().chain([sandbox::process_id()]) {
            if let Entry::Vacant(new) = bounds.entry(pid)
                && let Some(found) = sandbox::bounds_of(pid)
            {
                new.insert(found);
            }
        }
    }

    /// `RLIMIT_NPROC` counts all threads of the user: a user of its own has none, a shared one has what it has now.
    fn process_limit(&self, id: u64, own_user: bool) -> u64 {
        let allowed = self.config.limits.processes;
        if own_user {
            return allowed;
        }
        if id % 64 == 1 {
            let threads = sandbox::threads_of_user(sandbox::user_id());
            self.user_threads.store(u32::try_from(threads).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        allowed + 64 + u64::from(self.user_threads.load(Ordering::Relaxed))
    }
}
