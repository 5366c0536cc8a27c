//! What the tools beside `execute_python` answer.

use schemars::JsonSchema;
use serde::Serialize;

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

/// The answer of `install_packages`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InstallReport {
    /// True when all of them are there.
    pub(crate) success: bool,
    /// What to do next, or that something is missing.
    pub(crate) message: String,
    /// Each, in the order asked for.
    pub(crate) packages: Vec<InstalledPackage>,
    /// Notes on arguments and names that were taken for others.
    pub(crate) warnings: Vec<String>,
}

/// One package.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InstalledPackage {
    /// As it was asked for.
    pub(crate) package: String,
    /// True when it can be imported.
    pub(crate) success: bool,
    /// What happened, or why it did not.
    pub(crate) message: String,
    /// The stable reason of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(crate) reason: Option<&'static str>,
    /// The version that will be imported, or null.
    #[schemars(with = "serde_json::Value")]
    pub(crate) installed_version: Option<String>,
    /// Seconds.
    pub(crate) installation_time: f64,
    /// True when nothing had to be installed.
    pub(crate) already_installed: bool,
}

impl InstallReport {
    /// For arguments that can't be used.
    pub(crate) fn refused(message: String) -> Self {
        Self { success: false, message, packages: Vec::new(), warnings: Vec::new() }
    }
}
