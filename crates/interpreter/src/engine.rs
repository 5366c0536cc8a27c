//! The engine as its doors see it: start it, run cells, ask how it stands.

mod admission;
#[cfg(test)]
mod bounded;
mod keeper;
#[cfg(test)]
mod kept;
mod pool;
mod purge;
mod status;
mod supply;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use protocol::{CellRequest, Ended, ErrorCode, EventSink, Layer, Limits};
use sandbox::{Allowed, Cgroup, Landlock, Pidfd, Protection, Reaper};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::admission::{Admitted, Refused};
use self::pool::{Pool, Pools};
pub use self::status::{EngineStatus, StageStatus};
use self::supply::UserThreads;
use crate::answer;
use crate::error::EngineError;
use crate::isolation::Isolation;
use crate::kernel::{Cell, Ending};
use crate::probe::{Probe, Probes};
use crate::state_dir::{self, StateDir};
use crate::tree::{self, PythonTree};
use crate::users::KernelUsers;
use crate::zygote::{Preload, STAGES, Stages, State, Zygote, stage_for};

/// How long a call waits for a kernel before it is our fault.
const KERNEL_PATIENCE: Duration = Duration::from_secs(60);
/// How long the first stage may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Users of kernels that are being cleaned up after, or that could not be.
const MORE_USERS: usize = 64;
/// How long the end of the engine may take.
const END_PATIENCE: Duration = Duration::from_secs(1);

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
    pub disabled_layers: Vec<Layer>,
    /// Modules that a cell under the restricted policy may import.
    pub authorized_imports: Vec<String>,
    /// Folders that the code may read besides the tree.
    pub readable: Vec<PathBuf>,
    /// Run code as root, where the server is root and kernels can't have users of their own.
    pub allow_root: bool,
}

/// The engine. Dropping it ends every process it started.
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
    /// Dropped to tell the thread that keeps the holder that it is to end.
    stop: Option<mpsc::Sender<()>>,
    /// Closed when that thread has ended.
    keeper: Mutex<mpsc::Receiver<()>>,
}

/// The stages above the holder that serves now.
type WarmStages = Option<Arc<Stages<Zygote>>>;

pub(crate) struct Inner {
    config: EngineConfig,
    pub(crate) tree: PythonTree,
    protection: Protection,
    isolation: Isolation,
    cgroup_probe: RwLock<Probe>,
    cgroup: RwLock<Option<Arc<Cgroup>>>,
    /// What bounded this process and its zygotes before code could change it, where code is of their user and nothing keeps it.
    pub(crate) bounds: Mutex<HashMap<i32, String>>,
    /// How often memory ran out in the group, as far as was seen.
    out_of_memory_kills: AtomicU64,
    /// What was promised to the first caller; a family that holds less runs nothing.
    held_at_first: OnceLock<Probes>,
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
    user_threads: UserThreads,
    cores: usize,
    state_dir: Arc<StateDir>,
    /// Why the holder can't be started, when it can't.
    failure: watch::Sender<Option<String>>,
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
            Ok(Err(reason)) => reason,
            Err(_) => "see its messages above".to_owned(),
        };
        Err(EngineError::NoZygote(reason))
    }

    /// Starts the zygotes and does not wait for them: a door can open before the interpreter is up.
    ///
    /// # Errors
    /// When there is no tree.
    pub fn start_in_background(config: EngineConfig) -> Result<Self, EngineError> {
        let tree = PythonTree::open(&config.tree)?;
        let system = |what| move |source| EngineError::System { what, source };
        let protection = sandbox::protect_supervisor();
        let state_dir = Arc::new(StateDir::make().map_err(system("making a directory in the temporary folder (TMPDIR)"))?);
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
            user_threads: UserThreads::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            failure: watch::Sender::new(None),
            isolation: Isolation::new(
                (config.allowed, config.disabled_layers.clone()),
                &config.readable,
                &tree,
                state_dir.path(),
            ),
            cgroup_probe: RwLock::default(),
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
                keeper::keep_holder(&weak, &runtime, &stopped);
                drop(keeps);
            })
            .map_err(system("starting the holder's thread"))?;
        Ok(Self { inner, stop: Some(stop), keeper: Mutex::new(keeper) })
    }

    /// Runs one cell in a kernel of its own. `events` hears what the cell prints and shows; how it ended comes back. Dropping
    /// the future kills the run.
    pub async fn run(&self, request: &CellRequest, events: &mut dyn EventSink) -> Ended {
        let inner = &self.inner;
        // What takes the stack's place goes into an interpreter that has imported nothing of it.
        let separate = request.packages.as_ref().is_some_and(|packages| packages.separate);
        let stage = if separate { 0 } else { stage_for(&request.code).min(inner.pools.len() - 1) };
        let latest = request
            .deadline
            .map_or(KERNEL_PATIENCE, |deadline| KERNEL_PATIENCE.min(deadline.saturating_duration_since(Instant::now())));
        let admitted = tokio::time::timeout(latest, Inner::admit(inner, stage, events)).await;
        let Admitted { _permit, mut kernel, stage } = match admitted.unwrap_or(Err(Refused::NotInTime)) {
            Ok(admitted) => admitted,
            Err(refused) => return inner.refused(refused),
        };
        let _running = Inner::refill_later(inner, stage);
        let kills_before = inner.out_of_memory_kills.load(Ordering::Relaxed);
        let authorized_imports = &inner.config.authorized_imports;
        let cell = Cell { request, authorized_imports, cores: inner.cores, is_kept: false };
        let mut finished = kernel.run(cell, events).await;
        if matches!(finished.ending, Ending::Died(Some(status)) if status == -SIGKILL) && inner.memory_ran_out(kills_before) {
            finished.ending = Ending::Killed(ErrorCode::MemoryLimit);
        }
        answer::ended(finished, request)
    }

    /// How the engine stands.
    pub fn status(&self) -> EngineStatus {
        let inner = &self.inner;
        let warm = inner.stages.borrow().clone();
        let facts = warm.as_ref().and_then(|warm| warm.holder().facts().cloned());
        let stages = (0..inner.pools.len()).map(|index| {
            let (state, missing, reason) = match warm.as_ref().map(|warm| warm.state(index)) {
                Some(State::Ready(zygote)) => {
                    let reason = inner.pools[index].failing();
                    let is_starved = reason.is_some() && inner.pools[index].ready() == 0;
                    (if is_starved { "failed" } else { "ready" }, zygote.missing(), reason)
                }
                Some(State::Starting) => ("starting", Vec::new(), None),
                Some(State::Failed(reason)) => ("failed", Vec::new(), Some(reason)),
                None => ("dead", Vec::new(), inner.failure.borrow().clone()),
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
            probes: facts.as_ref().map(|facts| inner.probes(facts.probes.clone())),
            quarantined: inner.state_dir.quarantined(),
            heir: facts.as_ref().and_then(|facts| facts.heir),
            directory: facts.map(|facts| facts.directory),
        }
    }

    /// Comes back when the bare interpreter is up, and so what each layer came to is known; or can't be had.
    pub async fn started(&self) {
        // While no holder can be started nothing is known, and it is tried again.
        let _ = self.inner.stages.subscribe().wait_for(Option::is_some).await;
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
