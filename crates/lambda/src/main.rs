//! The program Lambda starts.

use std::process::ExitCode;

fn main() -> ExitCode {
    lambda::main()
}
