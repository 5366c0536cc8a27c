//! What a running cell uses, looked at from outside, however busy its reader is.
//!
//! Rule: the looks are taken on threads of their own and never by the task that reads output. What a look finds is the
//! system's word, not the kernel's.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::{ErrorCode, Limits};
use sandbox::{Holding, KernelProcess, Look};
use tokio::time::MissedTickBehavior;

use super::Kernel;
use super::home::{Home, MAX_FILES};

/// How often memory and processes of a run are looked at.
const INTERVAL: Duration = Duration::from_millis(25);
/// After a look that took long the next comes only after several times that.
const PAUSE_AFTER_LOOK: u32 = 3;
/// Files are looked at less often than memory: every 200 ms.
const FILES_EVERY: u32 = 8;
/// How long a look at the files may take.
const FILES_PATIENCE: Duration = Duration::from_secs(1);
/// Above the limit by this much and the run is killed: what is below is left to Python's own `MemoryError`.
const MEMORY_SLACK_BYTES: u64 = 16 << 20;
/// A process can't be looked into for a moment while it becomes another program or ends: only one that stays so hides.
const HIDDEN_LOOKS: u32 = 5;
/// Instances of epoll: an event loop has one.
const MAX_WATCHERS: u64 = 128;
/// Where a call of a user of its own has its shared memory when it has no mounts of its own.
const SHARED_MEMORY: &str = "/dev/shm";

/// One run and its limits.
#[derive(Clone)]
pub(crate) struct Watch {
    process: Arc<KernelProcess>,
    baseline_bytes: u64,
    directory: Option<PathBuf>,
    own_user: Option<u32>,
    shared_memory: Option<Arc<OwnedFd>>,
    sees_descriptors: bool,
    own_network: bool,
    /// Processes that could not be looked into, and in how many looks running.
    hidden: Arc<Mutex<HashMap<i32, u32>>>,
    limits: Limits,
}

impl Watch {
    pub(crate) fn over(kernel: &Kernel, limits: &Limits) -> Self {
        let home = kernel.home();
        Self {
            process: kernel.process.clone(),
            baseline_bytes: kernel.seen.baseline_bytes,
            directory: home.map(|home| home.path().to_owned()),
            own_user: home.and_then(Home::user),
            shared_memory: kernel.shared_memory.clone(),
            sees_descriptors: kernel.seen.descriptors,
            own_network: kernel.seen.own_network,
            hidden: Arc::default(),
            limits: *limits,
        }
    }

    /// Comes back when a limit is exceeded.
    pub(crate) async fn exceeded(self) -> ErrorCode {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        loop {
            tick.tick().await;
            looks = looks.wrapping_add(1);
            let (this, files_too, before) = (self.clone(), looks.is_multiple_of(FILES_EVERY), Instant::now());
            let look = move || this.look(files_too);
            if let Ok(Some(limit)) = tokio::task::spawn_blocking(look).await {
                return limit;
            }
            let pause = before.elapsed() * PAUSE_AFTER_LOOK;
            if pause > INTERVAL {
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn look(&self, files_too: bool) -> Option<ErrorCode> {
        let limits = &self.limits;
        let memory_limit_bytes = limits.memory_bytes.saturating_add(MEMORY_SLACK_BYTES);
        let usage = sandbox::usage_of_tree(
            self.process.pid,
            &Look {
                baseline_bytes: self.baseline_bytes,
                memory_limit_bytes,
                shared_memory_bytes: self.shared_memory.as_ref().map_or(0, sandbox::bytes_in_use),
                sees_descriptors: self.sees_descriptors,
                own_network: self.own_network,
            },
        );
        if usage.memory_bytes > memory_limit_bytes {
            return Some(ErrorCode::MemoryLimit);
        }
        if usage.threads > limits.processes.saturating_add(1) || usage.watchers > MAX_WATCHERS || self.hides(&usage.hidden) {
            return Some(ErrorCode::ProcessLimit);
        }
        let most = Holding { bytes: limits.disk_bytes.saturating_sub(usage.unnamed_file_bytes), files: MAX_FILES };
        if usage.unnamed_file_bytes > limits.disk_bytes {
            return Some(ErrorCode::DiskLimit);
        }
        if files_too {
            let held = self.directory.as_ref().map(|directory| sandbox::holding(directory, None, most, FILES_PATIENCE));
            if held.is_some_and(|held| held.bytes > most.bytes || held.files > most.files) {
                return Some(ErrorCode::DiskLimit);
            }
            if self.shared_memory.is_none()
                && let Some(user) = self.own_user
            {
                let most = Holding { bytes: memory_limit_bytes, files: MAX_FILES };
                let held = sandbox::holding(SHARED_MEMORY.as_ref(), Some(user), most, FILES_PATIENCE);
                if held.bytes > most.bytes.saturating_sub(usage.memory_bytes) || held.files > most.files {
                    return Some(ErrorCode::MemoryLimit);
                }
            }
        }
        None
    }

    /// Whether a process stays closed to looks.
    fn hides(&self, now: &[i32]) -> bool {
        let mut hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        *hidden = now.iter().map(|pid| (*pid, hidden.get(pid).map_or(1, |looks| looks + 1))).collect();
        hidden.values().any(|looks| *looks >= HIDDEN_LOOKS)
    }
}
