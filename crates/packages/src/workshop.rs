//! Where sets are made: the cache, and the installer with what it may read.

use std::path::PathBuf;
use std::sync::Arc;

use sandbox::{InstallerCage, Reaper};

use crate::cache::Cache;
use crate::config::{PackagesConfig, Target};
use crate::error::{PackageError, Reason};
use crate::installer::{Installer, Tool};
use crate::process::Starter;

/// The two belong together: what the one may keep depends on who can write to the other.
pub(crate) struct Workshop {
    pub(crate) cache: Arc<Cache>,
    pub(crate) installer: Installer,
    /// Whether kernels are let into the very folder that was there when the server started, and into none of its name.
    pub(crate) let_in_by_rule: bool,
}

/// Opens it, or says why nothing can be installed.
pub(crate) fn open(
    config: &PackagesConfig,
    target: &Target,
    reaper: Arc<Reaper>,
    landlock: bool,
) -> Result<Workshop, PackageError> {
    let off = |why: String| PackageError::new(Reason::InstallsOff, format!("packages can't be installed here: {why}"));
    if !config.allow_install {
        return Err(off("ALLOW_INSTALL is off; list_preinstalled_packages shows what is there".to_owned()));
    }
    let tool = find_tool(config, target).ok_or_else(|| off("there is neither uv nor the tree's pip".to_owned()))?;
    // Kernels of other users can't write there, and Landlock lets none.
    let guarded = sandbox::is_root() || landlock;
    let cache = Cache::open(&config.directory, config.cache_bytes, guarded)
        .inspect_err(|error| tracing::warn!(folder = %config.directory.display(), %error, "PACKAGE_DIR can't be used"))
        .map_err(|error| off(format!("PACKAGE_DIR can't be used: {}", error.kind())))?;
    let mut readable = vec![target.root.clone(), target.python.clone()];
    readable.extend(std::fs::canonicalize(&target.root));
    readable.extend(["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().filter_map(std::env::var_os).map(PathBuf::from));
    let mut executable = vec![std::fs::canonicalize(&target.python).unwrap_or_else(|_| target.python.clone())];
    if let Tool::Uv(program) = &tool {
        executable.push(std::fs::canonicalize(program).unwrap_or_else(|_| program.clone()));
    }
    // Processors, name servers, and what pip says of the system to the index.
    readable.extend(
        ["/proc", "/run/systemd/resolve", "/etc/debian_version", "/etc/os-release", "/etc/lsb-release"].map(PathBuf::from),
    );
    let cage = InstallerCage::new(readable, executable);
    let installer = Installer {
        no_programs: cage.no_programs(),
        starter: Starter { reaper, cage },
        tool,
        python: target.python.clone(),
        site: target.site.clone(),
        index: config.index.clone(),
        min_age: config.min_age,
    };
    Ok(Workshop { cache: Arc::new(cache), installer, let_in_by_rule: landlock })
}

/// uv where it is named, beside the tree or on the path; else the tree's pip.
fn find_tool(config: &PackagesConfig, target: &Target) -> Option<Tool> {
    let pip = || Some(target.root.join("pip.zip")).filter(|pip| pip.is_file()).map(Tool::Pip);
    match &config.uv {
        Some(none) if none.as_os_str().is_empty() => return pip(),
        // It is started in another folder.
        Some(uv) => return Some(Tool::Uv(std::path::absolute(uv).unwrap_or_else(|_| uv.clone()))),
        None => {}
    }
    let beside = target.root.parent().map(|build| build.join("tools/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An entry that is relative, or empty, is the folder one stands in: a program there may be anybody's.
    let path = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let uv = beside.into_iter().chain(path).map(|folder| folder.join("uv")).find(|uv| uv.is_file());
    uv.map(Tool::Uv).or_else(pip)
}
