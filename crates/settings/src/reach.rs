//! Who can reach a server.

use std::net::SocketAddr;

/// Whoever reaches a server can run code: where that is not this machine alone it is never silent.
pub fn warn_of_reach(address: SocketAddr) {
    if let Some(warning) = warning(address) {
        tracing::warn!("{warning}");
    }
}

fn warning(address: SocketAddr) -> Option<String> {
    let reached = !address.ip().to_canonical().is_loopback();
    reached.then(|| {
        format!(
            "{address} can be reached from other machines, and whoever reaches it can run code: nobody is asked who they are. \
             Have something in front of it that asks, or set HOST=127.0.0.1"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_can_reach_is_told() {
        for (address, told) in [
            ("127.0.0.1:8000", false),
            ("127.8.0.1:8000", false),
            ("[::1]:8000", false),
            ("[::ffff:127.0.0.1]:8000", false),
            ("0.0.0.0:8000", true),
            ("[::]:8000", true),
            ("192.168.1.5:8000", true),
        ] {
            let warning = warning(address.parse().expect("an address"));
            assert_eq!(
                warning.is_some_and(|text| text.starts_with(address) && text.contains("HOST=127.0.0.1")),
                told,
                "{address}"
            );
        }
    }
}
