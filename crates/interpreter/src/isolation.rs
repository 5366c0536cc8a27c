//! The kernel layers around user code: what is asked for, and what is made once for all kernels.

use std::fmt::Write;
use std::io;
use std::path::Path;

use sandbox::{Allowed, Landlock, Stage};
use serde::Serialize;

use crate::PythonTree;
use crate::zygote::Held;

/// Not implemented: what a kernel without the layer answers.
const ENOSYS: i32 = 38;

/// Filter programs in hexadecimal, as the harness takes them; none on an architecture that has no rules.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Filters {
    zygote: Vec<String>,
    kernel: Vec<String>,
}

impl Filters {
    fn build(allowed: Allowed) -> Result<Self, String> {
        let Some(arch) = sandbox::native_arch() else { return Ok(Self::default()) };
        let hexadecimal = |program: Vec<u8>| {
            program.iter().fold(String::new(), |mut text, byte| {
                // Writing to a String can't fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        let programs = |stage| Ok::<_, String>(sandbox::programs(allowed, arch, stage)?.into_iter().map(hexadecimal).collect());
        Ok(Self { zygote: programs(Stage::Zygote)?, kernel: programs(Stage::Kernel)? })
    }
}

/// The layers of one engine.
#[derive(Debug)]
pub(crate) struct Isolation {
    pub(crate) allowed: Allowed,
    pub(crate) seccomp: Filters,
    /// Or why the kernel has none.
    pub(crate) landlock: io::Result<Landlock>,
}

impl Isolation {
    pub(crate) fn new(allowed: Allowed, tree: &PythonTree, state_dir: &Path) -> Self {
        let seccomp = Filters::build(allowed).unwrap_or_else(|error| {
            tracing::error!(error, "the system call filters could not be built");
            Filters::default()
        });
        // The zygote fills it; a rule needs it to be there.
        let matplotlib = state_dir.join("matplotlib");
        if let Err(error) = std::fs::create_dir_all(&matplotlib) {
            tracing::warn!(%error, "matplotlib's directory could not be made");
        }
        let readable = [tree.root().to_path_buf(), matplotlib];
        Self { allowed, seccomp, landlock: Landlock::new(allowed, &readable, sandbox::is_root()) }
    }

    /// Adds what could not even be tried to what the zygote has tried.
    pub(crate) fn complete(&self, mut held: Held) -> Held {
        if let Err(error) = &self.landlock {
            held.insert("landlock".to_owned(), error.raw_os_error().unwrap_or(ENOSYS));
        }
        if self.seccomp.zygote.is_empty() {
            held.insert("seccomp".to_owned(), ENOSYS);
        }
        held
    }
}
