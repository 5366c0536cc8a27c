//! How a layer that is refused can be had.

use protocol::Layer;
use server::{LayerState, Service};

/// Says in one line each which layers are refused, and how to have them.
pub fn warn_of_refused(service: &Service) {
    for layer in service.layers().iter().filter(|layer| layer.state == LayerState::Refused) {
        let reason = layer.reason.as_deref().unwrap_or("the system refuses it");
        tracing::warn!("the layer {} is refused ({reason}). {}", layer.name, hint(layer.name, service));
    }
}

/// What to do to have a layer.
pub fn hint(layer: Layer, service: &Service) -> String {
    let fixed = match layer {
        Layer::Namespaces => {
            "Let the server make them: an ordinary user needs the sysctls user.max_user_namespaces above 0 and, on Ubuntu, \
             kernel.apparmor_restrict_unprivileged_userns=0 (on older Debian kernel.unprivileged_userns_clone=1); a \
             container needs --security-opt seccomp=unconfined, and root in it --cap-add SYS_ADMIN"
        }
        Layer::NetworkNamespace | Layer::PrivateRoot | Layer::SharedMemory => "It comes with the layer namespaces",
        Layer::Landlock => {
            "It needs Linux 5.13 with Landlock built in and named in the boot option lsm=, and a container that lets it pass"
        }
        Layer::LandlockTcp => "It needs Landlock on Linux 6.7",
        Layer::LandlockSignals => "It needs Landlock on Linux 6.12",
        Layer::Cgroup => {
            "Let the server make control groups: as a systemd service with Delegate=memory pids, or in a container with a \
             /sys/fs/cgroup that it may write to"
        }
        Layer::NetworkUnreachable => "It comes with the layer namespaces, or where the machine has no way out",
        Layer::Seccomp | Layer::NoConnections | Layer::NoNetwork | Layer::NoSubprocess | Layer::OwnSignals => {
            "It needs a kernel with seccomp filters, an x86_64 or arm64 processor, and a container that lets seccomp pass"
        }
        Layer::UserPerCall => return user_per_call(service),
        Layer::ResponseLock => "RESPONSE_LOCK=require refuses calls without it, and off goes without",
        // By construction the first three, by prctl the rest.
        Layer::ProcessPerCall
        | Layer::ScrubbedEnvironment
        | Layer::ResourceLimits
        | Layer::NonDumpableSupervisor
        | Layer::Subreaper
        | Layer::NoNewPrivileges
        | Layer::NonDumpableKernels
        | Layer::NoCapabilities => "It needs a container, or whatever the server runs in, that lets prctl pass",
    };
    fixed.to_owned()
}

fn user_per_call(service: &Service) -> String {
    match service.closed_folder() {
        Some(folder) => format!(
            "Open {0} to other users (`chmod o+x {0}`), have the Python tree elsewhere (PYTHON_TREE), or be an ordinary user",
            folder.display()
        ),
        None => "Let the server have the capabilities SETUID and SETGID, or be an ordinary user".to_owned(),
    }
}
