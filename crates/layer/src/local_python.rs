//! Finds a `CPython` on this machine, for when the standalone builds can't be downloaded.
//!
//! Rule: ask every candidate what it is by running it; a name or a path proves nothing (shims, broken links).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// Minor versions of `CPython` 3 the lock covers, the wanted one first, then the newest.
pub(crate) const SUPPORTED_MINORS: [u32; 4] = [13, 12, 14, 11];

/// Prints what `archive` needs to know, as JSON, in any supported Python.
const DESCRIBE: &str = r"
import json, os, platform, sys, sysconfig
v = sysconfig.get_config_vars()
print(json.dumps({
    'implementation': platform.python_implementation(), 'version': list(sys.version_info[:3]), 'arch': platform.machine(),
    'executable': os.path.realpath(sys._base_executable or sys.executable), 'stdlib': sysconfig.get_path('stdlib'),
    'shared_library': os.path.join(v['LIBDIR'], v['INSTSONAME']) if v.get('Py_ENABLE_SHARED') else None,
}))
";

/// A `CPython` that answered.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct LocalPython {
    implementation: String,
    pub(crate) version: (u32, u32, u32),
    pub(crate) arch: String,
    pub(crate) executable: PathBuf,
    pub(crate) stdlib: PathBuf,
    pub(crate) shared_library: Option<PathBuf>,
}

impl LocalPython {
    /// Smaller is better; `None` when the lock does not cover it.
    fn rank(&self) -> Option<(usize, std::cmp::Reverse<u32>)> {
        let (major, minor, patch) = self.version;
        if self.implementation != "CPython" || major != 3 {
            return None;
        }
        Some((SUPPORTED_MINORS.iter().position(|m| *m == minor)?, std::cmp::Reverse(patch)))
    }

    pub(crate) fn version_text(&self) -> String {
        let (major, minor, patch) = self.version;
        format!("{major}.{minor}.{patch}")
    }
}

/// The best `CPython` in PATH, among uv's own installs and pyenv's; of this version (`3.13`) when one is named.
pub(crate) fn find(version: Option<&str>) -> Option<LocalPython> {
    let is_wanted =
        |python: &LocalPython| version.is_none_or(|version| python.version_text().starts_with(&format!("{version}.")));
    choose(candidates().iter().filter_map(|path| describe(path)).filter(is_wanted))
}

fn choose(found: impl Iterator<Item = LocalPython>) -> Option<LocalPython> {
    found.filter_map(|python| Some((python.rank()?, python))).min_by(|a, b| a.0.cmp(&b.0)).map(|(_, python)| python)
}

fn candidates() -> BTreeSet<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let pyenv = std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let uv = std::env::var_os("UV_PYTHON_INSTALL_DIR").map_or_else(|| home.join(".local/share/uv/python"), PathBuf::from);
    let installs = [pyenv.join("versions"), uv].into_iter().flat_map(|dir| subfolders(&dir)).map(|dir| dir.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = SUPPORTED_MINORS.iter().map(|minor| format!("python3.{minor}")).chain(["python3".to_owned()]).collect::<Vec<_>>();
    std::env::split_paths(&path)
        .chain(installs)
        .flat_map(|dir| names.iter().map(move |name| dir.join(name)).collect::<Vec<_>>())
        .filter(|path| path.is_file())
        .collect()
}

fn subfolders(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn describe(path: &Path) -> Option<LocalPython> {
    let output = Command::new(path).args(["-I", "-c", DESCRIBE]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(implementation: &str, version: (u32, u32, u32)) -> LocalPython {
        LocalPython {
            implementation: implementation.to_owned(),
            version,
            arch: "x86_64".to_owned(),
            executable: PathBuf::new(),
            stdlib: PathBuf::new(),
            shared_library: None,
        }
    }

    #[test]
    fn the_wanted_minor_wins_then_the_newest_supported_then_the_patch() {
        let best = |versions: &[(u32, u32, u32)]| choose(versions.iter().map(|v| python("CPython", *v))).map(|p| p.version);
        assert_eq!(best(&[(3, 11, 9), (3, 13, 0), (3, 14, 2), (3, 13, 4)]), Some((3, 13, 4)));
        assert_eq!(best(&[(3, 11, 9), (3, 12, 1)]), Some((3, 12, 1)));
        assert_eq!(best(&[(3, 10, 1), (2, 7, 18), (3, 15, 0)]), None);
        assert_eq!(choose(std::iter::once(python("PyPy", (3, 13, 0)))), None);
    }
}
