//! Why there is no engine, or no kernel.

use std::io;
use std::path::PathBuf;

/// Why the engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no Python tree.
    #[error("no Python tree at {0}: {1}; `make tree` builds it, CODE_INTERPRETER_PYTHON_TREE says where it is")]
    NoTree(PathBuf, String),
    /// There is none at any of these places.
    #[error("no Python tree at {0}: `make tree` builds it, CODE_INTERPRETER_PYTHON_TREE says where it is")]
    NoTreeFound(String),
    /// The interpreter did not come up.
    #[error("the Python interpreter did not start: {0}")]
    NoZygote(String),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What was tried, why it failed, and which setting or limit would help.
pub(crate) fn because(what: &str, error: &io::Error) -> String {
    use io::ErrorKind;
    let remedy = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room in the temporary folder, or name another (TMPDIR)",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied | ErrorKind::NotFound | ErrorKind::NotADirectory => {
            "; the server must be able to write to the temporary folder (TMPDIR)"
        }
        ErrorKind::OutOfMemory | ErrorKind::WouldBlock => "; the machine or the control group has no more memory or processes",
        _ if is_of_descriptors(error) => {
            "; raise the limit on open files (`ulimit -n`), or lower MAX_CONNECTIONS or MAX_CONCURRENCY"
        }
        _ => "",
    };
    format!("{what}: {error}{remedy}")
}

/// Of the process, or of the machine.
fn is_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.raw_os_error().is_some_and(|number| [Errno::MFILE, Errno::NFILE].contains(&Errno::from_raw_os_error(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_told_with_what_would_help() {
        for (number, remedy) in [(28, "TMPDIR"), (30, "TMPDIR"), (122, "TMPDIR"), (24, "ulimit -n"), (11, "control group")] {
            let told = because("making it", &io::Error::from_raw_os_error(number));
            assert!(told.starts_with("making it: ") && told.contains(remedy), "{told}");
        }
        assert_eq!(because("making it", &io::Error::other("no")), "making it: no");
    }
}
