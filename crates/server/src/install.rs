//! The tool `install_packages`: has packages at hand for the calls that follow.

use std::time::Instant;

use packages::{PackageError, Prepared};
use protocol::{ArgumentError, Arguments, PackageUse};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tools::Interpreter;

/// The arguments, as the tool's schema shows them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstallArguments {
    /// Names with versions, such as `humanize` or `humanize>=4,<5`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) packages: Vec<String>,
    /// One name, for clients of the older form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) package: Option<String>,
    /// With `package`: its version, or `latest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
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
    /// Notes on names that were taken for others.
    pub(crate) warnings: Vec<String>,
}

/// One package.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct InstalledPackage {
    /// As it was asked for.
    package: String,
    /// True when it can be imported.
    success: bool,
    /// What happened, or why it did not.
    message: String,
    /// The stable reason of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// The version that will be imported.
    installed_version: Option<String>,
    /// Seconds.
    installation_time: f64,
    /// True when nothing had to be installed.
    already_installed: bool,
}

/// Reads both forms.
///
/// # Errors
/// The first argument that can't be used.
pub(crate) fn requirements(arguments: &Arguments) -> Result<Vec<String>, ArgumentError> {
    if let Some(name) = arguments.unknown(&["packages", "package", "version"]) {
        return Err(ArgumentError::new(
            name,
            "is not an argument of install_packages; it takes packages, or package and version",
        ));
    }
    let text = |field: &str| Ok(arguments.string(field, "a string")?.map(|text| text.trim().to_owned()));
    let mut all =
        arguments.strings("packages", "an array of strings such as [\"humanize>=4\"]", "a string such as humanize>=4")?;
    match (text("package")?, text("version")?) {
        (Some(package), None) => all.push(package),
        (Some(package), Some(version)) if version.is_empty() || version == "latest" => all.push(package),
        (Some(package), Some(version)) if version.starts_with(['=', '<', '>', '~', '!']) => all.push(package + &version),
        (Some(package), Some(version)) => all.push(format!("{package}=={version}")),
        (None, Some(_)) => return Err(ArgumentError::new("version", "goes with package; in packages write \"name==version\"")),
        (None, None) => {}
    }
    if all.is_empty() {
        return Err(ArgumentError::new("packages", "is missing; it must be an array of strings such as [\"humanize>=4\"]"));
    }
    Ok(all)
}

impl Interpreter {
    /// All of them as one set, as a call would require them; where that fails, each by itself, to say which it is.
    pub(crate) async fn install(
        &self,
        requirements: &[String],
        deadline: Option<Instant>,
        say: &mut (dyn FnMut(&str) + Send),
    ) -> InstallReport {
        let started = Instant::now();
        let whole = self.packages().prepare(requirements, deadline, say).await;
        let quoted = requirements.iter().map(|requirement| format!("{requirement:?}")).collect::<Vec<_>>().join(", ");
        match whole {
            Ok(prepared) => InstallReport {
                success: true,
                message: match prepared.outcome {
                    PackageUse::Satisfied => "all of it is preinstalled: import it".to_owned(),
                    PackageUse::Added => format!("ready: call execute_python with requirements [{quoted}]"),
                    PackageUse::Separate => format!(
                        "ready: call execute_python with requirements [{quoted}]; they contradict the preinstalled packages, so code that asks for them has only them"
                    ),
                },
                packages: requirements.iter().map(|text| self.installed(text, &prepared, started)).collect(),
                warnings: prepared.notes,
            },
            Err(error) if requirements.len() == 1 => InstallReport {
                success: false,
                message: error.message.clone(),
                packages: vec![refused(&requirements[0], &error, started)],
                warnings: Vec::new(),
            },
            Err(error) => {
                let (mut packages, mut warnings) = (Vec::new(), Vec::new());
                for text in requirements {
                    let started = Instant::now();
                    packages.push(match self.packages().prepare(std::slice::from_ref(text), deadline, say).await {
                        Ok(prepared) => {
                            warnings.extend(prepared.notes.iter().cloned());
                            self.installed(text, &prepared, started)
                        }
                        Err(error) => refused(text, &error, started),
                    });
                }
                let message = format!("they can't be had together: {}", error.message);
                InstallReport { success: false, message, packages, warnings }
            }
        }
    }

    fn installed(&self, text: &str, prepared: &Prepared, started: Instant) -> InstalledPackage {
        let name = packages::name_of(text);
        let of_set = prepared.installed.iter().find_map(|pin| pin.strip_prefix(&format!("{name}=="))).map(str::to_owned);
        let of_stack =
            || self.packages().stack().iter().find(|package| package.name == name).map(|package| package.version.clone());
        let already_installed = of_set.is_none() || prepared.remembered;
        InstalledPackage {
            package: text.to_owned(),
            success: true,
            message: if already_installed { "it was there".to_owned() } else { "installed".to_owned() },
            reason: None,
            installed_version: of_set.or_else(of_stack),
            installation_time: started.elapsed().as_secs_f64(),
            already_installed,
        }
    }
}

fn refused(text: &str, error: &PackageError, started: Instant) -> InstalledPackage {
    InstalledPackage {
        package: text.to_owned(),
        success: false,
        message: error.message.clone(),
        reason: Some(error.reason.as_str()),
        installed_version: None,
        installation_time: started.elapsed().as_secs_f64(),
        already_installed: false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn both_forms_are_read_and_mistakes_name_their_field() {
        let read = |value: Value| {
            let arguments = value.as_object().expect("an object").clone().into();
            requirements(&arguments).map_err(|error| error.to_string())
        };
        assert_eq!(read(json!({"packages": ["a", "b>1"]})), Ok(vec!["a".to_owned(), "b>1".to_owned()]));
        assert_eq!(read(json!({"package": "a", "version": "latest"})), Ok(vec!["a".to_owned()]));
        assert_eq!(read(json!({"package": "a", "version": "1.2"})), Ok(vec!["a==1.2".to_owned()]));
        assert_eq!(read(json!({"package": "a", "version": ">=1"})), Ok(vec!["a>=1".to_owned()]));
        for (arguments, field) in [
            (json!({}), "packages: is missing"),
            (json!({"packages": []}), "packages: is missing"),
            (json!({"packages": "a"}), "packages: must be"),
            (json!({"packages": [1]}), "packages[0]: must be"),
            (json!({"package": 1}), "package: must be"),
            (json!({"version": "1"}), "version: goes with package"),
            (json!({"name": "a"}), "name: is not an argument"),
        ] {
            assert!(read(arguments.clone()).expect_err("refused").starts_with(field), "{arguments}");
        }
    }
}
