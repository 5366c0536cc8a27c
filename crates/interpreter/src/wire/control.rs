//! What is said about processes, on the control sockets of the holder and the zygotes: one JSON object a packet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Layer;
use serde::{Deserialize, Serialize};

use crate::probe::Probe;

/// Asks for a process, under a number that the answers bear.
#[derive(Serialize)]
pub(crate) struct Request<'a> {
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) fork: &'a Fork<'a>,
}

/// What is to be forked.
#[derive(Serialize)]
#[serde(tag = "fork", rename_all = "snake_case")]
pub(crate) enum Fork<'a> {
    /// By the holder or a zygote: the zygote of the last of these stages.
    Zygote { stages: Vec<StageWork> },
    /// By a zygote.
    Kernel(ForkKernel<'a>),
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

/// What a kernel is made with.
#[derive(Serialize)]
pub(crate) struct ForkKernel<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) uid: Option<u32>,
    pub(crate) site: &'a Path,
    pub(crate) file_size_bytes: u64,
    pub(crate) processes: u64,
}

/// A process, and the clock tick after boot at which it was started: instead of a descriptor, where the kernel refuses it.
pub(crate) type Number = (i32, u64);

/// What the holder and the zygotes say. A handle on a process comes beside the message or as a number in it.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Message {
    /// The holder serves, and has tried the layers.
    Holder {
        probes: BTreeMap<Layer, Probe>,
        no_shared_memory: Probe,
        heir: Option<i32>,
        /// Where code finds the place for temporary files of its call, or of all calls.
        directory: PathBuf,
        number: Option<Number>,
    },
    /// A zygote serves.
    Ready { stage: String, missing: Vec<String>, number: Option<Number> },
    /// A zygote is about to import this.
    Importing { name: String },
    /// A zygote can't import what it has to, and ends.
    Broken { reason: String },
    /// What was asked for under this id runs. The first process of its PID namespace, where that is another, comes as a second
    /// handle.
    Spawned { id: u64, number: Option<Number> },
    /// It could not be started.
    Failed { id: u64, reason: String },
    /// It has ended: with this exit code, or by the signal of this negative number. By the system's accounts it has used this
    /// since it was forked, with the children that it has waited for.
    Exited { id: u64, status: i32, cpu_seconds: f64, peak_memory_kb: u64 },
}

/// How a process has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// The exit code, or the negative signal number.
    pub(crate) status: i32,
    /// Processor time since it was forked.
    pub(crate) cpu: Duration,
    pub(crate) peak_memory_bytes: u64,
}
