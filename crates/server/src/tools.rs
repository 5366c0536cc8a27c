//! The tools, each written once: what every door calls.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use interpreter::{Engine, EngineStatus};
use packages::{Package, Packages, PackagesConfig, Prepared, Target};
use protocol::{
    ArgumentError, Arguments, CallDefaults, CellRequest, ErrorCode, Outcome, OutputEvent, PackagePath, PackageReport, PackageUse,
    Policy, Stream,
};
use rmcp::model::Tool;

use crate::catalogue;
use crate::environment::{self, EnvironmentInfo, Layer, LimitsInfo};
use crate::reply::StructuredContent;
use crate::reports::{PackageDetail, PackageList};

/// The engine and what its tools know about it.
pub struct Interpreter {
    engine: Engine,
    defaults: CallDefaults,
    packages: Arc<Packages>,
    /// Protections that the door adds to the engine's.
    door_layers: RwLock<Vec<Layer>>,
    structured_content: StructuredContent,
    catalogue: OnceLock<Vec<Tool>>,
}

impl Interpreter {
    /// `max_timeout`: the longest a call may ask for. `policy`: the least strict one. `door_layers`: protections that the
    /// door adds to the engine's. `structured_content`: when answers have any.
    pub fn new(
        engine: Engine,
        packages: PackagesConfig,
        max_timeout: Duration,
        policy: Policy,
        door_layers: Vec<Layer>,
        structured_content: StructuredContent,
    ) -> Arc<Self> {
        let defaults = CallDefaults { limits: engine.limits(), max_timeout, policy };
        let tree = engine.tree();
        let target =
            Target { root: tree.root().to_owned(), python: tree.python(), site: tree.site(), version: tree.python_version() };
        let packages = Arc::new(Packages::new(packages, target, engine.reaper(), engine.has_landlock()));
        let (door_layers, catalogue) = (RwLock::new(door_layers), OnceLock::new());
        Arc::new(Self { engine, defaults, packages, door_layers, structured_content, catalogue })
    }

    /// The tools with this server's bounds, as clients are told them.
    pub(crate) fn catalogue(&self) -> &[Tool] {
        self.catalogue.get_or_init(|| catalogue::tools(&self.defaults, self.engine.status().allowed))
    }

    /// When an answer has structured content.
    pub(crate) fn structured_content(&self) -> StructuredContent {
        self.structured_content
    }

    /// Every protection, as it stands.
    pub fn layers(&self) -> Vec<Layer> {
        let mut layers = environment::layers(&self.engine.status());
        layers.extend_from_slice(&self.door_layers.read().unwrap_or_else(PoisonError::into_inner));
        layers
    }

    /// How the protections that the door adds stand now.
    pub fn set_door_layers(&self, layers: Vec<Layer>) {
        *self.door_layers.write().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    /// What can be imported, and how more can be had.
    pub fn packages(&self) -> &Arc<Packages> {
        &self.packages
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Checks the arguments of `execute_python`.
    ///
    /// # Errors
    /// The first argument that can't be used.
    pub fn check(&self, arguments: impl Into<Arguments>) -> Result<CellRequest, ArgumentError> {
        CellRequest::from_arguments(arguments.into(), &self.defaults)
    }

    /// `execute_python`. Dropping the future kills the run, and an install for it.
    pub async fn execute(&self, mut request: CellRequest, on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send)) -> Outcome {
        let warnings = std::mem::take(&mut request.warnings);
        let mut outcome = self.install_and_run(request, on_output).await;
        outcome.result.warnings.splice(0..0, warnings);
        outcome
    }

    async fn install_and_run(&self, mut request: CellRequest, on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send)) -> Outcome {
        if request.requirements.is_empty() {
            return self.engine.run(&request, on_output).await;
        }
        let mut say = |text: &str| on_output(OutputEvent { stream: Stream::Notice, bytes: format!("{text}\n").as_bytes() });
        let prepared = match self.packages.prepare(&request.requirements, request.deadline, &mut say).await {
            Ok(prepared) => prepared,
            Err(error) => return Outcome::refused_as(ErrorCode::PackageError, error.reason.as_str(), error.message),
        };
        let separate = prepared.outcome == PackageUse::Separate;
        request.packages = prepared.directory().map(|directory| PackagePath { directory: directory.to_owned(), separate });
        let mut outcome = self.engine.run(&request, on_output).await;
        self.packages.used(&prepared);
        report(prepared, &mut outcome);
        outcome
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

    /// Where a call's own directory is, as its code sees it.
    fn call_directory(&self, status: &EngineStatus) -> String {
        // As `namespaces.py` has it.
        const WITH_OWN_MOUNTS: &str = "/mnt/data";
        let has_mounts = status.held.as_ref().is_some_and(|held| held.get("namespaces") == Some(&0));
        if has_mounts { WITH_OWN_MOUNTS.to_owned() } else { self.engine.state_dir().display().to_string() }
    }

    /// `get_environment_info`
    pub fn environment(&self) -> EnvironmentInfo {
        let status = self.engine.status();
        EnvironmentInfo {
            platform: environment::platform(),
            temp_dir: self.call_directory(&status),
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

/// Says in the answer what came of the requirements.
fn report(prepared: Prepared, outcome: &mut Outcome) {
    let result = &mut outcome.result;
    result.warnings.extend(prepared.notes);
    if prepared.outcome == PackageUse::Separate {
        let only = prepared.installed.join(", ");
        result.warnings.push(format!(
            "the requirements contradict the preinstalled packages, so the code ran with these only: {only}; what else it imports must be in requirements too"
        ));
    }
    result.packages = Some(PackageReport { outcome: prepared.outcome, installed: prepared.installed });
}
