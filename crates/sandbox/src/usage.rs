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
use crate::proc::{descendants, field};

/// Sockets that are not counted: honest programs have some, and these can hold little.
const FREE_SOCKETS: u64 = 256;
/// What a socket may hold that nobody reads (`net.core.wmem_default`); the filters keep code from asking for more.
const SOCKET_BYTES: u64 = 212_992;
/// Above this depth a directory is not looked into any more: no honest program goes there.
const MAX_DEPTH: usize = 100;
const BLOCK: u64 = 512;

/// What a tree of processes uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory of their own in bytes, less what they got from the zygote by fork; memory files and buffers are in it.
    pub memory_bytes: u64,
    /// Threads of all processes.
    pub threads: u64,
    /// What files take on disk that are open and have no name any more.
    pub unnamed_file_bytes: u64,
    /// Whether a process has closed itself to a supervisor that can look at others.
    pub hides: bool,
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
}

/// What `root` and everything below it use.
pub fn usage_of_tree(root: i32, look: &Look) -> Usage {
    let pids = std::iter::once(root).chain(descendants(root)).collect::<Vec<_>>();
    let mut usage = Usage::default();
    let (mut anonymous, mut shared) = (0, 0);
    for pid in &pids {
        let process = memory_of_process(*pid);
        anonymous += process.anonymous.saturating_sub(look.baseline_bytes);
        shared += process.shared;
        usage.threads += process.threads;
    }
    let open = if look.sees_descriptors { open_files(&pids) } else { OpenFiles::default() };
    usage.unnamed_file_bytes = open.disk_bytes;
    usage.hides = open.hides;
    let in_files = open.memory_bytes + look.shared_memory_bytes;
    let in_sockets = open.sockets.saturating_sub(FREE_SOCKETS) * SOCKET_BYTES;
    usage.memory_bytes = anonymous + shared + in_files + in_sockets;
    if usage.memory_bytes > look.memory_limit_bytes && (pids.len() > 1 || shared > 0 && in_files > 0) {
        // Of pages that several processes have each has a part of, and one that is mapped and in a file is one.
        if let Some((anonymous, shared)) = proportional(&pids) {
            usage.memory_bytes = anonymous.saturating_sub(look.baseline_bytes) + shared.max(in_files) + in_sockets;
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
    threads: u64,
}

fn memory_of_process(pid: i32) -> ProcessMemory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    ProcessMemory {
        anonymous: field(&status, "RssAnon:") * 1024,
        shared: field(&status, "RssShmem:") * 1024,
        threads: field(&status, "Threads:"),
    }
}

/// Anonymous and shared memory of all, each page counted once however many of them have it; `None` where that can't be
/// seen.
fn proportional(pids: &[i32]) -> Option<(u64, u64)> {
    let (mut anonymous, mut shared) = (0, 0);
    for pid in pids {
        match std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
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
    hides: bool,
}

/// What is open in the processes and has no name: each file counts once, whoever has it.
fn open_files(pids: &[i32]) -> OpenFiles {
    let mut found = OpenFiles::default();
    let mut seen = HashSet::new();
    for pid in pids {
        let path = format!("/proc/{pid}/fd");
        let listed = beneath::first(Path::new(&path))
            .and_then(|directory| Ok((beneath::entries(beneath::again(&directory)?)?, directory)));
        let (entries, directory) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                found.hides |= error.kind() == io::ErrorKind::PermissionDenied && !is_zombie(*pid);
                continue;
            }
        };
        for entry in entries.flatten() {
            let Ok(stat) = rustix::fs::statat(&directory, entry.file_name(), AtFlags::empty()) else { continue };
            let kind = FileType::from_raw_mode(stat.st_mode);
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
    let target = rustix::fs::readlinkat(directory, name, Vec::new());
    target.is_ok_and(|target| {
        [&b"/memfd:"[..], b"/dev/shm/", b"/dev/zero"].iter().any(|start| target.to_bytes().starts_with(start))
    })
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
    if let Ok(root) = beneath::first(directory).and_then(|named| Ok(beneath::again(&named)?)) {
        add_held(&root, 1, &Bounds { owner, most, until: Instant::now() + patience }, &mut held);
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
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Some(inner) = look_into(directory, entry.file_name())
        {
            if depth == MAX_DEPTH {
                held.files = usize::MAX;
                return;
            }
            add_held(&inner, depth + 1, bounds, held);
        }
        if held.files > bounds.most.files || held.bytes > bounds.most.bytes || Instant::now() > bounds.until {
            return;
        }
    }
}

fn look_into(parent: impl AsFd, name: &CStr) -> Option<OwnedFd> {
    match beneath::directory(&parent, name) {
        Err(Errno::ACCESS) => {
            let closed = beneath::closed_directory(&parent, name).ok()?;
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&closed).ok()?.st_mode);
            beneath::set_mode(&closed, mode | Mode::RUSR | Mode::XUSR).ok()?;
            let open = beneath::again(&closed);
            let _ = beneath::set_mode(&closed, mode);
            open.ok()
        }
        other => other.ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MOST: Holding = Holding { bytes: 64 << 20, files: 1000 };

    fn look() -> Look {
        Look { baseline_bytes: 0, memory_limit_bytes: 64 << 20, shared_memory_bytes: 0, sees_descriptors: true }
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
        assert!(usage.unnamed_file_bytes >= 8 << 20 && usage.threads >= 1 && !usage.hides, "{usage:?}");
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
