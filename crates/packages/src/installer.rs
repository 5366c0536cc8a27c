//! Resolving and installing, by uv where there is one, else by pip from the Python tree.
//!
//! Rules: wheels only, so that nothing of a package ever runs; copies, never links into a cache; every file is held to
//! the hash it was resolved with. What an installer says reaches a person only without addresses, credentials and paths.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncReadExt;

use crate::config::IndexUrl;
use crate::error::{PackageError, Reason};
use crate::installed::Package;
use crate::pin::{Pin, pins, reported};
use crate::process::{Bounds, Said, Starter};
use crate::requirement::Wanted;
use crate::words;

/// Runs pip and the compiler.
const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// What of the server's environment an installer needs to reach an index.
const PASSED_ON: [&str; 8] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"];

/// Of pip's log.
const MAX_LOG_BYTES: u64 = 8 << 20;

/// The program that installs.
#[derive(Clone, Debug)]
pub(crate) enum Tool {
    Uv(PathBuf),
    /// pip as an archive, which the tree's Python runs.
    Pip(PathBuf),
}

/// Where one install is done.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) work: PathBuf,
    pub(crate) downloads: PathBuf,
}

/// What the tool is run with.
pub(crate) struct Installer {
    pub(crate) tool: Tool,
    pub(crate) starter: Starter,
    pub(crate) python: PathBuf,
    pub(crate) site: PathBuf,
    pub(crate) index: Option<IndexUrl>,
    /// Packages must have been on the index for so long.
    pub(crate) min_age: Option<Duration>,
    /// A filter program in hexadecimal: with it in force no program starts. Empty where there is none.
    pub(crate) no_programs: String,
}

impl Installer {
    /// Finds versions for all that is wanted, with the stack's versions as they are or regardless of them.
    pub(crate) async fn resolve(
        &self,
        place: &Place,
        wanted: &[Wanted],
        stack: Option<&[Package]>,
        extra: &BTreeMap<String, Pin>,
        bounds: &Bounds,
    ) -> Result<Vec<Pin>, PackageError> {
        let requirements = place.work.join("wanted.txt");
        write(&requirements, wanted.iter().map(Wanted::line)).await?;
        let constraints = place.work.join("constraints.txt");
        let pinned = stack.into_iter().flatten().map(|package| format!("{}=={}", package.name, package.version));
        let listed = extra.values().filter(|pin| !stack.into_iter().flatten().any(|package| package.name == pin.name));
        write(&constraints, pinned.chain(listed.map(Pin::line))).await?;
        let (mut command, report) = (self.command(place, stack.is_some()), place.work.join("report.json"));
        let log = place.work.join("pip.log");
        match &self.tool {
            Tool::Uv(_) => {
                command.args(["pip", "compile", "--quiet", "--no-header", "--annotation-style", "line", "--generate-hashes"]);
                command.args(["--only-binary", ":all:", "--python"]).arg(&self.python);
                if let Some(time) = self.newest() {
                    command.args(["--exclude-newer", &time]);
                }
                command.arg("-c").arg(&constraints).arg(&requirements);
            }
            Tool::Pip(_) => {
                command.args(["install", "--dry-run", "--quiet", "--only-binary", ":all:", "--report"]).arg(&report);
                command.arg("--log").arg(&log);
                if stack.is_none() {
                    command.arg("--ignore-installed");
                }
                if let Some(time) = self.newest() {
                    command.args(["--uploaded-prior-to", &time]);
                }
                // By name: of a file's lines pip would tell the numbers.
                command.arg("-c").arg(&constraints).args(wanted.iter().map(Wanted::line));
            }
        }
        let said = self.starter.run(command, bounds, false, &mut |_| {}).await?;
        if !said.status.success() {
            return Err(self.refusal(&said, &words::failed_fetches(&log_of_pip(&log).await)));
        }
        match &self.tool {
            Tool::Uv(_) => pins(&said.stdout),
            Tool::Pip(_) => reported(&tokio::fs::read(&report).await.unwrap_or_default()),
        }
    }

    /// Installs exactly these into `target`; `on_download` hears the name of each file that has come.
    pub(crate) async fn install(
        &self,
        place: &Place,
        pins: &[Pin],
        target: &Path,
        bounds: &Bounds,
        on_download: &mut (dyn FnMut() + Send),
    ) -> Result<(), PackageError> {
        let lock = place.work.join("lock.txt");
        let lines = pins.iter().map(|pin| pin.hashes.iter().fold(pin.line(), |line, hash| line + " --hash=" + hash));
        write(&lock, lines).await?;
        let mut command = self.command(place, false);
        match &self.tool {
            Tool::Uv(_) => {
                command.args(["pip", "install", "--link-mode", "copy", "--no-compile-bytecode", "--python"]).arg(&self.python);
            }
            Tool::Pip(_) => {
                command.args(["install", "--no-compile", "--no-warn-conflicts"]);
            }
        }
        command.args(["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target"]).arg(target).arg("-r").arg(&lock);
        let mut hear = |line: &str| {
            // uv says so of large files, pip of each.
            if line.trim_start().starts_with("Downloaded ")
                || (line.trim_start().starts_with("Downloading ") || line.trim_start().starts_with("Using cached "))
                    && line.contains(".whl")
                    && !line.contains(".metadata")
            {
                on_download();
            }
        };
        let said = self.starter.run(command, bounds, false, &mut hear).await?;
        if said.status.success() { Ok(()) } else { Err(self.refusal(&said, "")) }
    }

    /// Compiles a folder's bytecode, behind everything else on the machine.
    pub(crate) async fn compile(&self, folder: &Path, bounds: &Bounds) -> Result<(), PackageError> {
        let mut command = Command::new(&self.python);
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        command.args(["-I", "-S", "-c", BOOTSTRAP, &self.no_programs, "", ""]);
        command.args(["-q", "-q", "--invalidation-mode", "unchecked-hash"]).arg(folder);
        // Some packages carry templates that are no valid Python: then it exits with 1.
        self.starter.run(command, bounds, true, &mut |_| {}).await.map(drop)
    }

    /// The tool with an environment of its own.
    fn command(&self, place: &Place, sees_stack: bool) -> Command {
        let Place { work, downloads } = place;
        let mut command = match &self.tool {
            Tool::Uv(program) => Command::new(program),
            Tool::Pip(archive) => {
                let mut command = Command::new(&self.python);
                command.args(["-I", "-S", "-B", "-c", BOOTSTRAP, &self.no_programs]).arg(archive);
                command.arg(if sees_stack { self.site.as_os_str() } else { "".as_ref() });
                command
            }
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", work).env("TMPDIR", work).env("LANG", "C.UTF-8");
        command.current_dir(work);
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        match &self.tool {
            Tool::Uv(_) => {
                command.envs([
                    ("UV_NO_CONFIG", "1"),
                    ("UV_NO_PROGRESS", "1"),
                    ("UV_SYSTEM_CERTS", "1"),
                    ("UV_PYTHON_DOWNLOADS", "never"),
                    ("UV_KEYRING_PROVIDER", "disabled"),
                    ("UV_HTTP_RETRIES", "1"),
                    ("UV_HTTP_TIMEOUT", "20"),
                ]);
                command.env("UV_CACHE_DIR", downloads);
                command.envs(self.index.iter().map(|index| ("UV_DEFAULT_INDEX", index.as_str())));
            }
            Tool::Pip(_) => {
                command.envs([
                    ("PIP_CONFIG_FILE", "/dev/null"),
                    ("PIP_NO_INPUT", "1"),
                    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
                    ("PIP_ROOT_USER_ACTION", "ignore"),
                    ("PIP_PROGRESS_BAR", "off"),
                    ("PIP_RETRIES", "1"),
                    ("PIP_TIMEOUT", "20"),
                ]);
                command.env("PIP_CACHE_DIR", downloads);
                command.envs(self.index.iter().map(|index| ("PIP_INDEX_URL", index.as_str())));
                command.envs(std::env::var_os("SSL_CERT_FILE").map(|file| ("PIP_CERT", file)));
            }
        }
        command
    }

    /// The moment after which nothing may have been uploaded, as RFC 3339.
    fn newest(&self) -> Option<String> {
        before(SystemTime::now(), self.min_age?)
    }

    /// Puts an installer's failure into stable words. `beside`: what it has written elsewhere.
    fn refusal(&self, said: &Said, beside: &str) -> PackageError {
        let text = format!("{beside}{}\n{}", said.stderr, said.stdout);
        let reason = words::reason_of(&text);
        tracing::debug!(reason = reason.as_str(), stderr = %self.redacted(&text), "an installer failed");
        let detail = words::detail(&words::without_paths(&self.redacted(&said.stderr)), reason);
        let what: &str = match (reason, self.min_age) {
            (Reason::NotFound, Some(_)) => &format!("{}, or none as old as MIN_PACKAGE_AGE asks", words::explained(reason)),
            _ => words::explained(reason),
        };
        PackageError::new(reason, if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") })
    }

    /// The text without addresses, which may hold credentials.
    fn redacted(&self, text: &str) -> String {
        let text = words::without_addresses(text);
        self.index.as_ref().map_or(text.clone(), |index| index.redact(&text))
    }
}

/// What pip has written to its log, as far as it is worth reading.
async fn log_of_pip(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = tokio::fs::File::open(path).await {
        let _ = file.take(MAX_LOG_BYTES).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn write(path: &Path, lines: impl Iterator<Item = String>) -> Result<(), PackageError> {
    let text = lines.map(|line| line + "\n").collect::<String>();
    tokio::fs::write(path, text).await.map_err(|error| PackageError::fault("writing down what is installed", &error))
}

/// The moment that long before `now`, to the second, as `2026-11-25T00:00:00Z`. Not before 1970, when there was no index.
fn before(now: SystemTime, age: Duration) -> Option<String> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(age);
    let moment = OffsetDateTime::from_unix_timestamp(i64::try_from(since.as_secs()).ok()?);
    moment.ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also one that has come under somebody else's rule.
    #[tokio::test]
    async fn pip_starts_no_program() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/tree");
        let python = tree.join("python/bin/python3").canonicalize().expect("the tree is built");
        let work = tempfile::tempdir().expect("a folder");
        let archive = work.path().join("archive");
        for (file, text) in [
            ("__init__.py", ""),
            ("_internal/exceptions.py", "class InstallationError(Exception): pass"),
            (
                "_internal/resolution/resolvelib/factory.py",
                "class Factory:\n    _make_requirements_from_install_req = _make_base_candidate_from_link = None",
            ),
            (
                "__main__.py",
                "import ctypes, os, subprocess, sys\n\
                 def by_python(start):\n    try:\n        start()\n        print('started')\n    except PermissionError:\n        print('refused')\n\
                 by_python(lambda: subprocess.run([sys.executable, '-V']))\n\
                 by_python(lambda: os.system('true'))\n\
                 by_python(lambda: os.execv(sys.executable, [sys.executable, '-V']))\n\
                 libc = ctypes.CDLL(None, use_errno=True)\n\
                 program = sys.executable.encode()\n\
                 libc.execv(program, (ctypes.c_char_p * 3)(program, b'-V', None))\n\
                 print('errno', ctypes.get_errno(), flush=True)\n\
                 sys.exit(1)",
            ),
        ] {
            let path = archive.join("pip").join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let cage = sandbox::InstallerCage::new(vec![tree.canonicalize().expect("a tree"), "/proc".into()], vec![python.clone()]);
        let installer = Installer {
            tool: Tool::Pip(archive),
            no_programs: cage.no_programs(),
            starter: Starter { reaper: std::sync::Arc::new(sandbox::Reaper::new(false)), cage },
            python,
            site: PathBuf::new(),
            index: None,
            min_age: None,
        };
        let folders = vec![work.path().to_owned()];
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        let bounds = Bounds { deadline, bytes: 1 << 30, watched: folders.clone(), writable: folders };
        let command = installer.command(&Place { work: work.path().to_owned(), downloads: work.path().join("downloads") }, false);
        let said = installer.starter.run(command, &bounds, false, &mut |_| {}).await.expect("it runs");
        assert_eq!(said.stderr, "refused\nrefused\nrefused\nerrno 1\n");
    }

    #[test]
    fn moments_are_written_as_indexes_read_them() {
        let now = SystemTime::UNIX_EPOCH + Duration::new(1_795_614_062, 999_999_999);
        for (age, text) in [
            (0, "2026-11-25T13:41:02Z"),
            (843_831_662, "2000-02-29T00:00:00Z"),
            (1_795_614_062, "1970-01-01T00:00:00Z"),
            // It was no moment at all, and any file was taken.
            (100 * 365 * 86_400, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(before(now, Duration::from_secs(age)).as_deref(), Some(text));
        }
    }
}
