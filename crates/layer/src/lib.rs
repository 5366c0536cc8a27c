//! Builds the Python tree (a `CPython`, the data-science stack, its bytecode and matplotlib's font cache), and the Lambda
//! layer, which is the same tree made to fit.
//!
//! Rule: one code path. Wherever the interpreter comes from, it arrives as an archive in the layout of the standalone
//! builds and is installed by `uv python install`; the archive's address is the only difference. What is tested
//! locally is then what ships.

mod archive;
mod bytecode;
mod elf;
mod files;
mod interpreter;
mod layer;
mod local_python;
mod package;
mod pip;
mod run;
mod tree;
mod trim;

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
    /// Lambda would refuse it.
    #[error(
        "the layer and the bootstrap are {over} bytes over the {limit} that Lambda takes: see the table above, and take a          package out of layer/requirements.in (then `make lock`) or build for arm64, whose libraries are smaller"
    )]
    TooLarge {
        /// Bytes too many.
        over: u64,
        /// Bytes allowed.
        limit: u64,
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
    /// Build the Lambda layer and its zip.
    Layer(layer::LayerOptions),
    /// Unpack a layer's zip as Lambda does.
    Unpack(layer::UnpackOptions),
}

/// The whole program: builds what was asked for and says what it does on the way.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a build tool talks to the person who runs it")]
pub fn main() -> ExitCode {
    let mut say = |step: &str| println!("  {step}");
    let result = match Arguments::parse().command {
        Command::Tree(options) => tree::build(&options, &mut say),
        Command::Layer(options) => layer::build(&options, &mut say),
        Command::Unpack(options) => layer::unpack(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("build-layer: {error}");
            ExitCode::FAILURE
        }
    }
}
