//! What a kernel is sent to run: `length: u32 (little endian)`, then JSON.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

/// One cell.
#[derive(Serialize)]
pub(crate) struct Job<'a> {
    pub(crate) code: &'a str,
    pub(crate) input_data: Option<&'a RawValue>,
    /// None where the policy is open.
    pub(crate) authorized_imports: Option<&'a [String]>,
    pub(crate) packages: Option<JobPackages<'a>>,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_seconds: u64,
    pub(crate) images_bytes: usize,
    /// Another cell may follow.
    pub(crate) is_kept: bool,
}

/// What the cell can import besides the stack, or instead of it.
#[derive(Serialize)]
pub(crate) struct JobPackages<'a> {
    pub(crate) directory: Cow<'a, str>,
    pub(crate) separate: bool,
}

impl Job<'_> {
    /// As it is written.
    pub(crate) fn encode(&self) -> Vec<u8> {
        const ROOM: usize = 1024;
        let data = self.input_data.map_or(0, |data| data.get().len());
        let mut bytes = Vec::with_capacity(ROOM + self.code.len() + data);
        bytes.extend_from_slice(&[0; 4]);
        // Text and numbers written to memory: nothing of it can fail.
        let _ = serde_json::to_writer(&mut bytes, self);
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }
}
