//! The doors that speak: MCP over HTTP and stdio, and plain HTTP routes, over one engine.
//!
//! Rule: one contract. A tool is written once, in `tools`, and every door calls the same function.

mod environment;
mod http_door;
mod mcp;
mod progress;
mod refusal;
mod tools;

pub use environment::{EnvironmentInfo, Layer, LayerState, layers, require};
pub use http_door::{HttpOptions, router, serve};
pub use mcp::serve_stdio;
pub use tools::{Interpreter, PackageList};
