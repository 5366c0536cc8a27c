//! Sourceless bytecode: it needs a fifth of the space of sources with their caches, and importing the whole stack from it
//! takes a fifth of the time.
//!
//! Rule: the same sources give the same bytes. What a compiled file looks like depends on what its process has compiled
//! before it, so the work is cut by name into a fixed number of shares, each done by one process in order.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BuildError;
use crate::files::walk;
use crate::run::run;

const SHARES: usize = 4;
/// Without docstrings and assertions in libraries; user code is compiled as it is.
const OPTIMISATION: &str = "2";
/// What libraries offer for checking, which is made of assertions.
const CHECKS: [&str; 5] =
    ["site/numpy/testing", "site/pandas/_testing", "site/pandas/testing.py", "site/sklearn/utils", "site/matplotlib/testing"];

/// Compiles everything below `tree` as if it was at `final_place`, and removes the sources.
pub(crate) fn compile(tree: &Path, final_place: &Path, python: &Path) -> Result<(), BuildError> {
    let mut shares = vec![Vec::new(); SHARES];
    let library = standard_library(tree)?;
    for (index, folder) in [list(&tree.join("site"))?, list(&library)?].concat().into_iter().enumerate() {
        shares[index % SHARES].push(folder);
    }
    std::thread::scope(|scope| {
        let work = shares
            .iter()
            .map(|share| scope.spawn(|| compile_share(share, OPTIMISATION, tree, final_place, python)))
            .collect::<Vec<_>>();
        work.into_iter().try_for_each(|share| share.join().unwrap_or_else(|_| Err(failed("a share was given up"))))
    })?;
    let checks = CHECKS.map(|part| tree.join(part)).into_iter().filter(|path| path.exists()).collect::<Vec<_>>();
    compile_share(&checks, "0", tree, final_place, python)?;
    for entry in walk(tree)? {
        let compiled = entry.path.with_extension("pyc");
        if entry.is_file() && entry.path.extension().is_some_and(|extension| extension == "py") && compiled.exists() {
            std::fs::remove_file(&entry.path).map_err(BuildError::io(&entry.path))?;
        }
    }
    let whole = list(&tree.join("site"))?.iter().any(|path| path.join("__init__.pyc").exists());
    if whole { Ok(()) } else { Err(failed("no bytecode was written")) }
}

fn failed(why: &str) -> BuildError {
    BuildError::Command { what: "compiling bytecode".to_owned(), output: why.to_owned() }
}

fn compile_share(
    share: &[PathBuf],
    optimisation: &str,
    tree: &Path,
    final_place: &Path,
    python: &Path,
) -> Result<(), BuildError> {
    let mut command = Command::new(python);
    command.args(["-P", "-s", "-S", "-B", "-c", "import sys, compileall; sys.exit(0 * compileall.main())"]);
    command.args(["-q", "-q", "-f", "-b", "-o", optimisation, "-j", "1", "--invalidation-mode", "unchecked-hash", "-s"]);
    command.arg(tree).arg("-p").arg(final_place).args(share).env_clear().env("PYTHONHASHSEED", "0");
    run("compiling bytecode", &mut command).map(drop)
}

pub(crate) fn standard_library(tree: &Path) -> Result<PathBuf, BuildError> {
    let lib = tree.join("python/lib");
    let found = list(&lib)?.into_iter().find(|path| path.join("os.py").exists());
    found.ok_or_else(|| BuildError::NoPython(format!("{} has no standard library", lib.display())))
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let entries = std::fs::read_dir(directory).map_err(BuildError::io(directory))?;
    let mut paths = entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    paths.sort();
    Ok(paths)
}
