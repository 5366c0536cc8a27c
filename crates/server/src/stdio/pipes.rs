//! Standard input and standard output, each on a thread of its own.
//!
//! Rule: neither keeps the process from ending, and a client that takes no answers any more is noticed also while it says
//! nothing. A line is bounded: of a longer one its ids are kept.

use std::io::{self, BufRead, Read, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::stdio::{stdin, stdout};
use tokio::sync::{mpsc, oneshot};

use super::id::IdSearch;

/// So much of a line that is too long is read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// What ends with a line feed, or with the input.
pub(super) enum Line {
    Whole(Vec<u8>),
    TooLong(IdSearch),
}

/// The next line of at most `most` bytes; none at the end.
pub(super) fn next_line(input: &mut impl BufRead, most: usize) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    input.by_ref().take(most as u64 + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() <= most || line.ends_with(b"\n") {
        return Ok(Some(Line::Whole(line)));
    }
    let mut search = IdSearch::default();
    while !line.is_empty() {
        search.read(&line);
        if line.ends_with(b"\n") {
            break;
        }
        line.clear();
        line.shrink_to(PIECE_BYTES);
        input.by_ref().take(PIECE_BYTES as u64).read_until(b'\n', &mut line)?;
    }
    Ok(Some(Line::TooLong(search)))
}

/// Standard input, for as long as somebody can read what is answered.
pub(super) struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (input, output) = (stdin(), stdout());
        // That nobody reads is told unasked.
        let mut watched = [PollFd::new(&input, PollFlags::IN), PollFd::new(&output, PollFlags::empty())];
        retry_on_intr(|| poll(&mut watched, None))?;
        if is_unread(&watched[1]) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(retry_on_intr(|| rustix::io::read(input, &mut *buffer))?)
    }
}

/// Comes back when nobody can read standard output any more; at once when that can't be watched.
pub(super) fn wait_until_unread() {
    let output = stdout();
    let mut watched = [PollFd::new(&output, PollFlags::empty())];
    let _ = retry_on_intr(|| poll(&mut watched, None));
}

fn is_unread(output: &PollFd<'_>) -> bool {
    output.revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Writes one message.
pub(super) fn write_line(mut message: Vec<u8>) -> io::Result<()> {
    message.push(b'\n');
    let mut output = io::stdout().lock();
    output.write_all(&message)?;
    output.flush()
}

/// A message that waits to be written, and who waits for that.
type Waiting = (Vec<u8>, oneshot::Sender<io::Result<()>>);

/// Standard output, for those who must not be kept waiting by it.
#[derive(Clone)]
pub(super) struct Output(mpsc::Sender<Waiting>);

impl Output {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, mut messages) = mpsc::channel::<Waiting>(1);
        std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            while let Some((message, told)) = messages.blocking_recv() {
                // Nobody waits any more for what took too long.
                let _ = told.send(write_line(message));
            }
        })?;
        Ok(Self(sender))
    }

    /// Comes back when the message is written.
    pub(super) async fn write(&self, message: Vec<u8>) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let ended = |()| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.send((message, tell)).await.map_err(|_| ended(()))?;
        told.await.map_err(|_| ended(()))?
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn lines_are_whole_or_told_to_be_too_long() {
        let long = format!(r#"{{"params":"{}","id":7}}"#, "x".repeat(200_000));
        for ending in ["", "\n"] {
            let text = format!("{}\n{}\n\n{long}\n{long}\nlast{ending}", "a".repeat(100), "b".repeat(101));
            let mut input = BufReader::with_capacity(10, text.as_bytes());
            let mut read = Vec::new();
            while let Some(line) = next_line(&mut input, 100).expect("text can be read") {
                read.push(match line {
                    Line::Whole(line) => String::from_utf8(line).expect("text").trim_end().to_owned(),
                    Line::TooLong(search) => format!("{:?}", search.found().iter().map(|id| id.get()).collect::<Vec<_>>()),
                });
            }
            assert_eq!(read, [&*"a".repeat(100), "[]", "", "[\"7\"]", "[\"7\"]", "last"]);
        }
    }
}
