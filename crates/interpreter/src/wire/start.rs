//! What the holder is started with: one JSON document in a file that only it has open.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use protocol::Layer;
use serde::Serialize;

use crate::probe::Probe;

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
    /// To try Landlock with, where kernels have no root of their own.
    pub(crate) ruleset_fd: Option<i32>,
    /// Of all kernels, where they have one: what it lets in is added by those who see it.
    pub(crate) root_ruleset_fd: Option<i32>,
    pub(crate) site: &'a Path,
    pub(crate) matplotlib: &'a Path,
    pub(crate) state_directory: &'a Path,
    /// What of the server's is in a root of the kernels' own, and by which name there.
    pub(crate) places: &'a [(PathBuf, String)],
    /// Whom kernels run as, where it is not the server's own user.
    pub(crate) users: &'a [u32],
    pub(crate) shared_memory_bytes: u64,
    pub(crate) probe_user: Option<u32>,
    pub(crate) find_heir: bool,
    pub(crate) namespaces: bool,
    /// What the first process of each call's PID namespace runs, in hexadecimal.
    pub(crate) first_process: String,
    pub(crate) seccomp: &'a Filters,
    pub(crate) proc_file_rights: u64,
    /// What kernels may do by Landlock in a root of their own, below which of its directories.
    pub(crate) root_rights: BTreeMap<&'static str, u64>,
    pub(crate) landlock_scopes_signals: bool,
    pub(crate) allow_network: bool,
    pub(crate) allow_subprocess: bool,
    /// What is known already when the interpreter is started again in that root; only the harness says it.
    pub(crate) held: Option<BTreeMap<Layer, Probe>>,
}

/// Filter programs, in hexadecimal.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Filters {
    /// For all kernels.
    pub(crate) all: Vec<String>,
    /// And for those that have a root of their own.
    pub(crate) in_own_root: Vec<String>,
    /// Or for those that have none.
    pub(crate) without_own_root: Vec<String>,
    /// Whether these leave connections.
    pub(crate) connections: bool,
    /// For a kernel that nothing else keeps from signalling the server.
    pub(crate) own_signals: Option<String>,
    /// Stands in `own_signals` for the process's own number.
    pub(crate) own_pid: u32,
}

impl Filters {
    /// No filter refuses anything.
    pub(crate) fn none() -> Self {
        Self { connections: true, ..Self::default() }
    }
}
