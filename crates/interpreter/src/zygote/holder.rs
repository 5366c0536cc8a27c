//! How the holder is started, and with what.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use protocol::Layer;
use sandbox::{ChildDescriptor, ControlSocket, Landlock, Pidfd, Reaper};

use super::Zygote;
use super::stages::Process;
use crate::isolation::{Isolation, hexadecimal};
use crate::tree::{MATPLOTLIB, PythonTree};
use crate::wire::{Config, Start};

/// Short, for it is what `ps` shows until the process gives itself a title.
pub(crate) const COMMAND: &str = "import json, os; start = json.load(os.fdopen(3)); exec(start['bootstrap'])";
pub(crate) const BOOTSTRAP: &str = include_str!("../../harness/bootstrap.py");
pub(crate) const MODULES: [(&str, &str); 17] = [
    ("harness_zygote", include_str!("../../harness/zygote.py")),
    ("harness_cage", include_str!("../../harness/cage.py")),
    ("harness_namespaces", include_str!("../../harness/namespaces.py")),
    ("harness_root", include_str!("../../harness/root.py")),
    ("harness_kernel", include_str!("../../harness/kernel.py")),
    ("harness_cell", include_str!("../../harness/cell.py")),
    ("harness_policy_rules", include_str!("../../harness/policy_rules.py")),
    ("harness_policy_pandas", include_str!("../../harness/policy_pandas.py")),
    ("harness_policy_guards", include_str!("../../harness/policy_guards.py")),
    ("harness_policy_hook", include_str!("../../harness/policy_hook.py")),
    ("harness_policy", include_str!("../../harness/policy.py")),
    ("harness_streams", include_str!("../../harness/streams.py")),
    ("harness_smaller", include_str!("../../harness/smaller.py")),
    ("harness_figures", include_str!("../../harness/figures.py")),
    ("harness_values", include_str!("../../harness/values.py")),
    ("harness_channel", include_str!("../../harness/channel.py")),
    ("harness_linux", include_str!("../../harness/linux.py")),
];

/// Where the harness finds its sources. Its control socket and rule sets follow.
const SOURCES_FD: i32 = 3;
const CONTROL_FD: i32 = 4;
const RULESET_FD: i32 = 5;
const ROOT_RULESET_FD: i32 = 6;

/// A holder that was started, and its process.
pub(crate) struct Holder {
    pub(crate) zygote: Arc<Zygote>,
    /// A stub around it, where there are PID namespaces; it ends with the holder.
    pub(crate) child: Child,
}

/// What a holder is started with.
pub(crate) struct HolderConfig<'a> {
    pub(crate) tree: &'a PythonTree,
    /// Whom kernels run as, where it is not the server's own user.
    pub(crate) users: &'a [u32],
    pub(crate) isolation: &'a Isolation,
    /// What a kernel may keep in a `/dev/shm` of its own.
    pub(crate) shared_memory_bytes: u64,
    /// Whether the supervisor inherits orphans.
    pub(crate) inherits_orphans: bool,
    pub(crate) state_dir: &'a Path,
    /// Must know of the child from its first moment.
    pub(crate) reaper: &'a Arc<Reaper>,
}

impl Holder {
    /// Starts it. The calling thread must live as long as the child: Linux ties the child's parent-death signal to the
    /// thread that made it.
    pub(crate) fn start(config: &HolderConfig<'_>, runtime: &tokio::runtime::Handle) -> io::Result<Self> {
        let isolation = config.isolation;
        let landlock = isolation.landlock.as_ref().ok();
        let ruleset = landlock.map(|landlock| landlock.ruleset(config.state_dir, false)).transpose()?;
        let root_ruleset = landlock.map(Landlock::root_ruleset).transpose()?;
        let of_landlock = |rights: fn(&Landlock) -> u64| landlock.map_or(0, rights);
        let start = Start {
            bootstrap: BOOTSTRAP,
            sources: MODULES.into(),
            config: Config {
                supervisor: sandbox::process_id(),
                control_fd: CONTROL_FD,
                ruleset_fd: ruleset.is_some().then_some(RULESET_FD),
                root_ruleset_fd: root_ruleset.is_some().then_some(ROOT_RULESET_FD),
                site: &config.tree.site(),
                matplotlib: &config.state_dir.join(MATPLOTLIB),
                state_directory: config.state_dir,
                places: &isolation.places,
                users: config.users,
                shared_memory_bytes: config.shared_memory_bytes,
                // Tried in a throw-away child: whether kernels can run as this user.
                probe_user: config.users.first().copied(),
                find_heir: !config.inherits_orphans,
                namespaces: isolation.is_on(Layer::Namespaces),
                first_process: hexadecimal(sandbox::first_process_program()),
                seccomp: &isolation.seccomp,
                proc_file_rights: of_landlock(Landlock::proc_file_rights),
                root_rights: landlock.map_or_else(BTreeMap::new, |landlock| landlock.root_rights().into()),
                landlock_scopes_signals: landlock.is_some_and(Landlock::scopes_signals),
                allow_network: isolation.allowed.network,
                allow_subprocess: isolation.allowed.subprocess,
                held: None,
            },
        };
        let (ours, theirs) = ControlSocket::pair()?;
        let mut descriptors = vec![
            ChildDescriptor { fd: sandbox::memory_file(&serde_json::to_vec(&start)?)?, number: SOURCES_FD },
            ChildDescriptor { fd: theirs, number: CONTROL_FD },
        ];
        descriptors.extend(ruleset.map(|fd| ChildDescriptor { fd, number: RULESET_FD }));
        descriptors.extend(root_ruleset.map(|fd| ChildDescriptor { fd, number: ROOT_RULESET_FD }));
        let _context = runtime.enter();
        let zygote = Zygote::new(ours, config.reaper.clone())?;
        let mut command = Command::new(config.tree.python());
        command.args(["-I", "-S", "-B", "-X", "utf8", "-c", COMMAND]).current_dir("/");
        // Everything forked from it bears this name: what a killed server leaves running is found by it.
        command.arg(config.state_dir);
        let child = config.reaper.start(|| {
            let child = sandbox::spawn(command, &environment(config.tree), descriptors)?;
            let pid = i32::try_from(child.id()).unwrap_or(0);
            Ok((child, pid))
        })?;
        let (heard, stub) = (zygote.clone(), i32::try_from(child.id()).ok().and_then(Pidfd::open));
        tokio::spawn(async move {
            heard.listen().await;
            heard.end();
            if let Some(stub) = stub {
                stub.kill();
            }
            heard.has_ended(None);
        });
        Ok(Self { zygote, child })
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
