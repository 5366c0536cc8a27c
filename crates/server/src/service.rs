//! What the server does for its callers, each thing written once: what every door calls.
//!
//! Rule: whatever runs code or works for a caller takes a [`Call`], and the engine is in nobody else's hands. While the
//! service drains, it begins with nothing new.

mod call;
mod environment;
mod install;
mod reports;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use interpreter::{Engine, EngineStatus};
use packages::{Package, Packages, PackagesConfig, Prepared, Target};
use protocol::{
    ArgumentError, Arguments, CallDefaults, CellRequest, Ended, ErrorCode, Event, EventSink, Fold, Outcome, PackagePath,
    PackageReport, PackageUse, Policy,
};
use tokio::sync::watch;
use tracing::Instrument;

pub use self::call::{Call, Door, Guard, Principal};
use self::environment::LimitsInfo;
pub use self::environment::{EnvironmentInfo, LayerReport, LayerState, require};
pub(crate) use self::install::{INSTALL, requirements};
pub use self::reports::PackageList;
pub(crate) use self::reports::{InstallReport, PackageDetail};

/// When an answer to `execute_python` has structured content besides its JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StructuredContent {
    /// Where it has no images and no files: clients that prefer the structured content would not see these.
    Auto,
    /// In every answer.
    Always,
    /// In none.
    Never,
}

/// What the door that a service is for adds to it.
#[derive(Debug, Default)]
pub struct DoorRules {
    /// Protections besides the engine's.
    pub layers: Vec<LayerReport>,
    /// Code runs for a guarded call only.
    pub guarded: bool,
}

/// The engine, its packages, and what is known of both.
pub struct Service {
    engine: Engine,
    defaults: CallDefaults,
    packages: Arc<Packages>,
    door_layers: RwLock<Vec<LayerReport>>,
    /// Code runs for a guarded call only.
    guarded: bool,
    structured_content: StructuredContent,
    /// How many calls are worked for.
    in_flight: watch::Sender<usize>,
    drains: AtomicBool,
}

impl Service {
    /// `max_timeout`: the longest a call may ask for. `policy`: the least strict one. `structured_content`: when answers
    /// have any.
    pub fn new(
        engine: Engine,
        packages: PackagesConfig,
        max_timeout: Duration,
        policy: Policy,
        door: DoorRules,
        structured_content: StructuredContent,
    ) -> Arc<Self> {
        let defaults = CallDefaults { limits: engine.limits(), max_timeout, policy };
        let tree = engine.tree();
        let target =
            Target { root: tree.root().to_owned(), python: tree.python(), site: tree.site(), version: tree.python_version() };
        let packages = Arc::new(Packages::new(packages, target, engine.reaper(), engine.has_landlock()));
        let DoorRules { layers, guarded } = door;
        let (door_layers, in_flight, drains) = (RwLock::new(layers), watch::Sender::new(0), AtomicBool::new(false));
        Arc::new(Self { engine, defaults, packages, door_layers, guarded, structured_content, in_flight, drains })
    }

    /// What bounds calls.
    pub(crate) fn defaults(&self) -> &CallDefaults {
        &self.defaults
    }

    /// When an answer has structured content.
    pub(crate) fn structured_content(&self) -> StructuredContent {
        self.structured_content
    }

    /// Every protection, as it stands.
    pub fn layers(&self) -> Vec<LayerReport> {
        let mut layers = environment::layers(&self.engine.status());
        layers.extend_from_slice(&self.door_layers.read().unwrap_or_else(PoisonError::into_inner));
        layers
    }

    /// How the protections that the door adds stand now.
    pub fn set_door_layers(&self, layers: Vec<LayerReport>) {
        *self.door_layers.write().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    /// What can be imported, and how more can be had.
    pub fn packages(&self) -> &Arc<Packages> {
        &self.packages
    }

    /// How the engine stands.
    pub fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    /// Comes back when the bare interpreter is up, and so what each layer came to is known; or can't be had.
    pub async fn started(&self) {
        self.engine.started().await;
    }

    /// The folder that keeps kernels of other users from the tree or from their directories.
    pub fn closed_folder(&self) -> Option<PathBuf> {
        self.engine.closed_folder()
    }

    /// The Python that runs the code.
    pub fn python(&self) -> PathBuf {
        self.engine.tree().python()
    }

    /// Where kernels have their directories.
    pub fn state_dir(&self) -> &Path {
        self.engine.state_dir()
    }

    /// Leaves nothing behind of what has run. Call it when nothing runs.
    ///
    /// # Errors
    /// When something can't be removed: then no clean call can be promised any more.
    pub async fn purge(&self) -> io::Result<()> {
        self.engine.purge().await
    }

    /// From here on nothing new is begun with. Comes back when all that runs has ended.
    pub async fn drain(&self) {
        self.drains.store(true, Ordering::SeqCst);
        // Its sender is ours: it does not end before.
        let _ = self.in_flight.subscribe().wait_for(|calls| *calls == 0).await;
    }

    /// Whether it drains.
    pub fn is_draining(&self) -> bool {
        self.drains.load(Ordering::SeqCst)
    }

    /// How many calls are worked for.
    pub fn in_flight(&self) -> usize {
        *self.in_flight.borrow()
    }

    /// Checks the arguments of `execute_python`.
    ///
    /// # Errors
    /// The first argument that can't be used.
    pub fn check(&self, arguments: impl Into<Arguments>) -> Result<CellRequest, ArgumentError> {
        CellRequest::from_arguments(arguments.into(), &self.defaults)
    }

    /// `execute_python`. Dropping the future kills the run, and an install for it.
    pub async fn execute(&self, call: &Call, request: CellRequest, listener: &mut dyn EventSink) -> Outcome {
        let mut events = Fold::new(request.limits.output_cap_bytes, listener);
        let span = tracing::info_span!("call", id = call.id(), door = ?call.door());
        let ended = self.run(call, request, &mut events).instrument(span).await.unwrap_or_else(|refused| *refused);
        events.push(Event::Ended(Arc::new(ended)));
        events.outcome()
    }

    async fn run(&self, call: &Call, mut request: CellRequest, events: &mut dyn EventSink) -> Result<Ended, Box<Ended>> {
        let _in_flight = self.begin(call)?;
        request.deadline = call.latest_end();
        let mut warnings = std::mem::take(&mut request.warnings);
        let held = match call.unless_taken_back(call.before_code()).await.ok_or_else(taken_back)? {
            Ok(warning) => warning,
            Err(reason) => {
                tracing::error!(call = call.id(), reason, "user code was not run");
                return Err(Ended::refused(ErrorCode::Internal, reason).into());
            }
        };
        let ran = call.unless_taken_back(self.install_and_run(request, events)).await;
        call.after_code().await;
        let mut ended = ran.ok_or_else(taken_back)?;
        warnings.append(&mut ended.warnings);
        warnings.extend(held);
        Ok(Ended { warnings, ..ended })
    }

    /// Counts the call in, unless nothing may be done for it.
    fn begin(&self, call: &Call) -> Result<InFlight<'_>, Box<Ended>> {
        // In this order: whoever waits for the last one misses none.
        let in_flight = InFlight::new(&self.in_flight);
        if self.is_draining() {
            let message = "the server is shutting down; try again, and another may answer";
            return Err(Ended::refused(ErrorCode::Busy, message).into());
        }
        if self.guarded && !call.is_guarded() {
            tracing::error!(?call, "a call came past the guard");
            let message = "the call came in where nothing guards it, and was not run";
            return Err(Ended::refused(ErrorCode::Internal, message).into());
        }
        Ok(in_flight)
    }

    async fn install_and_run(&self, mut request: CellRequest, events: &mut dyn EventSink) -> Ended {
        if request.requirements.is_empty() {
            return self.engine.run(&request, events).await;
        }
        let mut say = |text: &str| events.push(Event::Package(text.to_owned()));
        // Large, and seldom there.
        let prepared = Box::pin(self.packages.prepare(&request.requirements, request.deadline, &mut say)).await;
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Ended::refused_as(ErrorCode::PackageError, error.reason.as_str(), error.message),
        };
        let separate = prepared.outcome == PackageUse::Separate;
        request.packages = prepared.directory().map(|directory| PackagePath { directory: directory.to_owned(), separate });
        let mut ended = self.engine.run(&request, events).await;
        self.packages.used(&prepared);
        report(prepared, &mut ended);
        ended
    }

    /// `list_preinstalled_packages`
    pub fn list_packages(&self) -> PackageList {
        let detail = |package: &Package| PackageDetail {
            name: package.name.clone(),
            version: package.version.clone(),
            import_name: package.import_name.clone(),
        };
        PackageList {
            packages: self.packages.stack().iter().map(|package| package.name.clone()).collect(),
            details: self.packages.stack().iter().map(detail).collect(),
        }
    }

    /// `get_environment_info`
    pub fn environment(&self) -> EnvironmentInfo {
        let status = self.engine.status();
        EnvironmentInfo {
            platform: environment::platform(),
            temp_dir: status.directory.as_deref().unwrap_or(self.engine.state_dir()).display().to_string(),
            installed_packages: self
                .packages
                .stack()
                .iter()
                .map(|package| format!("{}=={}", package.name, package.version))
                .collect(),
            available_memory: environment::available_memory(),
            limits: LimitsInfo::new(&self.defaults.limits, self.defaults.max_timeout),
            policy: self.defaults.policy,
            sandbox: self.layers(),
            python_version: status.python_version,
        }
    }
}

/// A call that is worked for.
struct InFlight<'a>(&'a watch::Sender<usize>);

impl<'a> InFlight<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|calls| *calls += 1);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|calls| *calls -= 1);
    }
}

/// Says in the answer what came of the requirements.
fn report(prepared: Prepared, ended: &mut Ended) {
    ended.warnings.extend(prepared.notes);
    if prepared.outcome == PackageUse::Separate {
        let only = prepared.installed.join(", ");
        ended.warnings.push(format!(
            "the requirements contradict the preinstalled packages, so the code ran with these only: {only}; what else it imports must be in requirements too"
        ));
    }
    ended.packages = Some(PackageReport { outcome: prepared.outcome, installed: prepared.installed });
}

fn taken_back() -> Box<Ended> {
    Ended::refused(ErrorCode::Cancelled, "the caller went away or took the call back").into()
}
