//! Builds the Python tree: a `CPython`, the data-science stack, its bytecode and matplotlib's font cache.
//!
//! Rule: one code path. Wherever the interpreter comes from, it arrives as an archive in the layout of the standalone
//! builds and is installed by `uv python install`; the archive's address is the only difference. What is tested
//! locally is then what ships.

mod archive;
mod local_python;
mod run;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What stops a build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{what} failed:\n{output}")]
    Command {
        /// What it was to do.
        what: String,
        /// What it printed.
        output: String,
    },
    /// No interpreter could be had.
    #[error("no CPython found: {0}")]
    NoPython(String),
}

impl BuildError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

#[derive(Parser)]
#[command(about = "Builds what the code interpreter runs Python from")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the local Python tree, or leave it alone when it is current.
    Tree(tree::TreeOptions),
}

/// The whole program: builds what was asked for and says what it does on the way.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a build tool talks to the person who runs it")]
pub fn main() -> ExitCode {
    let Command::Tree(options) = Arguments::parse().command;
    match tree::build(&options, &mut |step| println!("  {step}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("build-layer: {error}");
            ExitCode::FAILURE
        }
    }
}
