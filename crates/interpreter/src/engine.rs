//! The engine as its doors see it: start it, run cells, ask how it stands.

mod supply;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak, mpsc};
use std::time::{Duration, Instant};

use protocol::{CellRequest, ErrorCode, Limits, Outcome, OutputEvent};
use sandbox::{Allowed, Cgroup, Landlock, Pidfd, Protection, Reaper};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use crate::answer;
use crate::isolation::{self, Isolation};
use crate::kernel::Kernel;
use crate::pool::{Pool, Pools};
use crate::run::Ending;
use crate::stage::{self, Preload, STAGES};
use crate::stages::{self, Process, Stages, State};
use crate::state_dir::{self, StateDir};
use crate::status::{EngineStatus, StageStatus};
use crate::tree::{self, PythonTree};
use crate::users::KernelUsers;
use crate::zygote::{Held, Holder, HolderConfig, Zygote};

/// How long a call waits for a kernel before it is our fault.
const KERNEL_PATIENCE: Duration = Duration::from_secs(60);
/// How long the first stage may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// What the zygotes and their spares may take together: the whole stack is 180 MB, and some of it is copied.
const WARM_BYTES: u64 = 1 << 30;
/// The most that a kernel may keep in a `/dev/shm` of its own.
const SHARED_MEMORY_BYTES: u64 = 256 << 20;
/// Users of kernels that are being cleaned up after, or that could not be.
const MORE_USERS: usize = 64;
/// How long the end of the engine may take.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// A holder that has served so long was sound: its end says nothing about the next one's.
const STEADY: Duration = Duration::from_secs(10);

const SIGKILL: i32 = 9;

/// What the engine needs to know.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The Python tree.
    pub tree: PathBuf,
    /// How much of the stack is imported ahead.
    pub preload: Preload,
    /// Cells that run at the same time.
    pub max_concurrency: usize,
    /// Calls that may wait for one of these to end; further ones are `busy`.
    pub max_queue: usize,
    /// Spare kernels kept ready for each stage.
    pub spares: usize,
    /// Limits of a call that asks for none.
    pub limits: Limits,
    /// What user code may do beyond its own process.
    pub allowed: Allowed,
    /// Which of [`SWITCHABLE_LAYERS`](crate::SWITCHABLE_LAYERS) are left off.
    pub disabled_layers: Vec<String>,
    /// Modules that a cell under the restricted policy may import.
    pub authorized_imports: Vec<String>,
    /// Folders that the code may read besides the tree.
    pub readable: Vec<PathBuf>,
    /// Folders that are in its sight besides these, where it has mounts of its own.
    pub visible: Vec<PathBuf>,
    /// Run code as root, where the server is root and kernels can't have users of their own.
    pub allow_root: bool,
}

/// Why the engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no Python tree.
    #[error("no Python tree at {0}: {1}; `make tree` builds it, PYTHON_TREE says where it is")]
    NoTree(PathBuf, String),
    /// There is none at any of these places.
    #[error("no Python tree at {0}: `make tree` builds it, PYTHON_TREE says where it is")]
    NoTreeFound(String),
    /// The interpreter did not come up.
    #[error("the Python interpreter did not start: {0}")]
    NoZygote(String),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// The engine. Dropping it ends every process it started.
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
    /// Dropped to tell the thread that keeps the holder that it is to end.
    stop: Option<mpsc::Sender<()>>,
    /// Closed when that thread has ended.
    keeper: Mutex<mpsc::Receiver<()>>,
}

/// A kernel for a call that may run now.
struct Admitted<'a> {
    _permit: SemaphorePermit<'a>,
    kernel: Kernel,
    stage: usize,
}

/// Why a call gets no kernel.
enum Refused {
    Full,
    NoKernel(String),
    NotInTime,
}

/// Counts a call that waits.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stages above the holder that serves now.
type WarmStages = Option<Arc<Stages<Zygote>>>;

pub(crate) struct Inner {
    config: EngineConfig,
    pub(crate) tree: PythonTree,
    protection: Protection,
    isolation: Isolation,
    cgroup_refused: RwLock<i32>,
    cgroup: RwLock<Option<Arc<Cgroup>>>,
    /// What bounded this process and its zygotes before code could change it, where code is of their user and nothing keeps it.
    pub(crate) bounds: Mutex<HashMap<i32, String>>,
    /// How often memory ran out in the group, as far as was seen.
    out_of_memory_kills: AtomicU64,
    /// What was promised to the first caller; a family that holds less runs nothing.
    held_at_first: OnceLock<Held>,
    reaper: Arc<Reaper>,
    stages: watch::Sender<WarmStages>,
    /// Times that a zygote, or the holder, was started again.
    restarts: Arc<AtomicU64>,
    /// The holder's process, or the stub around it.
    holder: Mutex<Option<Pidfd>>,
    pub(crate) pools: Pools,
    permits: Semaphore,
    queued: AtomicUsize,
    pub(crate) next_id: AtomicU64,
    /// Changes when kernels that are on their way must not be used any more.
    pub(crate) epoch: watch::Sender<u64>,
    stopping: CancellationToken,
    users: Arc<KernelUsers>,
    user_threads: AtomicU32,
    cores: usize,
    state_dir: Arc<StateDir>,
    failure: RwLock<Option<String>>,
}

impl Engine {
    /// Starts the zygotes and comes back as soon as the bare interpreter is up; the stack is imported meanwhile.
    ///
    /// # Errors
    /// When there is no tree, or the interpreter in it does not start.
    pub async fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let engine = Self::start_in_background(config)?;
        let reason = match tokio::time::timeout(START_PATIENCE, engine.inner.usable(0)).await {
            Ok(Ok(_)) => return Ok(engine),
            Ok(Err(reason)) => Some(reason),
            Err(_) => engine.inner.failure.read().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        Err(EngineError::NoZygote(reason.unwrap_or_else(|| "see its messages above".to_owned())))
    }

    /// Starts the zygotes and does not wait for them: a door can open before the interpreter is up.
    ///
    /// # Errors
    /// When there is no tree.
    pub fn start_in_background(config: EngineConfig) -> Result<Self, EngineError> {
        let tree = PythonTree::open(&config.tree)?;
        let system = |what| move |source| EngineError::System { what, source };
        let protection = sandbox::protect_supervisor();
        let state_dir = Arc::new(StateDir::make().map_err(system("making the state directory"))?);
        state_dir::sweep_beside(&state_dir).map_err(system("starting the sweep's thread"))?;
        let stages = config.preload.stages();
        let users = KernelUsers::for_kernels(config.max_concurrency + config.spares * stages + MORE_USERS)
            .map_err(system("taking the users that calls run as"))?;
        let inner = Arc::new(Inner {
            reaper: Arc::new(Reaper::new(protection.subreaper)),
            stages: watch::Sender::new(None),
            restarts: Arc::default(),
            holder: Mutex::new(None),
            pools: (0..stages).map(|_| Arc::new(Pool::new(config.spares))).collect(),
            permits: Semaphore::new(config.max_concurrency),
            queued: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            epoch: watch::Sender::new(0),
            stopping: CancellationToken::new(),
            users: Arc::new(users),
            cgroup: RwLock::new(None),
            bounds: Mutex::default(),
            out_of_memory_kills: AtomicU64::new(0),
            user_threads: AtomicU32::new(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            failure: RwLock::new(None),
            isolation: Isolation::new(
                (config.allowed, config.disabled_layers.clone()),
                &config.readable,
                &config.visible,
                &tree,
                state_dir.path(),
            ),
            cgroup_refused: RwLock::new(isolation::ENOSYS),
            held_at_first: OnceLock::new(),
            tree,
            protection,
            state_dir,
            config,
        });
        let runtime = tokio::runtime::Handle::current();
        let weak = Arc::downgrade(&inner);
        let (keeps, keeper) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        std::thread::Builder::new()
            .name("holder".to_owned())
            .spawn(move || {
                keep_holder(&weak, &runtime, &stopped);
                drop(keeps);
            })
            .map_err(system("starting the holder's thread"))?;
        Ok(Self { inner, stop: Some(stop), keeper: Mutex::new(keeper) })
    }

    /// Runs one cell in a kernel of its own. `on_output` hears output while the cell runs. Dropping the future kills
    /// the run.
    pub async fn run(&self, request: &CellRequest, on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send)) -> Outcome {
        let inner = &self.inner;
        // What takes the stack's place goes into an interpreter that has imported nothing of it.
        let separate = request.packages.as_ref().is_some_and(|packages| packages.separate);
        let stage = if separate { 0 } else { stage::stage_for(&request.code).min(inner.pools.len() - 1) };
        let latest = request
            .deadline
            .map_or(KERNEL_PATIENCE, |deadline| KERNEL_PATIENCE.min(deadline.saturating_duration_since(Instant::now())));
        let admitted = match tokio::time::timeout(latest, Inner::admit(inner, stage)).await {
            Ok(admitted) => admitted,
            Err(_) => Err(Refused::NotInTime),
        };
        let Admitted { _permit, kernel, stage } = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => return inner.refused(refused),
        };
        let _running = Inner::refill_later(inner, stage);
        let kills_before = inner.out_of_memory_kills.load(Ordering::Relaxed);
        let mut finished = kernel.run(request, &inner.config.authorized_imports, inner.cores, on_output).await;
        if matches!(finished.ending, Ending::Died(Some(status)) if status == -SIGKILL) && inner.memory_ran_out(kills_before) {
            finished.ending = Ending::Killed(ErrorCode::MemoryLimit);
        }
        answer::outcome(finished, request)
    }

    /// How the engine stands.
    pub fn status(&self) -> EngineStatus {
        let inner = &self.inner;
        let warm = inner.stages.borrow().clone();
        let facts = warm.as_ref().and_then(|warm| warm.holder().facts().cloned());
        let stages = (0..inner.pools.len()).map(|index| {
            let (state, missing, reason) = match warm.as_ref().map(|warm| warm.state(index)) {
                Some(State::Ready(zygote)) => ("ready", zygote.missing(), None),
                Some(State::Starting) => ("starting", Vec::new(), None),
                Some(State::Failed(reason)) => ("failed", Vec::new(), Some(reason)),
                None => ("dead", Vec::new(), None),
            };
            StageStatus { name: STAGES[index].name, state, spares: inner.pools[index].ready(), missing, reason }
        });
        EngineStatus {
            python_version: inner.tree.python_version(),
            stages: stages.collect(),
            running: inner.config.max_concurrency - inner.permits.available_permits(),
            queued: inner.queued.load(Ordering::Relaxed),
            max_concurrency: inner.config.max_concurrency,
            restarts: inner.restarts.load(Ordering::Relaxed),
            supervisor_non_dumpable: inner.protection.non_dumpable,
            supervisor_subreaper: inner.protection.subreaper,
            allowed: inner.config.allowed,
            disabled: inner.isolation.disabled.clone(),
            landlock_abi: inner.isolation.landlock.as_ref().ok().map(Landlock::abi),
            held: facts.as_ref().map(|facts| inner.held(facts.held.clone())),
            quarantined: inner.state_dir.quarantined.load(Ordering::Relaxed),
            heir: facts.and_then(|facts| facts.heir),
        }
    }

    /// Comes back when the bare interpreter is up, and so what each layer came to is known; or can't be had.
    pub async fn started(&self) {
        let _ = self.inner.usable(0).await;
    }

    /// The folder that keeps kernels of other users from the tree or from their directories.
    pub fn closed_folder(&self) -> Option<PathBuf> {
        let paths = [self.inner.tree.site(), self.inner.tree.python(), self.state_dir().to_owned()];
        paths.iter().find_map(|path| tree::closed_folder(path))
    }

    /// Limits of a call that asks for none.
    pub fn limits(&self) -> Limits {
        self.inner.config.limits
    }

    /// Where kernels have their directories.
    pub fn state_dir(&self) -> &Path {
        self.inner.state_dir.path()
    }

    /// Who must know of every other child of this process.
    pub fn reaper(&self) -> Arc<Reaper> {
        self.inner.reaper.clone()
    }

    /// Whether kernels are behind Landlock.
    pub fn has_landlock(&self) -> bool {
        self.inner.isolation.landlock.is_ok()
    }

    /// The Python tree in use.
    pub fn tree(&self) -> &PythonTree {
        &self.inner.tree
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inner.stopping.cancel();
        self.stop = None;
        for pool in &self.inner.pools {
            pool.clear();
        }
        self.inner.stages.send_replace(None);
        if let Some(holder) = self.inner.holder.lock().unwrap_or_else(PoisonError::into_inner).take() {
            holder.kill();
        }
        // Its control group can only be removed when it has gone.
        let _ = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(END_PATIENCE);
    }
}

/// Starts a holder, waits for its end, starts the next. Runs on a thread of its own, the parent of all holders.
fn keep_holder(engine: &Weak<Inner>, runtime: &tokio::runtime::Handle, stopped: &mpsc::Receiver<()>) {
    let mut pauses = stages::pauses();
    while let Some(inner) = engine.upgrade().filter(|inner| !inner.stopping.is_cancelled()) {
        let started = Instant::now();
        match Inner::start_holder(&inner, runtime) {
            Ok((mut child, cgroup)) => {
                let (reaper, restarts) = (inner.reaper.clone(), inner.restarts.clone());
                drop(inner);
                let status = child.wait();
                reaper.release(i32::try_from(child.id()).unwrap_or(0));
                reaper.forget_zygotes();
                if let Some(inner) = engine.upgrade() {
                    *inner.cgroup.write().unwrap_or_else(PoisonError::into_inner) = None;
                    inner.stages.send_replace(None);
                    let _context = runtime.enter();
                    inner.pools.iter().for_each(|pool| pool.clear());
                    if !inner.stopping.is_cancelled() {
                        restarts.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!(?status, "the holder of the zygotes ended; another is started");
                    }
                }
                drop(cgroup);
            }
            Err(error) => {
                tracing::error!(%error, "the interpreter could not be started");
                *inner.failure.write().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        }
        if started.elapsed() > STEADY {
            pauses = stages::pauses();
        }
        // Also the end of the engine ends the pause.
        if stopped.recv_timeout(pauses.next().unwrap_or(STEADY)) == Err(mpsc::RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

impl Inner {
    /// Starts a holder, and above it the stages.
    fn start_holder(inner: &Arc<Self>, runtime: &tokio::runtime::Handle) -> std::io::Result<(Child, Option<Arc<Cgroup>>)> {
        let config = HolderConfig {
            tree: &inner.tree,
            probe_user: inner.users.any(),
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
        *inner.cgroup_refused.write().unwrap_or_else(PoisonError::into_inner) =
            cgroup.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(isolation::ENOSYS));
        let _context = runtime.enter();
        tokio::spawn(Self::open(Arc::downgrade(inner), zygote));
        Ok((child, cgroup.ok()))
    }

    /// Opens the stages as soon as the holder serves, and keeps them for as long as it does.
    async fn open(engine: Weak<Self>, holder: Arc<Zygote>) {
        let served = tokio::time::timeout(START_PATIENCE, holder.serving()).await;
        let Some(inner) = engine.upgrade() else { return holder.end() };
        if let Ok(Err(reason)) | Err(reason) =
            served.map_err(|_| format!("it did not serve within {} s", START_PATIENCE.as_secs()))
        {
            *inner.failure.write().unwrap_or_else(PoisonError::into_inner) = Some(reason);
            return holder.end();
        }
        inner.reaper.know_zygotes(holder.pid());
        if let Some(heir) = holder.facts().and_then(|facts| facts.heir) {
            inner.reaper.orphans_go_to(heir);
        }
        let stages = Arc::new(Stages::new(holder.clone(), inner.pools.len(), inner.restarts.clone()));
        inner.stages.send_replace(Some(stages.clone()));
        for index in 0..inner.pools.len() {
            let (engine, stages, holder, stopping) = (engine.clone(), stages.clone(), holder.clone(), inner.stopping.clone());
            tokio::spawn(async move {
                let refill = || {
                    if let Some(inner) = engine.upgrade() {
                        Self::refill(&inner, index);
                    }
                };
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => {}
                    _ = holder.ended() => stages.end(),
                    () = stages.keep(index, STAGES[index].name, refill) => {}
                }
            });
        }
    }

    /// The highest stage up to this one that serves.
    async fn usable(&self, stage: usize) -> Result<usize, String> {
        let mut changes = self.stages.subscribe();
        loop {
            let serving = changes.borrow_and_update().clone();
            let usable = async {
                match &serving {
                    Some(stages) => stages.usable(stage).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                found = usable => return found.map(|(stage, _)| stage),
                changed = changes.changed() => changed.map_err(|_| "the engine has ended")?,
            }
        }
    }

    /// A kernel, and the permit to use it. While the stage is being started, no permit is held: others need none of it.
    async fn admit(inner: &Arc<Self>, wanted: usize) -> Result<Admitted<'_>, Refused> {
        let mut queued = None;
        loop {
            if inner.stages.borrow().as_ref().is_none_or(|stages| stages.is_starting(wanted)) {
                inner.queue(&mut queued)?;
            }
            let stage = inner.usable(wanted).await.map_err(Refused::NoKernel)?;
            let permit = match inner.permits.try_acquire() {
                Ok(permit) => permit,
                Err(_) => {
                    inner.queue(&mut queued)?;
                    inner.permits.acquire().await.map_err(|_| Refused::NotInTime)?
                }
            };
            let Some(stages) = inner.stages.borrow().clone() else { continue };
            tokio::select! {
                biased;
                kernel = inner.pools[stage].take(|| Self::refill(inner, stage)) => {
                    return kernel.map(|kernel| Admitted { _permit: permit, kernel, stage }).map_err(Refused::NoKernel);
                }
                () = stages.leaves(stage) => {}
                _ = stages.holder().ended() => {}
            }
        }
    }

    /// A place among the calls that wait, unless all are taken.
    fn queue<'a>(&'a self, place: &mut Option<Queued<'a>>) -> Result<(), Refused> {
        if place.is_none() {
            let before = self.queued.fetch_add(1, Ordering::Relaxed);
            let queued = Queued(&self.queued);
            if before >= self.config.max_queue {
                return Err(Refused::Full);
            }
            *place = Some(queued);
        }
        Ok(())
    }

    /// What becomes of a call that gets no kernel.
    fn refused(&self, refused: Refused) -> Outcome {
        match refused {
            Refused::Full => {
                let (runs, waits) = (self.config.max_concurrency, self.config.max_queue);
                Outcome::refused(ErrorCode::Busy, format!("{runs} calls run and {waits} wait; try again later"))
            }
            Refused::NoKernel(reason) => answer::fault(&format!("no process could be started for the code: {reason}")),
            Refused::NotInTime => answer::fault("no process could be had for the code in the time of the call"),
        }
    }

    /// The group around all kernels: room for every call at its limits, and for what is warm.
    fn make_cgroup(&self) -> std::io::Result<Cgroup> {
        if !self.isolation.is_on("cgroup") {
            return Err(std::io::Error::from_raw_os_error(isolation::ENOSYS));
        }
        let limits = &self.config.limits;
        let calls = (self.config.max_concurrency + self.config.spares * self.pools.len()) as u64;
        let memory_bytes = limits.memory_bytes.saturating_add(WARM_BYTES / 16).saturating_mul(calls).saturating_add(WARM_BYTES);
        Cgroup::make(memory_bytes, limits.processes.saturating_add(1).saturating_mul(calls).saturating_add(64))
    }

    /// Whether the kernel has ended processes of the group since `kills` was seen.
    fn memory_ran_out(&self, kills: u64) -> bool {
        let cgroup = self.cgroup.read().unwrap_or_else(PoisonError::into_inner).clone();
        let now = cgroup.map_or(0, |cgroup| cgroup.out_of_memory_kills());
        self.out_of_memory_kills.fetch_max(now, Ordering::Relaxed);
        now > kills
    }

    /// What held: as the zygote tried it, with the rest.
    fn held(&self, tried: Held) -> Held {
        let mut held = self.isolation.complete(tried);
        if self.isolation.is_on("cgroup") {
            let refused = *self.cgroup_refused.read().unwrap_or_else(PoisonError::into_inner);
            held.insert("cgroup".to_owned(), refused);
        }
        held
    }
}
