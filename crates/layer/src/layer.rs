//! The Lambda layer: the Python tree, made to fit.
//!
//! Rule: layer and bootstrap together stay below what Lambda takes, or the build fails and says where the bytes are. Two
//! builds of the same lock give the same zip.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::files::{Entry, size, walk};
use crate::interpreter::Interpreter;
use crate::run::run;
use crate::{BuildError, bytecode, elf, package, pip, tree, trim};

/// Function and layers, unpacked: <https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html>.
const LIMIT: u64 = 262_144_000;
/// Where Lambda unpacks a layer, and the folder of ours in it.
const FINAL_PLACE: &str = "/opt/code-interpreter";
/// Two copies of a library that are larger become one.
const WORTH_A_LINK: u64 = 16 << 10;

/// Which processor the function has, as AWS names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    Arm64,
    #[value(name = "x86_64")]
    X86_64,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "x86_64",
        }
    }

    fn processor(self) -> &'static str {
        match self {
            Self::Arm64 => "aarch64",
            Self::X86_64 => "x86_64",
        }
    }
}

/// What is to be built.
#[derive(Args, Debug)]
pub(crate) struct LayerOptions {
    /// The processor.
    #[arg(long, env = "ARCH", default_value = "arm64", value_enum)]
    arch: Arch,
    /// The uv to build with.
    #[arg(long, env = "UV", default_value = "uv")]
    uv: PathBuf,
    /// The hashed lock of the stack.
    #[arg(long, default_value = "layer/requirements.lock")]
    lock: PathBuf,
    /// The pip that goes into it.
    #[arg(long, default_value = "layer/pip.lock")]
    pip_lock: PathBuf,
    /// Where the layer goes: `layer-ARCH/` and `layer-ARCH.zip` in it.
    #[arg(long, default_value = "build")]
    out: PathBuf,
    /// The function's program, which shares the budget.
    #[arg(long)]
    bootstrap: Option<PathBuf>,
    /// An archive of a standalone `CPython` for that processor (path or URL).
    #[arg(long, env = "PYTHON_ARCHIVE")]
    python_archive: Option<String>,
}

/// Builds layer and zip; `say` hears each step and the table at the end.
pub(crate) fn build(options: &LayerOptions, say: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    let arch = options.arch;
    std::fs::create_dir_all(&options.out).map_err(BuildError::io(&options.out))?;
    let work = options.out.join(format!(".layer-{}-in-progress", arch.name()));
    let _ = std::fs::remove_dir_all(&work);
    let layer = work.join("layer");
    std::fs::create_dir_all(&layer).map_err(BuildError::io(&layer))?;
    let wanted =
        Interpreter { uv: &options.uv, archive: options.python_archive.as_deref(), arch: arch.processor(), version: None };
    let version = wanted.install(&work, &layer.join("python"), say)?.version;
    let host = host_python(options, &layer, &work, say)?;
    say(&format!("installing the stack for {} and CPython {version}", arch.name()));
    install_stack(options, &layer, &version)?;
    let before = sizes(&layer)?;
    say("building matplotlib's font cache");
    font_cache(&layer, &work, &host, options)?;
    say("leaving out tests, sources and what needs a screen");
    trim::trim(&layer)?;
    say("compiling bytecode");
    bytecode::compile(&layer, Path::new(FINAL_PLACE), &host)?;
    say("compacting libraries");
    compact_libraries(&layer)?;
    link_copies(&layer)?;
    say("packing pip");
    pip::pack(&options.uv, &options.pip_lock, &host, &work, &layer)?;
    let note = json!({"stamp": arch.name(), "python_version": version, "python_source": "a layer"});
    write(&layer.join("tree.json"), &format!("{note:#}\n"))?;
    set_modes(&layer)?;
    let after = sizes(&layer)?;

    let zip = options.out.join(format!("layer-{}.zip", arch.name()));
    say(&format!("packing {}", zip.display()));
    let hash = package::pack(&layer, "code-interpreter", &zip)?;
    let bootstrap = match &options.bootstrap {
        Some(path) => path.metadata().map_err(BuildError::io(path))?.len(),
        None => 0,
    };
    let packed = zip.metadata().map_err(BuildError::io(&zip))?.len();
    say(&table(&before, &after, bootstrap, packed));
    say(&format!("{} sha256 {hash}", zip.display()));
    let place = options.out.join(format!("layer-{}", arch.name()));
    let _ = std::fs::remove_dir_all(&place);
    std::fs::rename(&layer, &place).map_err(BuildError::io(&place))?;
    let _ = std::fs::remove_dir_all(&work);
    within_budget(&after, bootstrap)
}

/// Unpacks a layer's zip as Lambda does.
#[derive(Args, Debug)]
pub(crate) struct UnpackOptions {
    /// The zip.
    archive: PathBuf,
    /// Where Lambda has `/opt`.
    #[arg(long, default_value = "/opt")]
    to: PathBuf,
}

pub(crate) fn unpack(options: &UnpackOptions) -> Result<(), BuildError> {
    package::unpack(&options.archive, &options.to)
}

/// An interpreter that runs here and writes the bytecode of the layer's, which is the same on every processor.
fn host_python(options: &LayerOptions, layer: &Path, work: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, BuildError> {
    if options.arch.processor() == std::env::consts::ARCH {
        // A copy: the layer's own loses its sources on the way.
        let copy = work.join("host-python");
        run("copying the interpreter", Command::new("cp").arg("-a").arg(layer.join("python")).arg(&copy))?;
        return Ok(copy.join("bin/python3"));
    }
    let library = bytecode::standard_library(layer)?;
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    let host = work.join("host");
    std::fs::create_dir_all(&host).map_err(BuildError::io(&host))?;
    let wanted =
        Interpreter { uv: &options.uv, archive: None, arch: std::env::consts::ARCH, version: name.strip_prefix("python") };
    let place = work.join("host-python");
    wanted.install(&host, &place, say)?;
    Ok(place.join("bin/python3"))
}

fn install_stack(options: &LayerOptions, layer: &Path, version: &str) -> Result<(), BuildError> {
    let minor = version.split('.').take(2).collect::<Vec<_>>().join(".");
    let platform = format!("{}-manylinux_2_28", options.arch.processor());
    let mut command = Command::new(&options.uv);
    command.args(["pip", "install", "--no-config", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]);
    command.args(["--no-compile-bytecode", "--python-version", &minor, "--python-platform", &platform, "--target"]);
    run("installing the stack", command.arg(layer.join("site")).arg("-r").arg(&options.lock)).map(drop)
}

/// Matplotlib's list of its own fonts. Those of the machine that builds are not there in a function.
fn font_cache(layer: &Path, work: &Path, host: &Path, options: &LayerOptions) -> Result<(), BuildError> {
    let native = options.arch.processor() == std::env::consts::ARCH;
    let scratch = work.join("fonts");
    std::fs::create_dir_all(scratch.join("matplotlib")).map_err(BuildError::io(&scratch))?;
    let site = scratch.join("site");
    if native {
        std::os::unix::fs::symlink(std::path::absolute(layer.join("site")).map_err(BuildError::io(layer))?, &site)
            .map_err(BuildError::io(&site))?;
    } else {
        // The list is made by a matplotlib that runs here; it names fonts by their place in the package.
        let mut command = Command::new(&options.uv);
        command.args(["pip", "install", "--no-config", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]);
        command.args(["--no-compile-bytecode", "--target"]).arg(&site).arg("--python").arg(host);
        run("installing matplotlib for this machine", command.arg("-r").arg(&options.lock))?;
    }
    tree::font_cache(&scratch, host)?;
    let to = layer.join("matplotlib");
    std::fs::create_dir_all(&to).map_err(BuildError::io(&to))?;
    for entry in walk(&scratch.join("matplotlib"))?.filter(|entry| entry.name().starts_with("fontlist")) {
        let text = std::fs::read_to_string(&entry.path).map_err(BuildError::io(&entry.path))?;
        let mut list: Value = serde_json::from_str(&text).unwrap_or_default();
        for kind in ["ttflist", "afmlist"] {
            if let Some(fonts) = list[kind].as_array_mut() {
                let there = |font: &Value| {
                    let name = font["fname"].as_str().unwrap_or("/");
                    !name.starts_with('/')
                };
                fonts.retain(there);
                fonts.sort_by_key(|font| font["fname"].as_str().unwrap_or_default().to_owned());
            }
        }
        write(&to.join(entry.name()), &list.to_string())?;
    }
    Ok(())
}

fn compact_libraries(layer: &Path) -> Result<(), BuildError> {
    for entry in walk(layer)?.filter(Entry::is_file) {
        let file = std::fs::read(&entry.path).map_err(BuildError::io(&entry.path))?;
        if let Some(small) = elf::compact(&file) {
            std::fs::write(&entry.path, small).map_err(BuildError::io(&entry.path))?;
        }
    }
    Ok(())
}

/// Libraries that several wheels bring become one, and links to it.
fn link_copies(layer: &Path) -> Result<(), BuildError> {
    let mut seen = BTreeMap::new();
    let is_library = |entry: &Entry| entry.is_file() && entry.size >= WORTH_A_LINK && entry.name().contains(".so");
    for entry in walk(layer)?.filter(is_library) {
        let hash = Sha256::digest(std::fs::read(&entry.path).map_err(BuildError::io(&entry.path))?);
        let Some(first) = seen.insert(hash, entry.path.clone()) else { continue };
        let target = relative(&first, &entry.path);
        std::fs::remove_file(&entry.path).map_err(BuildError::io(&entry.path))?;
        std::os::unix::fs::symlink(target, &entry.path).map_err(BuildError::io(&entry.path))?;
        seen.insert(hash, first);
    }
    Ok(())
}

/// The path from `link` to `target`, which have a folder in common.
fn relative(target: &Path, link: &Path) -> PathBuf {
    let (target, link): (Vec<_>, Vec<_>) = (target.components().collect(), link.components().collect());
    let common = target.iter().zip(&link).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n(Path::new("..").as_os_str(), link.len() - common - 1);
    up.chain(target[common..].iter().map(|component| component.as_os_str())).collect()
}

fn set_modes(layer: &Path) -> Result<(), BuildError> {
    for entry in walk(layer)?.filter(|entry| !entry.is_link) {
        let program = entry.is_file() && entry.path.starts_with(layer.join("python/bin"));
        let mode = match () {
            () if program => tree::UNREADABLE_PROGRAM,
            () if entry.is_dir || entry.mode & 0o100 != 0 => 0o755,
            () => 0o644,
        };
        std::fs::set_permissions(&entry.path, std::fs::Permissions::from_mode(mode)).map_err(BuildError::io(&entry.path))?;
    }
    Ok(())
}

/// Bytes by package: the interpreter, and what is at the top of the site folder.
fn sizes(layer: &Path) -> Result<BTreeMap<String, u64>, BuildError> {
    let mut sizes = BTreeMap::from([("CPython".to_owned(), size(&layer.join("python"))?)]);
    let pip = layer.join(pip::ARCHIVE);
    if pip.exists() {
        sizes.insert("pip".to_owned(), pip.metadata().map_err(BuildError::io(&pip))?.len());
    }
    for entry in walk(&layer.join("site"))?.filter(|entry| !entry.is_dir) {
        let inner = entry.path.strip_prefix(layer.join("site")).unwrap_or(&entry.path);
        let top = inner.components().next().map(|top| top.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
        let package = top.split(['.', '-']).next().unwrap_or_default().to_lowercase();
        let package = match package.as_str() {
            "scikit_learn" => "sklearn".to_owned(),
            "pil" => "pillow".to_owned(),
            _ => package,
        };
        *sizes.entry(package).or_default() += entry.size;
    }
    Ok(sizes)
}

fn table(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, bootstrap: u64, packed: u64) -> String {
    let mut rows = after.iter().map(|(name, after)| (name, before.get(name).copied().unwrap_or(0), *after)).collect::<Vec<_>>();
    rows.sort_by_key(|(_, _, after)| std::cmp::Reverse(*after));
    let (large, small) = rows.split_at(rows.len().min(14));
    let mut text = format!("{:<22}{:>14}{:>14}\n", "bytes", "before", "after");
    let mut row = |name: &str, before: u64, after: u64| {
        // Writing to a String can't fail.
        let _ = writeln!(text, "  {name:<22}{before:>14}{after:>14}");
    };
    for (name, before, after) in large {
        row(name, *before, *after);
    }
    let sum = |rows: &[(&String, u64, u64)]| rows.iter().fold((0, 0), |sum, row| (sum.0 + row.1, sum.1 + row.2));
    let (small, whole) = (sum(small), sum(&rows));
    row("the others", small.0, small.1);
    row("the whole layer", whole.0, whole.1);
    row("bootstrap", bootstrap, bootstrap);
    row("zipped", 0, packed);
    let left = LIMIT.checked_sub(whole.1 + bootstrap);
    let left = left.map_or_else(|| "nothing".to_owned(), |left| format!("{left} bytes"));
    format!("{text}  {left} left of {LIMIT}")
}

fn within_budget(after: &BTreeMap<String, u64>, bootstrap: u64) -> Result<(), BuildError> {
    let whole = after.values().sum::<u64>() + bootstrap;
    if whole <= LIMIT {
        return Ok(());
    }
    Err(BuildError::TooLarge { over: whole - LIMIT, limit: LIMIT })
}

fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    std::fs::write(path, text).map_err(BuildError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_one_folder_to_another() {
        let (target, link) = (Path::new("a/numpy.libs/x.so"), Path::new("a/scipy.libs/x.so"));
        assert_eq!(relative(target, link), Path::new("../numpy.libs/x.so"));
        assert_eq!(relative(Path::new("a/x.so"), Path::new("a/y.so")), Path::new("x.so"));
    }

    #[test]
    fn a_layer_over_the_limit_fails_and_the_bootstrap_counts() {
        let layer = BTreeMap::from([("numpy".to_owned(), LIMIT - 10)]);
        assert!(within_budget(&layer, 10).is_ok());
        let error = within_budget(&layer, 11).expect_err("one byte too many").to_string();
        assert!(error.contains("1 bytes over the 262144000") && error.contains("requirements.in"), "{error}");
        assert!(table(&layer, &layer, 11, 5).contains("nothing left of 262144000"));
    }
}
