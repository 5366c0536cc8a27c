//! What is installed in the Python tree, read from the metadata that the packages carry themselves.
//!
//! Rule: no hand-kept list. What an installer wrote is what is reported.

use std::path::Path;

/// An installed distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in normal form (`scikit-learn`).
    pub name: String,
    /// Its version.
    pub version: String,
    /// The name to import (`sklearn`).
    pub import_name: String,
}

/// Every distribution in a `site` folder, by name. A folder that can't be read holds none.
pub fn installed(site: &Path) -> Vec<Package> {
    let entries = std::fs::read_dir(site).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "dist-info"))
        .filter_map(|path| read(&path))
        .collect::<Vec<_>>();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}

fn read(dist_info: &Path) -> Option<Package> {
    let metadata = std::fs::read_to_string(dist_info.join("METADATA")).ok()?;
    // Headers end at the first empty line; the description that follows may look like headers.
    let header = |name: &str| {
        metadata.lines().take_while(|line| !line.is_empty()).find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let name = normal_form(&header("Name:")?);
    let import_name = import_name(dist_info).unwrap_or_else(|| name.replace('-', "_"));
    Some(Package { version: header("Version:")?, import_name, name })
}

/// Lower case, with runs of `-`, `_` and `.` as one `-`: <https://packaging.python.org/specifications/name-normalization/>.
pub(crate) fn normal_form(name: &str) -> String {
    name.to_lowercase().split(['-', '_', '.']).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// The first top-level module or package that the distribution's record lists, public ones first.
fn import_name(dist_info: &Path) -> Option<String> {
    let record = std::fs::read_to_string(dist_info.join("RECORD")).ok()?;
    let mut names = record
        .lines()
        .filter_map(|line| {
            let path = line.split(',').next()?;
            let (folder, file) = path.split_once('/').unwrap_or(("", path));
            match (folder, file) {
                ("", module) => module.strip_suffix(".py").map(str::to_owned),
                (package, "__init__.py") => Some(package.to_owned()),
                _ => None,
            }
        })
        .collect::<Vec<_>>();
    names.sort_by_key(|name| (name.starts_with('_'), name.clone()));
    names.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(site: &Path, folder: &str, metadata: &str, record: &str) {
        let dir = site.join(folder);
        std::fs::create_dir(&dir).expect("made");
        std::fs::write(dir.join("METADATA"), metadata).expect("written");
        std::fs::write(dir.join("RECORD"), record).expect("written");
    }

    #[test]
    fn packages_are_read_from_what_the_installer_wrote() {
        let site = tempfile::tempdir().expect("a folder");
        package(
            site.path(),
            "scikit_learn-1.9.1.dist-info",
            "Metadata-Version: 2.4\nName: scikit_learn\nVersion: 1.9.1\n\nName: not this\n",
            "../../bin/x,,\nsklearn/__init__.py,sha,1\nsklearn/a.py,sha,1\nscikit_learn-1.9.1.dist-info/METADATA,,\n",
        );
        package(site.path(), "six-1.dist-info", "Name: six\nVersion: 1\n", "six.py,,\n");
        package(site.path(), "broken-1.dist-info", "", "");
        let found = installed(site.path());
        let short = found.iter().map(|p| (p.name.as_str(), p.version.as_str(), p.import_name.as_str())).collect::<Vec<_>>();
        assert_eq!(short, [("scikit-learn", "1.9.1", "sklearn"), ("six", "1", "six")]);
    }
}
