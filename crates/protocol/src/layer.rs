//! The names of the layers: what isolates a call from the machine and from other calls.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One list: the variant, and the word that users, the harness and reports have for it.
macro_rules! layers {
    ($($(#[$doc:meta])* $layer:ident = $word:literal,)+) => {
        /// A layer. In the order in which they are reported.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Layer {
            $($(#[$doc])* #[serde(rename = $word)] $layer,)+
        }

        impl Layer {
            /// Every layer there is.
            pub const ALL: &[Self] = &[$(Self::$layer),+];

            /// The word for it, wherever it is named.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$layer => $word,)+
                }
            }
        }
    };
}

layers! {
    /// A process of its own for each call.
    ProcessPerCall = "process_per_call",
    /// An environment built from nothing.
    ScrubbedEnvironment = "scrubbed_environment",
    /// Resource limits of each process.
    ResourceLimits = "resource_limits",
    /// The server can't be looked into.
    NonDumpableSupervisor = "non_dumpable_supervisor",
    /// The server inherits orphans of the code.
    Subreaper = "subreaper",
    /// Programs with more rights give the code none.
    NoNewPrivileges = "no_new_privileges",
    /// Calls can't look into one another.
    NonDumpableKernels = "non_dumpable_kernels",
    /// Namespaces of processes, mounts, IPC and names.
    Namespaces = "namespaces",
    /// A root of its own, in which nothing of the machine is but the system.
    PrivateRoot = "private_root",
    /// A network of its own with nothing in it.
    NetworkNamespace = "network_namespace",
    /// Each call is a user of its own.
    UserPerCall = "user_per_call",
    /// None of root's rights.
    NoCapabilities = "no_capabilities",
    /// Landlock's rules on files.
    Landlock = "landlock",
    /// Landlock's rules on TCP.
    LandlockTcp = "landlock_tcp",
    /// Landlock's scope of signals and abstract sockets.
    LandlockSignals = "landlock_signals",
    /// A control group around all calls.
    Cgroup = "cgroup",
    /// No sockets of networks.
    NoNetwork = "no_network",
    /// No programs can be started.
    NoSubprocess = "no_subprocess",
    /// No sockets of the machine can be connected to.
    NoConnections = "no_connections",
    /// No signals to other processes.
    OwnSignals = "own_signals",
    /// Nothing that is left in shared memory is another call's.
    SharedMemory = "shared_memory",
    /// There is no way into a network: a finding.
    NetworkUnreachable = "network_unreachable",
    /// Filters of system calls.
    Seccomp = "seccomp",
    /// In a Lambda function: nothing but the door can answer a call.
    ResponseLock = "response_lock",
}

impl fmt::Display for Layer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A word that is no layer's.
#[derive(Debug, thiserror::Error)]
#[error("there is no layer {0}; there are {known}", known = words(Layer::ALL))]
pub struct UnknownLayer(String);

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(text: &str) -> Result<Self, UnknownLayer> {
        Self::ALL.iter().copied().find(|layer| layer.as_str() == text.trim()).ok_or_else(|| UnknownLayer(text.to_owned()))
    }
}

fn words(layers: &[Layer]) -> String {
    layers.iter().map(|layer| layer.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that users and scripts know: they are in settings, answers, `/health` and `attacks.json`.
    #[test]
    fn the_words_of_the_layers_are_these() {
        let known = "process_per_call, scrubbed_environment, resource_limits, non_dumpable_supervisor, subreaper, no_new_privileges, \
                     non_dumpable_kernels, namespaces, private_root, network_namespace, user_per_call, no_capabilities, landlock, landlock_tcp, \
                     landlock_signals, cgroup, no_network, no_subprocess, no_connections, own_signals, shared_memory, \
                     network_unreachable, seccomp, response_lock";
        assert_eq!(words(Layer::ALL), known);
        for layer in Layer::ALL {
            assert_eq!(serde_json::to_value(layer).expect("a word"), layer.as_str());
            assert_eq!(layer.as_str().parse::<Layer>().expect("a layer"), *layer);
        }
        assert_eq!("moat".parse::<Layer>().expect_err("none").to_string(), format!("there is no layer moat; there are {known}"));
    }
}
