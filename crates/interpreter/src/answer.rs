//! The end of a run in the contract's words.
//!
//! Rule: how a run ended is what the supervisor saw; what the kernel said of itself only fills in the words.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use protocol::{CellRequest, Ended, ErrorCode, ExecutionError, Limits, Usage};

use crate::kernel::{Ending, Finished, MAX_FILES, MAX_IMAGES, Raised, Report};
use crate::wire::HARNESS_FAULT;

/// Characters of a value or a traceback: what `values.py` and `cell.py` cut to, with their note of what is left out.
pub(crate) const MAX_TEXT: usize = 65_000;

/// The answer to a call that a fault of ours keeps from running.
pub(crate) fn fault(what: &str) -> Ended {
    Ended::refused(ErrorCode::Internal, fault_error(what).message)
}

/// A fault of ours, told by a number under which the log has it.
fn fault_error(what: &str) -> ExecutionError {
    let id = format!("{:08x}", RandomState::new().hash_one(what) >> 32);
    tracing::error!(fault = id, "{what}");
    plain_error(ErrorCode::Internal, ErrorCode::Internal.as_str(), format!("{what} (fault {id} in the server's log)"))
}

/// Puts what the supervisor saw and what the kernel said into the contract's words.
pub(crate) fn ended(finished: Finished, request: &CellRequest) -> Ended {
    let Finished { ending, begun, report, early, images_dropped, files, elapsed, cpu, peak_memory_bytes } = finished;
    let limits = &request.limits;
    let ran_to_its_end = report.is_some();
    let mut warnings = Vec::new();
    if images_dropped > 0 {
        warnings.push(format!(
            "{images_dropped} images were left out: they were no PNG or JPEG, or more than the {MAX_IMAGES} or the {} bytes \
             (MAX_IMAGES_BYTES) that all images of an answer may be",
            limits.images_bytes
        ));
    }
    let Report { value, error: reported, exit, warnings: notes } = report.map(bounded).unwrap_or_default();
    warnings.extend(notes);
    warnings.extend(files.warnings);
    let (error, exit_code) = match ending {
        Ending::Ended => match (reported, exit) {
            (Some(error), _) => {
                let code = match error.code {
                    Raised::PythonError => ErrorCode::PythonError,
                    Raised::MemoryLimit => ErrorCode::MemoryLimit,
                    Raised::PolicyDenied => ErrorCode::PolicyDenied,
                };
                let message = match (code, error.message.as_str()) {
                    (ErrorCode::MemoryLimit, "") => format!("the memory limit of {} MB was met", limits.memory_bytes >> 20),
                    (_, message) => message.to_owned(),
                };
                let traceback = Some(error.traceback);
                (Some(ExecutionError { code, kind: error.kind, message, traceback, line: error.line, column: error.column }), 1)
            }
            (None, None | Some(0)) => (None, 0),
            (None, Some(code)) => {
                (Some(plain_error(ErrorCode::Exited, "SystemExit", format!("the code exited with {code}"))), i32::from(code))
            }
        },
        // A word of the kernel's own: code that runs can't take it back.
        Ending::Died(Some(HARNESS_FAULT)) if !begun => {
            tracing::error!(stderr = %String::from_utf8_lossy(&early), "a kernel could not begin with the code");
            (Some(fault_error("the interpreter failed before it came to the code")), 1)
        }
        Ending::Died(None) => (Some(fault_error("the process of the code was lost")), 1),
        Ending::Died(Some(status)) if status >= 0 => {
            let message = format!("the process exited with {status} before the code had ended");
            (Some(plain_error(ErrorCode::Exited, "exit", message)), status)
        }
        Ending::Died(Some(status)) => {
            let signal = status.abs();
            let name = signal_name(signal);
            (Some(plain_error(ErrorCode::Crashed, &name, format!("the process was ended by {name}"))), 128 + signal)
        }
        Ending::Killed(code) => {
            let mut error = plain_error(code, code.as_str(), limit_message(code, limits, elapsed));
            if let Some(reported) = reported {
                error.message = format!("{}; before that it had raised {}: {}", error.message, reported.kind, reported.message);
                (error.traceback, error.line) = (Some(reported.traceback), reported.line);
            } else if ran_to_its_end {
                error.message += "; it had come to its end, but threads or exit handlers of it went on";
            }
            (Some(error), if code == ErrorCode::Timeout { 124 } else { 137 })
        }
        Ending::BrokeFraming => (
            Some(plain_error(
                ErrorCode::Crashed,
                "protocol",
                "the process wrote to the interpreter's own channel and was ended".to_owned(),
            )),
            137,
        ),
    };
    Ended {
        value,
        error,
        exit_code,
        warnings,
        execution_time_ms: (elapsed.as_secs_f64() * 1e6).round() / 1e3,
        packages: None,
        files: files.files,
        usage: cpu.zip(peak_memory_bytes).map(|(cpu, peak)| Usage {
            cpu_seconds: (cpu.as_secs_f64() * 1e6).round() / 1e6,
            peak_memory_mb: (f64::from(u32::try_from(peak >> 10).unwrap_or(u32::MAX)) / 10.24).round() / 100.0,
        }),
    }
}

/// A report as an honest harness sends it: a forged one costs no more.
fn bounded(mut report: Report) -> Report {
    let cut = |text: &mut String, most: usize| {
        if let Some((end, _)) = text.char_indices().nth(most) {
            text.truncate(end);
        }
    };
    if let Some(value) = &mut report.value {
        cut(value, MAX_TEXT);
    }
    if let Some(error) = &mut report.error {
        for (text, most) in [(&mut error.kind, 200), (&mut error.message, 8000), (&mut error.traceback, MAX_TEXT)] {
            cut(text, most);
        }
    }
    report.warnings.iter_mut().for_each(|warning| cut(warning, 2000));
    report
}

fn plain_error(code: ErrorCode, kind: &str, message: String) -> ExecutionError {
    ExecutionError { code, kind: kind.to_owned(), message, traceback: None, line: None, column: None }
}

/// Names of signals that end a process by its own doing.
pub(crate) fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Which limit ended the run, in words.
fn limit_message(code: ErrorCode, limits: &Limits, elapsed: Duration) -> String {
    match code {
        // Less than the call's own limit: the door's deadline came first.
        ErrorCode::Timeout if elapsed < limits.timeout => {
            format!("the code was ended after {:.1} s: the time of the whole request was over", elapsed.as_secs_f64())
        }
        ErrorCode::Timeout => format!("the code ran longer than {} s and was ended", limits.timeout.as_secs_f64()),
        ErrorCode::MemoryLimit => {
            format!("the code used more than {} MB of memory and was ended", limits.memory_bytes >> 20)
        }
        ErrorCode::OutputLimit => {
            format!("the code printed more than {} bytes and was ended", limits.output_hard_limit_bytes)
        }
        ErrorCode::DiskLimit => format!(
            "the code's files took more than {} MB, or were more than {MAX_FILES}, and it was ended",
            limits.disk_bytes >> 20
        ),
        _ => format!(
            "the code had more than {} processes and threads, or one that can't be looked into, and was ended",
            limits.processes
        ),
    }
}
