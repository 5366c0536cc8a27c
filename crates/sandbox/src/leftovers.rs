//! Ends what a server that was killed has left running.
//!
//! Rule: only what can't be anybody else's is ended. Processes of a user that only the dead server's kernels were; and
//! processes of our own user that bear the name of the dead server's directory and have given up all further rights, as
//! kernels have and an operator's shell that stands in the directory has not. Nothing here is needed where a PID namespace
//! ended with its first process.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::pidfd::Pidfd;
use crate::proc::{self, Stat};

/// Looks before giving up on processes that start others faster than they can be ended.
const MAX_ROUNDS: u32 = 50;
const DEATH_PATIENCE_MS: i64 = 1000;

/// Ends what still runs of the server that had `directory`, whose kernels were `users`, and gives the number of processes.
/// Blocks for milliseconds.
pub fn end_leftovers(directory: &Path, users: &BTreeSet<u32>) -> usize {
    let mut ended = 0;
    for _ in 0..MAX_ROUNDS {
        let all = proc::all_stats();
        let others = servers_beside(directory, &all);
        let alive = all.values().filter(|stat| !stat.zombie && stat.pid != crate::process_id());
        // The handle first: what is read then is of this process, or the handle is of one that has gone.
        let handles = alive.filter_map(|stat| Some((stat.pid, Pidfd::open(stat.pid)?)));
        let is_left = |pid| match proc::user_of(pid) {
            Some(user) if users.contains(&user) => !is_below(pid, &others, &all),
            Some(user) => user == crate::user_id() && proc::has_no_new_privileges(pid) && bears(pid, directory),
            None => false,
        };
        let victims = handles.filter(|(pid, _)| is_left(*pid)).map(|(_, handle)| handle).collect::<Vec<_>>();
        if victims.is_empty() {
            break;
        }
        for signal in [Signal::STOP, Signal::KILL] {
            for victim in &victims {
                victim.signal(signal);
            }
        }
        for victim in &victims {
            victim.wait_dead(DEATH_PATIENCE_MS);
        }
        ended += victims.len();
    }
    ended
}

/// Whether any process of the user is alive.
pub fn is_user_alive(user: u32) -> bool {
    proc::all_stats().values().any(|stat| !stat.zombie && proc::user_of(stat.pid) == Some(user))
}

/// Other servers of our user, and their zygotes: a kernel of theirs may be the same user as one of the dead server's.
fn servers_beside(directory: &Path, all: &HashMap<i32, Stat>) -> HashSet<i32> {
    let name = directory.file_name().unwrap_or_default().as_bytes();
    let called = name.iter().rposition(|byte| *byte == b'-').map_or(name, |last| &name[..=last]);
    let is_another = |path: &Path| {
        path.is_absolute() && path != directory && path.file_name().is_some_and(|name| name.as_bytes().starts_with(called))
    };
    let zygotes = all.values().filter(|stat| {
        proc::user_of(stat.pid) == Some(crate::user_id())
            && arguments(stat.pid).split(|byte| *byte == 0).any(|word| is_another(Path::new(OsStr::from_bytes(word))))
    });
    zygotes.flat_map(|stat| [stat.pid, stat.parent]).filter(|pid| *pid > 1).collect()
}

fn is_below(pid: i32, ancestors: &HashSet<i32>, all: &HashMap<i32, Stat>) -> bool {
    let parents = std::iter::successors(Some(pid), |pid| all.get(pid).map(|stat| stat.parent));
    parents.take(all.len()).any(|pid| ancestors.contains(&pid))
}

/// Whether the process names the directory: in its command line, which everything forked from a zygote has of it; or in
/// the environment or work directory of a program that was started, as far as they can be read.
fn bears(pid: i32, directory: &Path) -> bool {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let (arguments, variables) = (arguments(pid), std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
    let values = variables.split(|byte| *byte == 0).filter_map(|line| line.splitn(2, |byte| *byte == b'=').nth(1));
    let mut names = arguments.split(|byte| *byte == 0).chain(values).map(path);
    names.any(|name| name.starts_with(directory))
        || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|name| name.starts_with(directory))
}

fn arguments(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}
