//! Packages: what is installed, and what a call needs besides.
//!
//! Rules: a requirement is a name with versions, never a place to fetch from. What is installed comes as wheels, by a
//! short-lived process outside of the sandbox, into a folder of its own that is complete or not there; code never runs
//! beside a half-mixed set of versions.
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests start children and remove folders of their own"))]

mod archive;
mod cache;
mod config;
mod error;
mod folders;
mod installed;
mod installer;
mod names;
mod pin;
mod prepare;
mod process;
mod requirement;
mod seal;
mod shared;
mod words;
mod workshop;

pub use config::{IndexUrl, PackagesConfig, Target};
pub use error::{PackageError, Reason};
pub use installed::{Package, installed};
pub use prepare::{Packages, Prepared};
pub use requirement::name_of;
