//! What a run gives back. The field names of [`ExecutionResult`] are the deployed contract: they don't change.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Ended;

/// The stable code of a failure: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The code raised an exception, or is not valid Python.
    PythonError,
    /// The wall-clock limit passed; the run was killed.
    Timeout,
    /// The memory limit was met: Python raised `MemoryError`, or the run was killed.
    MemoryLimit,
    /// More output than the hard limit; the run was killed.
    OutputLimit,
    /// More processes or threads than allowed; the run was killed.
    ProcessLimit,
    /// More than allowed in its directory; the run was killed.
    DiskLimit,
    /// The process ended before the code did (`sys.exit`, `os._exit`).
    Exited,
    /// The process was ended by a signal of its own making, such as a segmentation fault.
    Crashed,
    /// The restricted policy refuses something in the code.
    PolicyDenied,
    /// A requirement is refused, or can't be had; `type` has the reason.
    PackageError,
    /// All kernels are taken and the queue is full: try again later.
    Busy,
    /// An argument of the call can't be used; the message names it.
    InvalidArgument,
    /// The caller went away or took the call back.
    Cancelled,
    /// Our fault, not the code's.
    Internal,
}

impl ErrorCode {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PythonError => "python_error",
            Self::Timeout => "timeout",
            Self::MemoryLimit => "memory_limit",
            Self::OutputLimit => "output_limit",
            Self::ProcessLimit => "process_limit",
            Self::DiskLimit => "disk_limit",
            Self::Exited => "exited",
            Self::Crashed => "crashed",
            Self::PolicyDenied => "policy_denied",
            Self::PackageError => "package_error",
            Self::Busy => "busy",
            Self::InvalidArgument => "invalid_argument",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// Why a run did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionError {
    /// Stable, machine-readable.
    pub code: ErrorCode,
    /// The exception's type (`ValueError`), or the name of what ended the run (`SIGSEGV`).
    #[serde(rename = "type")]
    pub kind: String,
    /// One sentence for a person.
    pub message: String,
    /// The traceback, with the lines of the submitted code and none of ours.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traceback: Option<String>,
    /// The line of the submitted code, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
    /// The column in it, counted from 1, where the policy refuses something.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<u32>,
}

/// Bytes and lines that were printed but are not in the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Bytes left out of `stdout`.
    pub stdout_bytes: u64,
    /// Bytes left out of `stderr`.
    pub stderr_bytes: u64,
}

/// What a run used, by the system's own accounts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of processor time, of all its processes together that it has waited for or that still run at its end.
    pub cpu_seconds: f64,
    /// The most memory that it had at once, above the warm interpreter's, in MB. Of its first process.
    pub peak_memory_mb: f64,
}

/// What came of the requirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackageUse {
    /// The stack has it all: nothing was installed.
    Satisfied,
    /// What the stack lacks was added behind it.
    Added,
    /// They contradict the stack, and took its place: nothing else can be imported but the standard library.
    Separate,
}

/// The packages that a run had besides the stack, or instead of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageReport {
    /// Which of the three it was.
    pub outcome: PackageUse,
    /// `name==version` of each.
    pub installed: Vec<String>,
}

/// The answer of `execute_python`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecutionResult {
    /// True when the code ran to its end.
    pub success: bool,
    /// The value of the last expression, or else of the variable `result`, as text.
    pub result: Option<String>,
    /// What was printed to stdout, by Python, C code and subprocesses, in order.
    pub stdout: String,
    /// What was printed to stderr.
    pub stderr: String,
    /// Notes about the run: what was cut, what could not be captured.
    pub warnings: Vec<String>,
    /// Set when `success` is false.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<ExecutionError>,
    /// 0 success, 1 Python error, 124 timeout, 137 killed by a limit, 128+N killed by signal N, else the code's own.
    pub exit_code: i32,
    /// Wall-clock milliseconds from the start of the cell to its end, by the supervisor's clock.
    pub execution_time_ms: f64,
    /// True when stdout or stderr is not whole.
    pub truncated: bool,
    /// How much is missing, when `truncated`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dropped: Option<Dropped>,
    /// What came of `requirements`, when there were any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packages: Option<PackageReport>,
    /// What the run used, where the system could still be asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub usage: Option<Usage>,
}

/// A picture made by the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `image/png`, `image/jpeg` or `image/svg+xml`.
    pub mime_type: &'static str,
    /// The file's bytes, as the run gave them: never decoded on our side.
    pub bytes: Bytes,
}

/// A file that the run left for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// Its path in the call's directory.
    pub name: String,
    /// What it is, as far as its name tells.
    pub mime_type: String,
    /// What is in it; nothing where it is too large to be given.
    pub bytes: Vec<u8>,
    /// How large it is.
    pub size: u64,
}

impl OutputFile {
    /// Whether the answer has what is in it.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() as u64 == self.size
    }
}

/// A run's whole outcome: the structured result, and the pictures in the order they were shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The structured result.
    pub result: ExecutionResult,
    /// Pictures, in order.
    pub images: Vec<Image>,
    /// Files, in order.
    pub files: Vec<OutputFile>,
}

/// An outcome as its caller reads it, in JSON: the result, and what comes beside it.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    #[serde(flatten)]
    result: &'a ExecutionResult,
    /// How many pictures there are.
    images: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileNote<'a>>,
}

#[derive(Debug, Serialize)]
struct FileNote<'a> {
    name: &'a str,
    size: u64,
    mime_type: &'a str,
}

impl Outcome {
    /// How long it is, more or less.
    pub fn bytes(&self) -> usize {
        let images = self.images.iter().map(|image| image.bytes.len());
        let files = self.files.iter().map(|file| file.bytes.len());
        self.result.stdout.len() + self.result.stderr.len() + images.sum::<usize>() + files.sum::<usize>()
    }

    /// What is said of it.
    pub fn answer(&self) -> Answer<'_> {
        let files = self.files.iter();
        let files = files.map(|file| FileNote { name: &file.name, size: file.size, mime_type: &file.mime_type });
        Answer { result: &self.result, images: self.images.len(), files: files.collect() }
    }

    /// An outcome for a run that never started.
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Ended::refused(code, message).into()
    }

    /// The same, with a reason of its own.
    pub fn refused_as(code: ErrorCode, kind: &str, message: impl Into<String>) -> Self {
        Ended::refused_as(code, kind, message).into()
    }
}

impl From<Ended> for Outcome {
    /// Of a run of which nothing else has been heard.
    fn from(ended: Ended) -> Self {
        let Ended { value, error, exit_code, warnings, execution_time_ms, packages, usage, files } = ended;
        let result = ExecutionResult {
            success: error.is_none(),
            result: value,
            stdout: String::new(),
            stderr: String::new(),
            warnings,
            error,
            exit_code,
            execution_time_ms,
            truncated: false,
            dropped: None,
            packages,
            usage,
        };
        Self { result, images: Vec::new(), files }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_the_result_and_what_comes_beside_it() {
        let mut outcome = Outcome::refused(ErrorCode::Busy, "try again");
        let json = |outcome: &Outcome| serde_json::to_value(outcome.answer()).expect("JSON");
        let bare = json(&outcome);
        assert_eq!((&bare["error"]["code"], &bare["images"], bare.get("files")), (&json!("busy"), &json!(0), None));
        outcome.images.push(Image { mime_type: "image/png", bytes: vec![1].into() });
        outcome.files.push(OutputFile { name: "a/b.csv".to_owned(), mime_type: "text/csv".to_owned(), bytes: vec![1], size: 1 });
        let full = json(&outcome);
        assert_eq!(full["images"], 1);
        assert_eq!(full["files"], json!([{"name": "a/b.csv", "size": 1, "mime_type": "text/csv"}]));
    }

    #[test]
    fn error_codes_read_the_same_in_rust_and_on_the_wire() {
        for code in [
            ErrorCode::PythonError,
            ErrorCode::Timeout,
            ErrorCode::MemoryLimit,
            ErrorCode::OutputLimit,
            ErrorCode::ProcessLimit,
            ErrorCode::DiskLimit,
            ErrorCode::Exited,
            ErrorCode::Crashed,
            ErrorCode::PolicyDenied,
            ErrorCode::PackageError,
            ErrorCode::Busy,
            ErrorCode::InvalidArgument,
            ErrorCode::Cancelled,
            ErrorCode::Internal,
        ] {
            assert_eq!(serde_json::to_value(code).expect("a word"), code.as_str());
        }
    }
}
