//! The Python tree on disk, as `build-layer tree` makes it.

use std::path::{Path, PathBuf};

use crate::EngineError;

/// Where a Lambda function finds the tree of its layer.
const IN_LAYER: &str = "/opt/code-interpreter";

/// The folder of matplotlib's configuration, in a tree and in an engine's directory.
pub(crate) const MATPLOTLIB: &str = "matplotlib";

/// Where the interpreter and the stack are.
#[derive(Clone, Debug)]
pub struct PythonTree {
    root: PathBuf,
}

impl PythonTree {
    /// Takes the tree at `root`.
    ///
    /// # Errors
    /// When there is no tree, with what to do about it.
    pub fn open(root: &Path) -> Result<Self, EngineError> {
        let root = std::path::absolute(root).map_err(|error| EngineError::NoTree(root.to_path_buf(), error.to_string()))?;
        let tree = Self { root };
        if tree.python().exists() {
            Ok(tree)
        } else {
            Err(EngineError::NoTree(tree.root, "it has no python/bin/python3".to_owned()))
        }
    }

    /// The tree that belongs to this program: beside the executable's build folder, in a function's layer, or below the
    /// working directory.
    pub fn default_root() -> PathBuf {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.join("build/tree")));
        let places = beside.into_iter().chain([PathBuf::from(IN_LAYER)]);
        places.into_iter().find(|path| path.exists()).unwrap_or_else(|| PathBuf::from("build/tree"))
    }

    /// The whole tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The interpreter.
    pub fn python(&self) -> PathBuf {
        self.root.join("python/bin/python3")
    }

    /// Where the stack's packages are.
    pub fn site(&self) -> PathBuf {
        self.root.join("site")
    }

    /// Matplotlib's configuration, with its font cache.
    pub fn matplotlib(&self) -> PathBuf {
        self.root.join(MATPLOTLIB)
    }

    /// The interpreter's version, from the tree's own note.
    pub fn python_version(&self) -> String {
        let note = std::fs::read_to_string(self.root.join("tree.json")).unwrap_or_default();
        let note: serde_json::Value = serde_json::from_str(&note).unwrap_or_default();
        note["python_version"].as_str().unwrap_or("unknown").to_owned()
    }
}
