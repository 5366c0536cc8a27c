//! The kernel layers around user code: what is asked for, and what is made once for all kernels.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use sandbox::{Allowed, Landlock};
use serde::Serialize;

use crate::PythonTree;
use crate::tree::MATPLOTLIB;

/// Not implemented: what a kernel without the layer answers.
pub(crate) const ENOSYS: i32 = 38;

/// Layers that an operator can switch off. A layer that others depend on takes them with it.
pub const SWITCHABLE_LAYERS: [&str; 4] = ["namespaces", "landlock", "seccomp", "cgroup"];

/// What the zygote finds out about the machine and does not make.
const FACTS: [&str; 2] = ["network_unreachable", "no_shared_memory"];

/// What the kernel granted when the holder tried its layers: for each the errno, 0 where it held.
pub type Held = BTreeMap<String, i32>;

/// Filter programs in hexadecimal, as the harness takes them.
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

impl Filters {
    /// None on an architecture that has no rules.
    fn new(allowed: Allowed) -> Result<Self, String> {
        let Some(arch) = sandbox::native_arch() else { return Ok(Self::default()) };
        let hexadecimal = |program: Vec<u8>| {
            program.iter().fold(String::new(), |mut text, byte| {
                // Writing to a String can't fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        Ok(Self {
            all: sandbox::programs(allowed, arch)?.into_iter().map(hexadecimal).collect(),
            without_mounts: sandbox::without_mounts_program(allowed, arch)?.into_iter().map(hexadecimal).collect(),
            own_signals: Some(hexadecimal(sandbox::own_signals_program(arch)?)),
            own_pid: sandbox::OWN_PID,
        })
    }
}

/// The layers of one engine.
#[derive(Debug)]
pub(crate) struct Isolation {
    pub(crate) allowed: Allowed,
    /// What the operator has switched off.
    pub(crate) disabled: Vec<String>,
    pub(crate) seccomp: Filters,
    /// Or why the kernel has none.
    pub(crate) landlock: io::Result<Landlock>,
    /// What stays in sight of the machine besides the system's own directories, where there are mount namespaces.
    pub(crate) visible: Vec<PathBuf>,
}

impl Isolation {
    /// `readable` is read by the code; `visible` is in its sight besides, where it has mounts of its own.
    pub(crate) fn new(
        (allowed, disabled): (Allowed, Vec<String>),
        readable: &[PathBuf],
        visible: &[PathBuf],
        tree: &PythonTree,
        state_dir: &Path,
    ) -> Self {
        let is_off = |layer| disabled.iter().any(|name| name == layer);
        let mut seccomp = Filters::default();
        if !is_off("seccomp") {
            seccomp = Filters::new(allowed).unwrap_or_else(|error| {
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
        let landlock =
            if is_off("landlock") { Err(io::Error::from_raw_os_error(ENOSYS)) } else { Landlock::new(allowed, &readable) };
        // Also by the name that links lead to.
        let named = || visible.iter().chain(&readable);
        let visible = named().cloned().chain(named().filter_map(|path| path.canonicalize().ok())).collect();
        Self { allowed, disabled, seccomp, landlock, visible }
    }

    /// Whether the operator has left this layer on.
    pub(crate) fn is_on(&self, layer: &str) -> bool {
        self.disabled.iter().all(|name| name != layer)
    }

    /// The layer of the first start that a later start lacks.
    pub(crate) fn lost<'a>(first: &'a Held, now: &Held) -> Option<&'a str> {
        let lost = |(name, errno): &(&String, &i32)| {
            **errno == 0 && !FACTS.contains(&name.as_str()) && now.get(name.as_str()) != Some(&0)
        };
        first.iter().find(lost).map(|(name, _)| name.as_str())
    }

    /// Adds what could not even be tried to what the zygote has tried.
    pub(crate) fn complete(&self, mut held: Held) -> Held {
        if let Err(error) = &self.landlock {
            held.insert("landlock".to_owned(), error.raw_os_error().unwrap_or(ENOSYS));
        }
        if self.seccomp.all.is_empty() {
            held.insert("seccomp".to_owned(), ENOSYS);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_held_at_first_must_hold_after_a_restart() {
        let held = |layers: &[(&str, i32)]| layers.iter().map(|(name, errno)| ((*name).to_owned(), *errno)).collect::<Held>();
        let first = held(&[("landlock", 0), ("namespaces", 1), ("network_unreachable", 0), ("seccomp", 0)]);
        assert_eq!(Isolation::lost(&first, &first), None);
        let better = held(&[("landlock", 0), ("namespaces", 0), ("network_unreachable", 106), ("seccomp", 0)]);
        assert_eq!(Isolation::lost(&first, &better), None);
        assert_eq!(Isolation::lost(&first, &held(&[("landlock", 0), ("seccomp", 1)])), Some("seccomp"));
        assert_eq!(Isolation::lost(&first, &held(&[("seccomp", 0)])), Some("landlock"));
    }
}
