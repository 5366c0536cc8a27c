//! `code-interpreter` with the tools that the MCP conformance suite calls: `make conformance` runs it, nothing ships it.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
