//! Every setting, once: a flag, an environment variable, a default and its meaning.
//!
//! Rule: this is the registry. `.env.example` and the README's table are printed from it (`make settings`), and a test
//! holds them to it. Where values come from is [`Sources`]' affair, and what numbers may be that of `bounds`. Each setting's
//! heading says whether it decides over security; one that does is never taken from a file that nobody named.
#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "tests start children and remove folders of their own"))]

mod bounds;
mod descriptors;
mod env_file;
mod env_lines;
mod environment;
mod lambda;
mod layers;
mod log;
mod reach;
mod reference;
mod signals;
mod variables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Command, CommandFactory, ValueEnum};
use interpreter::{Allowed, Engine, EngineConfig, Preload, Probe, PythonTree, SWITCHABLE_LAYERS};
use packages::{IndexUrl, PackagesConfig};
use protocol::{
    DEFAULT_DISK_MB, DEFAULT_FILES_BYTES, DEFAULT_IMAGES_BYTES, DEFAULT_MEMORY_MB, DEFAULT_OUTPUT_CAP_BYTES,
    DEFAULT_OUTPUT_HARD_LIMIT_BYTES, DEFAULT_TIMEOUT_SECONDS, Layer, Limits, MAX_TIMEOUT_SECONDS, MIN_MEMORY_MB, Policy,
};
use server::{DoorRules, HttpOptions, ServedNames, Service, StructuredContent};

pub use env_file::EnvFile;
pub use environment::{Names, Sources, flags_only, from_environment};
pub use lambda::{LambdaSettings, ResponseLock};
pub use layers::{hint, warn_of_refused};
pub use log::{LogFormat, LogSettings, start_log};
pub use reach::warn_of_reach;
pub use reference::reference;
pub use signals::{Signals, die_of};

/// What decides over security, over who is served, or over what is run or installed.
pub(crate) const SECURITY: &str = "Settings that decide over security (not taken from ./.env)";
/// Everything else: how much, how long, which port.
pub(crate) const ORDINARY: &str = "Settings";

const DEFAULT_IMPORTS: &str = "json,math,datetime,statistics,itertools,functools,collections,re,string,random,decimal,\
     fractions,numpy,pandas";

/// The value of `UV` with which pip is used.
const NO_UV: &str = "off";

/// How much of the stack is imported ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PreloadSetting {
    Core,
    Data,
    Plot,
    All,
}

/// When an answer has structured content besides its JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StructuredContentSetting {
    Auto,
    Always,
    Never,
}

/// Settings of the engine.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct EngineSettings {
    /// The Python tree; when not set found beside the program, in the checkout it was built in, or in the user's data folder.
    #[arg(long, env = "PYTHON_TREE", help_heading = SECURITY)]
    python_tree: Option<PathBuf>,
    /// What is imported before it is asked for: core (nothing), data (pandas), plot (and matplotlib), all.
    #[arg(long, env = "PRELOAD", help_heading = ORDINARY, default_value = "all")]
    preload: PreloadSetting,
    /// Calls that run at the same time; twice the number of cores when not set.
    #[arg(long, env = "MAX_CONCURRENCY", help_heading = ORDINARY, value_parser = |text: &str| bounds::whole(text, 1..=1024_u32))]
    max_concurrency: Option<u32>,
    /// Calls that may wait for a free place; further ones are answered `busy`.
    #[arg(long, env = "MAX_QUEUE", help_heading = ORDINARY, default_value = "64", value_parser = |text: &str| bounds::whole(text, 0..=65_536_usize))]
    max_queue: usize,
    /// Warm processes kept ready for each stage of the stack.
    #[arg(long, env = "SPARE_KERNELS", help_heading = ORDINARY, default_value = "1", value_parser = |text: &str| bounds::whole(text, 1..=64_u32))]
    spare_kernels: u32,
    /// Seconds a call may take when it names no timeout; 30, or the longest timeout where that is less, when not set.
    #[arg(long, env = "DEFAULT_TIMEOUT", help_heading = ORDINARY, value_parser = bounds::seconds)]
    default_timeout: Option<f64>,
    /// The longest timeout a call may ask for, in seconds.
    #[arg(long, env = "MAX_TIMEOUT", help_heading = ORDINARY, default_value_t = MAX_TIMEOUT_SECONDS, value_parser = bounds::seconds)]
    max_timeout: f64,
    /// Memory a call may use on top of the warm interpreter, in MB.
    #[arg(long, env = "MAX_MEMORY_MB", help_heading = SECURITY, default_value_t = DEFAULT_MEMORY_MB, value_parser = |text: &str| bounds::whole(text, MIN_MEMORY_MB..=bounds::MAX_MB))]
    max_memory_mb: u64,
    /// How much of each of stdout and stderr comes back, in bytes.
    #[arg(long, env = "MAX_OUTPUT_BYTES", help_heading = ORDINARY, default_value_t = DEFAULT_OUTPUT_CAP_BYTES, value_parser = |text: &str| bounds::whole(text, 0..=bounds::MAX_KEPT_BYTES))]
    max_output_bytes: usize,
    /// Output after which a run is ended, in bytes.
    #[arg(long, env = "OUTPUT_LIMIT_BYTES", help_heading = SECURITY, default_value_t = DEFAULT_OUTPUT_HARD_LIMIT_BYTES, value_parser = |text: &str| bounds::whole(text, 1..=bounds::MAX_MB << 20))]
    output_limit_bytes: u64,
    /// What all images of an answer may take, in bytes (as base64 a third more); larger ones come with fewer colours or smaller, or are left out with a note.
    #[arg(long, env = "MAX_IMAGES_BYTES", help_heading = ORDINARY, default_value_t = DEFAULT_IMAGES_BYTES, value_parser = |text: &str| bounds::whole(text, 0..=bounds::MAX_KEPT_BYTES))]
    max_images_bytes: usize,
    /// What the contents of all files that the code leaves may take in an answer, in bytes (as base64 a third more); larger files are named and not kept.
    #[arg(long, env = "MAX_FILES_BYTES", help_heading = ORDINARY, default_value_t = DEFAULT_FILES_BYTES, value_parser = |text: &str| bounds::whole(text, 0..=bounds::MAX_KEPT_BYTES))]
    max_files_bytes: usize,
    /// Largest file a call may write, in MB.
    #[arg(long, env = "MAX_FILE_MB", help_heading = SECURITY, default_value = "256", value_parser = bounds::megabytes)]
    max_file_mb: u64,
    /// What all files of a call may take together, in MB.
    #[arg(long, env = "MAX_DISK_MB", help_heading = SECURITY, default_value_t = DEFAULT_DISK_MB, value_parser = bounds::megabytes)]
    max_disk_mb: u64,
    /// Processes and threads a call may have at once.
    #[arg(long, env = "MAX_PROCESSES", help_heading = SECURITY, default_value = "64", value_parser = |text: &str| bounds::whole(text, 1..=bounds::MAX_PROCESSES))]
    max_processes: u64,
    /// Let the code reach the network; DNS counts as network.
    #[arg(long, env = "ALLOW_NETWORK", help_heading = SECURITY, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_network: bool,
    /// Let the code start programs; they are under all other limits and end with the call.
    #[arg(long, env = "ALLOW_SUBPROCESS", help_heading = SECURITY, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_subprocess: bool,
    /// Let the code connect to local sockets where no mount namespace hides the machine's own: multiprocessing managers need it there.
    #[arg(long, env = "ALLOW_UNIX_SOCKETS", help_heading = SECURITY, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_unix_sockets: bool,
    /// When an answer to `execute_python` has structured content besides its JSON text: auto (where it has no images and no files, which clients that prefer it would not see), always, never.
    #[arg(long, env = "STRUCTURED_CONTENT", help_heading = ORDINARY, default_value = "auto")]
    structured_content: StructuredContentSetting,
    /// What the code may say: open, or restricted: guidance that refuses other imports, files and eval, and no wall.
    #[arg(long, env = "POLICY", help_heading = SECURITY, default_value = "open", value_parser = policy)]
    policy: Policy,
    /// Modules that the restricted policy lets the code import.
    #[arg(long, env = "AUTHORIZED_IMPORTS", help_heading = SECURITY, value_delimiter = ',', default_value = DEFAULT_IMPORTS)]
    authorized_imports: Vec<String>,
    /// Install what a call requires besides the preinstalled packages: wheels from a package index.
    #[arg(long, env = "ALLOW_INSTALL", help_heading = SECURITY, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_install: bool,
    #[command(flatten)]
    packages: PackageSettings,
    /// Layers that are left off, where they are in the way: namespaces, landlock, seccomp, cgroup.
    #[arg(long = "disable-layer", env = "DISABLE_LAYERS", help_heading = SECURITY, value_delimiter = ',', value_parser = PossibleValuesParser::new(SWITCHABLE_LAYERS.map(Layer::as_str)).try_map(|word| word.parse::<Layer>()))]
    disable_layers: Vec<Layer>,
    /// Layers without which the server does not start, as `code-interpreter doctor` names them.
    #[arg(long = "require-layer", env = "REQUIRE_LAYERS", help_heading = SECURITY, value_delimiter = ',')]
    require_layers: Vec<Layer>,
    /// Start a server that is root also where calls can't have users of their own: the code is root then.
    #[arg(long, env = "ALLOW_ROOT", help_heading = SECURITY, default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_root: bool,
}

/// Settings of package installs.
#[derive(Args, Clone, Debug)]
struct PackageSettings {
    /// Where installed packages are kept; below the user's cache folder when not set.
    #[arg(long, env = "PACKAGE_DIR", help_heading = SECURITY)]
    package_dir: Option<PathBuf>,
    /// The package index's address; may hold credentials, which are shown nowhere.
    #[arg(long, env = "PACKAGE_INDEX", help_heading = SECURITY, hide_env_values = true)]
    package_index: Option<IndexUrl>,
    /// The uv to install with; found beside the tree or on the path when not set. With `off`, and where none is found, pip is used.
    #[arg(long, env = "UV", help_heading = SECURITY)]
    uv: Option<std::ffi::OsString>,
    /// Seconds that resolving and installing may take together.
    #[arg(long, env = "INSTALL_TIMEOUT", help_heading = ORDINARY, default_value = "30", value_parser = bounds::seconds)]
    install_timeout: f64,
    /// Packages that are never installed.
    #[arg(long, env = "BLOCKED_PACKAGES", help_heading = SECURITY, value_delimiter = ',')]
    blocked_packages: Vec<String>,
    /// The only packages that are installed, also when others need them; all are when not set.
    #[arg(long, env = "ALLOWED_PACKAGES", help_heading = SECURITY, value_delimiter = ',')]
    allowed_packages: Vec<String>,
    /// Packages that are right although their name looks like a slip of a well-known one.
    #[arg(long, env = "KNOWN_PACKAGES", help_heading = SECURITY, value_delimiter = ',')]
    known_packages: Vec<String>,
    /// Days that a file must have been on the index before it is installed.
    #[arg(long, env = "MIN_PACKAGE_AGE", help_heading = SECURITY, value_parser = bounds::days)]
    min_package_age: Option<f64>,
    /// A file of pins with hashes, as `pip --require-hashes` reads it: nothing else is installed.
    #[arg(long, env = "PACKAGE_HASHES", help_heading = SECURITY)]
    package_hashes: Option<PathBuf>,
    /// What all installed packages may take on disk, in MB; those not used for longest go first.
    #[arg(long, env = "PACKAGE_CACHE_MB", help_heading = ORDINARY, default_value = "2048", value_parser = bounds::megabytes)]
    package_cache_mb: u64,
    /// What one install may take, in MB.
    #[arg(long, env = "MAX_INSTALL_MB", help_heading = ORDINARY, default_value = "512", value_parser = bounds::megabytes)]
    max_install_mb: u64,
    /// How many packages one install may bring.
    #[arg(long, env = "MAX_INSTALL_PACKAGES", help_heading = ORDINARY, default_value = "100", value_parser = |text: &str| bounds::whole(text, 0..=10_000_usize))]
    max_install_packages: usize,
    /// A bucket in which installed packages are kept for other environments, under code-interpreter/packages.
    #[arg(long, env = "S3_BUCKET", help_heading = SECURITY)]
    s3_bucket: Option<String>,
}

/// Settings of the doors that are given messages.
#[derive(Args, Clone, Debug)]
pub struct MessageSettings {
    /// Largest request body, and on standard input the longest line, in bytes.
    #[arg(long, env = "MAX_BODY_BYTES", help_heading = SECURITY, default_value = "12582912", value_parser = |text: &str| bounds::whole(text, 1..=bounds::MAX_KEPT_BYTES))]
    pub max_body_bytes: usize,
}

/// Settings of the HTTP door.
#[derive(Args, Clone, Debug)]
pub struct HttpSettings {
    /// Address to listen on.
    #[arg(long, env = "HOST", help_heading = SECURITY, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, env = "PORT", help_heading = ORDINARY, default_value = "8000", value_parser = |text: &str| bounds::whole(text, 0..=u16::MAX))]
    pub port: u16,
    /// Host headers that are served, besides HOST itself; `*` serves all.
    #[arg(long, env = "ALLOWED_HOSTS", help_heading = SECURITY, value_delimiter = ',', default_value = "localhost,127.0.0.1,::1")]
    allowed_hosts: Vec<String>,
    /// Browser origins that are served; requests without an Origin always are, `*` serves all.
    #[arg(long, env = "ALLOWED_ORIGINS", help_heading = SECURITY, value_delimiter = ',', default_value = "http://localhost:*,http://127.0.0.1:*")]
    allowed_origins: Vec<String>,
    #[command(flatten)]
    messages: MessageSettings,
    /// Connections at once, half of the limit on open files at most; above it those that have waited longest for their client are closed.
    #[arg(long, env = "MAX_CONNECTIONS", help_heading = SECURITY, default_value = "512", value_parser = |text: &str| bounds::whole(text, 1..=65_536_u32))]
    max_connections: u32,
    /// Seconds that a connection may wait for its next request; keep it above that of a load balancer in front.
    #[arg(long, env = "IDLE_TIMEOUT", help_heading = ORDINARY, default_value = "75", value_parser = bounds::seconds)]
    idle_timeout: f64,
    /// Seconds that calls may go on after SIGTERM or another signal that ends the server, while new ones are refused; keep it
    /// below what comes before SIGKILL (Docker: 10). A second signal ends them at once.
    #[arg(long, env = "DRAIN_SECONDS", help_heading = ORDINARY, default_value = "8", value_parser = bounds::pause)]
    drain_seconds: f64,
}

impl EngineSettings {
    /// Starts the engine they describe; `wait`: until the interpreter is up, as the layers to insist on need.
    ///
    /// # Errors
    /// The first setting that can't be used, or why the engine does not start.
    pub async fn start(&self, wait: bool, door: DoorRules) -> Result<Arc<Service>, String> {
        self.start_with(self.config()?, wait, door).await
    }

    /// The same with an engine that is to be different.
    ///
    /// # Errors
    /// As [`EngineSettings::start`].
    pub async fn start_with(&self, mut config: EngineConfig, wait: bool, door: DoorRules) -> Result<Arc<Service>, String> {
        let packages = self.packages()?;
        config.readable.extend(packages.provide_folder());
        descriptors::provide(&config)?;
        let wait = wait || !self.require_layers.is_empty();
        let started = if wait { Engine::start(config).await } else { Engine::start_in_background(config) };
        let engine = started.map_err(|error| error.to_string())?;
        let structured_content = match self.structured_content {
            StructuredContentSetting::Auto => StructuredContent::Auto,
            StructuredContentSetting::Always => StructuredContent::Always,
            StructuredContentSetting::Never => StructuredContent::Never,
        };
        let max_timeout = Duration::from_secs_f64(self.max_timeout);
        let service = Service::new(engine, packages, max_timeout, self.policy, door, structured_content);
        server::require(&service.layers(), &self.require_layers)?;
        self.warn_of_disabled_layers();
        if wait {
            self.refuse_root(&service).await?;
        }
        Ok(service)
    }

    /// Waits until the interpreter is up, and so what holds is known. A door that did not wait for it ends with the error:
    /// until then no code is run as root either.
    ///
    /// # Errors
    /// When the code would be root and `ALLOW_ROOT` is off, with what to do about it.
    pub async fn refuse_root(&self, service: &Service) -> Result<(), String> {
        service.started().await;
        let probe = service.status().probes.map_or(Probe::NotTried, |probes| probes.of(Layer::UserPerCall));
        let Some(reason) = probe.reason().filter(|_| sandbox::is_root()) else { return Ok(()) };
        if self.allow_root {
            tracing::warn!("ALLOW_ROOT is on: the code is root, and held by the other layers alone");
            return Ok(());
        }
        let hint = hint(Layer::UserPerCall, service);
        Err(format!(
            "the server is root, and so would the code be: it can't have a user of its own here ({reason}). {hint}; ALLOW_ROOT=true runs it as root"
        ))
    }

    /// What the engine is started with.
    ///
    /// # Errors
    /// The first setting that can't be used.
    pub fn config(&self) -> Result<EngineConfig, String> {
        let default_timeout = self.default_timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS.min(self.max_timeout));
        if default_timeout > self.max_timeout {
            return Err(format!("DEFAULT_TIMEOUT: must be at most MAX_TIMEOUT ({}), not {default_timeout}", self.max_timeout));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(EngineConfig {
            tree: self.python_tree.clone().map_or_else(PythonTree::find, Ok).map_err(|error| error.to_string())?,
            preload: match self.preload {
                PreloadSetting::Core => Preload::Core,
                PreloadSetting::Data => Preload::Data,
                PreloadSetting::Plot => Preload::Plot,
                PreloadSetting::All => Preload::All,
            },
            max_concurrency: self.max_concurrency.map_or(cores * 2, |n| n as usize),
            max_queue: self.max_queue,
            spares: self.spare_kernels as usize,
            limits: Limits {
                timeout: Duration::from_secs_f64(default_timeout),
                memory_bytes: self.max_memory_mb << 20,
                output_cap_bytes: self.max_output_bytes,
                output_hard_limit_bytes: self.output_limit_bytes,
                images_bytes: self.max_images_bytes,
                files_bytes: self.max_files_bytes,
                file_size_bytes: self.max_file_mb << 20,
                disk_bytes: self.max_disk_mb << 20,
                processes: self.max_processes,
            },
            disabled_layers: self.disable_layers.clone(),
            authorized_imports: self.authorized_imports.iter().map(|name| name.trim().to_owned()).collect(),
            // The folder of packages is added when it is there: reading settings makes none.
            readable: Vec::new(),
            allowed: Allowed {
                network: self.allow_network,
                subprocess: self.allow_subprocess,
                unix_sockets: self.allow_unix_sockets,
            },
            allow_root: self.allow_root,
        })
    }

    /// What packages are installed with.
    fn packages(&self) -> Result<PackagesConfig, String> {
        let of = &self.packages;
        let uv = of.uv.clone().filter(|uv| !variables::is_empty(uv));
        let index = of.package_index.clone().filter(|index| !index.is_empty());
        index.as_ref().map_or(Ok(()), IndexUrl::check).map_err(|why| format!("PACKAGE_INDEX: {why}"))?;
        let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(PackagesConfig {
            allow_install: self.allow_install,
            directory: absolute(&of.package_dir.clone().unwrap_or_else(default_package_dir))?,
            uv: uv.map(|uv| if uv == NO_UV { PathBuf::new() } else { PathBuf::from(uv) }),
            index,
            timeout: Duration::from_secs_f64(of.install_timeout),
            blocked: names(&of.blocked_packages),
            allowed: names(&of.allowed_packages),
            known: names(&of.known_packages),
            min_age: of.min_package_age.map(|days| Duration::from_secs_f64(days * 86_400.0)),
            hashes: of.package_hashes.as_ref().map(absolute).transpose()?,
            cache_bytes: of.package_cache_mb << 20,
            install_bytes: of.max_install_mb << 20,
            install_packages: of.max_install_packages,
            s3_bucket: of.s3_bucket.clone().filter(|bucket| !bucket.is_empty()),
        })
    }

    /// Leaving a layer off is for whoever knows what else is in its place: it is never silent.
    fn warn_of_disabled_layers(&self) {
        if !self.disable_layers.is_empty() {
            let names = self.disable_layers.iter().map(|layer| layer.as_str()).collect::<Vec<_>>().join(", ");
            tracing::warn!("DISABLE_LAYERS leaves off {names}: the code is held by less");
        }
    }
}

impl HttpSettings {
    /// What the door serves.
    ///
    /// # Errors
    /// The first setting that can't be used.
    pub fn options(&self) -> Result<HttpOptions, String> {
        Ok(HttpOptions {
            names: ServedNames::new(&self.allowed_hosts, &self.allowed_origins)?.and_host(&self.host),
            max_body_bytes: self.messages.max_body_bytes,
            max_connections: descriptors::connections(self.max_connections),
            idle_timeout: Duration::from_secs_f64(self.idle_timeout),
            drain: Duration::from_secs_f64(self.drain_seconds),
        })
    }
}

/// Kernels of other users must be able to pass: root's home is closed to them.
fn default_package_dir() -> PathBuf {
    const NAME: &str = "code-interpreter/packages";
    if std::env::var_os("LAMBDA_TASK_ROOT").is_some() {
        return std::env::temp_dir().join("code-interpreter-packages");
    }
    if sandbox::is_root() {
        return PathBuf::from("/var/cache").join(NAME);
    }
    // A relative one would be below the folder one stands in.
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache"))) {
        Some(cache) => cache.join(NAME),
        None => std::env::temp_dir().join(format!("code-interpreter-packages-{}", sandbox::user_id())),
    }
}

/// Without blanks, and without the empty one that an empty variable gives.
fn names(list: &[String]) -> Vec<String> {
    list.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

fn policy(word: &str) -> Result<Policy, String> {
    Policy::from_word(word).ok_or_else(|| "must be open or restricted".to_owned())
}

#[derive(Debug, clap::Parser)]
struct AllSettings {
    #[command(flatten)]
    _engine: EngineSettings,
    #[command(flatten)]
    _http: HttpSettings,
    #[command(flatten)]
    _lambda: LambdaSettings,
    #[command(flatten)]
    _log: LogSettings,
}

/// Every setting, as an argument of its own.
pub(crate) fn registry() -> Command {
    AllSettings::command()
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn each_setting_says_whether_it_decides_over_security() {
        for argument in registry().get_arguments() {
            let heading = argument.get_help_heading();
            assert!(heading == Some(SECURITY) || heading == Some(ORDINARY), "{}: give it a help_heading", argument.get_id());
        }
    }

    fn settings(arguments: &[&str]) -> EngineSettings {
        let arguments = [&["settings", "--python-tree", "/of/no/use"], arguments].concat();
        let matches = EngineSettings::augment_args(Command::new("settings")).try_get_matches_from(arguments);
        EngineSettings::from_arg_matches(&matches.expect("arguments")).expect("settings")
    }

    /// Settings that were only read made `/var/cache/…`, also from a unit test.
    #[test]
    fn reading_settings_makes_no_folder() {
        let folder = std::env::temp_dir().join(format!("code-interpreter-settings-{}", std::process::id()));
        settings(&["--package-dir", &folder.display().to_string()]).config().expect("an engine");
        assert!(!folder.exists());
    }

    #[test]
    fn an_index_with_credentials_shows_in_no_settings_and_in_no_error() {
        let settings_of = |index: &str| settings(&["--package-index", index]);
        let shown = settings_of("https://reader:top-secret@index.example/simple");
        assert!(!format!("{shown:?} {:?}", shown.packages()).contains("top-secret"));
        let error = settings_of("reader:top-secret@index.example").packages().expect_err("no address");
        assert_eq!(error, "PACKAGE_INDEX: must be an address such as https://pypi.org/simple");
    }

    /// The template gives a function's timeout as `MAX_TIMEOUT`, and that may be 15 seconds.
    #[test]
    fn a_short_longest_timeout_is_the_default_one_too() {
        let config = |arguments: &[&str]| settings(arguments).config().map(|config| config.limits.timeout.as_secs_f64());
        assert_eq!(config(&["--max-timeout", "15"]), Ok(15.0));
        assert_eq!(config(&["--max-timeout", "300"]), Ok(30.0));
        let refused = config(&["--max-timeout", "15", "--default-timeout", "20"]);
        assert_eq!(refused, Err("DEFAULT_TIMEOUT: must be at most MAX_TIMEOUT (15), not 20".to_owned()));
    }
}
