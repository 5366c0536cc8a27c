//! The function under AWS's own emulator, as a user who has next to no rights on a kernel that refuses what Lambda's does,
//! behind a stand-in for API Gateway.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test says by failing what is wrong")]

mod attacks;
mod deploy;
mod doors;
mod function;
mod templates;
