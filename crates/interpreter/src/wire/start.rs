//! What the holder is started with: one JSON document in a file that only it has open.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The whole of it.
#[derive(Serialize)]
pub(crate) struct Start<'a> {
    /// What loads the rest.
    pub(crate) bootstrap: &'static str,
    /// Of the harness: each module's name and text.
    pub(crate) sources: HashMap<&'static str, &'static str>,
    pub(crate) config: Config<'a>,
}

/// What is the same for all that is forked from the holder.
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "what an operator switches on or off")]
pub(crate) struct Config<'a> {
    pub(crate) supervisor: i32,
    pub(crate) control_fd: i32,
    pub(crate) ruleset_fd: Option<i32>,
    pub(crate) site: &'a Path,
    pub(crate) matplotlib: &'a Path,
    pub(crate) state_directory: &'a Path,
    pub(crate) visible: &'a [PathBuf],
    pub(crate) shared_memory_bytes: u64,
    pub(crate) probe_user: Option<u32>,
    pub(crate) find_heir: bool,
    pub(crate) namespaces: bool,
    pub(crate) seccomp: &'a Filters,
    pub(crate) proc_file_rights: u64,
    pub(crate) own_mount_rights: OwnMountRights,
    pub(crate) landlock_scopes_signals: bool,
    pub(crate) allow_network: bool,
    pub(crate) allow_subprocess: bool,
}

/// Filter programs, in hexadecimal.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Filters {
    /// For all kernels.
    pub(crate) all: Vec<String>,
    /// And for those that no mount namespace surrounds.
    pub(crate) without_mounts: Vec<String>,
    /// For a kernel that nothing else keeps from signalling the server.
    pub(crate) own_signals: Option<String>,
    /// Stands in `own_signals` for the process's own number.
    pub(crate) own_pid: u32,
}

/// What a kernel may do by Landlock in mounts that it makes for itself.
#[derive(Serialize)]
pub(crate) struct OwnMountRights {
    #[serde(rename = "/proc")]
    pub(crate) proc: u64,
    #[serde(rename = "/dev/shm")]
    pub(crate) shared_memory: u64,
}
