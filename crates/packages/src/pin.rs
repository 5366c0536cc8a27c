//! What a resolution came to, read from what uv and pip write down.
//!
//! Rule: a pin is a name and a version on the index, with the hash of its file. Anything else refuses the whole.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::error::{PackageError, Reason};
use crate::installed::normal_form;

/// A package in the version and with the hashes it was resolved to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pin {
    pub(crate) name: String,
    pub(crate) version: String,
    /// `sha256:…`
    pub(crate) hashes: Vec<String>,
    /// The packages that ask for it.
    pub(crate) needed_by: BTreeSet<String>,
}

impl Pin {
    /// `name==version`
    pub(crate) fn line(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

/// Reads a lock: `name==version \`, lines of `--hash=sha256:…`, and `# via` the packages that need it.
pub(crate) fn pins(lock: &str) -> Result<Vec<Pin>, PackageError> {
    let mut pins: Vec<Pin> = Vec::new();
    for line in lock.lines() {
        let (line, comment) = line.split_once('#').unwrap_or((line, ""));
        if let Some((name, _)) = line.split_once(" @ ") {
            return Err(direct(name));
        }
        for word in line.split_whitespace() {
            if let Some(hash) = word.strip_prefix("--hash=") {
                if let Some(pin) = pins.last_mut() {
                    pin.hashes.push(hash.to_owned());
                }
            } else if let Some((name, version)) = word.split_once("==") {
                let name = normal_form(name.split('[').next().unwrap_or_default());
                pins.push(Pin { name, version: version.trim_end_matches(';').to_owned(), ..Pin::default() });
            }
        }
        if let (Some(pin), Some(needing)) = (pins.last_mut(), comment.trim().strip_prefix("via ")) {
            // `-r FILE` and `-c FILE` stand there too.
            pin.needed_by.extend(needing.split(", ").filter(|name| !name.starts_with('-')).map(normal_form));
        }
    }
    Ok(pins)
}

/// Reads pip's report: <https://pip.pypa.io/en/stable/reference/installation-report/>.
pub(crate) fn reported(report: &[u8]) -> Result<Vec<Pin>, PackageError> {
    let report: Value = serde_json::from_slice(report)
        .map_err(|error| PackageError::new(Reason::Failed, format!("pip's report can't be read: {error}")))?;
    let items = || report["install"].as_array().into_iter().flatten();
    let name = |item: &Value| item["metadata"]["name"].as_str().map(normal_form);
    let mut needed_by: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (item, needing) in items().filter_map(|item| Some((item, name(item)?))) {
        for required in item["metadata"]["requires_dist"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            // Also what only its extras ask for: whoever offers an extra knows what it needs.
            needed_by.entry(normal_form(leading_name(required))).or_default().insert(needing.clone());
        }
    }
    items()
        .map(|item| {
            let found = &item["download_info"];
            let url = found["url"].as_str().unwrap_or_default();
            let from_index = item["is_direct"] == false
                && ["vcs_info", "dir_info"].iter().all(|info| found[*info].is_null())
                && (url.starts_with("https://") || url.starts_with("http://"));
            let name = name(item).ok_or_else(|| PackageError::new(Reason::Failed, "pip's report names no package"))?;
            if !from_index {
                return Err(direct(&name));
            }
            let hash = found["archive_info"]["hashes"]["sha256"].as_str();
            let hash = hash.ok_or_else(|| PackageError::new(Reason::HashMissing, "the index gives no hash for a file"))?;
            let version = item["metadata"]["version"].as_str().unwrap_or_default().to_owned();
            let needed_by = needed_by.remove(&name).unwrap_or_default();
            Ok(Pin { name, version, hashes: vec![format!("sha256:{hash}")], needed_by })
        })
        .collect()
}

/// `rich` of `rich[jupyter]>=13; python_version<"4"`.
fn leading_name(requirement: &str) -> &str {
    let end = requirement.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(requirement.len());
    &requirement[..end]
}

fn direct(name: &str) -> PackageError {
    let name = name.chars().filter(char::is_ascii_graphic).take(100).collect::<String>();
    PackageError::new(Reason::DirectReference, format!("{name} would come from an address and not from the package index"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(name: &str, version: &str, hashes: &[&str], needed_by: &[&str]) -> Pin {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Pin {
            name: name.into(),
            version: version.into(),
            hashes: owned(hashes),
            needed_by: owned(needed_by).into_iter().collect(),
        }
    }

    #[test]
    fn a_lock_is_read_with_its_hashes_and_with_what_needs_them() {
        let lock = "humanize==4.17.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via -r wanted.txt, Stack_Data, x\nRich[jupyter]==13.1  # via a\n";
        let read = pins(lock).expect("a lock");
        assert_eq!(
            read,
            [pin("humanize", "4.17.0", &["sha256:aa", "sha256:bb"], &["stack-data", "x"]), pin("rich", "13.1", &[], &["a"])]
        );
    }

    #[test]
    fn a_pin_from_an_address_refuses_a_resolution() {
        for lock in ["x @ https://example.org/x==1.whl\n", "a==1\nx @ git+https://example.org/x\n", "x @ file:///etc/passwd"] {
            assert_eq!(pins(lock).expect_err(lock).reason, Reason::DirectReference);
        }
        let item = |more: Value| {
            let mut item = serde_json::json!({
                "download_info": {"url": "https://example.org/a-1-py3-none-any.whl", "archive_info": {"hashes": {"sha256": "aa"}}},
                "is_direct": false, "metadata": {"name": "A", "version": "1", "requires_dist": ["B[x]>=1; extra == 'y'"]},
            });
            for (path, value) in more.as_object().expect("pointers") {
                match item.pointer_mut(path) {
                    Some(place) => *place = value.clone(),
                    None => item["download_info"][path] = value.clone(),
                }
            }
            item
        };
        let report = |items: &[Value]| reported(serde_json::json!({"install": items}).to_string().as_bytes());
        let b = item(serde_json::json!({"/metadata": {"name": "b", "version": "2"}}));
        assert_eq!(
            report(&[item(serde_json::json!({})), b]).expect("pins"),
            [pin("a", "1", &["sha256:aa"], &[]), pin("b", "2", &["sha256:aa"], &["a"])]
        );
        for direct in [
            serde_json::json!({"/is_direct": true}),
            serde_json::json!({"/download_info/url": "file:///etc/passwd"}),
            serde_json::json!({"vcs_info": {"vcs": "git"}}),
            serde_json::json!({"dir_info": {}}),
        ] {
            assert_eq!(report(&[item(direct.clone())]).expect_err("refused").reason, Reason::DirectReference, "{direct}");
        }
    }
}
