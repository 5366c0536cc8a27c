//! Sockets, pipes and shared memory between supervisor, zygote and kernel.
//!
//! Rule: every descriptor is close-on-exec and, on our side, non-blocking.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::IoSliceMut;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};
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
    let shared = nameless_file("code-interpreter-output")?;
    shared.set_len(shared_size)?;
    let child_shared = shared.try_clone()?.into();
    let shared = shared.into();
    Ok((SupervisorDescriptors { channel, stdout, stderr, shared }, KernelDescriptors(vec![theirs, out, err, child_shared])))
}

/// A file without a name that has these contents, positioned at its start.
///
/// # Errors
/// When the system is out of descriptors, memory or disk.
pub fn memory_file(contents: &[u8]) -> io::Result<OwnedFd> {
    let file = nameless_file("code-interpreter-start")?;
    file.write_all_at(contents, 0)?;
    Ok(file.into())
}

/// In memory, or where the kernel refuses that, in the temporary directory and unlinked. `name` is for who reads `/proc`.
fn nameless_file(name: &str) -> io::Result<File> {
    match rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC) {
        Ok(fd) => Ok(fd.into()),
        Err(_) => tempfile::tempfile(),
    }
}

/// Reads up to `most` bytes from a stream socket, with descriptors that came along; nothing at its end.
///
/// # Errors
/// `WouldBlock` when nothing waits.
pub fn receive(socket: impl AsFd, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; most];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let rights = ancillary.drain().filter_map(|item| match item {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let fds = rights.flatten().collect();
    bytes.truncate(received.bytes);
    Ok((bytes, fds))
}

/// The size of the file system that a path is on, in bytes.
pub fn disk_size(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|size| size.f_blocks * size.f_frsize)
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
