//! Small writes on connections that a library has opened.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Descriptors that are looked at; a function may have 1,024.
const DESCRIPTORS: std::ops::Range<i32> = 3..1024;

/// Makes every connection of this process to `peer` send at once, and says how many there are. A library that leaves
/// Nagle's algorithm on makes each small write wait for the acknowledgement of the one before it: 40 ms, as Linux delays
/// acknowledgements.
pub fn send_at_once(peer: SocketAddr) -> usize {
    DESCRIPTORS.filter(|number| set_no_delay(*number, peer)).count()
}

#[expect(unsafe_code, reason = "the descriptors belong to a library that does not show them")]
fn set_no_delay(number: i32, peer: SocketAddr) -> bool {
    // SAFETY: the number is only used for two calls within this function. If it is no descriptor, both fail; if another
    // thread closes it and the number comes to mean another connection to the same peer, that one is meant too.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    let is_to_peer = rustix::net::getpeername(descriptor)
        .is_ok_and(|address| address.is_some_and(|address| SocketAddr::try_from(address).is_ok_and(|address| address == peer)));
    is_to_peer && rustix::net::sockopt::set_tcp_nodelay(descriptor, true).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_to_the_peer_send_at_once_and_others_are_left_alone() {
        let [meant, other] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let [first, second, third] = [&meant, &meant, &other].map(|to| TcpStream::connect(address(to)).expect("a connection"));
        assert_eq!(send_at_once(address(&meant)), 2);
        let set = [first, second, third].map(|stream| stream.nodelay().expect("an option"));
        assert_eq!(set, [true, true, false]);
    }
}
