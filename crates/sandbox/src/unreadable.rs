//! Makes the process unreadable for others of its user where `prctl` is refused, by starting it once more.
//!
//! Linux takes a process whose program file its user can't read for one that must not be looked into (`would_dump` in the
//! kernel's `fs/exec.c`): its `/proc` entries belong to root, and memory, descriptors and trace are refused, as
//! `PR_SET_DUMPABLE` does it. So the program starts itself again from a copy that can be executed and not read.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode};

/// Set for the second start: the path of the copy, or empty for one in memory. No setting, which would begin without the `_`.
const STARTED_AGAIN: &str = "_CODE_INTERPRETER_STARTED_AGAIN";
const EXECUTE_ONLY: u32 = 0o111;

/// Starts the calling program once more from an unreadable copy: in memory, or else as a file that is removed at once.
/// Comes back in the second start, and where no copy could be started. Call it before any thread exists.
///
/// # Errors
/// Why the process stays readable.
pub fn start_again_unreadable() -> io::Result<()> {
    if let Some(copy) = std::env::var_os(STARTED_AGAIN) {
        if !copy.is_empty() {
            std::fs::remove_file(copy)?;
        }
    } else if !is_unreadable() {
        let program = std::fs::read("/proc/self/exe")?;
        start_from_memory(&program).or_else(|_| start_from_file(&program))?;
    }
    if is_unreadable() { Ok(()) } else { Err(io::Error::other("the process can still be read; root reads every program")) }
}

/// Whether other processes of this user are refused what `/proc` says about this one.
pub(crate) fn is_unreadable() -> bool {
    std::fs::File::open("/proc/self/environ").is_err()
}

#[expect(unsafe_code, reason = "fexecve")]
fn start_from_memory(program: &[u8]) -> io::Result<()> {
    let file = rustix::fs::memfd_create("bootstrap", MemfdFlags::CLOEXEC)?;
    let mut rest = program;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(EXECUTE_ONLY))?;
    let (arguments, environment) = (arguments()?, environment(OsStr::new(""))?);
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    // SAFETY: both lists end with a null pointer and point to strings that outlive the call; it comes back only to fail.
    unsafe { libc::fexecve(file.as_raw_fd(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

fn start_from_file(program: &[u8]) -> io::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), program)?;
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(EXECUTE_ONLY))?;
    // A file that is open for writing can't be executed.
    let path = file.into_temp_path();
    let result = execute(&path);
    drop(path);
    result
}

#[expect(unsafe_code, reason = "execve")]
fn execute(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let (arguments, environment) = (arguments()?, environment(path.as_os_str())?);
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    // SAFETY: as above.
    unsafe { libc::execve(name.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error())
}

fn arguments() -> io::Result<Vec<CString>> {
    std::env::args_os().map(|argument| Ok(CString::new(argument.as_bytes())?)).collect()
}

/// The environment as it is, with the mark of the second start.
fn environment(copy: &OsStr) -> io::Result<Vec<CString>> {
    let mark = (OsStr::new(STARTED_AGAIN).to_owned(), copy.to_owned());
    std::env::vars_os()
        .chain([mark])
        .map(|(name, value)| Ok(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?))
        .collect()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}
