//! The doors that speak: MCP over HTTP and stdio, and plain HTTP routes, over one engine.
//!
//! Rule: one contract. A tool is written once, in `tools`, and every door calls the same function.

mod accept;
mod answer;
mod batch;
mod body;
mod calls;
mod catalogue;
mod cors;
mod environment;
mod http_door;
mod install;
mod invocation;
mod listener;
mod log;
mod mcp;
mod message;
mod names;
mod params;
mod progress;
mod refusal;
mod reply;
mod reports;
mod resources;
mod stdio;
mod stream;
mod tools;
mod visit;

pub use environment::{EnvironmentInfo, Layer, LayerState, require};
pub use http_door::{HttpOptions, router, serve};
pub use invocation::{Boxed, Guard, Invocation};
pub use log::LogLines;
pub use names::ServedNames;
pub use reply::StructuredContent;
pub use reports::PackageList;
pub use stdio::serve_stdio;
pub use tools::Interpreter;
