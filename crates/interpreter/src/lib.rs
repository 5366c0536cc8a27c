//! The engine: warm zygotes, kernels forked from them, capture, limits and supervision.
//!
//! Rule: what a kernel says is content, never authority. Status, time, exit code and truncation come from the
//! supervisor's own clock and counts; every frame is length-capped before it is stored; a kernel's tree is dead before
//! its answer is given.
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests start children of their own"))]

mod answer;
mod engine;
mod error;
mod isolation;
mod kernel;
mod probe;
mod state_dir;
mod told;
mod tree;
mod users;
mod wire;
mod zygote;

pub use engine::{Engine, EngineConfig, EngineStatus, StageStatus};
pub use error::EngineError;
pub use isolation::SWITCHABLE_LAYERS;
pub use probe::{Probe, Probes};
pub use sandbox::Allowed;
pub use state_dir::wait_for_engines;
pub use tree::PythonTree;
pub use zygote::Preload;
