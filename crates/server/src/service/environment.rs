//! What `get_environment_info` and `/health` say about the machine and its protections.
//!
//! Rule: never claim a layer that is not active. What a kernel may refuse is reported as it answered; the three that are
//! always active hold by construction, and the end-to-end tests hold them to it.

use std::time::Duration;

use interpreter::{EngineStatus, Probe};
use protocol::{Layer, Limits, Policy};
use schemars::JsonSchema;
use serde::Serialize;

/// The answer of `get_environment_info`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EnvironmentInfo {
    /// Version of the Python that runs the code.
    pub python_version: String,
    /// Operating system, kernel and architecture.
    pub platform: String,
    /// Where temporary files go: a directory of the call's own, removed with it.
    pub temp_dir: String,
    /// Names and versions of what can be imported.
    pub installed_packages: Vec<String>,
    /// Memory the machine has left, in MB.
    pub available_memory: String,
    /// What bounds a call.
    pub limits: LimitsInfo,
    /// What the code may say: `open`, or `restricted` to authorised imports.
    pub policy: Policy,
    /// What isolates a call from the machine and from other calls, as tried at start.
    pub sandbox: Vec<LayerReport>,
}

/// Limits in plain units.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LimitsInfo {
    /// Seconds a call may take when it names no timeout.
    pub default_timeout_seconds: f64,
    /// The longest timeout a call may ask for.
    pub max_timeout_seconds: f64,
    /// Memory on top of the warm interpreter.
    pub memory_mb: u64,
    /// How much of each stream comes back.
    pub output_bytes: usize,
    /// Output after which a run is ended.
    pub output_hard_limit_bytes: u64,
    /// Largest file that can be written.
    pub file_size_mb: u64,
    /// What all files of a call may take together.
    pub disk_mb: u64,
    /// Processes and threads at once.
    pub processes: u64,
}

impl LimitsInfo {
    pub(crate) fn new(limits: &Limits, max_timeout: Duration) -> Self {
        Self {
            default_timeout_seconds: limits.timeout.as_secs_f64(),
            max_timeout_seconds: max_timeout.as_secs_f64(),
            memory_mb: limits.memory_bytes >> 20,
            output_bytes: limits.output_cap_bytes,
            output_hard_limit_bytes: limits.output_hard_limit_bytes,
            file_size_mb: limits.file_size_bytes >> 20,
            disk_mb: limits.disk_bytes >> 20,
            processes: limits.processes,
        }
    }
}

/// How a protection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// It was tried and it holds.
    Active,
    /// It was tried, and the kernel (or who else must grant it) said no.
    Refused,
    /// The operator's settings leave it off.
    Off,
    /// It does not apply here.
    NotApplicable,
    /// Not known yet: the interpreter is still starting, or no call has tried it.
    Unknown,
}

/// One protection.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Layer")]
pub struct LayerReport {
    /// Its name.
    #[schemars(with = "String")]
    pub name: Layer,
    /// How it stands.
    pub state: LayerState,
    /// What it does.
    pub effect: &'static str,
    /// Why it is not active.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
}

/// Every protection of the engine, as it stands in this process. Those of a door are the door's to tell.
pub(crate) fn layers(status: &EngineStatus) -> Vec<LayerReport> {
    let of_engine = Layer::ALL.iter().filter_map(|layer| Some((*layer, effect(*layer)?)));
    let report = |(name, effect)| {
        let Standing { state, reason } = standing(name, status);
        LayerReport { name, state, effect, reason }
    };
    of_engine.map(report).collect()
}

/// What a layer does; none for one that is not the engine's.
fn effect(layer: Layer) -> Option<&'static str> {
    Some(match layer {
        Layer::ProcessPerCall => "each call has a process of its own that is killed with all it started",
        Layer::ScrubbedEnvironment => "the code's environment is built from nothing",
        Layer::ResourceLimits => "memory, CPU, file size, descriptors, processes, no core files",
        Layer::NonDumpableSupervisor => "the code can't read the server's memory or environment",
        Layer::Subreaper => "daemons the code leaves behind are found by descent",
        Layer::NoNewPrivileges => "set-user-id programs give the code no rights",
        Layer::NonDumpableKernels => "calls can't read one another's memory",
        Layer::Namespaces => {
            "each call is alone in its own PID namespace and ends with all in it; mounts, IPC and host name are apart"
        }
        Layer::PrivateRoot => {
            "the code has a root of its own: the system's programs and libraries, the interpreter, the packages, and nothing else \
             of the machine's files"
        }
        Layer::NetworkNamespace => "the code has a network of its own with nothing in it but itself",
        Layer::UserPerCall => "a server that is root runs each call as another, powerless user",
        Layer::NoCapabilities => "the code has none of root's rights",
        Layer::Landlock => "the code reads the interpreter and the system's libraries, and writes to its own directory",
        Layer::LandlockTcp => "the code can't connect or listen by TCP, whatever socket it has",
        Layer::LandlockSignals => "the code can't signal processes or reach abstract sockets outside of its own call",
        Layer::Cgroup => "all calls together can't take the machine's memory or processes",
        Layer::NoNetwork => "no sockets that lead to other machines, no DNS",
        Layer::NoSubprocess => "no programs can be started",
        Layer::NoConnections => "the sockets of the machine's services, and of other calls, can't be connected to",
        Layer::OwnSignals => "system calls that signal another process than the code's own are refused",
        Layer::SharedMemory => "what the code leaves in /dev/shm is no other call's",
        Layer::NetworkUnreachable => "an address beyond the machine was tried from behind all layers, and there is no way",
        Layer::Seccomp => "system calls that exploits and escapes need are refused",
        Layer::ResponseLock => return None,
    })
}

/// How a layer stands, and why it is not active.
struct Standing {
    state: LayerState,
    reason: Option<String>,
}

impl Standing {
    fn of(state: LayerState, reason: impl Into<Option<String>>) -> Self {
        Self { state, reason: reason.into() }
    }

    fn off(why: &str) -> Self {
        Self::of(LayerState::Off, why.to_owned())
    }

    /// What the supervisor has done itself.
    fn done(held: bool) -> Self {
        Self::of(if held { LayerState::Active } else { LayerState::Refused }, None)
    }

    fn is_active(&self) -> bool {
        self.state == LayerState::Active
    }

    /// Off where the operator's setting opens what the layer closes.
    fn unless(self, is_on: bool, setting: &str) -> Self {
        if is_on { Self::off(&format!("{setting} is on")) } else { self }
    }
}

/// Some stand by themselves, the rest on others: those are asked for in turn.
fn standing(layer: Layer, status: &EngineStatus) -> Standing {
    let allowed = &status.allowed;
    let of = |layer| standing(layer, status);
    let any_active = |layers: &[Layer]| layers.iter().any(|layer| of(*layer).is_active());
    match layer {
        // By construction.
        Layer::ProcessPerCall | Layer::ScrubbedEnvironment | Layer::ResourceLimits => Standing::done(true),
        Layer::NonDumpableSupervisor => Standing::done(status.supervisor_non_dumpable),
        Layer::Subreaper => Standing::done(status.supervisor_subreaper),
        // See `let_the_supervisor_look` in `cage.py`.
        Layer::NonDumpableKernels if !any_active(&[Layer::UserPerCall]) && any_active(&[Layer::Namespaces, Layer::Landlock]) => {
            let reason = "namespaces or Landlock keep calls apart, and the server looks at what they have open";
            Standing::of(LayerState::NotApplicable, reason.to_owned())
        }
        Layer::NoNewPrivileges
        | Layer::NonDumpableKernels
        | Layer::Namespaces
        | Layer::UserPerCall
        | Layer::NoCapabilities
        | Layer::Landlock
        | Layer::Cgroup
        | Layer::Seccomp => tried(layer, status),
        Layer::PrivateRoot => of(Layer::Namespaces),
        Layer::NetworkNamespace => of(Layer::Namespaces).unless(allowed.network, "ALLOW_NETWORK"),
        Layer::LandlockTcp if any_active(&[Layer::NetworkNamespace]) && any_active(&[Layer::Landlock]) => {
            Standing::of(LayerState::NotApplicable, "the network of a call has nothing in it but the call".to_owned())
        }
        Layer::LandlockTcp => {
            let landlock = of(Layer::Landlock);
            if landlock.is_active() { since(4, landlock, status).unless(allowed.network, "ALLOW_NETWORK") } else { landlock }
        }
        Layer::LandlockSignals => since(6, of(Layer::Landlock), status),
        // What is denied by the filter alone holds where the filter does.
        Layer::NoNetwork => of(Layer::Seccomp).unless(allowed.network, "ALLOW_NETWORK"),
        Layer::NoSubprocess => of(Layer::Seccomp).unless(allowed.subprocess, "ALLOW_SUBPROCESS"),
        Layer::NoConnections if any_active(&[Layer::Namespaces]) => {
            Standing::of(LayerState::NotApplicable, "no path leads to them".to_owned())
        }
        Layer::NoConnections => {
            of(Layer::Seccomp).unless(allowed.unix_sockets, "ALLOW_UNIX_SOCKETS").unless(allowed.network, "ALLOW_NETWORK")
        }
        // The harness puts the filter on where none of these holds signals back.
        Layer::OwnSignals if any_active(&[Layer::Namespaces, Layer::UserPerCall, Layer::LandlockSignals]) => {
            Standing::of(LayerState::NotApplicable, None)
        }
        Layer::OwnSignals => of(Layer::Seccomp),
        Layer::SharedMemory => {
            let has_none = status.probes.as_ref().is_some_and(|probes| probes.no_shared_memory == Probe::Held);
            if has_none || any_active(&[Layer::UserPerCall]) { Standing::done(true) } else { of(Layer::Namespaces) }
        }
        Layer::NetworkUnreachable => {
            let tried = tried(layer, status);
            let reason = tried.reason.map(|_| "there is a way from here into a network".to_owned());
            Standing { reason, ..tried }.unless(allowed.network, "ALLOW_NETWORK")
        }
        Layer::ResponseLock => Standing::of(LayerState::NotApplicable, None),
    }
}

/// As the holder, or the supervisor, found when it was tried.
fn tried(layer: Layer, status: &EngineStatus) -> Standing {
    if status.disabled.contains(&layer) {
        return Standing::off("DISABLE_LAYERS names it");
    }
    let Some(probes) = &status.probes else { return Standing::of(LayerState::Unknown, None) };
    let probe = probes.of(layer);
    let state = match probe {
        Probe::Held => LayerState::Active,
        Probe::Refused(_) => LayerState::Refused,
        Probe::NotTried => LayerState::NotApplicable,
    };
    Standing::of(state, probe.reason().map(|reason| reason.to_string()))
}

/// What Landlock can since this version.
fn since(version: i32, landlock: Standing, status: &EngineStatus) -> Standing {
    match status.landlock_abi {
        Some(abi) if landlock.is_active() && abi < version => {
            let reason = format!("the kernel's Landlock is version {abi}, and this came with {version}");
            Standing::of(LayerState::Refused, reason)
        }
        _ => landlock,
    }
}

/// Whether each of the layers the operator insists on is active.
///
/// # Errors
/// Names the first that is not, why, and what to do.
pub fn require(layers: &[LayerReport], required: &[Layer]) -> Result<(), String> {
    for name in required {
        let Some(layer) = layers.iter().find(|layer| layer.name == *name) else {
            let known = layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(format!("REQUIRE_LAYERS: there is no layer {name} here; there are {known}"));
        };
        if layer.state != LayerState::Active {
            let reason = layer.reason.as_deref().unwrap_or("it does not apply here");
            return Err(format!(
                "REQUIRE_LAYERS: the layer {name} is not active: {reason}. Run where the kernel grants it \
                 (`code-interpreter doctor` shows what holds), or take it out of REQUIRE_LAYERS"
            ));
        }
    }
    Ok(())
}

pub(crate) fn platform() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux-{}-{}", release.trim(), std::env::consts::ARCH)
}

pub(crate) fn available_memory() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.map_or_else(|| "unknown".to_owned(), |kilobytes| format!("{} MB", kilobytes / 1024))
}
