//! What of a request a kernel has to know.

use protocol::{CpuSeconds, Policy};

use super::Cell;
use crate::wire::{Job, JobPackages};

/// As the kernel is sent it.
pub(super) fn encode(cell: &Cell<'_>) -> Vec<u8> {
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
    job.encode()
}
