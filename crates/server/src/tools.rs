//! The tools, each written once: what every door calls.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interpreter::Engine;
use packages::Package;
use protocol::{ArgumentError, CallDefaults, CellRequest, Outcome, OutputEvent, Policy};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::environment::{self, EnvironmentInfo, Layer, LimitsInfo};

/// The engine and what its tools know about it.
pub struct Interpreter {
    engine: Engine,
    defaults: CallDefaults,
    packages: OnceLock<Vec<Package>>,
    /// Protections that the door adds to the engine's.
    door_layers: Vec<Layer>,
}

/// The answer of `list_preinstalled_packages`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PackageList {
    /// Names of the installed distributions.
    pub packages: Vec<String>,
    /// The same with versions and the names to import.
    pub details: Vec<PackageDetail>,
}

/// One installed distribution.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PackageDetail {
    /// Its name, as an installer knows it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What to write after `import`.
    pub import_name: String,
}

impl Interpreter {
    /// `max_timeout`: the longest a call may ask for. `policy`: the least strict one. `door_layers`: protections that the
    /// door adds to the engine's.
    pub fn new(engine: Engine, max_timeout: Duration, policy: Policy, door_layers: Vec<Layer>) -> Arc<Self> {
        let defaults = CallDefaults { limits: engine.limits(), max_timeout, policy };
        Arc::new(Self { engine, defaults, packages: OnceLock::new(), door_layers })
    }

    /// Every protection, as it stands.
    pub fn layers(&self) -> Vec<Layer> {
        let mut layers = environment::layers(&self.engine.status());
        layers.extend_from_slice(&self.door_layers);
        layers
    }

    /// Read when first asked for: the first answer of a server must not wait for it.
    fn packages(&self) -> &[Package] {
        self.packages.get_or_init(|| packages::installed(&self.engine.tree().site()))
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Checks the arguments of `execute_python`.
    ///
    /// # Errors
    /// The first argument that can't be used.
    pub fn check(&self, arguments: Map<String, Value>) -> Result<CellRequest, ArgumentError> {
        CellRequest::from_arguments(arguments, &self.defaults)
    }

    /// `execute_python`. Dropping the future kills the run.
    pub async fn execute(&self, request: &CellRequest, on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send)) -> Outcome {
        self.engine.run(request, on_output).await
    }

    /// `list_preinstalled_packages`
    pub fn list_packages(&self) -> PackageList {
        let detail = |package: &Package| PackageDetail {
            name: package.name.clone(),
            version: package.version.clone(),
            import_name: package.import_name.clone(),
        };
        PackageList {
            packages: self.packages().iter().map(|package| package.name.clone()).collect(),
            details: self.packages().iter().map(detail).collect(),
        }
    }

    /// `get_environment_info`
    pub fn environment(&self) -> EnvironmentInfo {
        let status = self.engine.status();
        EnvironmentInfo {
            platform: environment::platform(),
            temp_dir: std::env::temp_dir().display().to_string(),
            installed_packages: self.packages().iter().map(|package| format!("{}=={}", package.name, package.version)).collect(),
            available_memory: environment::available_memory(),
            limits: LimitsInfo::new(&self.defaults.limits, self.defaults.max_timeout),
            policy: self.defaults.policy,
            sandbox: self.layers(),
            python_version: status.python_version,
        }
    }
}
