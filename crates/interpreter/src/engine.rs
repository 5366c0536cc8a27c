//! The engine as its doors see it: start it, run cells, ask how it stands.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak, mpsc};
use std::time::Duration;

use protocol::{CellRequest, ErrorCode, Limits, Outcome, OutputEvent};
use sandbox::{Allowed, Cgroup, KernelProcess, Landlock, Pidfd, Protection, Reaper};
use serde_json::json;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::answer::outcome;
use crate::home::{self, Home};
use crate::isolation::{self, Isolation};
use crate::kernel::{Kernel, SHARED_SIZE};
use crate::pool::{Pool, Pools};
use crate::run::Ending;
use crate::stage::{self, Preload, STAGES};
use crate::state_dir::{self, StateDir};
use crate::status::{EngineStatus, StageStatus};
use crate::tree::{self, PythonTree};
use crate::users::KernelUsers;
use crate::zygote::{Family, FamilyConfig, Held, Link, StageState};

/// How long a call waits for a kernel before it is our fault.
const KERNEL_PATIENCE: Duration = Duration::from_secs(60);
/// When the next spare is started: this long after the call that took one has ended, so that its answer goes first, or
/// after it has run this long. A fork beside a short call costs the call more than it gains.
const REFILL_AFTER_CALL: Duration = Duration::from_millis(1);
const REFILL_BESIDE_CALL: Duration = Duration::from_millis(15);
/// How long the first stage may take.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// What the zygotes and their spares may take together: the whole stack is 180 MB, and some of it is copied.
const WARM_BYTES: u64 = 1 << 30;
/// How long a kernel may take from being asked for to being ready: other code may have stopped it, or its zygote.
const KERNEL_START_PATIENCE: Duration = Duration::from_secs(15);
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
            out_of_memory_kills: AtomicU64::new(0),
            user_threads: AtomicU32::new(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            failure: RwLock::new(None),
            isolation: Isolation::new(config.allowed, config.disabled_layers.clone(), &config.readable, &tree, state_dir.path()),
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

    /// Starts as many kernels as the stage's pool lacks.
    fn refill(inner: &Arc<Self>, stage: usize) {
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
    fn refill_later(inner: &Arc<Self>, stage: usize) -> oneshot::Sender<()> {
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
    async fn link(&self, stage: usize) -> Arc<Link> {
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
        let seen = (baseline_bytes, sees_descriptors);
        let mut kernel = Kernel::new(process, ours, death, spawned.exited, seen, self.reaper.clone(), home)
            .map_err(|error| format!("watching a kernel: {error}"))?;
        if kernel.warmed().await { Ok(kernel) } else { Err("it died while it warmed itself".to_owned()) }
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
