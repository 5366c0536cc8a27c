//! The engine: warm zygotes, kernels forked from them, capture, limits and supervision.
//!
//! Rule: what a kernel says is content, never authority. Status, time, exit code and truncation come from the
//! supervisor's own clock and counts; every frame is length-capped before it is stored; a kernel's tree is dead before
//! its answer is given.

mod answer;
mod capture;
mod collected;
mod engine;
mod files;
mod frames;
mod home;
mod isolation;
mod job;
mod kernel;
mod pool;
mod purge;
mod run;
mod stage;
mod stages;
mod state_dir;
mod status;
mod tree;
mod users;
mod watch;
mod zygote;

pub use engine::{Engine, EngineConfig, EngineError};
pub use isolation::SWITCHABLE_LAYERS;
pub use sandbox::Allowed;
pub use stage::{Preload, stage_for};
pub use state_dir::wait_for_engines;
pub use status::{EngineStatus, StageStatus};
pub use tree::PythonTree;
pub use zygote::Held;
