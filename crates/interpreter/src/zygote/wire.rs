//! What the supervisor and the harness say to each other about processes. What is said about a cell is in `job` and
//! `frames`.
//!
//! Rule: each message is a type here and read by its fields' names there; a name that one side does not know is a fault of
//! the build, never of a call.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use sandbox::Pidfd;
use serde::{Deserialize, Serialize};

use crate::isolation::{Filters, Held};

/// Everything the holder is started with.
#[derive(Serialize)]
pub(super) struct Start<'a> {
    /// What loads the rest.
    pub(super) bootstrap: &'static str,
    /// Of the harness: each module's name and text.
    pub(super) sources: HashMap<&'static str, &'static str>,
    pub(super) config: Config<'a>,
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "what an operator switches on or off")]
pub(super) struct Config<'a> {
    pub(super) supervisor: i32,
    pub(super) control_fd: i32,
    pub(super) ruleset_fd: Option<i32>,
    pub(super) site: &'a Path,
    pub(super) matplotlib: &'a Path,
    pub(super) state_directory: &'a Path,
    pub(super) visible: &'a [std::path::PathBuf],
    pub(super) shared_memory_bytes: u64,
    pub(super) probe_user: Option<u32>,
    pub(super) find_heir: bool,
    pub(super) namespaces: bool,
    pub(super) seccomp: &'a Filters,
    pub(super) proc_file_rights: u64,
    pub(super) own_mount_rights: BTreeMap<&'static str, u64>,
    pub(super) landlock_scopes_signals: bool,
    pub(super) allow_network: bool,
    pub(super) allow_subprocess: bool,
}

/// Asks for a process, under a number that the answers bear.
#[derive(Serialize)]
pub(super) struct Request<'a, T> {
    pub(super) id: u64,
    #[serde(flatten)]
    pub(super) of: &'a T,
}

/// Asks the holder or a zygote for the zygote of the last of these stages.
#[derive(Serialize)]
pub(super) struct ForkZygote {
    pub(super) stages: Vec<StageWork>,
}

/// What a zygote does for one stage.
#[derive(Serialize)]
pub(crate) struct StageWork {
    pub(crate) name: &'static str,
    pub(crate) imports: &'static [&'static str],
    /// Run in the zygote, so that lazy imports are done once.
    pub(crate) warm: &'static str,
    /// Run in its spare kernels.
    pub(crate) kernel_warm: &'static str,
}

/// Asks a zygote for a kernel.
#[derive(Serialize)]
pub(crate) struct ForkKernel<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) uid: Option<u32>,
    pub(crate) site: &'a Path,
    pub(crate) file_size_bytes: u64,
    pub(crate) processes: u64,
}

/// A process, and the clock tick after boot at which it was started: instead of a descriptor, where the kernel refuses it.
type Number = (i32, u64);

/// What the holder and the zygotes say. A handle on a process comes beside the message or as a number in it.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Message {
    /// The holder serves.
    Holder { holder: Held, heir: Option<i32>, number: Option<Number> },
    /// A zygote serves.
    Ready { ready: String, missing: Vec<String>, number: Option<Number> },
    /// A zygote is about to import this.
    Importing { importing: String },
    /// A zygote can't import what it has to, and ends.
    Broken { broken: String },
    /// What was asked for under this id runs.
    Spawned { spawned: u64, number: Option<Number> },
    /// It could not be started.
    Failed { failed: u64, reason: String },
    /// It has ended: with this exit code, or by the signal of this negative number.
    Exited { exited: u64, status: i32 },
}

/// The handle that came with a message: the first of its descriptors, or a number.
pub(super) fn handle(number: Option<Number>, fds: &mut impl Iterator<Item = std::os::fd::OwnedFd>) -> Option<Pidfd> {
    match number {
        Some((pid, started)) => Some(Pidfd::of_number(pid, started)),
        None => fds.next().map(Pidfd::new),
    }
}
