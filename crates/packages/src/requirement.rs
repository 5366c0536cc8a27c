//! A requirement as somebody wrote it.
//!
//! Rule: names, extras and versions only. Whatever could name a place, a file or an option is refused with the reason.

use std::str::FromStr;

use pep440_rs::{Version, VersionSpecifiers};
use pep508_rs::{VerbatimUrl, VersionOrUrl};

use crate::error::{PackageError, Reason};
use crate::installed::Package;
use crate::names;

/// More is no name any more.
const MAX_LENGTH: usize = 200;

/// A distribution in some versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    extras: Vec<String>,
    specifiers: VersionSpecifiers,
}

/// What a requirement comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Wanted(Wanted),
    /// Python has it.
    StandardLibrary(String),
}

impl Wanted {
    /// As installers read it.
    pub(crate) fn line(&self) -> String {
        let extras = if self.extras.is_empty() { String::new() } else { format!("[{}]", self.extras.join(",")) };
        format!("{}{extras}{}", self.name, self.specifiers)
    }

    /// How the stack stands to it.
    pub(crate) fn against(&self, stack: &[Package]) -> Against {
        let Some(package) = stack.iter().find(|package| package.name == self.name) else { return Against::Absent };
        match Version::from_str(&package.version) {
            Ok(version) if !self.specifiers.contains(&version) => Against::OtherVersion,
            // What an extra brings may be missing.
            Ok(_) if self.extras.is_empty() => Against::Satisfied,
            _ => Against::Absent,
        }
    }
}

/// How the stack stands to a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Against {
    Satisfied,
    OtherVersion,
    Absent,
}

/// Reads one requirement; the second is a note on what was made of it.
pub(crate) fn parse(text: &str) -> Result<(Parsed, Option<String>), PackageError> {
    let text = text.trim();
    let refuse = |why: &str| {
        let shown = text.chars().take(MAX_LENGTH).collect::<String>().escape_debug().to_string();
        PackageError::new(Reason::InvalidRequirement, format!("\"{shown}\" is no requirement that is taken: {why}"))
    };
    let right = "it must be a name with versions, such as \"humanize\" or \"humanize>=4,<5\"";
    if let Some(why) = forbidden(text) {
        return Err(refuse(&format!("{why}; {right}")));
    }
    let parsed = pep508_rs::Requirement::<VerbatimUrl>::from_str(text)
        .map_err(|error| refuse(&format!("{}; {right}", error.to_string().lines().next().unwrap_or_default())))?;
    if !parsed.marker.is_true() {
        return Err(refuse(&format!("environment markers are not taken; {right}")));
    }
    let specifiers = match parsed.version_or_url {
        None => VersionSpecifiers::empty(),
        Some(VersionOrUrl::VersionSpecifier(specifiers)) => specifiers,
        Some(VersionOrUrl::Url(_)) => return Err(refuse(&format!("addresses are not taken; {right}"))),
    };
    if specifiers.iter().any(|specifier| specifier.version().is_local()) {
        return Err(refuse(&format!("local versions (+…) are on no index; {right}")));
    }
    let name = parsed.name.to_string();
    if specifiers.is_empty() && names::is_standard_library(&name) {
        let module = name.replace('-', "_");
        let note = format!("{module} is part of Python's standard library: nothing to install");
        return Ok((Parsed::StandardLibrary(module), Some(note)));
    }
    let distribution = names::distribution_of(&name);
    let note = distribution.map(|distribution| format!("{name} is the name to import; its package {distribution} was taken"));
    let name = distribution.map_or(name, str::to_owned);
    let extras = parsed.extras.iter().map(ToString::to_string).collect();
    Ok((Parsed::Wanted(Wanted { name, extras, specifiers }), note))
}

/// The package that a requirement is about, in normal form.
pub fn name_of(text: &str) -> String {
    match parse(text) {
        Ok((Parsed::Wanted(wanted), _)) => wanted.name,
        Ok((Parsed::StandardLibrary(module), _)) => module,
        Err(_) => text.trim().to_owned(),
    }
}

/// Why the text is refused before it is parsed: what parsers of requirements would take for something else than a name.
fn forbidden(text: &str) -> Option<&'static str> {
    let lower = text.to_lowercase();
    // Its name and extras.
    let head = text.split(['=', '<', '>', '!', '~', '(']).next().unwrap_or_default();
    let mut names = head.split(|letter: char| !letter.is_ascii_alphanumeric() && !"._-".contains(letter));
    let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
    match () {
        () if text.is_empty() => Some("it is empty"),
        () if text.len() > MAX_LENGTH => Some("it is longer than 200 characters"),
        () if text.chars().any(char::is_control) => Some("it has control characters"),
        () if !text.is_ascii() => Some("it has characters that are no ASCII, which may only look like the right ones"),
        () if text.starts_with('-') => Some("options are not taken"),
        () if text.contains("://") || text.contains('@') || lower.starts_with("git+") => Some("addresses are not taken"),
        () if text.contains(['/', '\\']) || text.starts_with(['.', '~']) => Some("paths are not taken"),
        () if ends(&[".whl", ".tar.gz", ".zip", ".txt"]) => Some("files are not taken"),
        () if text.contains(';') => Some("environment markers are not taken"),
        () if text.contains('#') => Some("comments and hashes are not taken"),
        // The parser panics at such a name.
        () if names.any(|name| name.ends_with(['.', '_', '-'])) => Some("a name ends with a letter or a digit"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        match parse(text).expect(text).0 {
            Parsed::Wanted(wanted) => wanted.line(),
            Parsed::StandardLibrary(module) => format!("<{module}>"),
        }
    }

    #[test]
    fn names_versions_and_extras_are_taken() {
        assert_eq!(line("Humanize"), "humanize");
        assert_eq!(line(" rich [jupyter] >= 13, <15 "), "rich[jupyter]>=13, <15");
        assert_eq!(line("zope.interface==6.*"), "zope-interface==6.*");
    }

    #[test]
    fn names_to_import_become_names_to_install_with_a_note() {
        for (given, taken) in
            [("sklearn", "scikit-learn"), ("cv2", "opencv-python-headless"), ("PIL", "pillow"), ("yaml>6", "pyyaml>6")]
        {
            assert_eq!(line(given), taken);
            assert!(parse(given).expect(given).1.expect("a note").contains("was taken"), "{given}");
        }
        assert_eq!(line("json"), "<json>");
        assert!(parse("json").expect("fine").1.expect("a note").contains("standard library"));
    }

    #[test]
    fn whatever_could_name_a_place_is_refused_with_the_item_and_the_reason() {
        for (text, why) in [
            ("", "empty"),
            ("git+https://example.org/x", "addresses"),
            ("https://example.org/x-1-py3-none-any.whl", "addresses"),
            ("x @ file:///etc/passwd", "addresses"),
            ("x@latest", "addresses"),
            ("./x", "paths"),
            ("../x", "paths"),
            ("/tmp/x.whl", "paths"),
            ("x.whl", "files"),
            ("-r", "options"),
            ("--index-url=x", "options"),
            ("x --hash=sha256:0", "is no requirement"),
            ("x; python_version<'4'", "markers"),
            ("x==1.0+local", "local versions"),
            ("x\ny", "control characters"),
            ("x y", "is no requirement"),
            ("reque\u{455}ts", "no ASCII"),
            ("x # y", "comments"),
            // Found by fuzzing: pep508_rs panicked.
            ("2.~=1", "ends with a letter"),
            ("x-", "ends with a letter"),
            ("x[11.]", "ends with a letter"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.reason, Reason::InvalidRequirement);
            assert!(error.message.contains(why), "{text}: {}", error.message);
            assert!(text.is_empty() || error.message.contains(&text.escape_debug().to_string()), "{}", error.message);
        }
    }

    #[test]
    fn the_stack_satisfies_what_it_has_in_a_wanted_version() {
        let stack = [Package { name: "pandas".into(), version: "3.1.1".into(), import_name: "pandas".into() }];
        let against = |text| match parse(text).expect(text).0 {
            Parsed::Wanted(wanted) => wanted.against(&stack),
            Parsed::StandardLibrary(_) => panic!("{text}"),
        };
        assert_eq!(against("pandas>=3"), Against::Satisfied);
        assert_eq!(against("pandas==2.3.3"), Against::OtherVersion);
        assert_eq!(against("pandas[aws]"), Against::Absent);
        assert_eq!(against("humanize"), Against::Absent);
    }
}
