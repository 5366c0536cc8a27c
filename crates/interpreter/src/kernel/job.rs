//! What a kernel is sent to run.

use std::borrow::Cow;

use protocol::{CpuSeconds, Policy};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Cell;

/// As `kernel.py` takes it.
#[derive(Serialize)]
struct Job<'a> {
    code: &'a str,
    input_data: Option<&'a RawValue>,
    authorized_imports: Option<&'a [String]>,
    packages: Option<JobPackages<'a>>,
    memory_bytes: u64,
    cpu_seconds: u64,
    images_bytes: usize,
    /// Another cell may follow.
    is_kept: bool,
}

#[derive(Serialize)]
struct JobPackages<'a> {
    directory: Cow<'a, str>,
    separate: bool,
}

/// Its length, then the job itself.
pub(super) fn encode(cell: &Cell<'_>) -> Vec<u8> {
    const ROOM: usize = 1024;
    let request = cell.request;
    let packages = request.packages.as_ref();
    let job = Job {
        code: &request.code,
        input_data: request.input_data.as_deref(),
        authorized_imports: (request.policy == Policy::Restricted).then_some(cell.authorized_imports),
        packages: packages
            .map(|packages| JobPackages { directory: packages.directory.to_string_lossy(), separate: packages.separate }),
        memory_bytes: request.limits.memory_bytes,
        cpu_seconds: CpuSeconds::backstop(request.limits.timeout, cell.cores).0,
        images_bytes: request.limits.images_bytes,
        is_kept: cell.is_kept,
    };
    let data = request.input_data.as_ref().map_or(0, |data| data.get().len());
    let mut bytes = Vec::with_capacity(ROOM + request.code.len() + data);
    bytes.extend_from_slice(&[0; 4]);
    // Text and numbers written to memory: nothing of it can fail.
    let _ = serde_json::to_writer(&mut bytes, &job);
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}
