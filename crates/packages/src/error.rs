//! Why a package is not to be had.

use std::io;

use serde::Serialize;

/// The stable reason of a refusal: a client may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is no name with versions.
    InvalidRequirement,
    /// The operator's list forbids it.
    Blocked,
    /// The operator's list does not have it.
    NotAllowed,
    /// It is one slip away from a well-known name.
    LikelyTyposquat,
    /// The index has no such package, or no such version.
    NotFound,
    /// A package asks for another by an address, a file or a repository.
    DirectReference,
    /// There are only sources, or wheels for other machines.
    NoWheel,
    /// The requirements contradict one another.
    NoSolution,
    /// A file is not the one that the index or the operator's list promises.
    HashMismatch,
    /// The operator's list of hashes does not have it.
    HashMissing,
    /// More packages than allowed.
    TooMany,
    /// More bytes than allowed.
    TooLarge,
    /// The time for installing was over.
    InstallTimeout,
    /// The index did not answer.
    IndexUnreachable,
    /// The operator's settings leave installing off, or there is nothing to install with.
    InstallsOff,
    /// Anything else.
    Failed,
}

impl Reason {
    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequirement => "invalid_requirement",
            Self::Blocked => "blocked",
            Self::NotAllowed => "not_allowed",
            Self::LikelyTyposquat => "likely_typosquat",
            Self::NotFound => "not_found",
            Self::DirectReference => "direct_reference",
            Self::NoWheel => "no_wheel",
            Self::NoSolution => "no_solution",
            Self::HashMismatch => "hash_mismatch",
            Self::HashMissing => "hash_missing",
            Self::TooMany => "too_many",
            Self::TooLarge => "too_large",
            Self::InstallTimeout => "install_timeout",
            Self::IndexUnreachable => "index_unreachable",
            Self::InstallsOff => "installs_off",
            Self::Failed => "failed",
        }
    }
}

/// A refusal, with what it is about and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PackageError {
    /// Stable.
    pub reason: Reason,
    /// One sentence for a person.
    pub message: String,
}

impl PackageError {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// A fault of the server's. The caller hears what it was and of which kind; the rest, which may name the server's files,
    /// is for the log.
    pub(crate) fn fault(what: &str, error: &io::Error) -> Self {
        tracing::warn!(what, %error, "an install failed");
        Self::new(Reason::Failed, format!("{what} failed ({}); the server's log says more", error.kind()))
    }

    /// One of the folder of packages.
    pub(crate) fn folder_fault(what: &str, error: &io::Error) -> Self {
        let fault = Self::fault(what, error);
        let message = format!("{}; PACKAGE_DIR must be a folder with room left that the server can write to", fault.message);
        Self { message, ..fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_the_server_names_none_of_its_files() {
        let error = io::Error::new(io::ErrorKind::PermissionDenied, "/var/cache/secret: no");
        let shown = PackageError::fault("making a folder", &error).message;
        assert_eq!(shown, "making a folder failed (permission denied); the server's log says more");
    }

    #[test]
    fn reasons_read_the_same_in_rust_and_on_the_wire() {
        for reason in [Reason::InvalidRequirement, Reason::LikelyTyposquat, Reason::HashMissing, Reason::DirectReference] {
            assert_eq!(serde_json::to_value(reason).expect("a word"), reason.as_str());
        }
    }
}
