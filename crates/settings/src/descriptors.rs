//! Descriptors: as many as the settings need, or a refusal in words.

use interpreter::EngineConfig;

/// As many as a usual hard limit lets us have. More than are ever needed, because what code of the server's own user holds
/// in sockets counts against it too.
const AMPLE: u64 = 65_536;
/// What a call may have open, as each kernel is told.
const OF_A_CALL: u64 = 1024;
/// Counted: a running call takes 7 of the server's, with its connection.
const OF_A_KERNEL: u64 = 12;
/// Counted: 75, most of them for Landlock's rules; and package installs.
const OF_THE_SERVER: u64 = 200;

/// Raises the limit of this process and all it starts.
///
/// # Errors
/// When it can't be raised as far as these settings need.
pub(crate) fn provide(config: &EngineConfig) -> Result<(), String> {
    let needed = needed(config);
    let limit = sandbox::raise_descriptor_limit(needed.max(AMPLE));
    if limit >= needed {
        return Ok(());
    }
    Err(format!(
        "the limit on open files (`ulimit -n`) is {limit}, and {needed} are needed for MAX_CONCURRENCY={} and MAX_QUEUE={}: \
         raise the hard limit (`ulimit -Hn`, systemd's LimitNOFILE=, docker's --ulimit nofile=) or lower the two",
        config.max_concurrency, config.max_queue
    ))
}

/// As many connections as are wanted, and no more than half of the descriptors that may be open: without the others no call
/// can run.
pub(crate) fn connections(wanted: u32) -> usize {
    let limit = sandbox::raise_descriptor_limit(AMPLE);
    let most = usize::try_from(limit / 2).unwrap_or(usize::MAX);
    if wanted as usize > most {
        tracing::warn!("MAX_CONNECTIONS={wanted} is lowered to {most}: half of the limit on open files (`ulimit -n`)");
    }
    most.min(wanted as usize)
}

fn needed(config: &EngineConfig) -> u64 {
    let kernels = config.max_concurrency + config.spares * config.preload.stages();
    let connections = config.max_concurrency.saturating_add(config.max_queue);
    (kernels as u64 * OF_A_KERNEL).saturating_add(connections as u64).saturating_add(OF_THE_SERVER).max(OF_A_CALL)
}
