//! What `get_environment_info` and `/health` say about the machine and its protections.
//!
//! Rule: never claim a layer that is not active. What a kernel may refuse is reported as it answered; the three that are
//! always active hold by construction, and the end-to-end tests hold them to it.

use std::time::Duration;

use interpreter::EngineStatus;
use protocol::Limits;
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
    /// It was tried and the kernel said no.
    Refused,
    /// It does not apply here.
    NotApplicable,
    /// Not known yet: the interpreter is still starting.
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
}

/// Every protection, as it stands in this process.
pub fn layers(status: &EngineStatus) -> Vec<Layer> {
    let held = |held: Option<bool>| match held {
        Some(true) => LayerState::Active,
        Some(false) => LayerState::Refused,
        None => LayerState::Unknown,
    };
    let started = status.zygote_protection.as_ref();
    let layer = |name, state, effect| Layer { name, state, effect };
    vec![
        layer("process_per_call", LayerState::Active, "each call has a process of its own that is killed with all it started"),
        layer("scrubbed_environment", LayerState::Active, "the code's environment is built from nothing"),
        layer("resource_limits", LayerState::Active, "memory, CPU, file size, descriptors, processes, no core files"),
        layer(
            "non_dumpable_supervisor",
            held(Some(status.supervisor_non_dumpable)),
            "the code can't read the server's memory or environment",
        ),
        layer("subreaper", held(Some(status.supervisor_subreaper)), "daemons the code leaves behind are found by descent"),
        layer("no_new_privileges", held(started.map(|p| p.no_new_privileges)), "set-user-id programs give the code no rights"),
        layer("non_dumpable_kernels", held(started.map(|p| p.non_dumpable)), "calls can't read one another's memory"),
        layer(
            "user_per_call",
            match started.map(|p| p.drops_user) {
                _ if !status.runs_as_root => LayerState::NotApplicable,
                other => held(other),
            },
            "a server that is root runs each call as another, powerless user",
        ),
    ]
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
