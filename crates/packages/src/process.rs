//! One run of an installer: bounded in time and bytes, heard line by line, dead when nobody waits for it any more.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox::{Holding, InstallerCage, InstallerLimits, Reaper};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use crate::error::{PackageError, Reason};

const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// What is kept of what an installer says.
const MAX_OUTPUT_BYTES: u64 = 8 << 20;
const MEMORY_BYTES: u64 = 4 << 30;
const SIGXFSZ: i32 = 25;
/// For looking at one folder.
const SIZE_PATIENCE: Duration = Duration::from_secs(60);

/// What an installer may take.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    pub(crate) deadline: Instant,
    /// What the watched folders may grow by.
    pub(crate) bytes: u64,
    pub(crate) watched: Vec<PathBuf>,
    /// The only folders that may be written to, where there is Landlock.
    pub(crate) writable: Vec<PathBuf>,
}

/// How installers are started.
pub(crate) struct Starter {
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) cage: InstallerCage,
}

/// What an installer said before it ended.
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Ends the process and all it started.
struct Group {
    pid: i32,
    reaper: Arc<Reaper>,
}

impl Group {
    /// It was reaped: its number may be another's from here on.
    fn ended(mut self) {
        self.reaper.release(self.pid);
        self.pid = 0;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            // Only the group's leader has this number, and it is not reaped before this.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            self.reaper.release(self.pid);
        }
    }
}

impl Starter {
    /// Runs the command to its end. Dropping the future kills it.
    pub(crate) async fn run(
        &self,
        mut command: std::process::Command,
        bounds: &Bounds,
        background: bool,
        on_line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Said, PackageError> {
        let failed = |what: &str, error: io::Error| PackageError::fault(what, &error);
        let limits = InstallerLimits {
            file_bytes: bounds.bytes,
            memory_bytes: MEMORY_BYTES,
            cpu_seconds: bounds.deadline.saturating_duration_since(Instant::now()).as_secs().saturating_mul(2) + 2,
            background,
        };
        self.cage.confine(&mut command, limits, &bounds.writable).map_err(|error| failed("confining the installer", error))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let (mut child, group) = {
            let started = self.reaper.start(|| {
                #[expect(clippy::disallowed_methods, reason = "in `Reaper::start`")]
                let child = command.spawn()?;
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
                Ok(((child, pid), pid))
            });
            let (child, pid) = started.map_err(|error| failed("starting the installer", error))?;
            (child, Group { pid, reaper: self.reaper.clone() })
        };
        let baseline = usage(&bounds.watched).await;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = {
            let reading = async { tokio::join!(read(stdout), hear(stderr, on_line)) };
            let running = async { (reading.await, child.wait().await) };
            let watching = async {
                loop {
                    tokio::time::sleep(WATCH_INTERVAL).await;
                    if usage(&bounds.watched).await.saturating_sub(baseline) > bounds.bytes {
                        return;
                    }
                }
            };
            tokio::select! {
                ended = running => Ok(ended),
                () = watching => Err(Reason::TooLarge),
                () = tokio::time::sleep_until(bounds.deadline.into()) => Err(Reason::InstallTimeout),
            }
        };
        let ((stdout, stderr), status) = match ended {
            Ok(ended) => ended,
            Err(reason) => {
                drop(group);
                let _ = child.wait().await;
                return Err(stopped(reason, bounds));
            }
        };
        group.ended();
        let status = status.map_err(|error| failed("waiting for the installer", error))?;
        if std::os::unix::process::ExitStatusExt::signal(&status) == Some(SIGXFSZ) || stderr.contains("File too large") {
            return Err(stopped(Reason::TooLarge, bounds));
        }
        Ok(Said { status, stdout, stderr })
    }
}

fn stopped(reason: Reason, bounds: &Bounds) -> PackageError {
    match reason {
        Reason::TooLarge => PackageError::new(
            reason,
            format!("the packages take more than {} MB unpacked, which is all that MAX_INSTALL_MB allows", bounds.bytes >> 20),
        ),
        _ => PackageError::new(reason, "installing took longer than INSTALL_TIMEOUT allows and was ended"),
    }
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn hear(pipe: Option<impl AsyncRead + Unpin>, on_line: &mut (dyn FnMut(&str) + Send)) -> String {
    let mut all = String::new();
    let Some(pipe) = pipe else { return all };
    let mut lines = BufReader::new(pipe.take(MAX_OUTPUT_BYTES));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line);
        on_line(text.trim_end());
        all.push_str(&text);
        line.clear();
    }
    all
}

/// What the folders take on disk, in bytes.
async fn usage(folders: &[PathBuf]) -> u64 {
    let folders = folders.to_vec();
    tokio::task::spawn_blocking(move || folders.iter().map(|folder| size(folder)).sum()).await.unwrap_or(0)
}

/// What everything below a folder takes on disk, in bytes. What goes meanwhile does not count.
pub(crate) fn size(folder: &Path) -> u64 {
    let all = Holding { bytes: u64::MAX, files: usize::MAX - 1 };
    sandbox::holding(folder, None, all, SIZE_PATIENCE).bytes
}
