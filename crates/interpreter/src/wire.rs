//! What the supervisor and the Python harness say to each other: all of it, and nothing else.
//!
//! Rules: each message is a type here, and read by its fields' names there. Both sides are parts of one build: a field, a
//! word or a kind that one side does not know is a fault of that build, and told as one. What each message looks like is in a
//! golden snapshot, and `tests` hold the harness to it: to each field it reads or sends, each kind of frame, and each number
//! that stands in both languages.

mod control;
pub(crate) mod frames;
mod job;
mod start;
#[cfg(test)]
mod tests;

pub(crate) use self::control::{Exit, Fork, ForkKernel, Message, Number, Request, StageWork};
pub(crate) use self::job::{Job, JobPackages};
pub(crate) use self::start::{Config, Filters, Start};

/// Size of the memory in which a kernel keeps output it has not sent: a half for each stream.
pub(crate) const SHARED_SIZE: u64 = 1 << 16;
/// In front of each half: a u32 of how much is pending, a u32 of how much the cell has sent as frames before.
pub(crate) const SHARED_HEADER: u64 = 8;
/// With what a kernel exits whose harness has failed.
pub(crate) const HARNESS_FAULT: i32 = 70;
