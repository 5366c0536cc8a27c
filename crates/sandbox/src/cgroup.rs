//! One control group around all kernels of a server: what they use together can't take the machine down.
//!
//! Rule: it bounds the sum, where the kernel lets us make one; each call's own limits are resource limits and polling,
//! which need no rights. A group for each call would slow every call: attaching a process takes 0.2 ms, at times 13, and
//! stops all forks of the machine meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "code-interpreter-";
/// How long the last processes may take to leave it.
const EMPTY_ROUNDS: u32 = 50;
const EMPTY_PAUSE: Duration = Duration::from_millis(20);

/// A group, in one or two hierarchies; removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes a group with these limits, in bytes and in processes and threads.
    ///
    /// # Errors
    /// Why the system has none for us.
    pub fn make(memory_bytes: u64, processes: u64) -> io::Result<Self> {
        let membership = std::fs::read_to_string("/proc/self/cgroup")?;
        let mut group = Self { directories: Vec::new() };
        for (parent, limits) in places(&membership, memory_bytes, processes) {
            remove_stale(&parent);
            // A hierarchy of its own kind gives its children nothing until it is told to.
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory +pids");
            let directory = parent.join(format!("{PREFIX}{}", crate::process_id()));
            match std::fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => group.directories.push(directory.clone()),
            }
            for (name, value) in limits {
                write_existing(&directory.join(name), &value)?;
            }
        }
        if group.directories.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        Ok(group)
    }

    /// Puts a process, and all it will start, into the group.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        self.directories.iter().try_for_each(|directory| write_existing(&directory.join("cgroup.procs"), &pid))
    }

    /// How often the kernel has ended a process of the group because its memory was full.
    pub fn out_of_memory_kills(&self) -> u64 {
        // Version 2 and version 1, which have the line in common.
        let files =
            ["memory.events", "memory.oom_control"].map(|name| self.directories.iter().map(move |group| group.join(name)));
        let text = files.into_iter().flatten().find_map(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        crate::proc::field(&text, "oom_kill ")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            for _ in 0..EMPTY_ROUNDS {
                match std::fs::remove_dir(directory) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(EMPTY_PAUSE),
                    _ => break,
                }
            }
        }
    }
}

type Limit = (&'static str, u64);

/// The groups to make one in, and what to write there: the one hierarchy of version 2, or two of version 1.
fn places(membership: &str, memory_bytes: u64, processes: u64) -> Vec<(PathBuf, Vec<Limit>)> {
    let path_of = |wanted: &str| {
        membership.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let path = fields.next()?;
            (controllers.split(',').any(|name| name == wanted)).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    match (path_of("memory"), path_of("pids"), path_of("")) {
        (Some(memory_path), Some(pids_path), _) => vec![
            (Path::new(ROOT).join("memory").join(memory_path), vec![("memory.limit_in_bytes", memory_bytes)]),
            (Path::new(ROOT).join("pids").join(pids_path), vec![("pids.max", processes)]),
        ],
        (_, _, Some(path)) => {
            vec![(Path::new(ROOT).join(path), vec![("memory.max", memory_bytes), ("pids.max", processes)])]
        }
        _ => Vec::new(),
    }
}

/// The files of a group exist or they don't: one must never be made by writing to it.
fn write_existing(path: &Path, value: &impl ToString) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.to_string().as_bytes())
}

/// Groups of servers that have gone: an empty one can be removed, any other stays.
fn remove_stale(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let pid = entry.file_name().to_string_lossy().trim_start_matches(PREFIX).to_owned();
            if !Path::new("/proc").join(pid).exists() {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_in_both_versions() {
        let of = |membership| places(membership, 7, 5);
        let one = of("8:pids:/a\n4:cpu,memory:/b/c\n0::/\n");
        assert_eq!(one[0], (PathBuf::from("/sys/fs/cgroup/memory/b/c"), vec![("memory.limit_in_bytes", 7)]));
        assert_eq!(one[1], (PathBuf::from("/sys/fs/cgroup/pids/a"), vec![("pids.max", 5)]));
        let two = of("0::/user.slice/x\n");
        assert_eq!(two, [(PathBuf::from("/sys/fs/cgroup/user.slice/x"), vec![("memory.max", 7), ("pids.max", 5)])]);
        assert_eq!(of(""), []);
    }
}
