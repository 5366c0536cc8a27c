//! The layers around user code, and the hostile programs, in four homes.
//!
//! Rule: what is expected of each home is written down. A layer that silently stops working turns a test red, and so
//! does one that silently starts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::{Home, Server, program_in, variable};

fn doctor(home: Home, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = program_in(home);
    let output = command.args(["doctor", "--preload", "core"]).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs every attack; each must be stopped, but for those named.
fn attack(home: Home, open: &[&str]) {
    attack_with(home, &[], open);
}

fn attack_with(home: Home, settings: &[&str], open: &[&str]) {
    let (code, stdout, stderr) = doctor(home, &[settings, &["--attack", "--json"]].concat());
    let findings: Vec<Value> = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    assert!(findings.len() > 100);
    let by_verdict = |verdict: &str| {
        let found = findings.iter().filter(|finding| finding["verdict"] == verdict);
        found.map(|finding| (finding["name"].as_str().unwrap(), finding["detail"].as_str().unwrap())).collect::<BTreeMap<_, _>>()
    };
    let failed = [by_verdict("broken"), by_verdict("inconclusive")];
    assert_eq!((code, failed.iter().map(BTreeMap::len).sum::<usize>()), (Some(0), 0), "{home:?}: {failed:#?}");
    let found = by_verdict("open").into_keys().filter(|name| !UP_TO_THE_MACHINE.contains(name)).collect::<Vec<_>>();
    assert_eq!(found, open, "{home:?}");
}

/// Open with neither Landlock nor mounts of its own: what the server's user may do with files, the code may do.
const OPEN_WITHOUT_LANDLOCK: &[&str] = &[
    "calls-names",
    "memory-without-a-name",
    "modes-and-times",
    "names-of-users",
    "other-calls-files",
    "root-by-proc",
    "walk-out",
    "write-tmp",
];
/// Open where the kernel refuses every layer: there the walls are the function's own.
const OPEN_IN_LAMBDA: &[&str] = &[
    "calls-names",
    "dns-past-hooks",
    "exec-past-hooks",
    "fork-exec-past-hooks",
    "kill-all",
    "kill-by-descriptor",
    "kill-by-handle",
    "kill-server",
    "kill-server-thread",
    "kill-zygote",
    "limit-server",
    "memfd-program",
    "memory-without-a-name",
    "message-queue",
    "modes-and-times",
    "names-of-users",
    "netlink",
    "other-calls-files",
    "parent-descriptors",
    "parent-environment",
    "parent-memory",
    "personality",
    "pidfd-getfd",
    "pin-server",
    "poison-shared-memory",
    "process-vm-readv",
    "root-by-proc",
    "slow-server",
    "starve-server",
    "system-v-memory",
    "tcp",
    "udp",
    "walk-out",
    "watch-the-machine",
    "write-tmp",
];
/// Whether these are open where nothing stops them hangs on how the machine's kernel was built and set.
const UP_TO_THE_MACHINE: &[&str] = &[
    "af-alg",
    "bpf",
    "clone-newuser",
    "hard-link",
    "homes",
    "io-uring",
    "ipv6",
    "keyring",
    "perf",
    "run-secrets",
    "userfaultfd",
    "vsock",
];

#[test]
fn attacks_as_the_caller() {
    attack(Home::Caller, &[]);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn attacks_as_an_ordinary_user() {
    attack(Home::User, &[]);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn attacks_as_an_ordinary_user_without_landlock() {
    attack(Home::NoLandlock, &[]);
}

/// A container of an ordinary user on a kernel before 6.12: seccomp is what there is.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn attacks_as_an_ordinary_user_with_nothing_but_seccomp() {
    let mut open = [OPEN_WITHOUT_LANDLOCK, &["poison-shared-memory"]].concat();
    open.sort_unstable();
    attack_with(Home::User, &["--disable-layer", "namespaces,landlock,cgroup"], &open);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn attacks_in_a_lambda_function() {
    attack(Home::Lambda, OPEN_IN_LAMBDA);
}

#[tokio::test]
async fn attacks_on_a_deployment() {
    let server = Server::start();
    let url = format!("http://{}/lambda/mcp/", server.address);
    let attack = tokio::task::spawn_blocking(move || {
        let mut command = program_in(Home::Caller);
        command.args(["doctor", "--attack", "--json", "--url", &url, "--header", "x-api-key: a"]).output().unwrap()
    });
    let output = attack.await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(findings.len() > 100 && findings.iter().all(|finding| finding["verdict"] == "stopped"), "{findings:#?}");
    let nobody = program_in(Home::Caller).args(["doctor", "--attack", "--url", "http://127.0.0.1:1/mcp"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("http://127.0.0.1:1/mcp"));
}

/// How each layer stands, as `doctor` prints it.
fn states(home: Home, arguments: &[&str]) -> BTreeMap<String, String> {
    let (_, report, stderr) = doctor(home, arguments);
    // A line that is set in says how to have the layer above it.
    let layers = report.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| {
        let (state, rest) = line.split_once(' ')?;
        Some((rest.trim_start().split_once(": ")?.0.to_owned(), state.to_owned()))
    });
    let layers = layers.collect::<BTreeMap<_, _>>();
    assert!(layers.len() > 10, "{report}{stderr}");
    layers
}

/// The layers that are not active.
fn refused(home: Home) -> Vec<String> {
    let states = states(home, &[]).into_iter().filter(|(_, state)| state != "active");
    // Whether it may make groups, and where its network leads, is up to the machine.
    let states = states.filter(|(name, _)| !["cgroup", "network_unreachable"].contains(&name.as_str()));
    states.map(|(name, state)| format!("{state} {name}")).collect()
}

const NOT_OF_A_USER: [&str; 5] =
    ["n/a landlock_tcp", "n/a no_connections", "n/a non_dumpable_kernels", "n/a own_signals", "n/a user_per_call"];

#[test]
fn the_caller_has_the_layers_it_should_have() {
    let expected =
        if homes::is_root() { &["n/a landlock_tcp", "n/a no_connections", "n/a own_signals"][..] } else { &NOT_OF_A_USER };
    assert_eq!(refused(Home::Caller), expected);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn each_home_has_the_layers_it_should_have() {
    assert_eq!(refused(Home::User), NOT_OF_A_USER);
    assert_eq!(
        refused(Home::NoLandlock),
        [
            "REFUSED landlock",
            "REFUSED landlock_signals",
            "REFUSED landlock_tcp",
            "n/a no_connections",
            "n/a non_dumpable_kernels",
            "n/a own_signals",
            "n/a user_per_call",
        ]
    );
    assert_eq!(
        refused(Home::Lambda),
        [
            "REFUSED landlock",
            "REFUSED landlock_signals",
            "REFUSED landlock_tcp",
            "REFUSED namespaces",
            "REFUSED network_namespace",
            "REFUSED no_connections",
            "REFUSED no_network",
            "REFUSED no_new_privileges",
            "REFUSED no_subprocess",
            "REFUSED non_dumpable_supervisor",
            "REFUSED own_signals",
            "REFUSED private_root",
            "REFUSED seccomp",
            "REFUSED shared_memory",
            "REFUSED subreaper",
            "n/a user_per_call",
        ]
    );
}

#[test]
fn settings_show_as_layers_that_are_off() {
    let states = states(Home::Caller, &["--allow-network", "--allow-subprocess"]);
    assert_eq!((states["no_network"].as_str(), states["no_subprocess"].as_str()), ("off", "off"));
    assert_eq!(states["seccomp"], "active");
    assert_eq!(states["network_unreachable"], "off");
}

#[test]
fn layers_can_be_left_off_by_name_and_take_theirs_with_them() {
    let states = states(Home::Caller, &["--disable-layer", "namespaces,landlock,seccomp,cgroup"]);
    let off = states.iter().filter(|(_, state)| *state == "off").map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    let expected = [
        "cgroup",
        "landlock",
        "landlock_signals",
        "landlock_tcp",
        "namespaces",
        "network_namespace",
        "no_network",
        "no_subprocess",
        "private_root",
        "seccomp",
    ];
    assert!(expected.iter().all(|name| off.contains(name)), "{states:#?}");
    let (_, _, said) = doctor(Home::Caller, &["--disable-layer", "seccomp"]);
    assert!(said.contains("DISABLE_LAYERS leaves off seccomp"), "{said}");
    let (code, _, said) = doctor(Home::Caller, &["--disable-layer", "moat"]);
    assert!(code == Some(2) && said.contains("namespaces, landlock, seccomp, cgroup"), "{said}");
    let (code, _, said) = doctor(Home::Caller, &["--disable-layer", "seccomp", "--require-layer", "seccomp"]);
    assert!(code == Some(2) && said.contains("DISABLE_LAYERS names it"), "{said}");
}

/// Where nothing else does it, a filter holds signals back, and programs that fork still work.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn forks_work_where_signals_to_others_are_filtered() {
    let server = Server::with(Home::User, &[("PRELOAD", "core"), ("DISABLE_LAYERS", "namespaces,landlock")]);
    let code = "import multiprocessing as m, os, signal\np = m.Pool(2); print(p.map(abs, [-1, -2])); p.close(); p.join()\n\
                signal.signal(signal.SIGUSR1, lambda *_: print('heard'))\nsignal.raise_signal(signal.SIGUSR1)\n\
                os.kill(os.getpid(), signal.SIGUSR1)\nos.kill(os.getppid(), 0)";
    let result = server.run(code).await;
    assert_eq!(result["stdout"], "[1, 2]\nheard\nheard\n", "{result:#}");
    assert_eq!(result["error"]["type"], "PermissionError", "{result:#}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_required_layer_that_is_refused_stops_the_start_and_says_what_to_do() {
    a_required_layer_stops_the_start(Home::NoLandlock, "landlock", "Function not implemented");
}

#[test]
fn a_required_layer_that_does_not_apply_stops_the_start_and_says_what_to_do() {
    a_required_layer_stops_the_start(Home::Caller, "own_signals", "not apply");
}

fn a_required_layer_stops_the_start(home: Home, layer: &str, reason: &str) {
    for arguments in [["serve"].as_slice(), &["stdio"], &["run", "--code", "1"], &["doctor"]] {
        let output = program_in(home).args(arguments).env("PORT", "0").env(variable("REQUIRE_LAYERS"), layer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {said}");
        assert!(said.contains(layer) && said.contains(reason) && said.contains("REQUIRE_LAYERS"), "{arguments:?} {said}");
    }
    for (arguments, layer, reason) in [
        (["doctor", "--require-layer=moat"].as_slice(), "", "there is no layer moat; there are process_per_call, "),
        (&["serve"], "seccomp,moat", "there is no layer moat; there are process_per_call, "),
        (&["serve"], "response_lock", "there is no layer response_lock here; there are process_per_call, "),
    ] {
        let output = program_in(home).args(arguments).env("PORT", "0").env(variable("REQUIRE_LAYERS"), layer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(reason), "{arguments:?} {layer} {said}");
        assert!(layer.is_empty() || said.contains("REQUIRE_LAYERS"), "{said}");
    }
}

/// By the code's own word, whatever mounts it has.
#[tokio::test]
async fn the_place_for_temporary_files_is_where_the_code_is() {
    for disabled in [[].as_slice(), &[("DISABLE_LAYERS", "namespaces")]] {
        let server = Server::with(Home::Caller, &[&[("PRELOAD", "core")], disabled].concat());
        let found = server.run("import tempfile\nprint(tempfile.gettempdir()); print(tempfile.mkdtemp())").await;
        let told = server.call("get_environment_info", json!({})).await["result"]["structuredContent"].clone();
        for place in found["stdout"].as_str().unwrap().lines() {
            assert!(Path::new(place).starts_with(told["temp_dir"].as_str().unwrap()), "{told:#} {found:#}");
        }
    }
}

#[tokio::test]
async fn the_network_is_off_until_it_is_allowed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = |host: &str, port| format!("import socket\ns = socket.create_connection(('{host}', {port}), 2)\nprint('connected')");
    let code = to("127.0.0.1", listener.local_addr().unwrap().port());
    let no_namespaces = Server::with(Home::Caller, &[("PRELOAD", "core"), ("DISABLE_LAYERS", "namespaces")]);
    let closed = Server::start();
    for (server, code) in [(&no_namespaces, &code), (&closed, &to("192.0.2.1", 80)), (&closed, &to("example.org", 80))] {
        let refused = server.run(code).await;
        assert_eq!(refused["error"]["type"], "PermissionError", "{refused:#}");
        assert!(refused["error"]["message"].as_str().unwrap().contains("ALLOW_NETWORK"));
    }
    // The machine's own services are not in the call's network.
    assert_eq!(closed.run(&code).await["error"]["type"], "ConnectionRefusedError");
    let open = Server::with(Home::Caller, &[("PRELOAD", "core"), ("ALLOW_NETWORK", "true")]);
    assert_eq!(open.run(&code).await["stdout"], "connected\n");
}

#[tokio::test]
async fn programs_are_refused_until_they_are_allowed() {
    let code = "import subprocess\nprint(subprocess.run(['echo', 'ran'], capture_output=True, text=True).stdout)";
    let refused = Server::start().run(code).await;
    assert_eq!(refused["error"]["type"], "PermissionError", "{refused:#}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("ALLOW_SUBPROCESS"));
    let open = Server::with_subprocesses(Home::Caller);
    assert_eq!(open.run(code).await["stdout"], "ran\n\n");
    let inside = "import subprocess\nprint(subprocess.run(['cat', '/etc/shadow'], capture_output=True, text=True).stderr)";
    let inside = open.run(inside).await;
    assert!(inside["stdout"].as_str().unwrap().contains("No such file"), "{inside:#}");
}

#[tokio::test]
async fn files_are_counted_together_and_by_number() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("MAX_DISK_MB", "20")]);
    let sleep = "\nimport time; time.sleep(10)";
    let large = "for number in range(5): open(f'f{number}', 'wb').write(bytes(8 << 20))";
    let many = "for number in range(21_000): open(f'f{number}', 'w').close()";
    for code in [large, many] {
        let result = server.run(&format!("{code}{sleep}")).await;
        assert_eq!(result["error"]["code"], "disk_limit", "{code}: {result:#}");
        server.still_works().await;
    }
    let small = server.run("open('a', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(0.5)\nprint('kept on')").await;
    assert_eq!(small["stdout"], "kept on\n", "{small:#}");
}

in_each_home!(multiprocessing_works_and_shared_memory_is_the_calls_own, User);
/// Also where all kernels are one user: each has a `/dev/shm` of its own.
async fn multiprocessing_works_and_shared_memory_is_the_calls_own(homes: &[Home]) {
    for &home in homes {
        let server = Server::with(home, &[("PRELOAD", "core")]);
        let code = "import multiprocessing as m\nopen('/dev/shm/of-a-call', 'w').write('x' * 9000)\n\
                    with m.Pool(2) as p: print(p.map(abs, [-1, -2]))\nimport os; os._exit(0)";
        let result = server.run(code).await;
        assert_eq!(result["stdout"], "[1, 2]\n", "{home:?} {result:#}");
        let look = "import os\nprint(os.path.exists('/dev/shm/of-a-call'))";
        // Where the server is root it is swept after the answer.
        let gone = async {
            while server.run(look).await["stdout"] != "False\n" {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.unwrap();
    }
}

#[tokio::test]
async fn a_cell_is_in_the_servers_control_group_where_there_is_one() {
    let server = Server::start();
    let code = "print(open('/proc/self/cgroup').read(), open('/proc/self/oom_score_adj').read())";
    let result = server.run(code).await;
    let stdout = result["stdout"].as_str().unwrap();
    let (_, health) = server.request("GET", "/health", &[], "").await;
    let active = health.contains("\"cgroup\",\"state\":\"active\"");
    assert_eq!(stdout.contains(&format!("/code-interpreter-{}", server.pid())), active, "{stdout} {health}");
    assert!(stdout.trim_end().ends_with("1000"), "the kernel ends a cell before it ends a zygote or the server: {stdout}");
}
