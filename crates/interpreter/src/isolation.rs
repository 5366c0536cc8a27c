//! The kernel layers around user code: what is asked for, and what is made once for all kernels.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use protocol::Layer;
use sandbox::{Allowed, Landlock};

use crate::probe::{Probe, Probes};
use crate::tree::{MATPLOTLIB, PythonTree};
use crate::wire::Filters;

/// Layers that an operator can switch off. A layer that others depend on takes them with it.
pub const SWITCHABLE_LAYERS: [Layer; 4] = [Layer::Namespaces, Layer::Landlock, Layer::Seccomp, Layer::Cgroup];

/// Filter programs, as the harness takes them. None on an architecture that has no rules.
fn filters(allowed: Allowed) -> Result<Filters, String> {
    let Some(arch) = sandbox::native_arch() else { return Ok(Filters::default()) };
    let hexadecimal = |program: Vec<u8>| {
        program.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    Ok(Filters {
        all: sandbox::programs(allowed, arch)?.into_iter().map(hexadecimal).collect(),
        without_mounts: sandbox::without_mounts_program(allowed, arch)?.into_iter().map(hexadecimal).collect(),
        own_signals: Some(hexadecimal(sandbox::own_signals_program(arch)?)),
        own_pid: sandbox::OWN_PID,
    })
}

/// The layers of one engine.
#[derive(Debug)]
pub(crate) struct Isolation {
    pub(crate) allowed: Allowed,
    /// What the operator has switched off.
    pub(crate) disabled: Vec<Layer>,
    pub(crate) seccomp: Filters,
    /// Or why there is none.
    pub(crate) landlock: Result<Landlock, Probe>,
    /// What stays in sight of the machine besides the system's own directories, where there are mount namespaces.
    pub(crate) visible: Vec<PathBuf>,
}

impl Isolation {
    /// `readable` is read by the code; `visible` is in its sight besides, where it has mounts of its own.
    pub(crate) fn new(
        (allowed, disabled): (Allowed, Vec<Layer>),
        readable: &[PathBuf],
        visible: &[PathBuf],
        tree: &PythonTree,
        state_dir: &Path,
    ) -> Self {
        let is_off = |layer| disabled.contains(&layer);
        let mut seccomp = Filters::default();
        if !is_off(Layer::Seccomp) {
            seccomp = filters(allowed).unwrap_or_else(|error| {
                tracing::error!(error, "the system call filters could not be built");
                Filters::default()
            });
        }
        // The zygote fills it; a rule needs it to be there.
        let matplotlib = state_dir.join(MATPLOTLIB);
        if let Err(error) = std::fs::create_dir_all(&matplotlib) {
            tracing::warn!(%error, "matplotlib's directory could not be made");
        }
        let readable = readable.iter().cloned().chain([tree.root().to_path_buf(), matplotlib]).collect::<Vec<_>>();
        let landlock = if is_off(Layer::Landlock) {
            Err(Probe::NotTried)
        } else {
            Landlock::new(allowed, &readable).map_err(|error| Probe::from(&error))
        };
        // Also by the name that links lead to.
        let named = || visible.iter().chain(&readable);
        let visible = named().cloned().chain(named().filter_map(|path| path.canonicalize().ok())).collect();
        Self { allowed, disabled, seccomp, landlock, visible }
    }

    /// Whether the operator has left this layer on.
    pub(crate) fn is_on(&self, layer: Layer) -> bool {
        !self.disabled.contains(&layer)
    }

    /// Adds what could not even be tried to what the holder has tried.
    pub(crate) fn complete(&self, mut probes: Probes) -> Probes {
        if let Err(refused @ Probe::Refused(_)) = self.landlock {
            probes.set(Layer::Landlock, refused);
        }
        if self.seccomp.all.is_empty() && self.is_on(Layer::Seccomp) {
            probes.set(Layer::Seccomp, Probe::NOT_THERE);
        }
        probes
    }
}
