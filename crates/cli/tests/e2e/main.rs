//! End-to-end tests: each starts the real program and talks to it as a client would.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that can't go on fails, with the server's log")]
#![expect(clippy::disallowed_methods, reason = "there is no server in this process")]

/// Two tests of one: as whoever runs the tests, and as the users that root alone can become. The second is counted as skipped
/// where it can't be run.
macro_rules! in_each_home {
    ($test:ident, $($home:ident),+) => {
        mod $test {
            use crate::client::Home;

            #[tokio::test]
            async fn as_the_caller() {
                super::$test(&[Home::Caller]).await;
            }

            #[tokio::test]
            #[cfg_attr(not(root), ignore = "needs root")]
            async fn as_other_users() {
                super::$test(&[$(Home::$home),+]).await;
            }
        }
    };
}

mod batches;
mod client;
mod command_line;
mod contract;
mod draining;
mod eight_floods;
mod faults;
mod figures;
mod files;
mod floods;
mod greedy;
mod honest;
mod hostile;
mod http;
mod index;
mod isolation;
mod lifecycle;
mod neighbours;
mod packages;
mod policy;
mod root;
mod scarce;
mod semantics;
mod soak;
mod spares;
mod stdio;
mod transport;
