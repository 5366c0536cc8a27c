//! Kills a kernel and everything it started.
//!
//! Rule: a kill is done when a scan finds nothing left, and who asked for it is told whether it is. A process group is no
//! help (a daemon leaves it), so the tree is followed by descent: kernels inherit their orphans, and the supervisor inherits
//! those of a kernel that refused to. Where there are PID namespaces none of this is needed: a namespace ends with its first
//! process. Where the kernel denies that (`prctl` in a Lambda function), orphans go to init and are found by user and start
//! time. Besides, a process can be born as its zygote's child and be below no kernel: so every child of a zygote that the
//! zygote has not announced is killed, and where each call has a user of its own, all that this user has.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::cpu;
use crate::pidfd::Pidfd;
use crate::proc::{self, Stat};

/// Rounds of stop, rescan and kill before giving up on a tree that grows faster than it can be stopped.
const MAX_ROUNDS: usize = 200;

/// How long the end of a whole namespace may take, and that of a tree.
const NAMESPACE_PATIENCE_MS: i64 = 10_000;
const TREE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a killed process that is alone may take to be dead, on a thread that others wait for.
const DEATH_PATIENCE_MS: i64 = 20;

/// How long a zygote may take to announce what it has forked before all that is unknown counts as strange.
const BIRTH_PATIENCE: Duration = Duration::from_secs(2);

/// A kernel's process, as far as killing it needs to know.
#[derive(Debug)]
pub struct KernelProcess {
    /// Its id.
    pub pid: i32,
    /// A handle that can't come to mean another process.
    pub handle: Pidfd,
    /// The user it runs as.
    pub uid: u32,
    /// Whether it has a PID namespace to itself, so that everything it started ends with that.
    contained: bool,
    /// The first process of the namespace, where that is another: its id, and a handle.
    first: Option<(i32, Pidfd)>,
    /// Clock ticks after boot at which it was started; none when it had ended before it was looked at.
    started: Option<u64>,
}

impl KernelProcess {
    /// Takes note of a kernel that was just started. `namespace`: that it has a PID namespace to itself, and the first process of
    /// it, where that is another.
    pub fn new(pid: i32, handle: Pidfd, uid: u32, namespace: Option<Option<Pidfd>>) -> Self {
        let contained = namespace.is_some();
        let first = namespace.flatten().and_then(|first| Some((first.pid()?, first)));
        Self { pid, handle, uid, contained, first, started: proc::stat(pid).map(|stat| stat.started) }
    }

    /// What it and all it has started have run, as far as they can still be asked; none when it has gone.
    pub fn cpu_time(&self) -> Option<Duration> {
        let waited_for = proc::cpu_time_of_children(self.pid)?;
        let alive = proc::descendants(self.pid).into_iter().filter_map(cpu::time_of).sum::<Duration>();
        Some(cpu::time_of(self.pid)? + waited_for + alive)
    }

    /// The most that it has had in memory at once, in bytes; none when it has gone.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        let status = proc::text(format!("/proc/{}/status", self.pid))?;
        Some(proc::field(&status, "VmHWM:") << 10)
    }

    /// Whether no other process of the machine is of its user, so that all of this user's are its own.
    fn has_own_user(&self) -> bool {
        self.uid != crate::user_id()
    }

    /// Waits until nothing of a kernel that was ended can act any more, not even in a system call it was in; false when that
    /// takes too long.
    pub fn wait_dead(&self) -> bool {
        self.last_to_die().wait_dead(NAMESPACE_PATIENCE_MS)
    }

    /// Dead only when all that it has started is, where it has a namespace.
    fn last_to_die(&self) -> &Pidfd {
        self.first.as_ref().map_or(&self.handle, |(_, first)| first)
    }

    /// Sends SIGKILL to it, and to all of its namespace.
    fn end_namespace(&self) {
        self.handle.signal(Signal::KILL);
        if let Some((_, first)) = &self.first {
            first.signal(Signal::KILL);
        }
    }

    /// Whether nothing else is in its namespace: nothing below it, and when it has ended by itself, nothing that it left.
    fn is_alone_in_namespace(&self) -> bool {
        proc::children(self.pid).is_empty() && self.first.as_ref().is_none_or(|(pid, _)| proc::children(*pid).is_empty())
    }

    /// False when the number has come to mean another process.
    fn is_itself(&self) -> bool {
        proc::stat(self.pid).is_some_and(|stat| Some(stat.started) == self.started)
    }
}

/// Knows which processes belong there, and ends all others.
#[derive(Debug)]
pub struct Reaper {
    inherits_orphans: bool,
    known: Mutex<Known>,
    born: Condvar,
    /// Who inherits orphans, where the supervisor does not; 0 while it is not known.
    heir: AtomicI32,
}

#[derive(Debug, Default)]
struct Known {
    /// Children of the supervisor.
    own_children: HashSet<i32>,
    zygotes: HashSet<i32>,
    kernels: HashSet<i32>,
    /// Kernels that were asked for and are not announced yet, by number.
    births: BTreeSet<u64>,
    next_birth: u64,
}

/// A kernel that was asked for. Until it is announced or given up, an unknown child of a zygote may be this one.
#[derive(Debug)]
pub struct Birth {
    reaper: Arc<Reaper>,
    number: u64,
}

impl Birth {
    /// The zygote has said which process it is.
    pub fn announce(self, pid: i32) {
        self.reaper.known().kernels.insert(pid);
    }

    /// It is itself a zygote.
    pub fn announce_zygote(self, pid: i32) {
        self.reaper.known().zygotes.insert(pid);
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        self.reaper.known().births.remove(&self.number);
        self.reaper.born.notify_all();
    }
}

impl Reaper {
    /// `inherits_orphans`: whether the supervisor is a subreaper.
    pub fn new(inherits_orphans: bool) -> Self {
        Self { inherits_orphans, known: Mutex::default(), born: Condvar::new(), heir: AtomicI32::new(0) }
    }

    /// Takes note of who was seen to inherit an orphan. Other ancestors have children of their own, which may be of the same
    /// user and younger than a kernel, and are none of its.
    pub fn orphans_go_to(&self, heir: i32) {
        self.heir.store(heir, Ordering::Relaxed);
    }

    /// Starts a child of the server's own: at no moment is it taken for something that a kernel left behind.
    ///
    /// # Errors
    /// What `start` says.
    pub fn start<C>(&self, start: impl FnOnce() -> std::io::Result<(C, i32)>) -> std::io::Result<C> {
        let mut known = self.known();
        let (child, pid) = start()?;
        known.own_children.insert(pid);
        Ok(child)
    }

    /// A child that has ended.
    pub fn release(&self, pid: i32) {
        self.known().own_children.remove(&pid);
    }

    /// Takes note of a process that forks zygotes.
    pub fn know_zygotes(&self, pids: impl IntoIterator<Item = i32>) {
        self.known().zygotes.extend(pids);
    }

    /// One has ended.
    pub fn forget_zygote(&self, pid: i32) {
        self.known().zygotes.remove(&pid);
        // Its own zygote may have ended before it: then it is a child of ours.
        self.reap(pid);
    }

    /// All have ended.
    pub fn forget_zygotes(&self) {
        self.known().zygotes.clear();
    }

    /// Takes the zombies of what became our child when its zygote ended.
    pub fn reap_strays(&self) {
        let children = if self.inherits_orphans { proc::children(crate::process_id()) } else { Vec::new() };
        for pid in children {
            if proc::stat(pid).is_some_and(|stat| stat.zombie) {
                self.reap(pid);
            }
        }
    }

    /// A kernel is about to be asked for.
    pub fn birth(self: &Arc<Self>) -> Birth {
        let mut known = self.known();
        let number = known.next_birth;
        known.next_birth += 1;
        known.births.insert(number);
        Birth { reaper: self.clone(), number }
    }

    /// Sends SIGKILL to a kernel that has no other process. True when it had none, so that nothing of it can act any
    /// more; false when there may be more that [`Reaper::kill_tree`] must end.
    pub fn kill_alone(&self, kernel: &KernelProcess) -> bool {
        if kernel.contained {
            kernel.end_namespace();
            return kernel.is_alone_in_namespace();
        }
        // A look at all processes of the machine takes too long for this thread.
        if kernel.has_own_user() || !proc::children(kernel.pid).is_empty() {
            return false;
        }
        kernel.handle.signal(Signal::KILL);
        // A child made after the first look shows in the second: a dead process can't fork, and its children have another parent.
        let alone = kernel.handle.wait_dead(DEATH_PATIENCE_MS)
            && proc::children(kernel.pid).is_empty()
            && self.unknown_of_zygotes().is_empty()
            && self.orphans(kernel).is_empty();
        if alone {
            self.forget_kernel(kernel.pid);
        }
        alone
    }

    /// Kills a kernel and its whole tree; comes back when nothing is left. False when something may be: what it used must
    /// not be used again. Blocks for milliseconds.
    pub fn kill_tree(&self, kernel: &KernelProcess) -> bool {
        if kernel.contained {
            kernel.end_namespace();
            // The first process of a namespace is dead only when all others in it are.
            return kernel.last_to_die().wait_dead(NAMESPACE_PATIENCE_MS);
        }
        // So that it starts nothing while all that it has started is looked for.
        kernel.handle.signal(Signal::STOP);
        let mut dead = false;
        let until = Instant::now() + TREE_PATIENCE;
        // A process that a driver or a file system holds up can't be ended: nobody waits for it longer.
        for _ in (0..MAX_ROUNDS).take_while(|_| Instant::now() < until) {
            let Some(victims) = self.victims(kernel) else {
                kernel.handle.signal(Signal::KILL);
                return false;
            };
            // Its children have another parent by the time it is dead: a look before that may find them nowhere.
            if dead && victims.is_empty() {
                self.forget_kernel(kernel.pid);
                return true;
            }
            let handles = self.stop_all(kernel, victims);
            for (_, handle) in &handles {
                handle.signal(Signal::KILL);
            }
            kernel.handle.signal(Signal::KILL);
            dead = kernel.handle.wait_dead(1000);
            for (pid, handle) in &handles {
                let left = until.saturating_duration_since(Instant::now()).as_millis().min(1000);
                handle.wait_dead(i64::try_from(left).unwrap_or(0));
                self.reap(*pid);
            }
        }
        false
    }

    /// Stops every process of the tree, and what it forked meanwhile, until a look finds nothing new.
    fn stop_all(&self, kernel: &KernelProcess, first: Vec<i32>) -> Vec<(i32, Pidfd)> {
        let mut stopped: HashMap<i32, Pidfd> = HashMap::new();
        let mut new = first;
        for _ in 0..MAX_ROUNDS {
            for pid in new.drain(..) {
                // The number may have come to mean another process since it was found: never one of another user.
                if let Some(handle) = Pidfd::open(pid).filter(|_| proc::user_of(pid) == Some(kernel.uid)) {
                    handle.signal(Signal::STOP);
                    stopped.insert(pid, handle);
                }
            }
            let seen = stopped.keys().copied().collect::<Vec<_>>();
            new.extend(seen.iter().flat_map(|pid| proc::children(*pid)));
            new.extend(self.victims(kernel).unwrap_or_default());
            new.retain(|pid| !stopped.contains_key(pid));
            if new.is_empty() {
                break;
            }
        }
        stopped.into_iter().collect()
    }

    /// Live processes that must go with the kernel, without itself; none when it can't be told.
    fn victims(&self, kernel: &KernelProcess) -> Option<Vec<i32>> {
        let mut found = if kernel.is_itself() { proc::descendants(kernel.pid) } else { Vec::new() };
        found.extend(self.orphans(kernel));
        let strange = self.strange_children_of_zygotes()?;
        found.extend(strange.iter().flat_map(|pid| proc::descendants(*pid)));
        found.extend(strange);
        if kernel.has_own_user() {
            found.extend(proc::all_of_user(kernel.uid));
        }
        found.sort_unstable();
        found.dedup();
        found.retain(|pid| *pid != kernel.pid && proc::stat(*pid).is_some_and(|stat| !stat.zombie));
        Some(found)
    }

    /// Children of zygotes that are neither zygotes nor kernels: none of them can be a kernel on its way. None when a zygote
    /// does not say for too long what it has forked.
    fn strange_children_of_zygotes(&self) -> Option<Vec<i32>> {
        // In this order: a kernel on its way is unknown, and its birth outstanding, or it is known.
        let unknown = self.unknown_of_zygotes();
        if unknown.is_empty() {
            return Some(unknown);
        }
        let mut known = self.known();
        let outstanding = known.births.clone();
        let until = Instant::now() + BIRTH_PATIENCE;
        while !known.births.is_disjoint(&outstanding) {
            let left = until.checked_duration_since(Instant::now())?;
            known = self.born.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(unknown.into_iter().filter(|pid| !known.kernels.contains(pid) && !known.zygotes.contains(pid)).collect())
    }

    fn unknown_of_zygotes(&self) -> Vec<i32> {
        let zygotes = self.known().zygotes.iter().copied().collect::<Vec<_>>();
        let children = zygotes.into_iter().flat_map(proc::children).collect::<Vec<_>>();
        let known = self.known();
        let is_strange = |pid: &i32| !known.kernels.contains(pid) && !known.zygotes.contains(pid);
        children.into_iter().filter(is_strange).filter(|pid| proc::stat(*pid).is_some_and(|stat| !stat.zombie)).collect()
    }

    /// Processes that a kernel left behind: alive, not below it any more, and not ours.
    fn orphans(&self, kernel: &KernelProcess) -> Vec<i32> {
        if self.inherits_orphans {
            // In this order: a child that is being started is seen in both or in none.
            let children = proc::children(crate::process_id());
            let (own, others) = {
                let known = self.known();
                (known.own_children.clone(), &known.zygotes | &known.kernels)
            };
            let mut found = Vec::new();
            for pid in children {
                // Whose zygote has ended is a child of ours, and nothing that the kernel left.
                if own.contains(&pid) || others.contains(&pid) {
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
        let others = {
            let known = self.known();
            &known.zygotes | &known.kernels
        };
        let same_user = |pid| !others.contains(&pid) && proc::user_of(pid) == Some(kernel.uid);
        let heirs = match self.heir.load(Ordering::Relaxed) {
            0 => ancestors(&all, crate::process_id()),
            heir => HashSet::from([1, heir]),
        };
        // Of one that had ended before it was seen nothing can be told by time, and it has run no code.
        kernel.started.map_or_else(Vec::new, |started| orphans_of_init(&all, &heirs, started, same_user))
    }

    fn forget_kernel(&self, pid: i32) {
        self.known().kernels.remove(&pid);
        // Of a zygote that has ended.
        self.reap(pid);
    }

    /// Takes the zombie of a stray that became our child.
    fn reap(&self, pid: i32) {
        if self.inherits_orphans
            && !self.known().own_children.contains(&pid)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
