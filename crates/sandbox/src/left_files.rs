//! Reads what user code has left in its directory.
//!
//! Rule: it is read when all that could change it is dead, by descriptor (see `beneath`), with the rights of the user whose
//! files they are, and within bounds of number, depth, bytes and time. So nothing comes out that the code could not have
//! printed: no link is followed, nothing is opened but plain files of one name that belong to the call's user, and what that
//! user can't read is not read.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;

use crate::beneath;

/// Directories within directories: no honest program goes deeper.
const MAX_DEPTH: usize = 16;
/// Entries that are looked at.
const MAX_ENTRIES: usize = 20_000;
/// Entries that a first look is done with.
const FIRST_LOOK: usize = 64;
/// The longest name with its directories.
const MAX_NAME_BYTES: usize = 1000;
/// Things that are named of those which are not taken.
const MAX_REFUSED: usize = 8;
/// What is read between two looks at the clock.
const PORTION: u64 = 1 << 20;

/// How much is taken.
#[derive(Clone, Copy, Debug)]
pub struct TakeBounds {
    /// Files.
    pub files: usize,
    /// What their contents may take together: the smallest come first, and what does not fit is only named.
    pub bytes: usize,
    /// How long it may take.
    pub patience: Duration,
}

/// What was left in a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftFiles {
    /// In the order of their names, those of a directory before those of the directories in it.
    pub files: Vec<LeftFile>,
    /// Further files, which are not named.
    pub more_files: usize,
    /// Some of what is no file to give away: its name, escaped, and why.
    pub refused: Vec<(String, &'static str)>,
    /// More of that, which is not named.
    pub more_refused: usize,
    /// Not everything was looked at.
    pub unfinished: bool,
}

/// A file.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftFile {
    /// Where it is below the directory: names without control characters, with `/` between them, none of them hidden.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// All that is in it, unless that is too much.
    pub bytes: Option<Vec<u8>>,
}

/// Whether [`left_files`] could find anything: the price of a call that leaves nothing.
pub fn may_have_files(directory: &Path) -> bool {
    let look = || -> io::Result<bool> {
        let Some(directory) = open(directory)? else { return Ok(false) };
        let mut entries = beneath::entries(beneath::again(&directory)?)?;
        let seen = entries.by_ref().take(FIRST_LOOK).any(|entry| entry.is_ok_and(|entry| !is_hidden(entry.file_name())));
        Ok(seen || entries.next().is_some())
    };
    // One that is closed is looked at with its user's rights.
    look().unwrap_or(true)
}

/// Takes the files in a directory; those of `user` with that user's rights, which a process that is root can do, else those
/// of this process's own. What is hidden (`.name`, `__pycache__`) is left out without a word.
///
/// # Errors
/// When the directory can't be read.
pub fn left_files(directory: &Path, user: Option<u32>, bounds: &TakeBounds) -> io::Result<LeftFiles> {
    let Some(directory) = open(directory)? else { return Ok(LeftFiles::default()) };
    let owner = user.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    let take = || {
        let mut taking = Taking {
            left: LeftFiles::default(),
            owner,
            files: bounds.files,
            entries: MAX_ENTRIES,
            until: Instant::now() + bounds.patience,
        };
        let root = beneath::again(&directory)?;
        taking.directory(&root, "", 1)?;
        taking.contents(&root, bounds.bytes as u64);
        Ok(taking.left)
    };
    let Some(user) = user else { return take() };
    // On a thread of its own: a thread's rights are taken away for good.
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("files".to_owned()).spawn_scoped(scope, || {
            crate::supervisor::give_up_rights_of_thread(user)?;
            take()
        });
        worker?.join().unwrap_or_else(|_| Err(io::Error::other("the look at the files panicked")))
    })
}

/// Names the directory itself, and no link in its place; `None` when there is none.
fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    let name = CString::new(path.file_name().ok_or(io::ErrorKind::InvalidInput)?.as_bytes())?;
    let parent = beneath::first(path.parent().unwrap_or(Path::new("")))?;
    match beneath::closed_directory(&parent, &name) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

struct Taking {
    left: LeftFiles,
    owner: u32,
    /// What else may be taken.
    files: usize,
    entries: usize,
    until: Instant,
}

impl Taking {
    fn directory(&mut self, directory: &OwnedFd, prefix: &str, depth: usize) -> Result<(), Errno> {
        let mut found = Vec::new();
        for entry in beneath::entries(directory)? {
            let entry = entry?;
            if self.entries == 0 || Instant::now() > self.until {
                self.left.unfinished = true;
                break;
            }
            self.entries -= 1;
            if !is_hidden(entry.file_name()) {
                found.push(entry.file_name().to_owned());
            }
        }
        found.sort_unstable();
        let mut directories = Vec::new();
        for entry in found {
            let Some(name) = plain_name(prefix, &entry) else {
                self.refuse(prefix, &entry, "its name");
                continue;
            };
            let Ok(stat) = rustix::fs::statat(directory, &entry, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            match self.refusal(&stat) {
                Some(reason) => self.refuse(prefix, &entry, reason),
                None if is_directory(&stat) => directories.push((entry, name)),
                None if self.left.files.len() == self.files => self.left.more_files += 1,
                None => self.left.files.push(LeftFile { name, size: size_of(&stat), bytes: None }),
            }
        }
        for (entry, name) in directories {
            if depth == MAX_DEPTH {
                self.refuse(prefix, &entry, "too deep");
                continue;
            }
            let inner = beneath::directory(directory, &entry);
            if inner.and_then(|inner| self.directory(&inner, &(name + "/"), depth + 1)).is_err() {
                self.refuse(prefix, &entry, "closed");
            }
        }
        Ok(())
    }

    /// Why an entry is neither a directory to look into nor a file to give away.
    fn refusal(&self, stat: &Stat) -> Option<&'static str> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if stat.st_uid != self.owner => Some("of another user"),
            // The other one may be anywhere.
            FileType::RegularFile if stat.st_nlink > 1 => Some("a file with a second name"),
            FileType::RegularFile if !Mode::from_raw_mode(stat.st_mode).contains(Mode::RUSR) => Some("closed"),
            FileType::RegularFile | FileType::Directory => None,
            FileType::Symlink => Some("a link"),
            FileType::Fifo => Some("a FIFO"),
            FileType::Socket => Some("a socket"),
            _ => Some("a device"),
        }
    }

    /// Reads what fits, the smallest files first.
    fn contents(&mut self, root: &OwnedFd, mut left: u64) {
        let mut order = (0..self.left.files.len()).collect::<Vec<_>>();
        order.sort_by_key(|at| self.left.files[*at].size);
        for at in order {
            let LeftFile { name, size, .. } = &self.left.files[at];
            if *size > left {
                return;
            }
            match self.content(root, name, *size) {
                Ok(bytes) => {
                    left -= bytes.len() as u64;
                    self.left.files[at].size = bytes.len() as u64;
                    self.left.files[at].bytes = Some(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    self.left.unfinished = true;
                    return;
                }
                // It stays one that is only named.
                Err(_) => {}
            }
        }
    }

    fn content(&self, root: &OwnedFd, name: &str, size: u64) -> io::Result<Vec<u8>> {
        let mut directory = None;
        let mut parts = name.split('/').map(CString::new).peekable();
        let file = loop {
            let part = parts.next().ok_or(io::ErrorKind::InvalidInput)??;
            let parent = directory.as_ref().unwrap_or(root);
            if parts.peek().is_none() {
                break beneath::file(parent, &part)?;
            }
            directory = Some(beneath::directory(parent, &part)?);
        };
        // What was opened, and not what was there before.
        let stat = rustix::fs::fstat(&file)?;
        if is_directory(&stat) || self.refusal(&stat).is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let mut file = File::from(file).take(size);
        loop {
            if Instant::now() > self.until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if file.by_ref().take(PORTION).read_to_end(&mut bytes)? == 0 {
                return Ok(bytes);
            }
        }
    }

    fn refuse(&mut self, prefix: &str, entry: &CStr, reason: &'static str) {
        if self.left.refused.len() == MAX_REFUSED {
            self.left.more_refused += 1;
            return;
        }
        let name = String::from_utf8_lossy(entry.to_bytes()).escape_debug().to_string();
        self.left.refused.push((format!("{prefix}{name}"), reason));
    }
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What programs keep for themselves: caches, settings.
fn is_hidden(name: &CStr) -> bool {
    name.to_bytes().starts_with(b".") || name == c"__pycache__"
}

/// A name that means the same wherever it is shown or saved; the prefix is of such names.
fn plain_name(prefix: &str, entry: &CStr) -> Option<String> {
    let name = OsStr::from_bytes(entry.to_bytes()).to_str()?;
    let plain = prefix.len() + name.len() <= MAX_NAME_BYTES && !name.contains(is_odd);
    plain.then(|| format!("{prefix}{name}"))
}

/// Controls terminals or the direction of text, ends a line, or is a separator elsewhere.
fn is_odd(character: char) -> bool {
    character.is_control()
        || matches!(character, '\\' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use rustix::fs::CWD;

    use super::*;

    const BOUNDS: TakeBounds = TakeBounds { files: 10, bytes: 1000, patience: Duration::from_secs(20) };

    fn taken(directory: &Path) -> LeftFiles {
        assert!(may_have_files(directory));
        left_files(directory, None, &BOUNDS).expect("it can be read")
    }

    fn names(left: &LeftFiles) -> Vec<&str> {
        left.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn files_come_by_name_and_what_is_hidden_does_not() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("k1");
        for directory in ["", "b/c", ".cache", "__pycache__", "empty"] {
            std::fs::create_dir_all(root.join(directory)).expect("made");
        }
        assert!(may_have_files(&root));
        for (name, text) in
            [("z", "last"), ("a", ""), ("b/c/d", "deep"), ("b/.hidden", "x"), (".cache/x", "x"), ("__pycache__/x", "x")]
        {
            std::fs::write(root.join(name), text).expect("written");
        }
        let left = taken(&root);
        assert_eq!(names(&left), ["a", "z", "b/c/d"]);
        assert_eq!(left.files[2], LeftFile { name: "b/c/d".to_owned(), size: 4, bytes: Some(b"deep".to_vec()) });
        assert_eq!(left.files[0].bytes, Some(Vec::new()));
        assert!(left.refused.is_empty() && left.more_files == 0 && !left.unfinished, "{left:?}");
    }

    #[test]
    fn a_directory_of_nothing_or_of_what_is_hidden_costs_one_look() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("k1");
        assert!(!may_have_files(&root), "there is none");
        std::fs::create_dir_all(root.join(".matplotlib")).expect("made");
        std::fs::create_dir(root.join("__pycache__")).expect("made");
        assert!(!may_have_files(&root));
        symlink("/etc", place.path().join("k2")).expect("made");
        assert!(!may_have_files(&place.path().join("k2")), "code has put a link in its place");
        assert_eq!(left_files(&place.path().join("k2"), None, &BOUNDS).expect("nothing"), LeftFiles::default());
        for number in 0..=FIRST_LOOK {
            std::fs::write(root.join(format!(".{number}")), "").expect("written");
        }
        assert!(may_have_files(&root), "there are too many for one look");
        assert_eq!(left_files(&root, None, &BOUNDS).expect("nothing"), LeftFiles::default());
    }

    #[test]
    fn only_plain_files_with_plain_names_come() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("k1");
        std::fs::create_dir(&root).expect("made");
        std::fs::write(root.join("good"), "1").expect("written");
        std::fs::write(place.path().join("secret"), "secret").expect("written");
        symlink("/etc/passwd", root.join("link")).expect("made");
        symlink("/etc", root.join("folder-link")).expect("made");
        std::fs::hard_link(place.path().join("secret"), root.join("second")).expect("made");
        rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::RWXU).expect("made");
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).expect("made");
        let expected = [
            ("fifo", "a FIFO"),
            ("folder-link", "a link"),
            ("link", "a link"),
            ("second", "a file with a second name"),
            ("socket", "a socket"),
        ];
        let left = taken(&root);
        assert_eq!(names(&left), ["good"]);
        assert_eq!(left.refused, expected.map(|(name, reason)| (name.to_owned(), reason)));
        for name in ["fifo", "folder-link", "link", "second", "socket"] {
            std::fs::remove_file(root.join(name)).expect("removed");
        }
        for name in ["a\nb", "a\x1b[2Jb", "a\\b", "a\u{202e}b", "\u{9b}31m", "\u{feff}"] {
            std::fs::write(root.join(name), "1").expect("written");
        }
        std::fs::write(root.join(OsString::from_vec(b"a\xff\xed\xa0\x80".to_vec())), "1").expect("written");
        let left = taken(&root);
        assert_eq!((names(&left), left.refused.len()), (vec!["good"], 7));
        for (name, reason) in left.refused {
            assert!(reason == "its name" && !name.contains(char::is_control) && !name.contains('\u{202e}'), "{name}");
        }
        // Honest ones, however unusual.
        let good = ["'a\"b", "grüße 🐍 👨\u{200d}👩", "a..b", "x;$(y)"];
        for name in good {
            std::fs::write(root.join(name), "1").expect("written");
        }
        assert_eq!(names(&taken(&root)).len(), good.len() + 1);
    }

    #[test]
    fn number_size_depth_and_time_are_bounded() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("k1");
        std::fs::create_dir(&root).expect("made");
        let sparse = File::create(root.join("0-sparse")).expect("made");
        sparse.set_len(10 << 30).expect("set");
        std::fs::write(root.join("1"), [b'x'; 900]).expect("written");
        std::fs::write(root.join("2"), [b'x'; 200]).expect("written");
        std::fs::write(root.join("3"), [b'x'; 100]).expect("written");
        let left = taken(&root);
        // The smallest first: a few numbers are not lost for a large file beside them.
        let sizes = left.files.iter().map(|file| (file.size, file.bytes.as_ref().map(Vec::len))).collect::<Vec<_>>();
        assert_eq!(sizes, [(10 << 30, None), (900, None), (200, Some(200)), (100, Some(100))]);
        let mut bottom = beneath::first(&root).expect("open");
        for _ in 0..1000 {
            rustix::fs::mkdirat(&bottom, "d", Mode::RWXU).expect("made");
            bottom = beneath::closed_directory(&bottom, c"d").expect("open");
        }
        let left = taken(&root);
        assert_eq!(left.refused, [("d/".repeat(MAX_DEPTH - 1) + "d", "too deep")]);
        for number in 0..10_000 {
            std::fs::write(root.join(format!("many-{number}")), "").expect("written");
        }
        let left = taken(&root);
        assert_eq!((left.files.len(), left.more_files, left.unfinished), (10, 9994, false));
        let left = left_files(&root, None, &TakeBounds { patience: Duration::ZERO, ..BOUNDS }).expect("read");
        assert!(left.unfinished && left.files.is_empty(), "{left:?}");
        crate::remove(&root).expect("removed");
    }

    /// The server is root, and the files are of whoever made them.
    #[test]
    #[cfg_attr(not(root), ignore = "needs root")]
    fn with_a_users_rights_nothing_comes_that_the_user_could_not_read() {
        const USER: u32 = 64_998;
        let place = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o711)).expect("open");
        let root = place.path().join("k1");
        std::fs::create_dir_all(root.join("closed")).expect("made");
        for (name, mode, user) in
            [("good", 0o600, USER), ("mode-000", 0o000, USER), ("of-root", 0o644, 0), ("closed/a", 0o600, USER)]
        {
            std::fs::write(root.join(name), name).expect("written");
            std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).expect("set");
            chown(root.join(name), Some(user), Some(user)).expect("given");
        }
        for path in [root.clone(), root.join("closed")] {
            chown(path, Some(USER), Some(USER)).expect("given");
        }
        std::fs::set_permissions(root.join("closed"), std::fs::Permissions::from_mode(0o000)).expect("closed");
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::RWXU, null).expect("made");
        let left = left_files(&root, Some(USER), &BOUNDS).expect("it can be read");
        assert_eq!(names(&left), ["good"]);
        let refused = [("mode-000", "closed"), ("null", "a device"), ("of-root", "of another user"), ("closed", "closed")];
        assert_eq!(left.refused, refused.map(|(name, reason)| (name.to_owned(), reason)));
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o000)).expect("closed");
        assert!(left_files(&root, Some(USER), &BOUNDS).is_err());
        assert!(crate::is_root(), "only a thread has given up its rights");
    }
}
