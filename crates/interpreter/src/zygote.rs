//! One family of zygotes: the root process, and a control socket to each stage forked from it.
//!
//! Rule: a family lives and dies as one. When its root ends, every kernel of it has ended, and a new family is started.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sandbox::{ChildDescriptor, ControlSocket, KernelDescriptors, Landlock, Pidfd, Reaper};
use serde::Deserialize;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::PythonTree;
use crate::isolation::Isolation;
use crate::stage;
use crate::tree::MATPLOTLIB;

const BOOTSTRAP: &str = include_str!("../harness/bootstrap.py");
const MODULES: [(&str, &str); 16] = [
    ("harness_zygote", include_str!("../harness/zygote.py")),
    ("harness_cage", include_str!("../harness/cage.py")),
    ("harness_namespaces", include_str!("../harness/namespaces.py")),
    ("harness_kernel", include_str!("../harness/kernel.py")),
    ("harness_cell", include_str!("../harness/cell.py")),
    ("harness_policy_rules", include_str!("../harness/policy_rules.py")),
    ("harness_policy_pandas", include_str!("../harness/policy_pandas.py")),
    ("harness_policy_guards", include_str!("../harness/policy_guards.py")),
    ("harness_policy_hook", include_str!("../harness/policy_hook.py")),
    ("harness_policy", include_str!("../harness/policy.py")),
    ("harness_streams", include_str!("../harness/streams.py")),
    ("harness_smaller", include_str!("../harness/smaller.py")),
    ("harness_figures", include_str!("../harness/figures.py")),
    ("harness_values", include_str!("../harness/values.py")),
    ("harness_channel", include_str!("../harness/channel.py")),
    ("harness_linux", include_str!("../harness/linux.py")),
];
/// The harness finds its sources on this descriptor, and its control sockets on those that follow.
const SOURCES_FD: i32 = 3;

/// How a stage stands.
#[derive(Clone, Debug)]
pub(crate) enum StageState {
    /// Still importing.
    Starting,
    /// Forks kernels.
    /// `heir`: who inherits orphans, where it had to be found out. `processes`: its id, and, outside of PID namespaces, that of
    /// the stage after it, which it has forked.
    Ready { missing: Vec<String>, held: Held, heir: Option<i32>, baseline_bytes: u64, processes: Vec<i32> },
    /// Gone.
    Dead,
}

/// What the kernel granted when the zygote tried its layers: for each the errno, 0 where it held.
pub type Held = BTreeMap<String, i32>;

/// A kernel as its zygote announces it.
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) handle: Pidfd,
    /// The exit code, or the negative signal number.
    pub(crate) exited: oneshot::Receiver<i32>,
}

/// A process, and the clock tick after boot at which it was started: instead of a descriptor, where the kernel refuses it.
type Number = (i32, u64);

/// The handle that came with a message: the first of its descriptors, or a number.
fn handle(number: Option<Number>, fds: &mut impl Iterator<Item = OwnedFd>) -> Option<Pidfd> {
    match number {
        Some((pid, started)) => Some(Pidfd::of_number(pid, started)),
        None => fds.next().map(Pidfd::new),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Ready { ready: String, missing: Vec<String>, held: Held, heir: Option<i32>, following: Option<i32>, number: Option<Number> },
    Spawned { spawned: u64, number: Option<Number> },
    Exited { exited: u64, status: i32 },
    Failed { failed: u64, reason: String },
}

struct Waiting {
    started: Option<oneshot::Sender<Result<(i32, Pidfd), String>>>,
    exited: Option<oneshot::Sender<i32>>,
}

/// The supervisor's side of one stage.
pub(crate) struct Link {
    control: AsyncFd<ControlSocket>,
    state: watch::Sender<StageState>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    /// The process, once it is ready.
    process: OnceLock<Pidfd>,
}

impl Link {
    /// Asks for a kernel.
    pub(crate) async fn spawn(&self, id: u64, request: &[u8], descriptors: &KernelDescriptors) -> Result<Spawned, String> {
        let (started, announced) = oneshot::channel();
        let (exit, exited) = oneshot::channel();
        self.waiting().insert(id, Waiting { started: Some(started), exited: Some(exit) });
        if let Some(process) = self.process.get() {
            // Where nothing holds signals back, user code may have stopped it.
            process.resume();
        }
        loop {
            match self.control.get_ref().send(request, &descriptors.borrow()) {
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
        let (pid, handle) = announced.await.map_err(|_| "the zygote died".to_owned())??;
        Ok(Spawned { pid, handle, exited })
    }

    /// Waits until the stage has imported what it has to; false when it died.
    pub(crate) async fn ready(&self) -> bool {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, StageState::Starting)).await;
        matches!(state.as_deref(), Ok(StageState::Ready { .. }))
    }

    pub(crate) fn state(&self) -> StageState {
        self.state.borrow().clone()
    }

    /// Ends the stage: at once when it is known, else when it has imported its libraries and finds nobody there.
    fn end(&self) {
        self.control.get_ref().close();
        if let Some(process) = self.process.get() {
            process.kill();
        }
    }

    /// Routes what the zygote says, until it has gone.
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
        self.state.send_replace(StageState::Dead);
        self.waiting().clear();
    }

    fn route(&self, message: &[u8], fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        match serde_json::from_slice(message) {
            Ok(Message::Ready { ready, missing, held, heir, following, number }) => {
                let process = handle(number, &mut fds);
                let pid = process.as_ref().and_then(Pidfd::pid);
                if let Some(process) = process {
                    let _ = self.process.set(process);
                }
                let baseline_bytes = pid.map_or(0, sandbox::memory_of);
                let processes = pid.into_iter().chain(following).collect();
                tracing::debug!(stage = ready, ?missing, ?held, "stage is ready");
                self.state.send_replace(StageState::Ready { missing, held, heir, baseline_bytes, processes });
            }
            Ok(Message::Spawned { spawned, number }) => {
                let kernel = handle(number, &mut fds).and_then(|handle| Some((handle.pid()?, handle)));
                self.announce(spawned, kernel.ok_or_else(|| "it ended at once".to_owned()));
            }
            Ok(Message::Failed { failed, reason }) => self.announce(failed, Err(format!("the zygote could not fork: {reason}"))),
            Ok(Message::Exited { exited, status }) => {
                if let Some(exit) = self.waiting().remove(&exited).and_then(|waiting| waiting.exited) {
                    let _ = exit.send(status);
                }
            }
            Err(error) => tracing::error!(%error, "the zygote sent something that is no message"),
        }
    }

    fn announce(&self, id: u64, outcome: Result<(i32, Pidfd), String>) {
        if outcome.is_err() {
            // No exit will be reported for it.
            if let Some(started) = self.waiting().remove(&id).and_then(|waiting| waiting.started) {
                let _ = started.send(outcome);
            }
        } else if let Some(started) = self.waiting().get_mut(&id).and_then(|waiting| waiting.started.take())
            && let Err(Ok((_, abandoned))) = started.send(outcome)
        {
            // Nobody waits for it any more, so nobody else would end it.
            abandoned.kill();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running family.
pub(crate) struct Family {
    pub(crate) links: Vec<Arc<Link>>,
}

/// What a family is started with.
pub(crate) struct FamilyConfig<'a> {
    pub(crate) tree: &'a PythonTree,
    pub(crate) stages: usize,
    /// Tried in a throw-away child: whether kernels can run as this user.
    pub(crate) probe_user: Option<u32>,
    pub(crate) isolation: &'a Isolation,
    /// What a kernel may keep in a `/dev/shm` of its own.
    pub(crate) shared_memory_bytes: u64,
    /// Whether the supervisor inherits orphans.
    pub(crate) inherits_orphans: bool,
    pub(crate) state_dir: &'a std::path::Path,
    /// Must know of the child from its first moment.
    pub(crate) reaper: &'a Reaper,
}

impl Family {
    /// Starts the root zygote. The calling thread must live as long as the child: Linux ties the child's parent-death
    /// signal to the thread that made it.
    pub(crate) fn start(config: &FamilyConfig<'_>, runtime: &tokio::runtime::Handle) -> std::io::Result<(Self, Child)> {
        let first_control = SOURCES_FD + 1;
        let sources = MODULES.iter().copied().collect::<HashMap<_, _>>();
        let ruleset =
            config.isolation.landlock.as_ref().ok().map(|landlock| landlock.ruleset(config.state_dir, false)).transpose()?;
        let ruleset_fd = first_control + i32::try_from(config.stages).unwrap_or(0);
        let landlock = config.isolation.landlock.as_ref().ok();
        let of_landlock = |rights: fn(&Landlock) -> u64| landlock.map_or(0, rights);
        let start = json!({
            "sources": sources,
            "config": {
                "supervisor": sandbox::process_id(),
                "site": config.tree.site(),
                "matplotlib": config.state_dir.join(MATPLOTLIB),
                "state_directory": config.state_dir,
                "visible": config.isolation.visible,
                "shared_memory_bytes": config.shared_memory_bytes,
                "probe_user": config.probe_user,
                "find_heir": !config.inherits_orphans,
                "namespaces": config.isolation.is_on("namespaces"),
                "seccomp": config.isolation.seccomp,
                "proc_file_rights": of_landlock(Landlock::proc_file_rights),
                "own_mount_rights": {
                    "/proc": of_landlock(Landlock::proc_rights), "/dev/shm": of_landlock(Landlock::shared_memory_rights),
                },
                "landlock_scopes_signals": config.isolation.landlock.as_ref().is_ok_and(Landlock::scopes_signals),
                "ruleset_fd": ruleset.is_some().then_some(ruleset_fd),
                "allow_network": config.isolation.allowed.network,
                "allow_subprocess": config.isolation.allowed.subprocess,
                "stages": stage::describe(config.stages, first_control),
            },
        });
        let mut descriptors =
            vec![ChildDescriptor { fd: sandbox::memory_file(start.to_string().as_bytes())?, number: SOURCES_FD }];
        descriptors.extend(ruleset.map(|fd| ChildDescriptor { fd, number: ruleset_fd }));
        let mut links = Vec::new();
        for number in (first_control..).take(config.stages) {
            let (ours, theirs) = ControlSocket::pair()?;
            descriptors.push(ChildDescriptor { fd: theirs, number });
            let _context = runtime.enter();
            let control = sandbox::watched(ours)?;
            links.push(Arc::new(Link {
                control,
                state: watch::Sender::new(StageState::Starting),
                waiting: Mutex::default(),
                process: OnceLock::new(),
            }));
        }
        let mut command = Command::new(config.tree.python());
        command.args(["-I", "-S", "-B", "-X", "utf8", "-c", BOOTSTRAP]).current_dir("/");
        // Everything forked from it bears this name: what a killed server leaves running is found by it.
        command.arg(config.state_dir);
        let child = config.reaper.start(|| {
            let child = sandbox::spawn(command, &environment(config.tree), descriptors)?;
            let pid = i32::try_from(child.id()).unwrap_or(0);
            Ok((child, pid))
        })?;
        let root = Arc::new(i32::try_from(child.id()).ok().and_then(Pidfd::open));
        for link in &links {
            let (link, family, root) = (link.clone(), links.clone(), root.clone());
            runtime.spawn(async move {
                link.listen().await;
                // One that was killed alone takes the others with it: the next family is whole.
                for link in &family {
                    link.end();
                }
                if let Some(root) = &*root {
                    root.kill();
                }
            });
        }
        Ok((Self { links }, child))
    }
}

/// Everything user code finds in its environment, built from nothing. HOME and TMPDIR are set for each kernel.
fn environment(tree: &PythonTree) -> [(&'static str, String); 14] {
    let one = || "1".to_owned();
    [
        ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("HOME", "/nonexistent".to_owned()),
        // Who asks for a name finds one, though no such user need be in any list.
        ("USER", "sandbox".to_owned()),
        ("LOGNAME", "sandbox".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TZ", "UTC".to_owned()),
        ("MPLBACKEND", "Agg".to_owned()),
        ("MPLCONFIGDIR", tree.matplotlib().display().to_string()),
        // Threads made before a fork are lost in the child: libgomp then waits for them for ever.
        ("OMP_NUM_THREADS", one()),
        ("OPENBLAS_NUM_THREADS", one()),
        // loky starts new interpreters and asks /dev/shm for semaphores; threads do without either.
        ("JOBLIB_MULTIPROCESSING", "0".to_owned()),
        ("PYTHONDONTWRITEBYTECODE", one()),
        ("PYTHONNOUSERSITE", one()),
        // numpy reads it: huge pages make every fork copy more when the child writes.
        ("NUMPY_MADVISE_HUGEPAGE", "0".to_owned()),
    ]
}
