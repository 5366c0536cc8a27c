//! Standard output and standard error of a command, written on a thread of their own.
//!
//! Rule: whoever reads may stop reading or go away, and the engine waits for neither. A reader that has gone ends the
//! command, and what it runs, as SIGPIPE ends other programs.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

static WRITER: LazyLock<Writer> = LazyLock::new(Writer::start);

struct Writer {
    /// What waits is bounded by what the engine lets a run write.
    chunks: Mutex<Sender<Chunk>>,
    broken: watch::Receiver<Option<io::ErrorKind>>,
}

enum Chunk {
    Out(Vec<u8>),
    Error(Vec<u8>),
    Written(oneshot::Sender<()>),
}

impl Writer {
    fn start() -> Self {
        let (chunks, waiting) = channel();
        let (tell, broken) = watch::channel(None);
        // Without it nothing is written, and `written` says so by an end that never comes: `broken` is heard first.
        let started = std::thread::Builder::new().name("output".to_owned()).spawn({
            let tell = tell.clone();
            move || {
                if let Err(error) = write_all(&waiting) {
                    tell.send_replace(Some(error.kind()));
                }
            }
        });
        if let Err(error) = started {
            tell.send_replace(Some(error.kind()));
        }
        Self { chunks: Mutex::new(chunks), broken }
    }

    fn send(&self, chunk: Chunk) {
        // Nobody takes it when the reader has gone.
        let _ = self.chunks.lock().unwrap_or_else(PoisonError::into_inner).send(chunk);
    }
}

fn write_all(chunks: &Receiver<Chunk>) -> io::Result<()> {
    for chunk in chunks {
        match chunk {
            Chunk::Out(bytes) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&bytes)?;
                stdout.flush()?;
            }
            Chunk::Error(bytes) => {
                // Who closes standard error wants to know nothing.
                let _ = io::stderr().write_all(&bytes);
            }
            Chunk::Written(tell) => {
                let _ = tell.send(());
            }
        }
    }
    Ok(())
}

/// Writes to standard output.
pub(crate) fn out(text: impl Into<Vec<u8>>) {
    WRITER.send(Chunk::Out(text.into()));
}

/// Writes to standard error, behind what was written to either before.
pub(crate) fn error(text: impl Into<Vec<u8>>) {
    WRITER.send(Chunk::Error(text.into()));
}

/// Comes back when all of it is written; never when it can't be.
pub(crate) async fn written() {
    let (tell, told) = oneshot::channel();
    WRITER.send(Chunk::Written(tell));
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Comes back when standard output can't be written to any more, with the reason.
pub(crate) async fn broken() -> io::ErrorKind {
    let mut broken = WRITER.broken.clone();
    let reason = broken.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
    match reason {
        Some(reason) => reason,
        None => std::future::pending().await,
    }
}
