//! What `get_environment_info` and `/health` say about the machine and its protections.
//!
//! Rule: never claim a layer that is not active. What a kernel may refuse is reported as it answered; the three that are
//! always active hold by construction, and the end-to-end tests hold them to it.

use std::time::Duration;

use interpreter::EngineStatus;
use protocol::{Limits, Policy};
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
    pub sandbox: Vec<Layer>,
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
pub struct Layer {
    /// Its name.
    pub name: &'static str,
    /// How it stands.
    pub state: LayerState,
    /// What it does.
    pub effect: &'static str,
    /// Why it is not active.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub reason: Option<String>,
}

fn by_us(name: &'static str, effect: &'static str) -> Layer {
    of_supervisor(name, true, effect)
}

fn of_supervisor(name: &'static str, held: bool, effect: &'static str) -> Layer {
    Layer { name, state: if held { LayerState::Active } else { LayerState::Refused }, effect, reason: None }
}

/// Every protection, as it stands in this process.
pub(crate) fn layers(status: &EngineStatus) -> Vec<Layer> {
    let off = |name, effect, setting: &str| Layer { name, state: LayerState::Off, effect, reason: Some(setting.to_owned()) };
    let tried = |name: &'static str, effect| {
        if status.disabled.iter().any(|disabled| disabled == name) {
            return off(name, effect, "DISABLE_LAYERS names it");
        }
        let errno = status.held.as_ref().map(|held| held.get(name).copied());
        let (state, reason) = match errno {
            None => (LayerState::Unknown, None),
            Some(None) => (LayerState::NotApplicable, None),
            Some(Some(0)) => (LayerState::Active, None),
            Some(Some(errno)) => (LayerState::Refused, Some(std::io::Error::from_raw_os_error(errno).to_string())),
        };
        Layer { name, state, effect, reason }
    };
    let seccomp = tried("seccomp", "system calls that exploits and escapes need are refused");
    // What is denied by the filter alone holds where the filter does.
    let by_seccomp = |name, allowed: bool, setting: &str, effect| {
        if allowed {
            off(name, effect, &format!("{setting} is on"))
        } else {
            Layer { name, state: seccomp.state, effect, reason: seccomp.reason.clone() }
        }
    };
    let namespaces = tried(
        "namespaces",
        "each call is the first process of its own PID namespace and ends with all in it; mounts, IPC and host name are apart",
    );
    let network_namespace = |name, effect| {
        if status.allowed.network {
            off(name, effect, "ALLOW_NETWORK is on")
        } else {
            Layer { name, state: namespaces.state, effect, reason: namespaces.reason.clone() }
        }
    };
    let landlock =
        tried("landlock", "the code reads the interpreter and the system's libraries, and writes to its own directory");
    let by_landlock = |name, needs: i32, effect| match (landlock.state, status.landlock_abi) {
        (LayerState::Active, _) if status.allowed.network && name == "landlock_tcp" => off(name, effect, "ALLOW_NETWORK is on"),
        (LayerState::Active, Some(abi)) if abi < needs => {
            let reason = format!("the kernel's Landlock is version {abi}, and this came with {needs}");
            Layer { name, state: LayerState::Refused, effect, reason: Some(reason) }
        }
        (state, _) => Layer { name, state, effect, reason: landlock.reason.clone() },
    };
    let user_per_call = tried("user_per_call", "a server that is root runs each call as another, powerless user");
    let landlock_signals =
        by_landlock("landlock_signals", 6, "the code can't signal processes or reach abstract sockets outside of its own call");
    let active = |layer: &Layer| layer.state == LayerState::Active;
    let own_signals = |name, effect| {
        let reason = seccomp.reason.clone();
        // The harness puts the filter on where none of these holds signals back.
        let elsewhere = [&namespaces, &user_per_call, &landlock_signals].into_iter().any(active);
        let state = if elsewhere { LayerState::NotApplicable } else { seccomp.state };
        Layer { name, state, effect, reason: reason.filter(|_| !elsewhere) }
    };
    let shared_memory = |name, effect| {
        let holds = [&namespaces, &user_per_call].into_iter().any(active) || active(&tried("no_shared_memory", ""));
        let (state, reason) = if holds { (LayerState::Active, None) } else { (namespaces.state, namespaces.reason.clone()) };
        Layer { name, state, effect, reason }
    };
    let network_unreachable = |name, effect| {
        if status.allowed.network {
            return off(name, effect, "ALLOW_NETWORK is on");
        }
        let mut layer = tried(name, effect);
        layer.reason = layer.reason.map(|_| "there is a way from here into a network".to_owned());
        layer
    };
    let looked_into = !active(&user_per_call) && [&namespaces, &landlock].into_iter().any(active);
    let non_dumpable_kernels = kernels(tried("non_dumpable_kernels", "calls can't read one another's memory"), looked_into);
    vec![
        by_us("process_per_call", "each call has a process of its own that is killed with all it started"),
        by_us("scrubbed_environment", "the code's environment is built from nothing"),
        by_us("resource_limits", "memory, CPU, file size, descriptors, processes, no core files"),
        of_supervisor(
            "non_dumpable_supervisor",
            status.supervisor_non_dumpable,
            "the code can't read the server's memory or environment",
        ),
        of_supervisor("subreaper", status.supervisor_subreaper, "daemons the code leaves behind are found by descent"),
        tried("no_new_privileges", "set-user-id programs give the code no rights"),
        non_dumpable_kernels,
        namespaces.clone(),
        network_namespace("network_namespace", "the code has a network of its own with nothing in it"),
        user_per_call.clone(),
        tried("no_capabilities", "the code has none of root's rights"),
        landlock.clone(),
        by_landlock("landlock_tcp", 4, "the code can't connect or listen by TCP, whatever socket it has"),
        landlock_signals.clone(),
        tried("cgroup", "all calls together can't take the machine's memory or processes"),
        by_seccomp("no_network", status.allowed.network, "ALLOW_NETWORK", "no sockets beyond the machine's own, no DNS"),
        by_seccomp("no_subprocess", status.allowed.subprocess, "ALLOW_SUBPROCESS", "no programs can be started"),
        no_connections(status, &namespaces, &seccomp),
        own_signals("own_signals", "system calls that signal another process than the code's own are refused"),
        shared_memory("shared_memory", "what the code leaves in /dev/shm is no other call's"),
        network_unreachable(
            "network_unreachable",
            "an address beyond the machine was tried from behind all layers, and there is no way",
        ),
        seccomp.clone(),
    ]
}

/// Where there are no mounts that hide them.
fn no_connections(status: &EngineStatus, namespaces: &Layer, seccomp: &Layer) -> Layer {
    let effect = "the sockets of the machine's services, and of other calls, can't be connected to";
    let layer = |state, reason| Layer { name: "no_connections", state, effect, reason };
    if namespaces.state == LayerState::Active {
        return layer(LayerState::NotApplicable, Some("no path leads to them".to_owned()));
    }
    let opened = [(status.allowed.network, "ALLOW_NETWORK is on"), (status.allowed.unix_sockets, "ALLOW_UNIX_SOCKETS is on")];
    match opened.iter().find(|(open, _)| *open) {
        Some((_, setting)) => layer(LayerState::Off, Some((*setting).to_owned())),
        None => layer(seccomp.state, seccomp.reason.clone()),
    }
}

/// Where the supervisor has to look at the descriptors of kernels: see `let_the_supervisor_look` in `cage.py`.
fn kernels(non_dumpable: Layer, looked_into: bool) -> Layer {
    let reason = "namespaces or Landlock keep calls apart, and the server looks at what they have open";
    if looked_into {
        return Layer { state: LayerState::NotApplicable, reason: Some(reason.to_owned()), ..non_dumpable };
    }
    non_dumpable
}

/// Whether each of the layers the operator insists on is active.
///
/// # Errors
/// Names the first that is not, why, and what to do.
pub fn require(layers: &[Layer], required: &[String]) -> Result<(), String> {
    for name in required {
        let Some(layer) = layers.iter().find(|layer| layer.name == name) else {
            let known = layers.iter().map(|layer| layer.name).collect::<Vec<_>>().join(", ");
            return Err(format!("REQUIRE_LAYERS: there is no layer {name}; there are {known}"));
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
