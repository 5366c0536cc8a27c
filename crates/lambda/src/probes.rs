//! What this environment grants, in one line of the log: the first deployment into an account tells all in one look.
//!
//! Rule: only what was tried here is said.

use std::fmt::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use interpreter::{EngineStatus, Probe};
use server::{LayerReport, LayerState, Service};
use settings::ResponseLock;

const SHARED_MEMORY: &str = "/dev/shm";
/// How often it is looked whether the layers have been tried.
const LOOK: Duration = Duration::from_millis(20);

/// What the start has found, before the layers are tried.
pub(crate) struct Probes {
    /// Whether user code can't read this process.
    pub(crate) unreadable: bool,
    pub(crate) lock: ResponseLock,
    /// What of a user's is emptied after each call besides files; none outside of a function.
    pub(crate) emptied: Option<sandbox::Leftovers>,
}

impl Probes {
    /// Writes the line as soon as the layers have been tried; until then the door is open already.
    pub(crate) async fn tell(self, service: Arc<Service>) {
        let status = loop {
            let status = service.status();
            if status.probes.is_some() {
                break status;
            }
            tokio::time::sleep(LOOK).await;
        };
        let refused = sandbox::refused_calls();
        let is_refused = |name: &str| refused.iter().any(|(refused, _)| *refused == name);
        let emptied = |of: fn(sandbox::Leftovers) -> bool| self.emptied.is_some_and(of);
        tracing::info!(
            kernel = release(),
            uid = sandbox::user_id(),
            unreadable = self.unreadable,
            interpreter = interpreter_file(&service.python()),
            orphans_go_to = status.heir,
            process_handles = if is_refused("pidfd_open") { "numbers" } else { "descriptors" },
            signals = if is_refused("pidfd_send_signal") { "by number" } else { "by descriptor" },
            nameless_files = if is_refused("memfd_create") { "unlinked" } else { "in memory" },
            refused_calls = refused.iter().map(|(name, errno)| format!("{name}:{errno}")).collect::<Vec<_>>().join(" "),
            layers = layers(&service.layers(), &status),
            response_lock = format!("{:?}", self.lock).to_lowercase(),
            shared_memory = shared_memory(),
            temporary_mb = sandbox::disk_size(&std::env::temp_dir()).map(|bytes| bytes >> 20),
            system_v_emptied = emptied(|of| of.system_v),
            keys_emptied = emptied(|of| of.keys),
            "init"
        );
    }
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Rights and owner: a kernel is only unreadable for others when nobody of its user may read this file.
fn interpreter_file(path: &Path) -> String {
    std::fs::metadata(path).map_or_else(
        |error| error.to_string(),
        |metadata| format!("{:o} of {}", metadata.permissions().mode() & 0o7777, metadata.uid()),
    )
}

fn shared_memory() -> &'static str {
    match tempfile::tempfile_in(SHARED_MEMORY) {
        Ok(_) => "writable: what code leaves there stays",
        Err(_) if Path::new(SHARED_MEMORY).exists() => "not writable",
        Err(_) => "none",
    }
}

/// `name=state` of each, and the errno of those that the kernel has refused.
fn layers(layers: &[LayerReport], status: &EngineStatus) -> String {
    let mut text = String::new();
    for LayerReport { name, state, .. } in layers {
        let state = match state {
            LayerState::Active => "active",
            LayerState::Refused => "refused",
            LayerState::Off => "off",
            LayerState::NotApplicable => "not_applicable",
            LayerState::Unknown => "unknown",
        };
        let probe = status.probes.as_ref().map_or(Probe::NotTried, |probes| probes.of(*name));
        let separator = if text.is_empty() { "" } else { " " };
        // Writing to a String can't fail.
        let _ = match probe {
            Probe::Refused(errno) => write!(text, "{separator}{name}={state}:{errno}"),
            Probe::Held | Probe::NotTried => write!(text, "{separator}{name}={state}"),
        };
    }
    text
}
