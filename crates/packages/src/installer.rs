//! Resolving and installing, by uv where there is one, else by pip from the Python tree.
//!
//! Rules: wheels only, so that nothing of a package ever runs; copies, never links into a cache; every file is held to
//! the hash it was resolved with. What an installer says reaches a person only without addresses and credentials.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::error::{PackageError, Reason};
use crate::installed::Package;
use crate::pin::{Pin, pins, reported};
use crate::process::{Bounds, Said, Starter};
use crate::requirement::Wanted;

/// Runs pip and the compiler.
const BOOTSTRAP: &str = include_str!("bootstrap.py");
/// What of the server's environment an installer needs to reach an index.
const PASSED_ON: [&str; 8] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"];

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
    /// May hold credentials.
    pub(crate) index: Option<String>,
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
        write(&requirements, wanted.iter().map(Wanted::line))?;
        let constraints = place.work.join("constraints.txt");
        let pinned = stack.into_iter().flatten().map(|package| format!("{}=={}", package.name, package.version));
        let listed = extra.values().filter(|pin| !stack.into_iter().flatten().any(|package| package.name == pin.name));
        write(&constraints, pinned.chain(listed.map(Pin::line)))?;
        let (mut command, report) = (self.command(place, stack.is_some()), place.work.join("report.json"));
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
                if stack.is_none() {
                    command.arg("--ignore-installed");
                }
                if let Some(time) = self.newest() {
                    command.args(["--uploaded-prior-to", &time]);
                }
                command.arg("-c").arg(&constraints).arg("-r").arg(&requirements);
            }
        }
        let said = self.starter.run(command, bounds, false, &mut |_| {}).await?;
        if !said.status.success() {
            return Err(self.refusal(&said));
        }
        match &self.tool {
            Tool::Uv(_) => pins(&said.stdout),
            Tool::Pip(_) => reported(&std::fs::read(&report).unwrap_or_default()),
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
        write(&lock, lines)?;
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
        if said.status.success() { Ok(()) } else { Err(self.refusal(&said)) }
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
                command.envs(self.index.iter().map(|index| ("UV_DEFAULT_INDEX", index)));
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
                command.envs(self.index.iter().map(|index| ("PIP_INDEX_URL", index)));
                command.envs(std::env::var_os("SSL_CERT_FILE").map(|file| ("PIP_CERT", file)));
            }
        }
        command
    }

    /// The moment after which nothing may have been uploaded, as RFC 3339.
    fn newest(&self) -> Option<String> {
        let age = self.min_age?;
        let moment = SystemTime::now().checked_sub(age)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(rfc3339(moment.as_secs()))
    }

    /// Puts an installer's failure into stable words.
    fn refusal(&self, said: &Said) -> PackageError {
        let text = format!("{}\n{}", said.stderr, said.stdout);
        tracing::debug!(stderr = %self.redacted(&text), "an installer failed");
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let reason = match () {
            // " @ " stands in a requirement before an address and nowhere else.
            () if has(&["direct reference: ", "included as a URL dependency"]) || has(&[" @ "]) && has(&["://"]) => {
                Reason::DirectReference
            }
            () if has(&["Hash mismatch", "DO NOT MATCH THE HASHES", "hash mismatch"]) => Reason::HashMismatch,
            () if has(&[
                "no wheels",
                "no usable wheels",
                "no matching wheel",
                "Building source distributions",
                "building from source is disabled",
            ]) =>
            {
                Reason::NoWheel
            }
            () if has(&[
                "error sending request",
                "Failed to fetch",
                "Connection refused",
                "ConnectionError",
                "ConnectTimeout",
                "timed out",
                "NewConnectionError",
                "request or response body error",
                "error decoding response body",
                "IncompleteRead",
                "Failed to download",
                "401",
                "403 ",
                "network connectivity",
            ]) =>
            {
                Reason::IndexUnreachable
            }
            () if has(&[
                "not found in the package registry",
                "No matching distribution found",
                "there is no version of",
                "was not found in the",
                "only the following versions",
            ]) =>
            {
                Reason::NotFound
            }
            () if has(&["No solution found", "ResolutionImpossible"]) => Reason::NoSolution,
            () => Reason::Failed,
        };
        let what = match reason {
            Reason::DirectReference => "a package needs another from an address; only names on the package index are taken",
            Reason::HashMismatch => "a file is not the one its hash promises, and was not installed",
            Reason::NoWheel => "there is no wheel of it for this Python and machine, and sources are never built here",
            Reason::IndexUnreachable => "the package index did not answer, or broke off",
            Reason::NotFound => "the package index has no such package or version with a wheel for this machine",
            Reason::NoSolution => "the requirements can't be met together",
            _ => "the installer failed",
        };
        let detail = self.redacted(&said.stderr);
        let lines = detail.lines().map(without_label).filter(|line| is_detail(line)).collect::<Vec<_>>();
        // Of a traceback the end tells.
        let lines = if reason == Reason::Failed { &lines[lines.len().saturating_sub(2)..] } else { &lines[..lines.len().min(4)] };
        let detail = lines.join(" ");
        let detail = detail.chars().filter(|c| !c.is_control()).take(600).collect::<String>();
        PackageError::new(reason, if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") })
    }

    /// The text without addresses, which may hold credentials.
    fn redacted(&self, text: &str) -> String {
        let mut text = without_addresses(text);
        for secret in self.index.iter().flat_map(|index| secrets(index)) {
            text = text.replace(&secret, "****");
        }
        text
    }
}

fn without_label(line: &str) -> &str {
    let labels =
        ["error:", "ERROR:", "cause:", "No solution found when resolving dependencies", "\u{d7}", "\u{2570}\u{2500}\u{25b6}"];
    labels.iter().fold(line.trim(), |line, label| line.strip_prefix(label).unwrap_or(line).trim())
}

fn is_detail(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("Using ") && !line.starts_with("Resolved ") && !line.starts_with("hint:")
}

/// Users and passwords of an index's address, as they are written there and decoded.
fn secrets(index: &str) -> Vec<String> {
    let Some((user_info, _)) = index.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')) else { return Vec::new() };
    let parts = user_info.split(':').filter(|part| part.len() > 2);
    parts.flat_map(|part| [part.to_owned(), decoded(part)]).collect()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        let escaped = hex.filter(|_| *first == b'%');
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Replaces whatever looks like `scheme://…` up to the next blank, quote or bracket.
fn without_addresses(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '+').map_or(0, |before| before + 1);
        // The character before may be longer than one byte.
        let start = (start..=at).find(|index| rest.is_char_boundary(*index)).unwrap_or(at);
        out.push_str(&rest[..start]);
        out.push_str("(the index)");
        let tail = &rest[at + 3..];
        let end = tail.find(|c: char| c.is_whitespace() || "`'\")>]".contains(c)).unwrap_or(tail.len());
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

fn write(path: &Path, lines: impl Iterator<Item = String>) -> Result<(), PackageError> {
    let text = lines.map(|line| line + "\n").collect::<String>();
    std::fs::write(path, text).map_err(|error| PackageError::new(Reason::Failed, format!("{}: {error}", path.display())))
}

/// Seconds since 1970 as `2026-11-25T00:00:00Z` (the days by <https://howardhinnant.github.io/date_algorithms.html>).
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
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
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_614_062), "2026-11-25T13:41:02Z");
    }

    #[test]
    fn addresses_and_credentials_do_not_leave_the_installer() {
        let text = "error: Failed to fetch: `https://user:se%40cret@index.example/simple/x/` for user with se@cret";
        assert_eq!(without_addresses(text), "error: Failed to fetch: `(the index)` for user with se@cret");
        assert_eq!(secrets("https://user:se%40cret@index.example/simple"), ["user", "user", "se%40cret", "se@cret"]);
        assert!(secrets("https://index.example/simple").is_empty());
        assert_eq!(without_addresses("é://x y"), "é(the index) y");
    }
}
