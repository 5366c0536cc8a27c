//! The kernel layers around user code: what is asked for, and what is made once for all kernels.

use std::fmt::Write;
use std::io;
use std::path::Path;

use sandbox::{Allowed, Landlock};

use crate::PythonTree;
use crate::zygote::Held;

/// Not implemented: what a kernel without the layer answers.
pub(crate) const ENOSYS: i32 = 38;

/// Filter programs in hexadecimal, as the harness takes them; none on an architecture that has no rules.
fn filters(allowed: Allowed) -> Result<Vec<String>, String> {
    let Some(arch) = sandbox::native_arch() else { return Ok(Vec::new()) };
    let hexadecimal = |program: Vec<u8>| {
        program.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    Ok(sandbox::programs(allowed, arch)?.into_iter().map(hexadecimal).collect())
}

/// The layers of one engine.
#[derive(Debug)]
pub(crate) struct Isolation {
    pub(crate) allowed: Allowed,
    /// Filter programs.
    pub(crate) seccomp: Vec<String>,
    /// Or why the kernel has none.
    pub(crate) landlock: io::Result<Landlock>,
}

impl Isolation {
    pub(crate) fn new(allowed: Allowed, tree: &PythonTree, state_dir: &Path) -> Self {
        let seccomp = filters(allowed).unwrap_or_else(|error| {
            tracing::error!(error, "the system call filters could not be built");
            Vec::new()
        });
        // The zygote fills it; a rule needs it to be there.
        let matplotlib = state_dir.join("matplotlib");
        if let Err(error) = std::fs::create_dir_all(&matplotlib) {
            tracing::warn!(%error, "matplotlib's directory could not be made");
        }
        let readable = [tree.root().to_path_buf(), matplotlib];
        Self { allowed, seccomp, landlock: Landlock::new(allowed, &readable) }
    }

    /// Adds what could not even be tried to what the zygote has tried.
    pub(crate) fn complete(&self, mut held: Held) -> Held {
        if let Err(error) = &self.landlock {
            held.insert("landlock".to_owned(), error.raw_os_error().unwrap_or(ENOSYS));
        }
        if self.seccomp.is_empty() {
            held.insert("seccomp".to_owned(), ENOSYS);
        }
        held
    }
}
