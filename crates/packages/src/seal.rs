//! Whether a set is still what was installed.
//!
//! Rule: what code can't set is a file's ctime, so any change of a file shows in it, also one that was undone. Where code can
//! change no content (Landlock, or another user), a set that was touched is held to the hash of its content, and mended.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::folders::restore_opened;

const FOLDER: u32 = 0o755;
const FILE: u32 = 0o644;
/// No package nests folders so deep; a walk needs a descriptor for each level.
const MAX_DEPTH: usize = 64;
const BYTECODE: &[u8] = b"__pycache__";

/// How the files of a set look from outside: place, identity, size, mode, and of files the last change of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Look {
    files: [u8; 32],
    bytecode: [u8; 32],
}

/// What a set is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    files: [u8; 32],
    /// None until there is bytecode.
    bytecode: Option<[u8; 32]>,
    /// None where code could change the content.
    content: Option<[u8; 32]>,
}

impl Seal {
    /// Makes a new set readable for kernels, throws out what no wheel needs, and seals it. `guarded`: whether code can't
    /// change its content; then its bytecode may come later.
    pub(crate) fn of_new(folder: &Path, guarded: bool) -> io::Result<Self> {
        restore(folder)?;
        let content = guarded.then(|| content(folder)).transpose()?;
        // The kernel stamps files by its tick, which is 10 ms at most: once the clock has moved on, a later change shows.
        std::thread::sleep(Duration::from_millis(20));
        let look = Look::at(folder)?;
        Ok(Self { files: look.files, bytecode: (!guarded).then_some(look.bytecode), content })
    }

    /// Whether a set looks as it was sealed.
    pub(crate) fn holds(&self, look: &Look) -> bool {
        self.files == look.files && self.bytecode.is_none_or(|bytecode| bytecode == look.bytecode)
    }

    /// With the bytecode that is there now; none when anything else looks otherwise.
    pub(crate) fn with_bytecode(self, look: &Look) -> Option<Self> {
        (self.files == look.files).then_some(Self { bytecode: Some(look.bytecode), ..self })
    }

    /// Gives a set its rights back: the seal it has then, without bytecode. None when its content is another.
    pub(crate) fn mended(self, folder: &Path) -> io::Result<Option<Self>> {
        if self.content.is_none() {
            return Ok(None);
        }
        restore(folder)?;
        if self.content != Some(content(folder)?) {
            return Ok(None);
        }
        Ok(Some(Self { files: Look::at(folder)?.files, bytecode: None, ..self }))
    }
}

impl Look {
    pub(crate) fn at(folder: &Path) -> io::Result<Self> {
        let (mut files, mut bytecode) = (Sha256::new(), Sha256::new());
        let top = open(rustix::fs::CWD, &CString::new(folder.as_os_str().as_bytes())?)?;
        files.update(rustix::fs::fstat(&top)?.st_mode.to_ne_bytes());
        walk(&top, &mut |entry| {
            let (stat, is_folder) = (entry.stat, entry.is_folder());
            let hash = if entry.is_bytecode() { &mut bytecode } else { &mut files };
            hash.update(entry.path);
            hash.update([0]);
            hash.update(stat.st_ino.to_ne_bytes());
            hash.update(stat.st_mode.to_ne_bytes());
            if !is_folder {
                // A folder's own change when bytecode is put into it; what is in it is seen.
                hash.update(stat.st_size.to_ne_bytes());
                hash.update(stat.st_ctime.to_ne_bytes());
                hash.update(stat.st_ctime_nsec.to_ne_bytes());
            }
            Ok(())
        })?;
        Ok(Self { files: files.finalize().into(), bytecode: bytecode.finalize().into() })
    }
}

/// Whether the server's user alone can write to all below a folder, and read it.
pub(crate) fn is_private(folder: &Path) -> bool {
    let private = |stat: &Stat, is_folder: bool| {
        let needed = if is_folder { 0o700 } else { 0o400 };
        stat.st_uid == sandbox::user_id() && stat.st_mode & 0o022 == 0 && stat.st_mode & needed == needed
    };
    let look = || {
        let top = open(rustix::fs::CWD, &CString::new(folder.as_os_str().as_bytes())?)?;
        let mut all = private(&rustix::fs::fstat(&top)?, true);
        walk(&top, &mut |entry| {
            // uv makes its lock for everybody, and nothing is in it.
            let is_lock = entry.name.to_bytes() == b".lock" && entry.stat.st_size == 0;
            all &= entry.kind() == FileType::Symlink || is_lock || private(entry.stat, entry.is_folder());
            Ok(())
        })?;
        io::Result::Ok(all)
    };
    look().unwrap_or(false)
}

/// Something below a folder.
struct Entry<'a> {
    folder: BorrowedFd<'a>,
    name: &'a CStr,
    /// From the top.
    path: &'a [u8],
    stat: &'a Stat,
}

impl Entry<'_> {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    fn is_folder(&self) -> bool {
        self.kind() == FileType::Directory
    }

    fn is_bytecode(&self) -> bool {
        self.path.split(|byte| *byte == b'/').any(|part| part == BYTECODE)
    }
}

/// Gives all below a folder, and itself, the rights of a set. Links go: a wheel has none, and one that leads out of the set
/// would be a door. Bytecode goes too: what is run is what the sources say.
fn restore(folder: &Path) -> io::Result<()> {
    crate::folders::restore(folder, FOLDER)?;
    let top = open(rustix::fs::CWD, &CString::new(folder.as_os_str().as_bytes())?)?;
    let mut bytecode = Vec::new();
    walk(&top, &mut |entry| {
        let mode = match entry.kind() {
            FileType::Directory => FOLDER,
            FileType::RegularFile => FILE,
            _ => return Ok(rustix::fs::unlinkat(entry.folder, entry.name, AtFlags::empty())?),
        };
        if entry.is_folder() && entry.name.to_bytes() == BYTECODE {
            bytecode.push(folder.join(std::ffi::OsStr::from_bytes(entry.path)));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        restore_opened(&rustix::fs::openat(entry.folder, entry.name, flags, Mode::empty())?, mode)
    })?;
    bytecode.iter().try_for_each(|folder| sandbox::remove(folder))
}

/// The hash of every file's place and content, bytecode apart.
fn content(folder: &Path) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let top = open(rustix::fs::CWD, &CString::new(folder.as_os_str().as_bytes())?)?;
    let mut buffer = vec![0; 1 << 16];
    walk(&top, &mut |entry| {
        if entry.is_folder() || entry.is_bytecode() {
            return Ok(());
        }
        hash.update(entry.path);
        hash.update([0]);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = std::fs::File::from(rustix::fs::openat(entry.folder, entry.name, flags, Mode::empty())?);
        let mut length = 0_u64;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            length += read as u64;
            hash.update(&buffer[..read]);
        }
        hash.update(length.to_ne_bytes());
        Ok(())
    })?;
    Ok(hash.finalize().into())
}

fn open(folder: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?)
}

/// Visits all below a folder in a fixed order, a folder before what is in it. No link is followed.
fn walk(top: &OwnedFd, visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    fn below(
        folder: &OwnedFd,
        path: &mut Vec<u8>,
        depth: usize,
        visit: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("a package nests folders too deep"));
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(folder)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let length = path.len();
            path.extend(name.to_bytes());
            visit(&Entry { folder: folder.as_fd(), name: &name, path, stat: &stat })?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                path.push(b'/');
                below(&open(folder, &name)?, path, depth + 1, visit)?;
            }
            path.truncate(length);
        }
        Ok(())
    }
    below(top, &mut Vec::new(), 0, visit)
}
