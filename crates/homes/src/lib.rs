//! Where the tests run programs: from places that every user can reach, as an ordinary user, and on a kernel that refuses
//! what older kernels and Lambda functions refuse.
#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The ordinary user that tests become: the one a Lambda function has.
pub const USER: u32 = 993;

/// Whether the tests can become another user.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The Python tree and `programs`, at places that every user can reach: copies, when the checkout is in a closed folder.
pub fn reachable<const N: usize>(programs: [&Path; N]) -> (PathBuf, [PathBuf; N]) {
    let tree = repository().join("build/tree");
    let readable = Command::new("test").arg("-r").arg(tree.join("tree.json")).uid(USER).status();
    if !is_root() || readable.is_ok_and(|status| status.success()) {
        return (tree, programs.map(Path::to_owned));
    }
    let copies = std::env::temp_dir().join("code-interpreter-test-install");
    let script = "to=$0; exec 9>\"$to.lock\"; flock 9; mkdir -p \"$to\" && chmod 755 \"$to\" && cp -au \"$@\" \"$to/\"";
    let status = Command::new("sh").args(["-c", script]).arg(&copies).arg(&tree).args(programs).status().unwrap();
    assert!(status.success());
    (copies.join("tree"), programs.map(|program| copies.join(program.file_name().unwrap())))
}

/// The program that starts another as on a kernel with less, built beside `program`.
pub fn jail_beside(program: &Path) -> PathBuf {
    built_beside(program, "lambda_jail")
}

/// Another program of the workspace, built beside `program`.
pub fn built_beside(program: &Path, name: &str) -> PathBuf {
    let other = program.parent().unwrap().join(name);
    assert!(other.exists(), "{} is not there: build the whole workspace", other.display());
    other
}
