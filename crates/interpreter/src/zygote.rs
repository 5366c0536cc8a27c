//! The supervisor's side of the holder and the zygotes.
//!
//! Rule: each of them may end at any moment, and whoever waits for it hears of that. Where there are PID namespaces, a
//! zygote that ends takes nothing with it: its kernels go on below the holder, and its stage alone is started anew. The end
//! of the holder is the end of all.

mod holder;
mod stage;
mod stages;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sandbox::{Birth, ControlSocket, KernelDescriptors, Pidfd, Reaper};
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

#[cfg(test)]
pub(crate) use self::holder::{BOOTSTRAP, COMMAND, MODULES};
pub(crate) use self::holder::{Holder, HolderConfig};
pub use self::stage::Preload;
pub(crate) use self::stage::{STAGES, stage_for};
pub(crate) use self::stages::{LONGEST_PAUSE_OF_FIRST, Process, Stages, State, pauses};
use crate::answer::signal_name;
use crate::probe::Probes;
use crate::wire::{Exit, Fork, ForkKernel, Message, Number, Request};

/// Of a process whose handle did not come: one that has gone has none, and without a free descriptor none can be taken.
const GONE: &str =
    "it ended at once, or no descriptor was left for it (Too many open files: raise the limit on open files, `ulimit -n`)";
/// How long a process may take from being asked for to being announced: other code may have stopped who forks it.
const FORK_PATIENCE: Duration = Duration::from_secs(15);
/// How long the status of a zygote that has ended may take.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);

/// How a process that serves stands.
#[derive(Clone, Debug)]
enum Standing {
    Starting,
    Serving,
    /// It does no more, and why.
    Ended(String),
}

/// What the holder has found out about the machine.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) probes: Probes,
    /// Who inherits orphans, where it had to be found out.
    pub(crate) heir: Option<i32>,
    /// Where code finds the place for temporary files of its call, or of all calls.
    pub(crate) directory: PathBuf,
}

/// A process as who forked it announces it.
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) handle: Pidfd,
    /// The first process of its PID namespace, where that is another.
    pub(crate) first: Option<Pidfd>,
    pub(crate) exited: oneshot::Receiver<Exit>,
}

/// A process that was just forked: its id, a handle on it, and on the first process of its namespace.
type Forked = (i32, Pidfd, Option<Pidfd>);

struct Waiting {
    started: Option<oneshot::Sender<Result<Forked, String>>>,
    exited: Option<oneshot::Sender<Exit>>,
}

/// The holder, or the zygote of one stage.
pub(crate) struct Zygote {
    control: AsyncFd<ControlSocket>,
    /// How many processes it was asked for.
    requests: AtomicU64,
    state: watch::Sender<Standing>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// The process, once it is known.
    process: OnceLock<Pidfd>,
    pid: OnceLock<i32>,
    facts: OnceLock<Facts>,
    given_up: OnceLock<String>,
    missing: OnceLock<Vec<String>>,
    /// What it was importing last.
    importing: Mutex<String>,
    /// What its kernels share with it, in bytes.
    baseline_bytes: OnceLock<u64>,
    /// Where it must be known, because kernels are not contained.
    reaper: Arc<Reaper>,
}

impl Zygote {
    fn new(control: ControlSocket, reaper: Arc<Reaper>) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            control: sandbox::watched(control)?,
            requests: AtomicU64::new(0),
            state: watch::Sender::new(Standing::Starting),
            waiting: Mutex::default(),
            process: OnceLock::new(),
            pid: OnceLock::new(),
            facts: OnceLock::new(),
            given_up: OnceLock::new(),
            missing: OnceLock::new(),
            importing: Mutex::default(),
            baseline_bytes: OnceLock::new(),
            reaper,
        }))
    }

    /// Asks for a kernel.
    pub(crate) async fn fork_kernel(&self, kernel: ForkKernel<'_>, descriptors: &KernelDescriptors) -> Result<Spawned, String> {
        self.ask(&Fork::Kernel(kernel), &descriptors.borrow()).await
    }

    /// What it does not have of what it should have imported.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.missing.get().cloned().unwrap_or_default()
    }

    pub(crate) fn baseline_bytes(&self) -> u64 {
        self.baseline_bytes.get().copied().unwrap_or_default()
    }

    /// Its id, once it is known.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid.get().copied()
    }

    /// What the holder has found out, once it serves.
    pub(crate) fn facts(&self) -> Option<&Facts> {
        self.facts.get()
    }

    /// Ends it, for this reason.
    pub(crate) fn give_up(&self, reason: String) {
        let _ = self.given_up.set(reason);
        self.end();
    }

    /// Why it was given up.
    pub(crate) fn given_up(&self) -> Option<String> {
        self.given_up.get().cloned()
    }

    async fn ask(&self, fork: &Fork<'_>, descriptors: &[BorrowedFd<'_>]) -> Result<Spawned, String> {
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let request = serde_json::to_vec(&Request { id, fork }).map_err(|error| error.to_string())?;
        let (started, announced) = oneshot::channel();
        let (exit, exited) = oneshot::channel();
        self.waiting().insert(id, Waiting { started: Some(started), exited: Some(exit) });
        if let Some(process) = self.process.get() {
            // Where nothing holds signals back, user code may have stopped it.
            process.resume();
        }
        loop {
            match self.control.get_ref().send(&request, descriptors) {
                Ok(()) => break,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut guard = self.control.writable().await.map_err(|error| error.to_string())?;
                    guard.clear_ready();
                }
                Err(error) => {
                    self.waiting().remove(&id);
                    return Err(format!("the zygote can't be reached: {error}"));
                }
            }
        }
        let announced = tokio::time::timeout(FORK_PATIENCE, announced).await.map_err(|_| "it was not forked in time")?;
        let (pid, handle, first) = announced.map_err(|_| "the zygote died".to_owned())??;
        Ok(Spawned { pid, handle, first, exited })
    }

    /// Routes what the process says, until it has gone. From then on it can't be asked for anything.
    async fn listen(&self) {
        loop {
            match self.control.get_ref().receive() {
                Ok((message, _)) if message.is_empty() => break,
                Ok((message, fds)) => self.route(&message, fds),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let Ok(mut guard) = self.control.readable().await else { break };
                    // Cleared only when nothing came in between: the receive above is repeated first.
                    if let Ok(result) = guard.try_io(|control| control.get_ref().receive()) {
                        match result {
                            Ok((message, _)) if message.is_empty() => break,
                            Ok((message, fds)) => self.route(&message, fds),
                            Err(_) => break,
                        }
                    }
                }
                Err(_) => break,
            }
        }
        // In this order: whoever is not on the list when it is cleared finds the socket closed.
        self.control.get_ref().close();
        self.waiting().clear();
    }

    /// Takes note that the process has ended, with this exit code or by the signal of this negative number.
    fn has_ended(&self, status: Option<i32>) {
        let importing = self.importing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let how = match status {
            Some(status) if status < 0 => format!("was ended by {}", signal_name(-status)),
            Some(status) => format!("exited with {status}"),
            None => "ended".to_owned(),
        };
        self.state.send_if_modified(|state| {
            let reason = match state {
                Standing::Ended(_) => return false,
                Standing::Starting if !importing.is_empty() => format!("its process {how} while it imported {importing}"),
                _ => format!("its process {how}"),
            };
            *state = Standing::Ended(reason);
            true
        });
    }

    fn route(&self, message: &[u8], fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        match serde_json::from_slice(message) {
            Ok(Message::Holder { probes, no_shared_memory, heir, directory, number }) => {
                self.is_known(handle(number, &mut fds));
                tracing::debug!(?probes, "the holder serves");
                let _ = self.facts.set(Facts { probes: Probes::new(probes, no_shared_memory), heir, directory });
                self.state.send_replace(Standing::Serving);
            }
            Ok(Message::Ready { stage, missing, number }) => {
                self.is_known(handle(number, &mut fds));
                tracing::debug!(stage, ?missing, "a zygote serves");
                let _ = self.baseline_bytes.set(self.pid().map_or(0, sandbox::memory_of));
                let _ = self.missing.set(missing);
                self.state.send_replace(Standing::Serving);
            }
            Ok(Message::Importing { name }) => {
                *self.importing.lock().unwrap_or_else(PoisonError::into_inner) = name;
            }
            Ok(Message::Broken { reason }) => {
                self.state.send_replace(Standing::Ended(reason));
            }
            Ok(Message::Spawned { id, number }) => {
                let process =
                    handle(number, &mut fds).and_then(|handle| Some((handle.pid()?, handle, fds.next().map(Pidfd::new))));
                self.announce(id, process.ok_or_else(|| GONE.to_owned()));
            }
            Ok(Message::Failed { id, reason }) => self.announce(
                id,
                Err(format!(
                    "the zygote could not fork: {reason}; the machine or the control group has no more memory or processes"
                )),
            ),
            Ok(Message::Exited { id, status, cpu_seconds, peak_memory_kb }) => {
                if let Some(exit) = self.waiting().remove(&id).and_then(|waiting| waiting.exited) {
                    let cpu = Duration::try_from_secs_f64(cpu_seconds).unwrap_or_default();
                    let _ = exit.send(Exit { status, cpu, peak_memory_bytes: peak_memory_kb << 10 });
                }
            }
            // No message is left out in silence: whoever waits for it would wait for ever.
            Err(error) => {
                tracing::error!(%error, "a zygote said what this program does not understand");
                self.state.send_replace(Standing::Ended(format!("it said what is not understood: {error}")));
                Process::end(self);
            }
        }
    }

    fn is_known(&self, process: Option<Pidfd>) {
        if let Some(process) = process {
            if let Some(pid) = process.pid() {
                let _ = self.pid.set(pid);
            }
            let _ = self.process.set(process);
        }
    }

    fn announce(&self, id: u64, outcome: Result<Forked, String>) {
        if outcome.is_err() {
            // No exit will be reported for it.
            if let Some(started) = self.waiting().remove(&id).and_then(|waiting| waiting.started) {
                let _ = started.send(outcome);
            }
        } else if let Some(started) = self.waiting().get_mut(&id).and_then(|waiting| waiting.started.take())
            && let Err(Ok((_, abandoned, first))) = started.send(outcome)
        {
            // Nobody waits for it any more, so nobody else would end it.
            abandoned.kill();
            first.iter().for_each(Pidfd::kill);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn birth(&self) -> Birth {
        self.reaper.birth()
    }
}

impl Process for Zygote {
    async fn fork(&self, from: Option<usize>, stage: usize) -> Result<Arc<Self>, String> {
        let (ours, theirs) = ControlSocket::pair().map_err(|error| format!("making a control socket: {error}"))?;
        let zygote = Self::new(ours, self.reaper.clone()).map_err(|error| format!("watching a control socket: {error}"))?;
        let request = Fork::Zygote { stages: stage::work(from, stage) };
        // Until it is known, it could be taken for something that a kernel has left behind.
        let birth = self.birth();
        let spawned = self.ask(&request, &[std::os::fd::AsFd::as_fd(&theirs)]).await?;
        birth.announce_zygote(spawned.pid);
        drop(theirs);
        zygote.is_known(Some(spawned.handle));
        let heard = zygote.clone();
        tokio::spawn(async move {
            heard.listen().await;
            // It may have closed its socket and live on.
            Process::end(&*heard);
            let exit = tokio::time::timeout(STATUS_PATIENCE, spawned.exited).await.ok().and_then(Result::ok);
            heard.has_ended(exit.map(|exit| exit.status));
            heard.reaper.forget_zygote(spawned.pid);
        });
        Ok(zygote)
    }

    async fn serving(&self) -> Result<(), String> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, Standing::Starting)).await;
        match state.as_deref() {
            Ok(Standing::Ended(reason)) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    async fn ended(&self) -> String {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| matches!(state, Standing::Ended(_))).await;
        match state.as_deref() {
            Ok(Standing::Ended(reason)) => reason.clone(),
            _ => String::new(),
        }
    }

    fn end(&self) {
        self.control.get_ref().close();
        if let Some(process) = self.process.get() {
            process.kill();
        }
    }
}

/// The handle that came with a message: the first of its descriptors, or a number.
fn handle(number: Option<Number>, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<Pidfd> {
    match number {
        Some((pid, started)) => Some(Pidfd::of_number(pid, started)),
        None => fds.next().map(Pidfd::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer that only the harness knows must not be taken for one that is not there, and nobody waits for ever.
    #[tokio::test]
    async fn a_word_that_is_not_understood_ends_the_process_and_is_told() {
        let (ours, _theirs) = ControlSocket::pair().expect("sockets");
        let holder = Zygote::new(ours, Arc::new(Reaper::new(false))).expect("a holder");
        let said =
            r#"{"kind": "holder", "probes": {"moat": 0}, "no_shared_memory": 0, "heir": null, "directory": "/", "number": null}"#;
        holder.route(said.as_bytes(), Vec::new());
        let served = tokio::time::timeout(Duration::from_secs(10), holder.serving()).await.expect("it is told");
        let reason = served.expect_err("it does not serve");
        assert!(reason.contains("moat") && reason.contains("seccomp"), "{reason}");
    }
}
