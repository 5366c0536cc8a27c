//! The function under AWS's own emulator, as a user who has next to no rights on a kernel that refuses what Lambda's does,
//! behind a stand-in for API Gateway; under stand-ins for other Runtime APIs; and what goes into an account.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test says by failing what is wrong")]
#![expect(clippy::disallowed_methods, reason = "there is no server in this process")]

mod deploy;
/// That of the command line's tests.
#[expect(dead_code, reason = "its bad packages are for other tests")]
#[path = "../../../cli/tests/e2e/index.rs"]
mod index;
mod parity;
mod templates;

/// On a kernel that refuses what Lambda's is known to refuse.
#[path = "."]
mod lambda {
    const JAIL: &str = "lambda";
    mod attacks;
    mod cores;
    mod doors;
    pub(crate) mod function;
}

/// The same tests on a kernel that refuses what nobody has confirmed there too.
#[expect(clippy::duplicate_mod, reason = "each test is meant twice")]
#[path = "."]
mod strict {
    const JAIL: &str = "strict";
    mod attacks;
    mod doors;
    mod function;
}
