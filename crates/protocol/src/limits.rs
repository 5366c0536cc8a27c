//! The limits a call runs under. A call may ask for less than the server's limits, and for more time up to a bound.

use std::time::Duration;

/// Wall-clock seconds a call may take when it names no timeout.
pub const DEFAULT_TIMEOUT_SECONDS: f64 = 30.0;
/// The longest timeout a call may ask for unless the operator changes it.
pub const MAX_TIMEOUT_SECONDS: f64 = 120.0;
/// Memory a call may use on top of the warm interpreter, in MB (2^20 bytes).
pub const DEFAULT_MEMORY_MB: u64 = 512;
/// Less than this and the interpreter itself can't work.
pub const MIN_MEMORY_MB: u64 = 16;
/// What all files of a call may take together, in MB (2^20 bytes).
pub const DEFAULT_DISK_MB: u64 = 512;
/// How much of each of stdout and stderr an answer carries, in bytes.
pub const DEFAULT_OUTPUT_CAP_BYTES: usize = 100_000;
/// How much output (both streams together) a run may make before it is ended as `output_limit`, in bytes.
pub const DEFAULT_OUTPUT_HARD_LIMIT_BYTES: u64 = 64 << 20;

/// What all images of an answer may take together, in bytes of the images. As base64 it is a third more, and with what else
/// an answer has it stays below 1 MiB, which is where clients stop reading an event.
pub const DEFAULT_IMAGES_BYTES: usize = 512 << 10;
/// What the contents of all files in an answer may take together, in bytes of the files.
pub const DEFAULT_FILES_BYTES: usize = 128 << 10;

/// Everything that bounds one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Wall-clock time from the moment the cell starts.
    pub timeout: Duration,
    /// Memory on top of the warm interpreter, in bytes, over all processes of the call together.
    pub memory_bytes: u64,
    /// How much of each stream the answer carries, in bytes.
    pub output_cap_bytes: usize,
    /// Output after which the run is ended, in bytes.
    pub output_hard_limit_bytes: u64,
    /// What all images of the answer may take together, in bytes.
    pub images_bytes: usize,
    /// What the contents of all files in the answer may take together, in bytes; larger ones are only named.
    pub files_bytes: usize,
    /// Largest file the code may write, in bytes.
    pub file_size_bytes: u64,
    /// What all files in the call's directory may take together, in bytes.
    pub disk_bytes: u64,
    /// Processes and threads the code may have at once.
    pub processes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs_f64(DEFAULT_TIMEOUT_SECONDS),
            memory_bytes: DEFAULT_MEMORY_MB << 20,
            output_cap_bytes: DEFAULT_OUTPUT_CAP_BYTES,
            output_hard_limit_bytes: DEFAULT_OUTPUT_HARD_LIMIT_BYTES,
            images_bytes: DEFAULT_IMAGES_BYTES,
            files_bytes: DEFAULT_FILES_BYTES,
            file_size_bytes: 256 << 20,
            disk_bytes: DEFAULT_DISK_MB << 20,
            processes: 64,
        }
    }
}

/// CPU seconds, as `RLIMIT_CPU` counts them: a backstop behind the wall clock, never the limit a user meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuSeconds(pub u64);

impl CpuSeconds {
    /// Every core busy for the whole of the timeout, and a little more.
    pub fn backstop(timeout: Duration, cores: usize) -> Self {
        Self(timeout.as_secs().saturating_add(1).saturating_mul(cores.max(1) as u64).saturating_add(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_backstop_never_ends_a_run_before_the_wall_clock_does() {
        assert_eq!(CpuSeconds::backstop(Duration::from_secs(30), 2), CpuSeconds(64));
        assert_eq!(CpuSeconds::backstop(Duration::from_millis(200), 0), CpuSeconds(3));
    }
}
