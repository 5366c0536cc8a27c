//! `build-layer`: makes the Python tree that every door serves.

use std::process::ExitCode;

fn main() -> ExitCode {
    layer::main()
}
