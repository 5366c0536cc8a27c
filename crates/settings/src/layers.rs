//! How a layer that is refused can be had.

use server::{LayerState, Service};

/// Says in one line each which layers are refused, and how to have them.
pub fn warn_of_refused(service: &Service) {
    for layer in service.layers().iter().filter(|layer| layer.state == LayerState::Refused) {
        let reason = layer.reason.as_deref().unwrap_or("the system refuses it");
        tracing::warn!("the layer {} is refused ({reason}). {}", layer.name, hint(layer.name, service));
    }
}

/// What to do to have a layer.
pub fn hint(layer: &str, service: &Service) -> String {
    let fixed = match layer {
        "namespaces" => {
            "Let the server make them: an ordinary user needs the sysctls user.max_user_namespaces above 0 and, on Ubuntu, \
             kernel.apparmor_restrict_unprivileged_userns=0 (on older Debian kernel.unprivileged_userns_clone=1); a \
             container needs --security-opt seccomp=unconfined, and root in it --cap-add SYS_ADMIN"
        }
        "network_namespace" | "shared_memory" => "It comes with the layer namespaces",
        "landlock" => {
            "It needs Linux 5.13 with Landlock built in and named in the boot option lsm=, and a container that lets it pass"
        }
        "landlock_tcp" => "It needs Landlock on Linux 6.7",
        "landlock_signals" => "It needs Landlock on Linux 6.12",
        "cgroup" => {
            "Let the server make control groups: as a systemd service with Delegate=memory pids, or in a container with a \
             /sys/fs/cgroup that it may write to"
        }
        "network_unreachable" => "It comes with the layer namespaces, or where the machine has no way out",
        "seccomp" | "no_connections" | "no_network" | "no_subprocess" | "own_signals" => {
            "It needs a kernel with seccomp filters, an x86_64 or arm64 processor, and a container that lets seccomp pass"
        }
        "user_per_call" => return user_per_call(service),
        // By prctl.
        _ => "It needs a container, or whatever the server runs in, that lets prctl pass",
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
