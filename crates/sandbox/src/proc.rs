//! Reads `/proc`. Rule: a process may vanish between any two reads; then it simply counts as gone.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// `USER_HZ` is 100 on every architecture that this is built for.
const MILLISECONDS_A_TICK: u64 = 10;

/// One line of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// Dead and not taken yet: a process whose first thread has ended and others have not is alive.
    pub(crate) zombie: bool,
    /// Clock ticks after boot.
    pub(crate) started: u64,
}

/// How many threads a user has, over the whole machine: what `RLIMIT_NPROC` counts.
pub fn threads_of_user(uid: u32) -> u64 {
    all_pids()
        .filter_map(|pid| text(format!("/proc/{pid}/status")))
        .filter(|status| field(status, "Uid:") == u64::from(uid))
        .map(|status| field(&status, "Threads:"))
        .sum()
}

/// A file of `/proc`. A process chooses the bytes of its own name, which need not be UTF-8.
pub(crate) fn text(path: impl AsRef<Path>) -> Option<String> {
    let mut file = std::fs::File::open(path.as_ref()).ok()?;
    // The usual way asks for a size, which such files have none of, and then reads in ever longer pieces, from 32 bytes on.
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..]).ok()? {
            0 => break,
            read => length += read,
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// The first number of a line in a status file.
pub(crate) fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// What bounds a process: its resource limits, niceness and processors, as text; `None` when it has gone.
pub fn bounds_of(pid: i32) -> Option<String> {
    let stat = text(format!("/proc/{pid}/stat"))?;
    let nice = stat.rsplit(')').next()?.split_whitespace().nth(16)?.to_owned();
    let status = text(format!("/proc/{pid}/status"))?;
    let processors = status.lines().find(|line| line.starts_with("Cpus_allowed:"))?;
    Some(format!("{}{nice} {processors}", text(format!("/proc/{pid}/limits"))?))
}

/// What the children that a process has waited for have run.
pub(crate) fn cpu_time_of_children(pid: i32) -> Option<Duration> {
    let stat = text(format!("/proc/{pid}/stat"))?;
    let ticks =
        stat.rsplit(')').next()?.split_whitespace().skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
    Some(Duration::from_millis(ticks * MILLISECONDS_A_TICK))
}

/// Every process of a user.
pub(crate) fn all_of_user(uid: u32) -> Vec<i32> {
    all_pids().filter(|pid| user_of(*pid) == Some(uid)).collect()
}

/// The real user of a process.
pub(crate) fn user_of(pid: i32) -> Option<u32> {
    let status = text(format!("/proc/{pid}/status"))?;
    u32::try_from(field(&status, "Uid:")).ok()
}

/// Whether the process can't gain rights by starting a program, and nothing it starts can.
pub(crate) fn has_no_new_privileges(pid: i32) -> bool {
    let status = text(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "NoNewPrivs:") == 1
}

/// Whether the kernel keeps lists of children (`CONFIG_PROC_CHILDREN`).
static LISTS_CHILDREN: LazyLock<bool> =
    LazyLock::new(|| Path::new(&format!("/proc/self/task/{}/children", crate::process_id())).exists());

/// Direct children, from the kernel's own list; from a scan where it keeps none.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    if !*LISTS_CHILDREN {
        return all_stats().into_values().filter(|stat| stat.parent == pid).map(|stat| stat.pid).collect();
    }
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        // None means that the thread has ended: its children have gone to another.
        if let Some(list) = text(thread.path().join("children")) {
            found.extend(list.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
        }
    }
    found
}

/// Everything below a process, nearest first.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        for child in children(pid) {
            if !found.contains(&child) {
                found.push(child);
            }
        }
        next += 1;
    }
    found
}

/// Every process.
pub(crate) fn all_stats() -> HashMap<i32, Stat> {
    all_pids().filter_map(stat).map(|stat| (stat.pid, stat)).collect()
}

pub(crate) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(pid, &text(format!("/proc/{pid}/stat"))?)
}

/// The name in the second field may hold anything, so the rest is counted from its last parenthesis.
fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    let fields = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect::<Vec<_>>();
    let threads = fields.get(17)?.parse::<u32>().ok()?;
    Some(Stat {
        pid,
        zombie: matches!(*fields.first()?, "Z" | "X") && threads <= 1,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn all_pids() -> impl Iterator<Item = i32> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_made_to_confuse() {
        let text = "7 (a) R 1 (b) S 42 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 9876 1 1";
        let stat = parse_stat(7, text).expect("a whole line");
        assert_eq!((stat.parent, stat.zombie, stat.started), (42, false, 9876));
    }

    #[test]
    fn a_child_is_found_below_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(descendants(crate::process_id()).contains(&pid));
        assert_eq!(user_of(pid), Some(crate::user_id()));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(!descendants(crate::process_id()).contains(&pid));
    }
}
