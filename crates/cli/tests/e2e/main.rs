//! End-to-end tests: each starts the real program and talks to it as a client would.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that can't go on fails, with the server's log")]

mod client;
mod command_line;
mod contract;
mod faults;
mod figures;
mod files;
mod floods;
mod greedy;
mod honest;
mod hostile;
mod http;
mod index;
mod isolation;
mod lifecycle;
mod neighbours;
mod packages;
mod policy;
mod semantics;
mod soak;
mod stdio;
mod transport;
