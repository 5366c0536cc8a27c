//! The words every part speaks: what can be asked, what is answered, which limits hold, how things fail.
//!
//! Rule: no I/O and no policy in here, only types whose values are valid once they exist. Whatever comes from a
//! client becomes one of these types at the door, with one text for one mistake, whichever door it came through.

mod argument_error;
mod arguments;
mod captured;
mod event;
mod json;
mod layer;
mod limits;
mod outcome;
mod request;

pub use argument_error::{ArgumentError, shortened};
pub use arguments::Arguments;
pub use event::{Ended, Event, EventSink, Fold, MimeBundle, Silent, Stream};
pub use json::{Members, count_values, kind};
pub use layer::{Layer, UnknownLayer};
pub use limits::{
    CpuSeconds, DEFAULT_DISK_MB, DEFAULT_FILES_BYTES, DEFAULT_IMAGES_BYTES, DEFAULT_MEMORY_MB, DEFAULT_OUTPUT_CAP_BYTES,
    DEFAULT_OUTPUT_HARD_LIMIT_BYTES, DEFAULT_TIMEOUT_SECONDS, Limits, MAX_TIMEOUT_SECONDS, MIN_MEMORY_MB,
};
pub use outcome::{
    Answer, Dropped, ErrorCode, ExecutionError, ExecutionResult, Image, Outcome, OutputFile, PackageReport, PackageUse, Usage,
};
pub use request::{CallDefaults, CellRequest, PackagePath, Policy};
