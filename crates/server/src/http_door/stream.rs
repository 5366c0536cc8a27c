//! A client's stream, whose end is not always heard at once.
//!
//! Rule: who closes its sending half may still listen, as `nc -N` does, and who has gone looks just the same. So an end that
//! comes while the server works is kept for a moment: what is answered within it is heard, and what is not is ended.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::visit::{Phase, Visit};

/// A client that goes away is to be noticed within a second.
const MOMENT: Duration = Duration::from_millis(400);

pub(crate) struct Stream {
    socket: TcpStream,
    visit: Arc<Visit>,
    /// The end was read, and is heard when this is over.
    ended: Option<Pin<Box<Sleep>>>,
    /// Something of an answer waits for the client to read.
    is_full: bool,
}

impl Stream {
    pub(crate) fn new(socket: TcpStream, visit: Arc<Visit>) -> Self {
        Self { socket, visit, ended: None, is_full: false }
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.ended.get_or_insert_with(|| Box::pin(sleep(MOMENT)));
        loop {
            match self.visit.phase() {
                Phase::Idles if !self.is_full => return Poll::Ready(Ok(())),
                Phase::Reads | Phase::Works => {
                    ready!(ended.as_mut().poll(context));
                    return Poll::Ready(Ok(()));
                }
                // The kernel ends the connection of one that does not take it.
                Phase::Idles | Phase::Answers => {
                    ready!(ended.as_mut().poll(context));
                    ended.as_mut().reset(Instant::now() + MOMENT);
                }
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ended.is_some() {
            return self.poll_end(context);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 { Poll::Ready(Ok(())) } else { self.poll_end(context) }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.is_full = written.is_pending();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.is_full = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
