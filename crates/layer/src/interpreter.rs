//! Where the `CPython` of a tree comes from: an archive that is named, else the standalone build, else a `CPython` of this
//! machine packed as one.

use std::path::Path;
use std::process::Command;

use crate::archive::Archive;
use crate::run::run;
use crate::{BuildError, local_python};

/// The standalone `CPython` that is asked for first.
pub(crate) const WANTED_PYTHON: &str = "3.13";

/// What was installed.
pub(crate) struct Installed {
    /// Where it was taken from, in words.
    pub(crate) source: String,
    /// `3.13.0`
    pub(crate) version: String,
}

/// Which interpreter is wanted.
pub(crate) struct Interpreter<'a> {
    pub(crate) uv: &'a Path,
    /// An archive to take it from: a path or a URL.
    pub(crate) archive: Option<&'a str>,
    /// `x86_64` or `aarch64`.
    pub(crate) arch: &'a str,
    /// Such as `3.13`; the first of those the lock covers when none is named.
    pub(crate) version: Option<&'a str>,
}

impl Interpreter<'_> {
    /// Puts it at `place`.
    pub(crate) fn install(&self, work: &Path, place: &Path, say: &mut dyn FnMut(&str)) -> Result<Installed, BuildError> {
        let installs = work.join("installs");
        let source = if let Some(address) = self.archive {
            say(&format!("installing CPython from {address}"));
            let archive = Archive::named(address)?;
            if archive.arch != self.arch {
                return Err(BuildError::NoPython(format!("PYTHON_ARCHIVE={address} is for {}, not {}", archive.arch, self.arch)));
            }
            self.take_from_archive(&archive, work, &installs)?;
            format!("the archive {address}")
        } else {
            let version = self.version.unwrap_or(WANTED_PYTHON);
            say(&format!("downloading the standalone CPython {version} for {}", self.arch));
            let key = format!("cpython-{version}-linux-{}-gnu", self.arch);
            match self.uv_install("downloading the standalone CPython", &installs, &[], &key) {
                Ok(_) => "the standalone builds".to_owned(),
                Err(error) => self.take_from_this_machine(work, &installs, &error, say)?,
            }
        };
        let installed = std::fs::read_dir(&installs)
            .map_err(BuildError::io(&installs))?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.join("bin/python3").exists() && !path.is_symlink())
            .ok_or_else(|| BuildError::NoPython("uv installed nothing".to_owned()))?;
        std::fs::rename(&installed, place).map_err(BuildError::io(place))?;
        // uv names the folder `cpython-3.13.0-linux-x86_64-gnu`; an interpreter for another processor can't be asked.
        let name = installed.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.split('-').nth(1).unwrap_or_default().to_owned();
        Ok(Installed { source, version })
    }

    fn take_from_this_machine(
        &self,
        work: &Path,
        installs: &Path,
        error: &BuildError,
        say: &mut dyn FnMut(&str),
    ) -> Result<String, BuildError> {
        if self.arch != std::env::consts::ARCH {
            let reason = format!("the standalone build for {} can't be downloaded; set PYTHON_ARCHIVE\n{error}", self.arch);
            return Err(BuildError::NoPython(reason));
        }
        say("the standalone build can't be downloaded here; looking for a local CPython");
        let python = local_python::find(self.version).ok_or_else(|| {
            BuildError::NoPython(format!(
                "none of {} in PATH, uv's or pyenv's versions; install one, or set PYTHON_ARCHIVE to an archive of a standalone build. The download said:\n{error}",
                self.version.unwrap_or("3.11 to 3.14")
            ))
        })?;
        say(&format!("packing CPython {} from {}", python.version_text(), python.executable.display()));
        self.take_from_archive(&Archive::from_local(&python, self.uv, work)?, work, installs)?;
        Ok(format!("the local {}", python.executable.display()))
    }

    fn take_from_archive(&self, archive: &Archive, work: &Path, installs: &Path) -> Result<(), BuildError> {
        let list = work.join("downloads.json");
        let key = archive.describe_to_uv(&list)?;
        let url = format!("file://{}", std::fs::canonicalize(&list).map_err(BuildError::io(&list))?.display());
        self.uv_install("installing CPython from the archive", installs, &["--python-downloads-json-url", &url], &key).map(drop)
    }

    fn uv_install(&self, what: &str, installs: &Path, extra: &[&str], key: &str) -> Result<String, BuildError> {
        let mut command = Command::new(self.uv);
        command.args(["python", "install", "--no-config", "--no-bin", "--no-registry", "--install-dir"]).arg(installs);
        // A download that can't be had fails at once instead of being retried.
        run(what, command.args(extra).arg(key).env("UV_HTTP_RETRIES", "0").env("UV_HTTP_TIMEOUT", "60"))
    }
}
