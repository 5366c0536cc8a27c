//! The build script of crates with tests that only root can run: it tells them by `cfg(root)` who builds them. A test that
//! has `#[cfg_attr(not(root), ignore = "needs root")]` is then counted as skipped wherever it can't be run.
#![expect(clippy::print_stdout, reason = "cargo reads it")]

use std::os::unix::fs::MetadataExt;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(root)");
    println!("cargo::rerun-if-env-changed=HOME");
    println!("cargo::rerun-if-env-changed=USER");
    // It is its owner's.
    if std::fs::metadata("/proc/self").is_ok_and(|myself| myself.uid() == 0) {
        println!("cargo::rustc-cfg=root");
    }
}
