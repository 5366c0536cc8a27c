//! Processes: starting the zygote, talking over descriptors, measuring and killing what user code leaves behind.
//!
//! Rules: the only crate with `unsafe` and raw system calls; every call that a kernel may refuse answers whether it
//! held and is never fatal (inside a Lambda function `prctl` is denied altogether); a kill is only done when nothing
//! of the killed tree is left.
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests start children and remove folders of their own"))]

mod beneath;
mod calls;
mod cgroup;
mod cpu;
mod descriptors;
mod first_process;
mod installer;
mod kill;
mod landlock;
mod left_files;
mod leftovers;
mod nagle;
mod objects;
mod pidfd;
mod proc;
mod removal;
mod seccomp;
mod signals;
mod spawn;
mod supervisor;
mod unreadable;
mod usage;

pub use crate::cgroup::Cgroup;
pub use crate::landlock::Landlock;
pub use calls::refused_calls;
pub use descriptors::{
    ControlSocket, KernelDescriptors, SupervisorDescriptors, disk_size, kernel_descriptors, memory_file, receive, waiting_bytes,
    watched,
};
pub use first_process::first_process_program;
pub use installer::{InstallerCage, InstallerLimits};
pub use kill::{Birth, KernelProcess, Reaper};
pub use left_files::{LeftFile, LeftFiles, TakeBounds, left_files, may_have_files};
pub use leftovers::{end_leftovers, is_user_alive};
pub use nagle::send_at_once;
pub use objects::Leftovers;
pub use pidfd::Pidfd;
pub use proc::{bounds_of, threads_of_user};
pub use removal::{remove, remove_as};
pub use seccomp::{Allowed, OWN_PID, native_arch, own_signals_program, programs, sockets_program};
pub use signals::{die_of, is_ignored, restore};
pub use spawn::{ChildDescriptor, spawn};
pub use supervisor::{Protection, is_root, process_id, protect_supervisor, raise_descriptor_limit, user_id};
pub use unreadable::start_again_unreadable;
pub use usage::{Holding, Look, Usage, bytes_in_use, holding, memory_of, usage_of_tree};
