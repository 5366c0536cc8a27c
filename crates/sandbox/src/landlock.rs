//! What of the file system user code may touch.
//!
//! Rule: the rule set is made here, in Rust, and handed to the kernel process as a descriptor; there it is only put in
//! force (with rules more for what only those inside can see). It can read the
//! interpreter, the stack and what every program needs of the system, write to its own directory and a few devices, and reach nothing else: no other call's files, no socket or signal out of its own domain, no TCP.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};

use crate::seccomp::Allowed;

/// The newest interface asked for; older kernels give what they have.
pub(crate) const NEWEST: ABI = ABI::V10;

/// Read by every program: libraries, fonts, time zones, certificates, names of users and hosts, facts about the machine.
/// Nothing in here is secret on a well-kept machine: no home, no `/root`, no `/run`, no `/var`, no rest of `/etc`.
pub(crate) const SYSTEM: &[&str] = &[
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
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];
/// Programs, where they may be started.
const PROGRAMS: &[&str] = &["/bin", "/sbin"];
pub(crate) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// POSIX semaphores and shared memory live here.
const SHARED_MEMORY: &str = "/dev/shm";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A rule that every kernel's rule set has.
#[derive(Debug)]
struct Common {
    path: PathBuf,
    opened: PathFd,
    access: BitFlags<AccessFs>,
}

/// Makes rule sets.
#[derive(Debug)]
pub struct Landlock {
    abi: i32,
    network: bool,
    reading: BitFlags<AccessFs>,
    /// Opened once.
    common: RwLock<Vec<Common>>,
    shared_memory: Option<PathFd>,
}

impl Landlock {
    /// `readable`: what the code may read besides the system's own. Paths that don't exist are left out.
    ///
    /// # Errors
    /// The kernel's reason for having no Landlock.
    pub fn new(allowed: Allowed, readable: &[PathBuf]) -> io::Result<Self> {
        let abi = abi()?;
        let read = if allowed.subprocess { AccessFs::from_read(NEWEST) } else { AccessFs::ReadFile | AccessFs::ReadDir };
        let paths = |list: &[&str], access| list.iter().map(|path| (PathBuf::from(path), access)).collect::<Vec<_>>();
        let mut wanted = paths(SYSTEM, read);
        wanted.extend(readable.iter().map(|path| (path.clone(), read)));
        wanted.extend(paths(DEVICES, AccessFs::ReadFile | AccessFs::WriteFile));
        if allowed.subprocess {
            wanted.extend(paths(PROGRAMS, read));
        }
        let common = wanted.into_iter().filter_map(|(path, access)| {
            // A rule for a file must not name rights that only directories have.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
            Some(Common { opened: PathFd::new(&path).ok()?, path, access })
        });
        let (common, shared_memory) = (RwLock::new(common.collect()), PathFd::new(SHARED_MEMORY).ok());
        Ok(Self { abi, network: allowed.network, reading: read, common, shared_memory })
    }

    /// Whether it keeps signals inside.
    pub fn scopes_signals(&self) -> bool {
        self.abi >= 6
    }

    /// The kernel's version of the interface.
    pub fn abi(&self) -> i32 {
        self.abi
    }

    /// What kernels may do in a root of their own, by the directories that what they have is mounted in, in the bits of the
    /// system call. All else of it is read.
    pub fn root_rights(&self) -> [(&'static str, u64); 4] {
        let has = AccessFs::from_all(ABI::from(self.abi));
        [
            ("/", self.reading & has),
            ("/dev", self.in_shared_memory() & has),
            // Of the work directory, and of the temporary one.
            ("/mnt", AccessFs::from_all(NEWEST) & has),
            ("/var", AccessFs::from_all(NEWEST) & has),
        ]
        .map(|(path, rights)| (path, rights.bits()))
    }

    fn in_shared_memory(&self) -> BitFlags<AccessFs> {
        let mut rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::RemoveFile | AccessFs::MakeReg;
        if self.abi >= 3 {
            rights |= AccessFs::Truncate;
        }
        rights
    }

    /// What a kernel may do with a single file of the common `/proc`, in the bits of the system call.
    pub fn proc_file_rights(&self) -> u64 {
        BitFlags::from(AccessFs::ReadFile).bits()
    }

    /// A rule is for a folder and not for its name: where it was made anew, rule sets from here on let code into what is there now.
    pub fn renew(&self, path: &Path) {
        let mut common = self.common.write().unwrap_or_else(PoisonError::into_inner);
        for rule in common.iter_mut().filter(|rule| rule.path == path) {
            if let Ok(opened) = PathFd::new(path) {
                rule.opened = opened;
            }
        }
    }

    /// The rule set of one kernel. `own_user`: whether no other kernel is the same user, so that it can use the common
    /// `/dev/shm`.
    ///
    /// # Errors
    /// When the system is out of descriptors or memory.
    pub fn ruleset(&self, own_directory: &Path, own_user: bool) -> io::Result<OwnedFd> {
        self.build(own_directory, own_user).map_err(io::Error::other)?.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    /// The rule set of all kernels that have a root of their own, without its rules. A network of their own has nothing in it,
    /// so that they may use it.
    ///
    /// # Errors
    /// When the system is out of descriptors or memory.
    pub fn root_ruleset(&self) -> io::Result<OwnedFd> {
        let created = handled().and_then(|ruleset| Ok(ruleset.create()?)).map_err(io::Error::other)?;
        Option::<OwnedFd>::from(created).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    fn build(&self, own_directory: &Path, own_user: bool) -> Result<Option<OwnedFd>, Failure> {
        let mut ruleset = handled()?;
        if !self.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let mut created = ruleset.create()?;
        for Common { opened, access, .. } in self.common.read().unwrap_or_else(PoisonError::into_inner).iter() {
            created = created.add_rule(PathBeneath::new(opened, *access))?;
        }
        if let Some(shared) = self.shared_memory.as_ref().filter(|_| own_user) {
            // No directories: one call could keep files in another's.
            created = created.add_rule(PathBeneath::new(shared, self.in_shared_memory()))?;
        }
        created = created.add_rule(PathBeneath::new(PathFd::new(own_directory)?, AccessFs::from_all(NEWEST)))?;
        Ok(created.into())
    }
}

/// What a rule set is about, as far as the kernel knows it.
fn handled() -> Result<Ruleset, Failure> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    Ok(ruleset.handle_access(AccessFs::from_all(NEWEST))?.scope(Scope::from_all(NEWEST))?)
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
