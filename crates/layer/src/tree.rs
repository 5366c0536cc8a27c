//! The Python tree under `build/`: made once, remade when the lock, the wanted interpreter or this recipe changes.
//!
//! Rule: the tree is built beside its place and moved there when whole, so a tree that exists is a tree that works.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::BuildError;
use crate::interpreter::{Installed, Interpreter, WANTED_PYTHON};
use crate::pip;
use crate::run::run;

/// Changes when the recipe below does, so that older trees are remade.
const RECIPE: &str = "3";

/// A process whose program file can't be read can't be looked into by others of its user, also where prctl is refused:
/// kernels and zygotes are of one user in a Lambda function.
pub(crate) const UNREADABLE_PROGRAM: u32 = 0o111;

/// Where things are and where the interpreter comes from.
#[derive(Args, Debug)]
pub(crate) struct TreeOptions {
    /// The uv to build with.
    #[arg(long, env = "UV", default_value = "uv")]
    uv: PathBuf,
    /// The hashed lock of the stack.
    #[arg(long, default_value = "layer/requirements.lock")]
    lock: PathBuf,
    /// The pip that goes into it.
    #[arg(long, default_value = "layer/pip.lock")]
    pip_lock: PathBuf,
    /// Where the tree goes.
    #[arg(long, default_value = "build/tree")]
    out: PathBuf,
    /// An archive of a standalone `CPython` (path or URL) to use instead of looking for one.
    #[arg(long, env = "PYTHON_ARCHIVE")]
    python_archive: Option<String>,
}

/// Builds the tree unless the one that is there is current; `say` hears each step.
pub(crate) fn build(options: &TreeOptions, say: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    let lock = std::fs::read(&options.lock).map_err(BuildError::io(&options.lock))?;
    let pip = std::fs::read(&options.pip_lock).map_err(BuildError::io(&options.pip_lock))?;
    let stamp = stamp(&[lock, pip].concat(), options.python_archive.as_deref());
    let manifest = options.out.join("tree.json");
    if std::fs::read_to_string(&manifest).is_ok_and(|text| text.contains(&stamp)) {
        say(&format!("Python tree {} is current", options.out.display()));
        return Ok(());
    }
    let parent = options.out.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(BuildError::io(parent))?;
    let work = parent.join(".tree-in-progress");
    let _ = std::fs::remove_dir_all(&work);
    let tree = work.join("tree");
    std::fs::create_dir_all(&tree).map_err(BuildError::io(&tree))?;

    let wanted =
        Interpreter { uv: &options.uv, archive: options.python_archive.as_deref(), arch: std::env::consts::ARCH, version: None };
    let Installed { source, version } = wanted.install(&work, &tree.join("python"), say)?;
    let python = tree.join("python/bin/python3");
    say("installing the stack from the lock");
    install_stack(options, &tree, &python)?;
    say("compiling bytecode");
    compile(&tree, &python)?;
    say("building matplotlib's font cache");
    font_cache(&tree, &python)?;
    say("packing pip");
    pip::pack(&options.uv, &options.pip_lock, &python, &work, &tree)?;

    let text = json!({"stamp": stamp, "python_version": version, "python_source": source});
    let file = tree.join("tree.json");
    std::fs::write(&file, format!("{text:#}\n")).map_err(BuildError::io(&file))?;
    // Kernels run as another user when the server is root: they must be able to read all of it.
    run("opening the tree for reading", Command::new("chmod").args(["-R", "a+rX,go-w"]).arg(&tree))?;
    close_program(&python)?;
    let _ = std::fs::remove_dir_all(&options.out);
    std::fs::rename(&tree, &options.out).map_err(BuildError::io(&options.out))?;
    let _ = std::fs::remove_dir_all(&work);
    say(&format!("Python tree {}: CPython {version} from {source}", options.out.display()));
    Ok(())
}

fn stamp(lock: &[u8], archive: Option<&str>) -> String {
    let mut hash = Sha256::new();
    for part in [RECIPE.as_bytes(), WANTED_PYTHON.as_bytes(), archive.unwrap_or_default().as_bytes(), lock] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("{:x}", hash.finalize())
}

fn install_stack(options: &TreeOptions, tree: &Path, python: &Path) -> Result<(), BuildError> {
    let mut command = Command::new(&options.uv);
    command.args(["pip", "install", "--no-config", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]);
    command.args(["--no-compile-bytecode", "--target"]).arg(tree.join("site")).arg("--python").arg(python);
    run("installing the stack", command.arg("-r").arg(&options.lock)).map(drop)
}

fn compile(tree: &Path, python: &Path) -> Result<(), BuildError> {
    // Unchecked: the tree is read-only and moves about, so time stamps prove nothing.
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]);
    // Some packages carry templates and test files that are not valid Python: compileall then exits with 1.
    let _ = run("compiling bytecode", command.arg(tree.join("site")).arg(tree.join("python/lib")));
    let probe = "import importlib.util, sys; sys.path.append(sys.argv[1]); import os; \
                 sys.exit(not os.path.exists(importlib.util.cache_from_source(importlib.util.find_spec('pandas').origin)))";
    run("checking the bytecode", Command::new(python).args(["-I", "-S", "-c", probe]).arg(tree.join("site"))).map(drop)
}

fn close_program(python: &Path) -> Result<(), BuildError> {
    let program = std::fs::canonicalize(python).map_err(BuildError::io(python))?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(UNREADABLE_PROGRAM)).map_err(BuildError::io(&program))
}

pub(crate) fn font_cache(tree: &Path, python: &Path) -> Result<(), BuildError> {
    let code = "import sys; sys.path.append(sys.argv[1]); import matplotlib.font_manager";
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-B", "-c", code]).arg(tree.join("site")).env("MPLCONFIGDIR", tree.join("matplotlib"));
    run("building the font cache", &mut command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_follows_the_lock_and_the_archive() {
        assert_eq!(stamp(b"a", None), stamp(b"a", None));
        assert_ne!(stamp(b"a", None), stamp(b"b", None));
        assert_ne!(stamp(b"a", None), stamp(b"a", Some("x")));
    }
}
