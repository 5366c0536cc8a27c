//! What a kernel and everything below it uses, as the system sees it.
//!
//! Rule: what no name and no mapping shows is counted, too: files without a name, memory files, buffers of sockets. They are
//! seen through the descriptors of each process, where the kernel lets the supervisor look at these. A process that
//! can't be looked into where the others can has made itself so, and is told.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::beneath;
use crate::proc::{descendants, field, text};

/// Sockets that are not counted: honest programs have some, and these can hold little.
const FREE_SOCKETS: u64 = 256;
/// What a socket may hold that nobody reads (`net.core.wmem_default`); the filters keep code from asking for more.
const SOCKET_BYTES: u64 = 212_992;
/// Above this depth a directory is not looked into any more: no honest program goes there.
const MAX_DEPTH: usize = 100;
const BLOCK: u64 = 512;
/// Page tables that are not counted: those of honest processes are small beside their pages.
const FREE_TABLES_BYTES: u64 = 32 << 20;

/// What a tree of processes uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory of their own in bytes, less what they got from the zygote by fork; memory files and buffers are in it.
    pub memory_bytes: u64,
    /// Threads of all processes.
    pub threads: u64,
    /// What files take on disk that are open and have no name any more.
    pub unnamed_file_bytes: u64,
    /// Instances of epoll: what they watch is bounded for the whole user, and so for the server too.
    pub watchers: u64,
    /// Processes that a supervisor can't look into which can look at others. One that is ending is so for a moment.
    pub hidden: Vec<i32>,
}

/// What is looked at besides the processes themselves.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What each process got from the zygote by fork, in bytes.
    pub baseline_bytes: u64,
    /// More memory than this, and it is looked at more closely: pages that forks share count once then.
    pub memory_limit_bytes: u64,
    /// What is in the call's own shared memory, in bytes.
    pub shared_memory_bytes: u64,
    /// Whether the supervisor may look at descriptors of processes that have not closed themselves.
    pub sees_descriptors: bool,
    /// Whether the processes have a network of their own, so that all sockets in it are theirs.
    pub own_network: bool,
}

/// What `root` and everything below it use.
pub fn usage_of_tree(root: i32, look: &Look) -> Usage {
    let pids = std::iter::once(root).chain(descendants(root)).collect::<Vec<_>>();
    let mut usage = Usage::default();
    let (mut anonymous, mut shared, mut tables) = (0, 0, 0);
    for pid in &pids {
        let process = memory_of_process(*pid);
        anonymous += process.anonymous.saturating_sub(look.baseline_bytes);
        tables += process.tables;
        shared += process.shared;
        usage.threads += process.threads;
    }
    let open = if look.sees_descriptors { open_files(&pids) } else { OpenFiles::default() };
    usage.unnamed_file_bytes = open.disk_bytes;
    usage.watchers = open.watchers;
    let in_files = open.memory_bytes + look.shared_memory_bytes;
    // Those under way, and those that nobody has accepted yet, are in no process.
    let sockets = if look.own_network { open.sockets.max(sockets_in_network_of(root)) } else { open.sockets };
    let elsewhere = sockets.saturating_sub(FREE_SOCKETS) * SOCKET_BYTES + tables.saturating_sub(FREE_TABLES_BYTES);
    usage.hidden = open.hidden;
    usage.memory_bytes = anonymous + shared + in_files + elsewhere;
    if usage.memory_bytes > look.memory_limit_bytes && (pids.len() > 1 || shared > 0 && in_files > 0) {
        // Of pages that several processes have each has a part of, and one that is mapped and in a file is one.
        if let Some((anonymous, shared)) = proportional(&pids) {
            usage.memory_bytes = anonymous.saturating_sub(look.baseline_bytes) + shared.max(in_files) + elsewhere;
        }
    }
    usage
}

/// Private memory of one process in bytes.
pub fn memory_of(pid: i32) -> u64 {
    let process = memory_of_process(pid);
    process.anonymous + process.shared
}

#[derive(Default)]
struct ProcessMemory {
    anonymous: u64,
    shared: u64,
    /// What it takes to find pages, also such as have no memory behind them.
    tables: u64,
    threads: u64,
}

fn memory_of_process(pid: i32) -> ProcessMemory {
    let status = text(format!("{}/status", of_live_thread(pid))).unwrap_or_default();
    let bytes = |name| field(&status, name) * 1024;
    ProcessMemory {
        anonymous: bytes("RssAnon:") + bytes("VmSwap:"),
        shared: bytes("RssShmem:"),
        tables: bytes("VmPTE:"),
        threads: field(&status, "Threads:"),
    }
}

/// Where `/proc` tells of a process. When its first thread has ended and others live on, the process's own entries are empty.
fn of_live_thread(pid: i32) -> String {
    let process = format!("/proc/{pid}");
    let has_ended =
        |stat: Option<String>| stat.is_some_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")));
    if !has_ended(text(format!("{process}/stat"))) {
        return process;
    }
    let threads = std::fs::read_dir(format!("{process}/task")).into_iter().flatten().flatten();
    let mut paths = threads.map(|thread| thread.path().display().to_string());
    paths.find(|thread| !has_ended(text(format!("{thread}/stat")))).unwrap_or(process)
}

/// All Unix sockets of the network namespace that a process is in.
fn sockets_in_network_of(pid: i32) -> u64 {
    let text = text(format!("/proc/{pid}/net/protocols")).unwrap_or_default();
    let of_unix = text.lines().filter(|line| line.starts_with("UNIX"));
    of_unix.filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

/// Anonymous and shared memory of all, each page counted once however many of them have it; `None` where that can't be
/// seen.
fn proportional(pids: &[i32]) -> Option<(u64, u64)> {
    let (mut anonymous, mut shared) = (0, 0);
    for pid in pids {
        match std::fs::read_to_string(format!("{}/smaps_rollup", of_live_thread(*pid))) {
            Ok(text) => {
                anonymous += field(&text, "Pss_Anon:") * 1024;
                shared += field(&text, "Pss_Shmem:") * 1024;
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            // It has ended.
            Err(_) => {}
        }
    }
    Some((anonymous, shared))
}

#[derive(Default)]
struct OpenFiles {
    memory_bytes: u64,
    disk_bytes: u64,
    sockets: u64,
    watchers: u64,
    hidden: Vec<i32>,
}

/// What is open in the processes and has no name: each file counts once, whoever has it.
fn open_files(pids: &[i32]) -> OpenFiles {
    let mut found = OpenFiles::default();
    let mut seen = HashSet::new();
    for pid in pids {
        let path = format!("{}/fd", of_live_thread(*pid));
        let listed = beneath::first(Path::new(&path))
            .and_then(|directory| Ok((beneath::entries(beneath::again(&directory)?)?, directory)));
        let (entries, directory) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                if error.kind() == io::ErrorKind::PermissionDenied && !is_zombie(*pid) {
                    found.hidden.push(*pid);
                }
                continue;
            }
        };
        for entry in entries.flatten() {
            let Ok(stat) = rustix::fs::statat(&directory, entry.file_name(), AtFlags::empty()) else { continue };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if stat.st_mode & libc::S_IFMT == 0 && is_called(&directory, entry.file_name(), &[b"anon_inode:[eventpoll]"]) {
                found.watchers += 1;
            }
            let counts = kind == FileType::Socket || kind == FileType::RegularFile && stat.st_nlink == 0;
            if !counts || !seen.insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let bytes = stat.st_blocks.cast_unsigned() * BLOCK;
            if kind == FileType::Socket {
                found.sockets += 1;
            } else if is_memory(&directory, entry.file_name()) {
                found.memory_bytes += bytes;
            } else {
                found.disk_bytes += bytes;
            }
        }
    }
    found
}

/// Whether a file without a name was in memory from the start: made by `memfd_create`, or in `/dev/shm`.
fn is_memory(directory: impl AsFd, name: &CStr) -> bool {
    is_called(directory, name, &[b"/memfd:", b"/dev/shm/", b"/dev/zero"])
}

fn is_called(directory: impl AsFd, name: &CStr, starts: &[&[u8]]) -> bool {
    let target = rustix::fs::readlinkat(directory, name, Vec::new());
    target.is_ok_and(|target| starts.iter().any(|start| target.to_bytes().starts_with(start)))
}

fn is_zombie(pid: i32) -> bool {
    crate::proc::stat(pid).is_none_or(|stat| stat.zombie)
}

/// What a file system has in use, in bytes: for one that belongs to a call alone.
pub fn bytes_in_use(filesystem: impl AsFd) -> u64 {
    rustix::fs::fstatfs(filesystem).map_or(0, |stat| {
        let blocks = stat.f_blocks.saturating_sub(stat.f_bfree);
        blocks * u64::try_from(stat.f_bsize).unwrap_or(0)
    })
}

/// What a directory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// What it takes on disk, in bytes.
    pub bytes: u64,
    /// Files and directories in it.
    pub files: usize,
}

/// What everything in a directory takes, as far as needed to see that it is more than `most`; of `owner` only, where one is
/// named. A directory that its user has closed is opened up for the look and closed again. Comes to an end when it has
/// taken `patience`, with what was seen by then.
pub fn holding(directory: &Path, owner: Option<u32>, most: Holding, patience: Duration) -> Holding {
    let mut held = Holding::default();
    match beneath::first(directory).map(|named| look_at(&named)) {
        Ok(Ok(root)) => add_held(&root.directory, 1, &Bounds { owner, most, until: Instant::now() + patience }, &mut held),
        // Nobody knows what is in it.
        Ok(Err(Errno::ACCESS | Errno::PERM)) => held.files = usize::MAX,
        _ => {}
    }
    held
}

struct Bounds {
    owner: Option<u32>,
    most: Holding,
    until: Instant,
}

/// Depth first: a descriptor for each level and no path, so that nothing can be put in another's place.
fn add_held(directory: &OwnedFd, depth: usize, bounds: &Bounds, held: &mut Holding) {
    for entry in beneath::entries(directory).into_iter().flatten().flatten() {
        let Ok(stat) = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if bounds.owner.is_none_or(|owner| owner == stat.st_uid) {
            held.files += 1;
            held.bytes += stat.st_blocks.cast_unsigned() * BLOCK;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match look_into(directory, entry.file_name()) {
                Ok(inner) if depth < MAX_DEPTH => add_held(&inner.directory, depth + 1, bounds, held),
                Ok(_) | Err(Errno::ACCESS | Errno::PERM) => held.files = usize::MAX,
                // It has gone, or is another thing by now.
                Err(_) => {}
            }
        }
        if held.files > bounds.most.files || held.bytes > bounds.most.bytes || Instant::now() > bounds.until {
            return;
        }
    }
}

/// A directory while it is looked into; closed again afterwards, when its user had closed it.
struct Looked {
    directory: OwnedFd,
    closed: Option<Mode>,
}

impl Drop for Looked {
    fn drop(&mut self) {
        if let Some(mode) = self.closed {
            let _ = beneath::set_mode(&self.directory, mode);
        }
    }
}

fn look_into(parent: impl AsFd, name: &CStr) -> Result<Looked, Errno> {
    look_at(&beneath::closed_directory(&parent, name)?)
}

/// Opens what was only named, also when its user has closed it to himself. Its entries are found while it is open only.
fn look_at(named: &OwnedFd) -> Result<Looked, Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(named)?.st_mode);
    let readable = Mode::RUSR | Mode::XUSR;
    // Root sees what is in it anyway, and would open up what is others'.
    let closed = (!crate::is_root() && !mode.contains(readable)).then_some(mode);
    if closed.is_some() {
        // Of another user's it can't be set, and may be open all the same.
        let _ = beneath::set_mode(named, mode | readable);
    }
    Ok(Looked { directory: beneath::again(named)?, closed })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MOST: Holding = Holding { bytes: 64 << 20, files: 1000 };

    fn look() -> Look {
        Look {
            baseline_bytes: 0,
            memory_limit_bytes: 64 << 20,
            shared_memory_bytes: 0,
            sees_descriptors: true,
            own_network: false,
        }
    }

    #[test]
    fn files_without_a_name_are_counted() {
        let mut child = std::process::Command::new("sh");
        let script = "exec 8>$0; rm $0; head -c 8388608 /dev/zero >&8; echo; exec sleep 60";
        let place = tempfile::tempdir().expect("a directory");
        let mut child = child
            .args(["-c", script])
            .arg(place.path().join("unnamed"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = [0];
        io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut line).expect("it has written");
        let usage = usage_of_tree(i32::try_from(child.id()).expect("a pid"), &look());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(usage.unnamed_file_bytes >= 8 << 20 && usage.threads >= 1 && usage.hidden.is_empty(), "{usage:?}");
        let memory = rustix::fs::memfd_create("counted", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
        rustix::io::write(&memory, &vec![1; 4 << 20]).expect("written");
        assert!(open_files(&[crate::process_id()]).memory_bytes >= 4 << 20);
    }

    #[test]
    fn closed_directories_are_looked_into_and_stay_closed() {
        let place = tempfile::tempdir().expect("a directory");
        let closed = place.path().join("closed");
        std::fs::create_dir(&closed).expect("made");
        std::fs::write(closed.join("file"), vec![1; 1 << 20]).expect("made");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("closed");
        let held = holding(place.path(), None, MOST, Duration::from_secs(10));
        assert!(held.files == 2 && held.bytes >= 1 << 20, "{held:?}");
        assert_eq!(closed.metadata().expect("there").permissions().mode() & 0o777, 0);
        assert_eq!(holding(place.path(), Some(4_000_000), MOST, Duration::from_secs(10)), Holding::default());
    }
}
