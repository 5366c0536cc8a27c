//! What only the Lambda function is told.

use clap::{Args, ValueEnum};

use crate::SECURITY;

/// Settings of the Lambda function's door.
#[derive(Args, Clone, Debug)]
pub struct LambdaSettings {
    /// In the Lambda function: answer as a stream, as the integration's `responseTransferMode: STREAM` wants; off for a buffered one, where code can forge its own answer.
    #[arg(long, env = "RESPONSE_STREAMING", help_heading = SECURITY, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub response_streaming: bool,
    /// In the Lambda function: whether the Runtime API must be seen to be closed before code runs. prefer runs the code with a warning where the API answers otherwise, require does not run it, off does not ask.
    #[arg(long, env = "RESPONSE_LOCK", help_heading = SECURITY, default_value = "prefer")]
    pub response_lock: ResponseLock,
}

/// What becomes of a call whose answer can't be seen to be safe from its own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResponseLock {
    /// It is refused.
    Require,
    /// It runs, with a warning.
    Prefer,
    /// It runs, and nothing is asked.
    Off,
}

impl LambdaSettings {
    /// How the lock is asked for: a buffered answer has none.
    ///
    /// # Errors
    /// When it is required of a buffered answer.
    pub fn lock(&self) -> Result<ResponseLock, String> {
        match (self.response_streaming, self.response_lock) {
            (true, lock) => Ok(lock),
            (false, ResponseLock::Require) => {
                Err("RESPONSE_LOCK: require needs RESPONSE_STREAMING=true: a buffered answer can't be locked; \
                 prefer runs code without the lock there"
                    .to_owned())
            }
            (false, _) => Ok(ResponseLock::Off),
        }
    }
}
