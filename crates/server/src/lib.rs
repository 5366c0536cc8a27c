//! The service, and the doors that speak for it: MCP over HTTP and stdio, and plain HTTP routes.
//!
//! Rule: one contract. What the server does is written once, in `service`, and every door calls the same function with the
//! call that it was asked by.

mod batch;
mod http_door;
mod log;
mod mcp;
mod message;
mod params;
mod refusal;
mod service;
mod stdio;

pub use http_door::{HttpOptions, ServedNames, router, serve};
pub use log::LogLines;
pub use service::{
    Call, Door, DoorRules, EnvironmentInfo, Guard, LayerReport, LayerState, PackageList, Principal, Service, StructuredContent,
    require,
};
pub use stdio::serve_stdio;
