//! ARCHITECTURE.md against the code: which crate uses which, and that no module uses one that uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

type Names = BTreeSet<String>;
/// Of each, what it uses.
type Arrows = BTreeMap<String, Names>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// From the table of crates: what each uses, and what its tests use besides.
fn drawn() -> BTreeMap<String, (Names, Names)> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let table = text.lines().skip_while(|line| *line != "## Crates, by trust").skip_while(|line| !line.starts_with("| `"));
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Names>();
    let row = |line: &str| {
        let cells = line.split('|').collect::<Vec<_>>();
        let [_, name, _, uses, tests, _] = cells[..] else { panic!("not a row of four cells: {line}") };
        (names(name).pop_first().expect("a crate's name"), (names(uses), names(tests)))
    };
    table.take_while(|line| line.starts_with('|')).map(row).collect()
}

/// From the manifests.
fn built() -> BTreeMap<String, (Names, Names)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(root());
    let output = command.output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice::<Value>(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    let uses = |package: &Value| {
        let ours = package["dependencies"].as_array().into_iter().flatten().filter(|dependency| dependency["path"].is_string());
        let (tests, rest) = ours.partition::<Vec<_>, _>(|dependency| dependency["kind"] == "dev");
        let names = |list: Vec<&Value>| list.iter().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect::<Names>();
        (package["name"].as_str().unwrap_or_default().to_owned(), (names(rest), names(tests)))
    };
    packages.iter().map(uses).collect()
}

#[test]
fn each_crate_uses_those_that_are_drawn_and_no_others() {
    let (drawn, built) = (drawn(), built());
    assert!(built.len() > 5 && built.values().any(|(uses, _)| !uses.is_empty()), "{built:?}");
    assert_eq!(drawn, built, "left: ARCHITECTURE.md, right: the manifests");
}

/// The modules of a crate's root, each with all that is below it, and which of the others they name by `crate::`.
fn modules(source: &Path) -> Arrows {
    let root = ["lib.rs", "main.rs"].map(|name| source.join(name)).into_iter().find(|file| file.exists()).expect("a root");
    let root = std::fs::read_to_string(root).expect("a root");
    // What the root re-exports is named without its module.
    let exports = root.lines().filter_map(|line| line.strip_prefix("pub use ")?.split_once("::"));
    let home = exports
        .flat_map(|(module, rest)| rest.split(['{', '}', ',', ';', ' ']).map(move |item| (item, module)))
        .collect::<BTreeMap<_, _>>();
    let mut arrows = Arrows::new();
    for entry in std::fs::read_dir(source).expect("a folder").flatten() {
        let path = entry.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let uses = arrows.entry(name.clone()).or_default();
        for file in files(&path) {
            let text = std::fs::read_to_string(&file).expect("a source");
            uses.extend(
                named(&text).into_iter().map(|item| home.get(&*item).map_or(item.clone(), |module| (*module).to_owned())),
            );
        }
        uses.remove(&name);
    }
    for name in ["lib", "main"] {
        arrows.remove(name);
    }
    let known = arrows.keys().cloned().collect::<Names>();
    for uses in arrows.values_mut() {
        uses.retain(|name| known.contains(name));
    }
    arrows
}

/// Sources, but for tests.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() {
        return std::fs::read_dir(path).expect("a folder").flatten().flat_map(|entry| files(&entry.path())).collect();
    }
    let is_source = path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs");
    if is_source { vec![path.to_owned()] } else { Vec::new() }
}

/// What follows `crate::` in the code, also in braces.
fn named(text: &str) -> Vec<String> {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word = |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default().to_owned();
    let mut names = Vec::new();
    for after in lines.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => names.push(word(after)),
            Some(list) => {
                let mut depth = 0;
                let top = list.split_inclusive(['{', '}', ',']).take_while(|part| {
                    depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                    depth >= 0
                });
                names.extend(top.map(|part| word(part.trim())));
            }
        }
    }
    names
}

/// Takes away what uses nothing that is left, as long as there is any: what stays is in a circle, or uses one.
fn circle(mut arrows: Arrows) -> Names {
    while let Some(name) = arrows.iter().find(|(_, uses)| uses.is_empty()).map(|(name, _)| name.clone()) {
        arrows.remove(&name);
        for uses in arrows.values_mut() {
            uses.remove(&name);
        }
    }
    arrows.into_keys().collect()
}

#[test]
fn no_module_uses_one_that_uses_it() {
    let mut circles = Vec::new();
    for name in built().into_keys() {
        let arrows = modules(&root().join("crates").join(&name).join("src"));
        assert!(name != "interpreter" || arrows["engine"].contains("zygote"), "{arrows:?}");
        let circle = circle(arrows.clone());
        let arrows = arrows.into_iter().filter(|(module, _)| circle.contains(module)).collect::<Arrows>();
        if !circle.is_empty() {
            circles.push((name, arrows));
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let text =
        "use crate::{b, c::{D, E}};\n// crate::nothing\nfn f() { crate::g::h() }\n#[cfg(test)]\nmod tests { use crate::i; }";
    assert_eq!(named(text)[..2], ["b", "c"]);
    assert!(named(text).contains(&"g".to_owned()) && !named(text).contains(&"i".to_owned()), "{:?}", named(text));
    let arrows = |list: &[(&str, &[&str])]| {
        list.iter().map(|(name, uses)| ((*name).to_owned(), uses.iter().map(|name| (*name).to_owned()).collect())).collect()
    };
    assert_eq!(circle(arrows(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])])).len(), 3);
    assert!(circle(arrows(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
}
