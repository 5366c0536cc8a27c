//! The tool `install_packages`: has packages at hand for the calls that follow.

use std::time::Instant;

use packages::{PackageError, Prepared};
use protocol::{ArgumentError, Arguments, Ended, Event, EventSink, PackageUse, shortened};

use super::reports::{InstallReport, InstalledPackage};
use super::{Call, Service, taken_back};

/// The tool's name.
pub(crate) const INSTALL: &str = "install_packages";

const KNOWN: [&str; 3] = ["packages", "package", "version"];

/// What is asked for, also in the older form of `package` and `version`, and what is to be said about it.
///
/// # Errors
/// The first argument that can't be used.
pub(crate) fn requirements(mut arguments: Arguments) -> Result<(Vec<String>, Vec<String>), ArgumentError> {
    const WANTED: &str = "an array of strings such as [\"humanize>=4\"]";
    let mut all = arguments.strings(&["packages", "requirements"], WANTED, "a string such as humanize>=4")?;
    let mut text = |field: &str| Ok(arguments.string(field, "a string")?.map(|text| text.trim().to_owned()));
    match (text("package")?, text("version")?) {
        (Some(package), None) => all.push(package),
        (Some(package), Some(version)) if version.is_empty() || version == "latest" => all.push(package),
        (Some(package), Some(version)) if version.starts_with(['=', '<', '>', '~', '!']) => all.push(package + &version),
        (Some(package), Some(version)) => all.push(format!("{package}=={version}")),
        (None, Some(_)) => return Err(ArgumentError::new("version", "goes with package; in packages write \"name==version\"")),
        (None, None) => {}
    }
    if all.is_empty() {
        let instead = arguments.unknown(&KNOWN).map(|name| format!("; {} is not an argument", shortened(name)));
        let problem = format!("is missing; it must be {WANTED}{}", instead.unwrap_or_default());
        return Err(ArgumentError::new("packages", problem));
    }
    Ok((all, arguments.finish(INSTALL, &KNOWN, |_, _| None)))
}

impl Service {
    /// All of them as one set, as a call would require them; where that fails, each by itself, to say which it is. Dropping
    /// the future kills the installer.
    pub(crate) async fn install(&self, call: &Call, requirements: &[String], listener: &mut dyn EventSink) -> InstallReport {
        let refused = |ended: Box<Ended>| InstallReport::refused(ended.error.map(|error| error.message).unwrap_or_default());
        let _in_flight = match self.begin(call) {
            Ok(in_flight) => in_flight,
            Err(ended) => return refused(ended),
        };
        let report = call.unless_taken_back(self.install_all(requirements, call.latest_end(), listener)).await;
        report.unwrap_or_else(|| refused(taken_back()))
    }

    async fn install_all(
        &self,
        requirements: &[String],
        deadline: Option<Instant>,
        listener: &mut dyn EventSink,
    ) -> InstallReport {
        let started = Instant::now();
        let mut say = |text: &str| listener.push(Event::Package(text.to_owned()));
        let whole = Box::pin(self.packages().prepare(requirements, deadline, &mut say)).await;
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
                    packages.push(
                        match Box::pin(self.packages().prepare(std::slice::from_ref(text), deadline, &mut say)).await {
                            Ok(prepared) => {
                                warnings.extend(prepared.notes.iter().cloned());
                                self.installed(text, &prepared, started)
                            }
                            Err(error) => refused(text, &error, started),
                        },
                    );
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
            requirements(arguments).map_err(|error| error.to_string())
        };
        let plain = |value: Value| {
            let (requirements, warnings) = read(value).expect("taken");
            assert_eq!(warnings, Vec::<String>::new());
            requirements
        };
        assert_eq!(plain(json!({"packages": ["a", "b>1"], "package": null})), ["a", "b>1"]);
        assert_eq!(plain(json!({"package": "a", "version": "latest"})), ["a"]);
        assert_eq!(plain(json!({"package": "a", "version": "1.2"})), ["a==1.2"]);
        assert_eq!(plain(json!({"package": "a", "version": ">=1"})), ["a>=1"]);
        for (arguments, requirements, warning) in [
            (json!({"packages": "a, b"}), &["a", "b"][..], "packages: the list was read from a string"),
            (json!({"requirements": ["a"]}), &["a"], "requirements: was taken as packages"),
            (
                json!({"packages": ["a"], "upgrade": true}),
                &["a"],
                "upgrade: is not an argument of install_packages and was ignored; it takes packages, package and version",
            ),
        ] {
            let expected = (requirements.iter().map(ToString::to_string).collect(), vec![warning.to_owned()]);
            assert_eq!(read(arguments), Ok(expected));
        }
        for (arguments, field) in [
            (json!({}), "packages: is missing; it must be an array of strings such as [\"humanize>=4\"]"),
            (json!({"packages": []}), "packages: is missing"),
            (json!({"packages": {"a": 1}}), "packages: must be"),
            (json!({"packages": [1]}), "packages[0]: must be"),
            (json!({"package": 1}), "package: must be"),
            (json!({"version": "1"}), "version: goes with package"),
            (
                json!({"name": "a"}),
                "packages: is missing; it must be an array of strings such as [\"humanize>=4\"]; name is not an argument",
            ),
        ] {
            assert!(read(arguments.clone()).expect_err("refused").starts_with(field), "{arguments}");
        }
    }
}
