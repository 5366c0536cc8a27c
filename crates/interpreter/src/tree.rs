//! The Python tree on disk, as `build-layer tree` makes it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::EngineError;

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

    /// The tree that belongs to this program: beside it, in a function's layer, or in the user's data folder.
    ///
    /// # Errors
    /// When there is none, with where it was looked for.
    pub fn find() -> Result<PathBuf, EngineError> {
        let places = places(std::env::current_exe().ok().as_deref(), |name| std::env::var_os(name).map(PathBuf::from));
        let found = places.iter().find(|path| python_in(path).exists()).cloned();
        found.ok_or_else(|| {
            EngineError::NoTreeFound(places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))
        })
    }

    /// The whole tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The interpreter.
    pub fn python(&self) -> PathBuf {
        python_in(&self.root)
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

fn python_in(root: &Path) -> PathBuf {
    root.join("python/bin/python3")
}

/// Where the tree of `program` may be. Never below the working directory, which may be anybody's.
fn places(program: Option<&Path>, variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let folder = program.and_then(Path::parent);
    let target = folder.and_then(Path::parent).filter(|folder| folder.ends_with("target"));
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    let beside = folder.iter().flat_map(|folder| [folder.join("tree"), folder.join("../lib/code-interpreter/tree")]);
    let built = target.and_then(Path::parent).map(|checkout| checkout.join("build/tree"));
    let own = data.map(|data| data.join("code-interpreter/tree"));
    // The layer's first: in a function, code could write to the other.
    let places = built.into_iter().chain(beside).chain([PathBuf::from(IN_LAYER)]).chain(own);
    places.filter(|path| path.is_absolute()).collect()
}

/// The folder on the way to `path` that is closed to users who own nothing.
pub(crate) fn closed_folder(path: &Path) -> Option<PathBuf> {
    let target = path.canonicalize().ok()?;
    let closed = |folder: &&Path| folder.metadata().is_ok_and(|metadata| metadata.mode() & 0o001 == 0);
    // The outermost first; links have a way of their own.
    [path, &target].into_iter().find_map(|path| path.ancestors().filter(closed).last()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_looked_for_beside_the_program_and_never_where_one_stands() {
        let of = |program: &str, home: &str| {
            let home = home.to_owned();
            places(Some(Path::new(program)), move |name| (name == "HOME").then(|| PathBuf::from(&home)))
        };
        let checkout = of("/c/target/release/code-interpreter", "/home/u");
        assert_eq!(checkout[0], Path::new("/c/build/tree"));
        let installed = of("/opt/x/bin/code-interpreter", "relative");
        assert_eq!(installed, ["/opt/x/bin/tree", "/opt/x/bin/../lib/code-interpreter/tree", IN_LAYER].map(PathBuf::from));
        assert!(of("/b/code-interpreter", "/home/u").contains(&PathBuf::from("/home/u/.local/share/code-interpreter/tree")));
    }
}
