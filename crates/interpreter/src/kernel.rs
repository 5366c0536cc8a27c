//! One kernel: its process, its home, and its channel to the supervisor.
//!
//! Rules: a kernel that is dropped is killed, with everything it started, and its directory and user come back after that;
//! also when the runtime that was to do so shuts down. It serves one cell after the other; a call that keeps nothing uses it
//! once. How a cell runs in it is in `cell_run`.

mod cell_run;
mod channel;
mod crash_frames;
mod files;
mod home;
mod intake;
mod job;
mod watch;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use sandbox::{KernelProcess, Reaper, SupervisorDescriptors};
use tokio::sync::oneshot;

pub(crate) use self::cell_run::{Cell, Ending, Finished};
use self::channel::Channel;
pub(crate) use self::home::{Home, MAX_FILES, mend_state_directory};
pub(crate) use self::intake::MAX_IMAGES;
pub(crate) use crate::wire::frames::{Raised, Report};
use crate::wire::{Exit, frames};

/// A kernel that has warmed itself and waits for a cell.
pub(crate) struct Kernel {
    process: Arc<KernelProcess>,
    channel: Channel,
    exited: oneshot::Receiver<Exit>,
    seen: Seen,
    /// What it had in memory when it was ready, in bytes.
    resident_bytes: u64,
    /// What it had run before the next cell.
    cpu_before: Option<Duration>,
    /// The shared memory that is the kernel's own, where it has some.
    shared_memory: Option<Arc<OwnedFd>>,
    remains: Option<Remains>,
}

/// How a kernel can be looked at from outside.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    /// What it got from its zygote by fork, in bytes.
    pub(crate) baseline_bytes: u64,
    /// Whether what its processes have open is in sight.
    pub(crate) descriptors: bool,
    /// Whether it has a network of its own.
    pub(crate) own_network: bool,
}

/// What must go when the kernel goes: its processes, then its home.
struct Remains {
    process: Arc<KernelProcess>,
    reaper: Arc<Reaper>,
    home: Option<Home>,
    dead: bool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        let dead = self.dead || self.reaper.kill_tree(&self.process);
        if let Some(home) = self.home.take().filter(|_| !dead) {
            tracing::error!(pid = self.process.pid, "processes of a call could not be ended");
            home.quarantine();
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // Off this thread, which may be the runtime's: a tree may take its time. What a runtime that shuts down does not run
        // any more it drops, and that does the same.
        let remains = self.remains.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(remains));
        }
    }
}

impl Kernel {
    /// Takes charge of a kernel its zygote has just forked.
    pub(crate) fn new(
        process: KernelProcess,
        descriptors: SupervisorDescriptors,
        death: OwnedFd,
        exited: oneshot::Receiver<Exit>,
        seen: Seen,
        reaper: Arc<Reaper>,
        home: Home,
    ) -> io::Result<Self> {
        let process = Arc::new(process);
        let remains = Some(Remains { process: process.clone(), reaper, home: Some(home), dead: false });
        let channel = Channel::new(descriptors, death)?;
        Ok(Self { process, channel, exited, seen, resident_bytes: 0, cpu_before: None, shared_memory: None, remains })
    }

    /// Waits for the kernel's word that it is warm; false when it died first, with what it wrote to stderr logged.
    pub(crate) async fn warmed(&mut self) -> bool {
        let Some(handed_over) = self.channel.warmed().await else { return false };
        self.shared_memory = handed_over.map(Arc::new);
        // Looked at here, where nobody waits for it.
        self.resident_bytes = self.process.peak_memory_bytes().unwrap_or_default();
        self.cpu_before = self.process.cpu_time();
        true
    }

    /// False when the kernel died while it waited, or somebody has removed its directory.
    pub(crate) fn is_alive(&self) -> bool {
        self.channel.is_alive() && self.home().is_none_or(|home| home.path().symlink_metadata().is_ok())
    }

    /// Comes back when it has died, whoever has it by then.
    pub(crate) fn death(&self) -> impl Future<Output = ()> + Send + use<> {
        self.channel.death()
    }

    /// Ends every process of the kernel.
    pub(crate) async fn kill(&mut self) {
        let Some(remains) = self.remains.as_mut().filter(|remains| !remains.dead) else { return };
        if remains.reaper.kill_alone(&self.process) {
            remains.dead = true;
            return;
        }
        let (process, reaper) = (self.process.clone(), remains.reaper.clone());
        remains.dead = tokio::task::spawn_blocking(move || reaper.kill_tree(&process)).await.unwrap_or(false);
    }

    fn home(&self) -> Option<&Home> {
        self.remains.as_ref().and_then(|remains| remains.home.as_ref())
    }

    /// Whether nothing of it is alive.
    fn is_dead(&self) -> bool {
        self.remains.as_ref().is_some_and(|remains| remains.dead)
    }
}
