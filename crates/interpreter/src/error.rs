//! Why there is no engine.

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
        source: std::io::Error,
    },
}
