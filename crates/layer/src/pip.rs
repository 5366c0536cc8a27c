//! pip as one small archive that Python runs from: the installer where uv does not fit.
//!
//! Rule: bytecode without sources, as an archive keeps no caches and pip would be compiled anew for each install.

use std::path::Path;
use std::process::Command;

use crate::files::{Entry, walk};
use crate::run::run;
use crate::{BuildError, package};

/// Its name in the tree.
pub(crate) const ARCHIVE: &str = "pip.zip";

/// Puts the pip of `lock` into `tree`, for the version of `python`.
pub(crate) fn pack(uv: &Path, lock: &Path, python: &Path, work: &Path, tree: &Path) -> Result<(), BuildError> {
    let folder = work.join("pip");
    let mut install = Command::new(uv);
    install.args(["pip", "install", "--no-config", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]);
    install.args(["--no-compile-bytecode", "--target"]).arg(&folder).arg("--python").arg(python).arg("-r").arg(lock);
    run("installing pip", &mut install)?;
    let mut compile = Command::new(python);
    compile.args(["-I", "-S", "-B", "-m", "compileall", "-q", "-b", "-j", "1", "--invalidation-mode", "unchecked-hash", "-s"]);
    run("compiling pip", compile.arg(&folder).arg(&folder))?;
    for entry in walk(&folder)?.filter(Entry::is_file) {
        let extension = entry.path.extension().unwrap_or_default().to_string_lossy().into_owned();
        // Launchers for another system; sources that are compiled.
        let needless = extension == "exe" || extension == "py" && entry.path.with_extension("pyc").exists();
        if needless || entry.path.starts_with(folder.join("bin")) {
            std::fs::remove_file(&entry.path).map_err(BuildError::io(&entry.path))?;
        }
    }
    package::pack(&folder, "", &tree.join(ARCHIVE)).map(drop)
}
