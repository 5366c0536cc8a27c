//! What a running cell uses, looked at from outside, however busy its reader is.
//!
//! Rule: the looks are taken on threads of their own and never by the task that reads output. What a look finds is the
//! system's word, not the kernel's.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{ErrorCode, Limits};
use sandbox::{Holding, KernelProcess, Look};
use tokio::time::MissedTickBehavior;

use crate::home::MAX_FILES;
use crate::kernel::Kernel;

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
    limits: Limits,
}

impl Watch {
    pub(crate) fn over(kernel: &Kernel, limits: &Limits) -> Self {
        let home = kernel.remains.as_ref().and_then(|remains| remains.home.as_ref());
        Self {
            process: kernel.process.clone(),
            baseline_bytes: kernel.baseline_bytes,
            directory: home.map(|home| home.path().to_owned()),
            own_user: home.and_then(crate::home::Home::user),
            shared_memory: kernel.shared_memory.clone(),
            sees_descriptors: kernel.sees_descriptors,
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
            let (this, files_too, before) = (self.clone(), looks % FILES_EVERY == 0, Instant::now());
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
                shared_memory_bytes: self.shared_memory.as_ref().map_or(0, |shared| sandbox::bytes_in_use(shared)),
                sees_descriptors: self.sees_descriptors,
            },
        );
        if usage.memory_bytes > memory_limit_bytes {
            return Some(ErrorCode::MemoryLimit);
        }
        if usage.threads > limits.processes.saturating_add(1) || usage.hides {
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
                if held.bytes > most.bytes.saturating_sub(usage.memory_bytes) {
                    return Some(ErrorCode::MemoryLimit);
                }
            }
        }
        None
    }
}
