//! Kills a kernel and everything it started.
//!
//! Rule: a kill is done when a scan finds nothing left. A process group is no help (a daemon leaves it), so the tree is
//! followed by descent: kernels inherit their orphans, and the supervisor inherits those of a kernel that refused to.
//! Where there are PID namespaces none of this is needed: a namespace ends with its first process.
//! Where the kernel denies that (`prctl` in a Lambda function), orphans go to init and are found by user and start time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::descriptors::Pidfd;
use crate::proc::{self, Stat};

/// Rounds of stop, rescan and kill before giving up on a tree that grows faster than it can be stopped.
const MAX_ROUNDS: usize = 200;

/// How long the end of a whole namespace may take.
const NAMESPACE_PATIENCE_MS: i64 = 10_000;

/// A kernel's process, as far as killing it needs to know.
#[derive(Debug)]
pub struct KernelProcess {
    /// Its id.
    pub pid: i32,
    /// A handle that can't come to mean another process.
    pub handle: Pidfd,
    /// The user it runs as.
    pub uid: u32,
    /// Whether it is the first process of a PID namespace, so that everything it started ends with it.
    pub contained: bool,
    /// Clock ticks after boot at which it was started.
    started: u64,
}

impl KernelProcess {
    /// Takes note of a kernel that was just started.
    pub fn new(pid: i32, handle: Pidfd, uid: u32, contained: bool) -> Self {
        Self { pid, handle, uid, contained, started: proc::stat(pid).map_or(0, |stat| stat.started) }
    }
}

/// Knows which children of the supervisor belong there, and ends all others.
#[derive(Debug)]
pub struct Reaper {
    inherits_orphans: bool,
    own_children: Mutex<HashSet<i32>>,
    /// Who inherits orphans, where the supervisor does not; 0 while it is not known.
    heir: AtomicI32,
}

impl Reaper {
    /// `inherits_orphans`: whether the supervisor is a subreaper.
    pub fn new(inherits_orphans: bool) -> Self {
        Self { inherits_orphans, own_children: Mutex::default(), heir: AtomicI32::new(0) }
    }

    /// Takes note of who was seen to inherit an orphan. Other ancestors have children of their own, which may be of the same
    /// user and younger than a kernel, and are none of its.
    pub fn orphans_go_to(&self, heir: i32) {
        self.heir.store(heir, Ordering::Relaxed);
    }

    /// A child that stays (the zygote).
    pub fn adopt(&self, pid: i32) {
        self.own_children.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
    }

    /// Starts a child of the server's own: at no moment is it taken for something that a kernel left behind.
    ///
    /// # Errors
    /// What `start` says.
    pub fn start<C>(&self, start: impl FnOnce() -> std::io::Result<(C, i32)>) -> std::io::Result<C> {
        let mut own = self.own_children.lock().unwrap_or_else(PoisonError::into_inner);
        let (child, pid) = start()?;
        own.insert(pid);
        Ok(child)
    }

    /// A child that has ended.
    pub fn release(&self, pid: i32) {
        self.own_children.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }

    /// Sends SIGKILL to a kernel that has no other process. True when it had none, so that nothing of it can act any
    /// more; false when there is a tree that [`Reaper::kill_tree`] must end.
    pub fn kill_alone(&self, kernel: &KernelProcess) -> bool {
        if kernel.contained {
            kernel.handle.signal(Signal::KILL);
            return proc::children(kernel.pid).is_empty();
        }
        if !proc::children(kernel.pid).is_empty() {
            return false;
        }
        kernel.handle.signal(Signal::KILL);
        // A child made after the first look shows in the second: a killed process can't fork.
        proc::children(kernel.pid).is_empty() && self.strays(kernel).is_empty()
    }

    /// Kills a kernel and its whole tree; comes back when nothing is left. Blocks for milliseconds.
    pub fn kill_tree(&self, kernel: &KernelProcess) {
        if kernel.contained {
            kernel.handle.signal(Signal::KILL);
            // The first process of a namespace is dead only when all others in it are.
            kernel.handle.wait_dead(NAMESPACE_PATIENCE_MS);
            return;
        }
        for _ in 0..MAX_ROUNDS {
            let mut victims = vec![kernel.pid];
            victims.extend(proc::descendants(kernel.pid));
            victims.extend(self.strays(kernel));
            let handles = self.stop_all(kernel, victims);
            for (_, handle) in &handles {
                handle.signal(Signal::KILL);
            }
            for (pid, handle) in &handles {
                handle.wait_dead(1000);
                self.reap(*pid);
            }
            if proc::descendants(kernel.pid).is_empty() && self.strays(kernel).is_empty() {
                return;
            }
        }
    }

    /// Stops every process of the tree, and what it forked meanwhile, until a look finds nothing new.
    fn stop_all(&self, kernel: &KernelProcess, first: Vec<i32>) -> Vec<(i32, Pidfd)> {
        let mut stopped: HashMap<i32, Pidfd> = HashMap::new();
        let mut new = first;
        for _ in 0..MAX_ROUNDS {
            for pid in new.drain(..) {
                if let Some(handle) = Pidfd::open(pid) {
                    handle.signal(Signal::STOP);
                    stopped.insert(pid, handle);
                }
            }
            let seen = stopped.keys().copied().collect::<Vec<_>>();
            new.extend(seen.iter().flat_map(|pid| proc::children(*pid)));
            new.extend(self.strays(kernel));
            new.retain(|pid| !stopped.contains_key(pid));
            if new.is_empty() {
                break;
            }
        }
        stopped.into_iter().collect()
    }

    /// Processes that a kernel left behind: alive, not below it any more, and not ours.
    fn strays(&self, kernel: &KernelProcess) -> Vec<i32> {
        if self.inherits_orphans {
            // In this order: a child that is being started is seen in both or in none.
            let children = proc::children(crate::process_id());
            let own = self.own_children.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut found = Vec::new();
            for pid in children {
                if own.contains(&pid) {
                    continue;
                }
                match proc::stat(pid) {
                    Some(stat) if stat.zombie => self.reap(pid),
                    Some(_) if proc::user_of(pid) == Some(kernel.uid) => {
                        found.push(pid);
                        found.extend(proc::descendants(pid));
                    }
                    _ => {}
                }
            }
            return found;
        }
        let all = proc::all_stats();
        let same_user = |pid| proc::user_of(pid) == Some(kernel.uid);
        let heirs = match self.heir.load(Ordering::Relaxed) {
            0 => ancestors(&all, crate::process_id()),
            heir => HashSet::from([1, heir]),
        };
        orphans_of_init(&all, &heirs, kernel.started, same_user)
    }

    /// Takes the zombie of a stray that became our child.
    fn reap(&self, pid: i32) {
        if self.inherits_orphans
            && !self.own_children.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// The chain of parents of a process, up to init.
fn ancestors(all: &HashMap<i32, Stat>, pid: i32) -> HashSet<i32> {
    let mut found = HashSet::from([1]);
    let mut next = all.get(&pid).map(|stat| stat.parent);
    while let Some(pid) = next {
        if pid == 0 || !found.insert(pid) {
            break;
        }
        next = all.get(&pid).map(|stat| stat.parent);
    }
    found
}

/// Live processes of the user started since `since` whose chain of parents reaches an heir of orphans through such
/// processes only.
fn orphans_of_init(all: &HashMap<i32, Stat>, heirs: &HashSet<i32>, since: u64, same_user: impl Fn(i32) -> bool) -> Vec<i32> {
    let this = crate::process_id();
    let candidate =
        |pid: i32| all.get(&pid).filter(|stat| stat.started >= since && pid != this && !heirs.contains(&pid) && same_user(pid));
    let is_orphan = |stat: &Stat| {
        let mut parent = stat.parent;
        for _ in 0..all.len() {
            if heirs.contains(&parent) {
                return true;
            }
            match candidate(parent) {
                Some(stat) => parent = stat.parent,
                None => return false,
            }
        }
        false
    };
    all.keys().filter_map(|pid| candidate(*pid)).filter(|stat| !stat.zombie && is_orphan(stat)).map(|stat| stat.pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, started: u64) -> (i32, Stat) {
        (pid, Stat { pid, parent, zombie: false, started })
    }

    #[test]
    fn orphans_are_found_by_descent_from_init_and_honest_neighbours_are_not() {
        let this = crate::process_id();
        let base = 1_000_000_000;
        let all = HashMap::from([
            process(1, 0, 0),
            process(base, 1, 5),             // an older daemon
            process(base + 1, base, 60),     // its new child: not ours
            process(base + 2, 1, 50),        // an orphan
            process(base + 3, base + 2, 55), // its child
            process(this, base, 10),
            process(base + 4, this, 70),     // below us: found by descent, not here
            process(base + 5, 1, 80),        // another user's
            process(base + 6, base + 5, 90), // started by that user for this one
            process(base + 7, base, 90),     // started by whoever started us, who inherits nothing
        ]);
        let mut found = orphans_of_init(&all, &HashSet::from([1]), 40, |pid| pid != base + 5);
        found.sort_unstable();
        assert_eq!(found, [base + 2, base + 3]);
    }
}
