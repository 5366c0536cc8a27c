//! How an engine stands, for `/health`, `doctor` and the report of its layers.

use std::path::PathBuf;

use protocol::Layer;
use sandbox::Allowed;
use serde::Serialize;

use crate::probe::Probes;

/// How the engine stands.
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    /// Version of the interpreter.
    pub python_version: String,
    /// Each stage of the stack.
    pub stages: Vec<StageStatus>,
    /// Cells that run now.
    pub running: usize,
    /// Calls that wait.
    pub queued: usize,
    /// Cells that run at most.
    pub max_concurrency: usize,
    /// Times the zygotes had to be started again.
    pub restarts: u64,
    /// Whether other processes of the same user are kept from reading the supervisor's memory.
    pub supervisor_non_dumpable: bool,
    /// Whether orphans of kernels come to the supervisor.
    pub supervisor_subreaper: bool,
    /// What the operator allows user code.
    #[serde(skip)]
    pub allowed: Allowed,
    /// Layers the operator has switched off.
    #[serde(skip)]
    pub disabled: Vec<Layer>,
    /// The version of the kernel's Landlock; `None` without one.
    pub landlock_abi: Option<i32>,
    /// What came of trying the layers; `None` until the holder serves. Told as errnos, 0 where one held.
    #[serde(rename = "held")]
    pub probes: Option<Probes>,
    /// Calls after which something could not be ended or removed: their directories and users are not used again.
    pub quarantined: usize,
    /// Who inherits orphans of kernels, where the supervisor does not.
    #[serde(skip)]
    pub heir: Option<i32>,
    /// Where code finds the place for temporary files of its call, or of all calls; `None` until the holder serves.
    #[serde(skip)]
    pub directory: Option<PathBuf>,
}

/// How a stage stands.
#[derive(Clone, Debug, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub name: &'static str,
    /// `starting`, `ready`, `failed` (it can't import what it has to, or no process can be had from it), or `dead` (there is
    /// no interpreter).
    pub state: &'static str,
    /// Kernels that wait for a cell.
    pub spares: usize,
    /// Modules that could not be imported, and why.
    pub missing: Vec<String>,
    /// Why it has failed, or why no further spares come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
