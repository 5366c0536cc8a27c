//! The bounds of a package installer: a child of the server that reads what strangers have uploaded.
//!
//! Rule: it may reach the network and write to its work folder, and nothing else; it never runs what it installs. It has no
//! capabilities, also as root; what the kernel refuses user code it refuses an installer too, and device nodes, sockets of
//! the machine and listening besides. Where the kernel has a layer not, or refuses it, the others hold.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use landlock::{
    Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::landlock::{DEVICES, NEWEST, SYSTEM};
use crate::seccomp::{installer_programs, native_arch, no_programs_program};

/// Load every program that is not static.
const LOADERS: [&str; 4] =
    ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"];

/// What bounds the process, and each one it starts.
#[derive(Clone, Copy, Debug)]
pub struct InstallerLimits {
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Memory of its own, in bytes.
    pub memory_bytes: u64,
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
    /// Whether everything else on the machine goes first.
    pub background: bool,
}

/// Confines installers.
#[derive(Debug)]
pub struct InstallerCage {
    readable: Vec<PathBuf>,
    executable: Vec<PathBuf>,
    /// Filter programs; compiled when first needed, as a server must answer before it can install.
    filters: OnceLock<Vec<Vec<u8>>>,
}

impl InstallerCage {
    /// `readable`: files and folders, besides what every program reads of the system. `executable`: the only programs that
    /// can be started.
    pub fn new(readable: Vec<PathBuf>, executable: Vec<PathBuf>) -> Self {
        Self { readable, executable, filters: OnceLock::new() }
    }

    /// A filter program in hexadecimal, with which a process starts no further one. Empty for an architecture without rules.
    pub fn no_programs(&self) -> String {
        let program = native_arch().and_then(|arch| no_programs_program(arch).ok()).unwrap_or_default();
        program.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Puts the command in a process group of its own, under the limits, without any right beyond a plain user's, and
    /// behind Landlock and seccomp where they are. `writable`: the only folders it can write to.
    ///
    /// # Errors
    /// When the system is out of descriptors, or a folder is not there.
    pub fn confine(&self, command: &mut Command, limits: InstallerLimits, writable: &[PathBuf]) -> io::Result<()> {
        let ruleset = self.ruleset(writable).map_err(io::Error::other)?;
        let filters =
            self.filters.get_or_init(|| native_arch().and_then(|arch| installer_programs(arch).ok()).unwrap_or_default());
        let filters = filters.clone();
        let bounds = [
            (Resource::Fsize, limits.file_bytes),
            (Resource::Data, limits.memory_bytes),
            (Resource::Cpu, limits.cpu_seconds),
            (Resource::Core, 0),
        ];
        #[expect(unsafe_code, reason = "limits are set between fork and exec")]
        // SAFETY: only system calls are made in the child, all async-signal-safe; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setpgid(None, None)?;
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
                for (resource, bound) in bounds {
                    let hard = rustix::process::getrlimit(resource).maximum.map_or(bound, |hard| hard.min(bound));
                    rustix::process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?;
                }
                if limits.background {
                    let _ = rustix::process::nice(19);
                }
                // Refused inside a Lambda function, as what needs it is.
                let no_new_privileges = rustix::thread::set_no_new_privs(true);
                if let Some(ruleset) = &ruleset {
                    no_new_privileges?;
                    restrict(ruleset)?;
                }
                drop_capabilities()?;
                if no_new_privileges.is_ok() {
                    filters.iter().try_for_each(|filter| install(filter))?;
                }
                Ok(())
            });
        }
        Ok(())
    }

    /// None where the kernel has no Landlock.
    fn ruleset(&self, writable: &[PathBuf]) -> Result<Option<OwnedFd>, Box<dyn std::error::Error + Send + Sync>> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let whole: BitFlags<AccessFs> = AccessFs::from_all(NEWEST);
        let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::MakeFifo | AccessFs::IoctlDev;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(whole)?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        let system = SYSTEM.iter().map(Path::new).chain(self.readable.iter().map(PathBuf::as_path)).map(|path| (path, read));
        let devices = DEVICES.iter().map(|path| (Path::new(*path), AccessFs::ReadFile | AccessFs::WriteFile));
        let programs = LOADERS.iter().map(Path::new).chain(self.executable.iter().map(PathBuf::as_path));
        let programs = programs.map(|path| (path, AccessFs::ReadFile | AccessFs::Execute));
        for (path, access) in system.chain(devices).chain(programs) {
            // What is not on this machine is not needed.
            let Ok(opened) = PathFd::new(path) else { continue };
            // A rule for a file must not name rights that only directories have.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
            ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
        }
        for folder in writable {
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(folder)?, whole & !(special | AccessFs::Execute)))?;
        }
        Ok(ruleset.into())
    }
}

/// Of root's rights none is left, and none comes back with the program that is started.
fn drop_capabilities() -> io::Result<()> {
    let _ = rustix::thread::clear_ambient_capability_set();
    for capability in CapabilitySet::all().iter() {
        // Not every kernel has them all; and without the right to do this, what counts is that no right can be gained.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySet::empty();
    let dropped = rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none });
    // Who has none may be refused to say so.
    if crate::is_root() { dropped.map_err(io::Error::from) } else { Ok(()) }
}

fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "the landlock crate restricts the calling process only with a rule set of its own")]
    // SAFETY: the call takes a descriptor and flags, and touches no memory.
    let refused = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts a filter program in force, where the kernel has filters and lets a process have its own.
fn install(program: &[u8]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len() / size_of::<libc::sock_filter>()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    #[expect(unsafe_code, reason = "no library puts a program in force that was compiled before")]
    // SAFETY: the program outlives the call, which copies it; the kernel checks it.
    let refused = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if refused == 0 => Ok(()),
        Some(libc::EPERM | libc::EACCES | libc::EINVAL | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InstallerLimits =
        InstallerLimits { file_bytes: 1 << 20, memory_bytes: 4 << 30, cpu_seconds: 60, background: false };

    /// What a shell says under the cage, in a work folder of its own. It can start `programs` and no others.
    fn shell(script: &str, readable: &[&str], programs: &[&str]) -> String {
        let (work, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let canonical = |path: &str| std::fs::canonicalize(path).expect("it is there");
        let shell = canonical("/bin/sh");
        let executable = programs.iter().map(|path| canonical(path)).chain([shell.clone()]).collect();
        let cage = InstallerCage::new(readable.iter().map(PathBuf::from).collect(), executable);
        let mut command = Command::new(&shell);
        command.arg("-c").arg(script).env("OTHER", other.path()).current_dir(work.path());
        cage.confine(&mut command, LIMITS, &[work.path().to_owned()]).expect("confined");
        String::from_utf8(command.output().expect("it starts").stdout).expect("text")
    }

    #[test]
    fn an_installer_has_no_capabilities_and_every_layer_around_it() {
        let status = "while read -r name value; do case $name in Cap*|NoNewPrivs:|Seccomp:) echo $name$value;; esac; done < /proc/self/status";
        let said = shell(status, &["/proc"], &[]);
        for line in said.lines().filter(|line| line.starts_with("Cap")) {
            let bounding_of_a_user = line.starts_with("CapBnd") && !crate::is_root();
            assert!(bounding_of_a_user || line.ends_with(":0000000000000000"), "{said}");
        }
        assert!(said.contains("NoNewPrivs:1") && said.contains("Seccomp:2") && said.contains("CapEff"), "{said}");
    }

    #[test]
    fn an_installer_writes_to_its_folder_only_and_starts_what_it_was_given_only() {
        let script =
            "echo here > file && echo written; echo there > $OTHER/file || echo refused; /usr/bin/id || echo not started";
        assert_eq!(shell(script, &[], &[]), "written\nrefused\nnot started\n");
    }

    #[test]
    fn an_installer_makes_no_device_node_and_no_pipe() {
        let script = "mknod device c 1 3 || echo no device; mkfifo pipe || echo no pipe; echo $(echo *)";
        assert_eq!(shell(script, &[], &["/usr/bin/mknod", "/usr/bin/mkfifo"]), "no device\nno pipe\n*\n");
    }
}
