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

/// Where the tree and the folder of packages are in a root of the kernels' own.
const TREE_INSIDE: &str = "/opt/code-interpreter";
const PACKAGES_INSIDE: &str = "/opt/packages";

/// Filter programs, as the harness takes them. None on an architecture that has no rules.
fn filters(allowed: Allowed) -> Result<Filters, String> {
    let Some(arch) = sandbox::native_arch() else { return Ok(Filters::none()) };
    let programs = sandbox::programs(allowed, arch)?;
    Ok(Filters {
        all: programs.iter().map(|program| hexadecimal(program)).collect(),
        in_own_root: vec![hexadecimal(&sandbox::sockets_program(allowed, arch, true)?)],
        without_own_root: vec![hexadecimal(&sandbox::sockets_program(allowed, arch, false)?)],
        connections: allowed.network || allowed.unix_sockets,
        own_signals: Some(hexadecimal(&sandbox::own_signals_program(arch)?)),
        own_pid: sandbox::OWN_PID,
    })
}

/// A program as the harness takes it.
pub(crate) fn hexadecimal(program: &[u8]) -> String {
    program.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
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
    /// What of the server's is in a root of the kernels' own, and by which name there.
    pub(crate) places: Vec<(PathBuf, String)>,
}

impl Isolation {
    /// `readable` is read by the code.
    pub(crate) fn new(
        (allowed, disabled): (Allowed, Vec<Layer>),
        readable: &[PathBuf],
        tree: &PythonTree,
        state_dir: &Path,
    ) -> Self {
        let is_off = |layer| disabled.contains(&layer);
        let mut seccomp = Filters::none();
        if !is_off(Layer::Seccomp) {
            seccomp = filters(allowed).unwrap_or_else(|error| {
                tracing::error!(error, "the system call filters could not be built");
                Filters::none()
            });
        }
        // The zygote fills it; a rule needs it to be there.
        let matplotlib = state_dir.join(MATPLOTLIB);
        if let Err(error) = std::fs::create_dir_all(&matplotlib) {
            tracing::warn!(%error, "matplotlib's directory could not be made");
        }
        let packages = readable;
        let readable = readable.iter().cloned().chain([tree.root().to_path_buf(), matplotlib]).collect::<Vec<_>>();
        let landlock = if is_off(Layer::Landlock) {
            Err(Probe::NotTried)
        } else {
            Landlock::new(allowed, &readable).map_err(|error| Probe::from(&error))
        };
        let places = places(packages, tree, sandbox::is_root() || landlock.is_ok());
        Self { allowed, disabled, seccomp, landlock, places }
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

/// Names that say nothing of where the server has these. `guarded`: whether code can't write to them by itself; where it can,
/// each process keeps its own sets elsewhere in their folder.
fn places(packages: &[PathBuf], tree: &PythonTree, guarded: bool) -> Vec<(PathBuf, String)> {
    let packages = packages.iter().enumerate().map(|(index, sets)| {
        let number = if index == 0 { String::new() } else { format!("-{index}") };
        let folder = sets.parent().filter(|_| !guarded).unwrap_or(sets);
        (folder.to_owned(), format!("{PACKAGES_INSIDE}{number}"))
    });
    std::iter::once((tree.root().to_owned(), TREE_INSIDE.to_owned())).chain(packages).collect()
}
