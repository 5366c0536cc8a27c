//! What of the file system user code may touch.
//!
//! Rule: the rule set is made here, in Rust, and handed to the kernel process as a descriptor; there it is only put in
//! force. It can read the interpreter, the stack and what every program needs of the system, write to its own directory
//! and a few devices, and reach nothing else: no other call's files, no socket or signal out of its own domain, no TCP.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    path_beneath_rules,
};

use crate::seccomp::Allowed;

/// The newest interface asked for; older kernels give what they have.
const NEWEST: ABI = ABI::V6;

/// Read by every program: libraries, fonts, time zones, certificates, names of users and hosts, facts about the machine.
/// Nothing in here is secret on a well-kept machine: no home, no `/root`, no `/run`, no `/var`, no rest of `/etc`.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/fonts",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];
/// Programs, where they may be started.
const PROGRAMS: &[&str] = &["/bin", "/sbin"];
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// POSIX semaphores and shared memory live here.
const SHARED_MEMORY: &str = "/dev/shm";

/// Makes rule sets.
#[derive(Debug)]
pub struct Landlock {
    abi: i32,
    allowed: Allowed,
    readable: Vec<PathBuf>,
    own_user: bool,
}

impl Landlock {
    /// `readable`: what the code may read besides the system's own. `own_user`: whether each kernel is another user, so
    /// that `/dev/shm` can be shared.
    ///
    /// # Errors
    /// The kernel's reason for having no Landlock.
    pub fn new(allowed: Allowed, readable: Vec<PathBuf>, own_user: bool) -> io::Result<Self> {
        Ok(Self { abi: abi()?, allowed, readable, own_user })
    }

    /// The kernel's version of the interface.
    pub fn abi(&self) -> i32 {
        self.abi
    }

    /// The rule set of one kernel.
    ///
    /// # Errors
    /// When the system is out of descriptors or memory.
    pub fn ruleset(&self, own_directory: &Path) -> io::Result<OwnedFd> {
        self.build(own_directory).map_err(io::Error::other)?.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    fn build(&self, own_directory: &Path) -> Result<Option<OwnedFd>, landlock::RulesetError> {
        let read = if self.allowed.subprocess { AccessFs::from_read(NEWEST) } else { AccessFs::ReadFile | AccessFs::ReadDir };
        let write: BitFlags<AccessFs> = AccessFs::from_all(NEWEST);
        let mut ruleset =
            Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(write)?.scope(Scope::from_all(NEWEST))?;
        if !self.allowed.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let programs = if self.allowed.subprocess { PROGRAMS } else { &[] };
        let shared = self.own_user.then_some(SHARED_MEMORY);
        let created = ruleset
            .create()?
            .add_rules(path_beneath_rules(SYSTEM.iter().chain(programs), read))?
            .add_rules(path_beneath_rules(&self.readable, read))?
            .add_rules(path_beneath_rules(DEVICES, AccessFs::ReadFile | AccessFs::WriteFile))?
            .add_rules(path_beneath_rules(shared, AccessFs::from_all(NEWEST)))?
            .add_rules(path_beneath_rules([own_directory], write))?;
        Ok(created.into())
    }
}

/// The version of the kernel's interface.
fn abi() -> io::Result<i32> {
    const VERSION_FLAG: libc::c_ulong = 1;
    #[expect(unsafe_code, reason = "no library asks for the version alone")]
    // SAFETY: with this flag the call takes no attributes and reads no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION_FLAG) };
    match i32::try_from(version) {
        Ok(version @ 1..) => Ok(version),
        _ => Err(io::Error::last_os_error()),
    }
}
