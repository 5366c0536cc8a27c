//! The engine as its doors see it: start it, run cells, ask how it stands.

mod supply;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak, mpsc};
use std::time::Duration;

use protocol::{CellRequest, ErrorCode, Limits, Outcome, OutputEvent};
use sandbox::{Allowed, Cgroup, Landlock, Pidfd, Protection, Reaper};
use tokio::sync::{Semaphore, watch};

use crate::answer::outcome;
use crate::isolation::{self, Isolation};
use crate::pool::{Pool, Pools};
use crate::run::Ending;
use crate::stage::{self, Preload, STAGES};
use crate::state_dir::{self, StateDir};
use crate::status::{EngineStatus, StageStatus};
use crate::tree::{self, PythonTree};
use crate::users::KernelUsers;
use crate::zygote::{Family, FamilyConfig, Held, StageState};

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
/// After a family died: a broken tree must not be tried in a tight loop.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

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
    /// Closed when the thread that keeps the zygotes has ended.
    keeper: Mutex<mpsc::Receiver<()>>,
}

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
    family: RwLock<Option<Arc<Family>>>,
    zygote: Mutex<Option<Pidfd>>,
    generation: watch::Sender<u64>,
    pub(crate) pools: Pools,
    permits: Semaphore,
    queued: AtomicUsize,
    pub(crate) next_id: AtomicU64,
    /// Changes when kernels that are on their way must not be used any more.
    pub(crate) epoch: AtomicU64,
    stopping: AtomicBool,
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
        let ready = tokio::time::timeout(START_PATIENCE, engine.inner.link(0)).await;
        if ready.is_err() {
            let reason = engine.inner.failure.read().unwrap_or_else(PoisonError::into_inner).clone();
            return Err(EngineError::NoZygote(reason.unwrap_or_else(|| "see its messages above".to_owned())));
        }
        Ok(engine)
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
            family: RwLock::new(None),
            zygote: Mutex::new(None),
            generation: watch::Sender::new(0),
            pools: (0..stages).map(|_| Arc::new(Pool::new(config.spares))).collect(),
            permits: Semaphore::new(config.max_concurrency),
            queued: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            epoch: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
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
        std::thread::Builder::new()
            .name("zygote".to_owned())
            .spawn(move || {
                keep_family(&weak, &runtime);
                drop(keeps);
            })
            .map_err(system("starting the zygote's thread"))?;
        Ok(Self { inner, keeper: Mutex::new(keeper) })
    }

    /// Runs one cell in a kernel of its own. `on_output` hears output while the cell runs. Dropping the future kills
    /// the run.
    pub async fn run(&self, request: &CellRequest, on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send)) -> Outcome {
        let inner = &self.inner;
        let patience = request.deadline.map_or(KERNEL_PATIENCE, |deadline| {
            KERNEL_PATIENCE.min(deadline.saturating_duration_since(std::time::Instant::now()))
        });
        let Some(_permit) = inner.permit().await else {
            return Outcome::refused(
                ErrorCode::Busy,
                format!("{} calls run and {} wait; try again later", inner.config.max_concurrency, inner.config.max_queue),
            );
        };
        // What takes the stack's place goes into an interpreter that has imported nothing of it.
        let separate = request.packages.as_ref().is_some_and(|packages| packages.separate);
        let stage = if separate { 0 } else { stage::stage_for(&request.code).min(inner.pools.len() - 1) };
        let taken = tokio::time::timeout(patience, inner.pools[stage].take(|| Inner::refill(inner, stage))).await;
        let Ok(kernel) = taken else {
            return Outcome::refused(ErrorCode::Internal, "no kernel could be started; see the server's log");
        };
        let _running = Inner::refill_later(inner, stage);
        let kills_before = inner.out_of_memory_kills.load(Ordering::Relaxed);
        let mut finished = kernel.run(request, &inner.config.authorized_imports, inner.cores, on_output).await;
        if matches!(finished.ending, Ending::Died(Some(status)) if status == -SIGKILL) && inner.memory_ran_out(kills_before) {
            finished.ending = Ending::Killed(ErrorCode::MemoryLimit);
        }
        outcome(finished, request)
    }

    /// How the engine stands.
    pub fn status(&self) -> EngineStatus {
        let inner = &self.inner;
        let family = inner.family.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut held, mut orphans_go_to) = (None, None);
        let stages = (0..inner.pools.len()).map(|index| {
            let (state, missing) = match family.as_ref().map(|family| family.links[index].state()) {
                Some(StageState::Ready { missing, held: tried, heir, .. }) => {
                    held = Some(inner.held(tried));
                    orphans_go_to = heir;
                    ("ready", missing)
                }
                Some(StageState::Starting) => ("starting", Vec::new()),
                Some(StageState::Dead) | None => ("dead", Vec::new()),
            };
            StageStatus { name: STAGES[index].name, state, spares: inner.pools[index].ready(), missing }
        });
        EngineStatus {
            python_version: inner.tree.python_version(),
            stages: stages.collect(),
            running: inner.config.max_concurrency - inner.permits.available_permits(),
            queued: inner.queued.load(Ordering::Relaxed),
            max_concurrency: inner.config.max_concurrency,
            restarts: inner.generation.borrow().saturating_sub(1),
            supervisor_non_dumpable: inner.protection.non_dumpable,
            supervisor_subreaper: inner.protection.subreaper,
            allowed: inner.config.allowed,
            disabled: inner.isolation.disabled.clone(),
            landlock_abi: inner.isolation.landlock.as_ref().ok().map(Landlock::abi),
            held,
            quarantined: inner.state_dir.quarantined.load(Ordering::Relaxed),
            heir: orphans_go_to,
        }
    }

    /// Comes back when the bare interpreter is up, and so what each layer came to is known.
    pub async fn started(&self) {
        self.inner.link(0).await;
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
        self.inner.stopping.store(true, Ordering::Relaxed);
        for pool in &self.inner.pools {
            pool.clear();
        }
        *self.inner.family.write().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(zygote) = self.inner.zygote.lock().unwrap_or_else(PoisonError::into_inner).take() {
            zygote.kill();
        }
        // Its control group can only be removed when it has gone.
        let _ = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(END_PATIENCE);
    }
}

/// Starts a family, waits for its end, starts the next. Runs on a thread of its own, the parent of all zygotes.
fn keep_family(engine: &Weak<Inner>, runtime: &tokio::runtime::Handle) {
    while let Some(inner) = engine.upgrade().filter(|inner| !inner.stopping.load(Ordering::Relaxed)) {
        let config = FamilyConfig {
            tree: &inner.tree,
            stages: inner.pools.len(),
            probe_user: inner.users.any(),
            shared_memory_bytes: inner.config.limits.memory_bytes.min(SHARED_MEMORY_BYTES),
            reaper: &inner.reaper,
            state_dir: inner.state_dir.path(),
            isolation: &inner.isolation,
            inherits_orphans: inner.protection.subreaper,
        };
        let (family, mut child) = match Family::start(&config, runtime) {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(%error, "the zygote could not be started");
                *inner.failure.write().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
                std::thread::park_timeout(RESTART_PAUSE);
                continue;
            }
        };
        let pid = i32::try_from(child.id()).unwrap_or(0);
        *inner.zygote.lock().unwrap_or_else(PoisonError::into_inner) = Pidfd::open(pid);
        // While Python still starts, and so before it forks anything.
        let cgroup = inner.cgroup().and_then(|cgroup| cgroup.add(pid).map(|()| Arc::new(cgroup)));
        *inner.cgroup.write().unwrap_or_else(PoisonError::into_inner) = cgroup.as_ref().ok().cloned();
        inner.out_of_memory_kills.store(0, Ordering::Relaxed);
        *inner.cgroup_refused.write().unwrap_or_else(PoisonError::into_inner) =
            cgroup.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(isolation::ENOSYS));
        *inner.family.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(family));
        inner.generation.send_modify(|generation| *generation += 1);
        let context = runtime.enter();
        for stage in 0..inner.pools.len() {
            Inner::refill(&inner, stage);
        }
        drop(context);
        let reaper = inner.reaper.clone();
        drop(inner);
        let status = child.wait();
        reaper.release(pid);
        reaper.forget_zygotes();
        if let Some(inner) = engine.upgrade() {
            *inner.cgroup.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        drop(cgroup);
        let Some(inner) = engine.upgrade().filter(|inner| !inner.stopping.load(Ordering::Relaxed)) else { return };
        tracing::warn!(?status, "the zygote ended; starting another");
        *inner.family.write().unwrap_or_else(PoisonError::into_inner) = None;
        let _context = runtime.enter();
        for pool in &inner.pools {
            pool.clear();
        }
        std::thread::park_timeout(RESTART_PAUSE);
    }
}

impl Inner {
    /// The group around all kernels: room for every call at its limits, and for what is warm.
    fn cgroup(&self) -> std::io::Result<Cgroup> {
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

    /// A permit to run, unless the queue is full.
    async fn permit(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        struct Queued<'a>(&'a AtomicUsize);
        impl Drop for Queued<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if let Ok(permit) = self.permits.try_acquire() {
            return Some(permit);
        }
        let place = self.queued.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(&self.queued);
        if place >= self.config.max_queue {
            return None;
        }
        self.permits.acquire().await.ok()
    }
}
