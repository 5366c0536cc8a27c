//! Sockets, pipes and shared memory between supervisor, zygote and kernel.
//!
//! Rule: every descriptor is close-on-exec and, on our side, non-blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::{IoSliceMut, ReadWriteFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};
use rustix::process::{PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

/// A packet socket that carries whole messages and descriptors.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// Two connected ends: ours (non-blocking), and the one for the child (blocking).
    ///
    /// # Errors
    /// When the system is out of descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_nonblocking(&ours)?;
        Ok((Self(ours), theirs))
    }

    /// Sends one message with descriptors.
    ///
    /// # Errors
    /// `WouldBlock` when the peer is behind; any other error means it has gone.
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors in one message"));
        }
        rustix::net::sendmsg(&self.0, &[io::IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Ends the conversation for both sides.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }

    /// Receives one message; empty when the peer has gone.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    pub fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        receive(&self.0, 65536)
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for ControlSocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }
}

/// The supervisor's ends of a kernel's descriptors.
#[derive(Debug)]
pub struct SupervisorDescriptors {
    /// Jobs out, frames in: a stream socket.
    pub channel: OwnedFd,
    /// What the kernel's processes write to descriptor 1.
    pub stdout: OwnedFd,
    /// What they write to descriptor 2.
    pub stderr: OwnedFd,
    /// Output that the kernel has not sent yet.
    pub shared: OwnedFd,
}

/// The kernel's ends, to be sent to the zygote and closed.
#[derive(Debug)]
pub struct KernelDescriptors(Vec<OwnedFd>);

impl KernelDescriptors {
    /// In the order the harness expects: channel, stdout, stderr, shared memory, and the rule set if there is one.
    pub fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }

    /// Adds the Landlock rule set the kernel is to put in force.
    #[must_use]
    pub fn with_ruleset(mut self, ruleset: OwnedFd) -> Self {
        self.0.push(ruleset);
        self
    }
}

/// Makes the descriptors of one kernel, with `shared_size` bytes of shared memory.
///
/// # Errors
/// When the system is out of descriptors or memory.
pub fn kernel_descriptors(shared_size: u64) -> io::Result<(SupervisorDescriptors, KernelDescriptors)> {
    let (channel, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let (stdout, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (stderr, err) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    for fd in [&channel, &stdout, &stderr] {
        set_nonblocking(fd)?;
    }
    let shared = rustix::fs::memfd_create("code-interpreter-output", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&shared, shared_size)?;
    let child_shared = shared.try_clone()?;
    Ok((SupervisorDescriptors { channel, stdout, stderr, shared }, KernelDescriptors(vec![theirs, out, err, child_shared])))
}

/// A file in memory with these contents, positioned at its start.
///
/// # Errors
/// When the system is out of descriptors or memory.
pub fn memory_file(contents: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("code-interpreter-start", MemfdFlags::CLOEXEC)?;
    let mut rest = contents;
    let mut offset = 0;
    while !rest.is_empty() {
        let written = rustix::io::pwritev2(&file, &[io::IoSlice::new(rest)], offset, ReadWriteFlags::empty())?;
        rest = &rest[written..];
        offset += written as u64;
    }
    Ok(file)
}

/// Reads up to `most` bytes from a stream socket, with descriptors that came along; nothing at its end.
///
/// # Errors
/// `WouldBlock` when nothing waits.
pub fn receive(socket: impl AsFd, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; most];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let rights = ancillary.drain().filter_map(|item| match item {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let fds = rights.flatten().collect();
    bytes.truncate(received.bytes);
    Ok((bytes, fds))
}

/// How many bytes can be read from a pipe without waiting.
pub fn waiting_bytes(fd: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(fd).unwrap_or(0)
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    Ok(())
}

/// A handle on a process that can't come to mean another one.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Wraps a descriptor made by `pidfd_open`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Opens a handle on a process; `None` when there is none.
    pub fn open(pid: i32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(pid)?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    /// The process's id as this process counts, whatever namespace it lives in; `None` when it has gone.
    pub fn pid(&self) -> Option<i32> {
        let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&self.0));
        let text = std::fs::read_to_string(path).ok()?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
        (pid > 0).then_some(pid)
    }

    /// Another descriptor of the same process.
    ///
    /// # Errors
    /// When the system is out of descriptors.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Ends the process at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Lets the process go on, if somebody has stopped it.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.0, signal);
    }

    /// Waits until the process has ended (it may be a zombie), at most `milliseconds`.
    pub(crate) fn wait_dead(&self, milliseconds: i64) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let timeout = Timespec { tv_sec: milliseconds / 1000, tv_nsec: (milliseconds % 1000) * 1_000_000 };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1..))
    }
}

/// Registers a descriptor with the runtime's poller.
///
/// # Errors
/// When the poller can't take it.
pub fn watched<T: Owned>(owner: T) -> io::Result<AsyncFd<T>> {
    #[expect(unsafe_code, reason = "tokio can't see that the descriptor stays the same")]
    // SAFETY: an `Owned` type holds one `OwnedFd` that nothing can take out or replace while the `AsyncFd` owns it.
    let registered = unsafe { AsyncFd::register(owner) };
    registered.map_err(|refused| io::Error::other(refused.to_string()))
}

/// Types that hold one descriptor for their whole life.
pub trait Owned: std::os::fd::AsRawFd + sealed::Sealed {}
impl Owned for OwnedFd {}
impl Owned for ControlSocket {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::os::fd::OwnedFd {}
    impl Sealed for super::ControlSocket {}
}
