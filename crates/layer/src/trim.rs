//! What a Lambda function never reads: left out of its layer.
//!
//! Rule: a layer does everything the local tree does. What goes is tests, sources that were compiled, files for those who
//! build extensions, and parts that need a screen. Licences stay.

use std::path::{Path, PathBuf};

use crate::BuildError;
use crate::elf;
use crate::files::{Entry, walk};

/// Folders of tests, wherever they are.
const TEST_FOLDERS: [&str; 2] = ["tests", "test"];
/// Sources and headers of extensions, stubs for type checkers, static libraries.
const BUILD_FILES: [&str; 15] = ["pyi", "pyx", "pxd", "pxi", "c", "h", "cc", "cpp", "hpp", "f", "f90", "a", "in", "tp", "typed"];
/// Parts of packages, from the site folder on.
const PARTS: [&str; 6] =
    ["bin", "share", "numpy/_core/include", "numpy/f2py/src", "numpy/_core/lib", "matplotlib/mpl-data/sample_data"];
/// Extension modules and libraries for tests, screens, and a format that takes 6 MB.
const MODULES: [&str; 12] = [
    "numpy/_core/_simd.",
    "numpy/_core/_multiarray_tests.",
    "numpy/_core/_operand_flag_tests.",
    "numpy/_core/_rational_tests.",
    "numpy/_core/_struct_ufunc_tests.",
    "numpy/_core/_umath_tests.",
    "matplotlib/backends/_tkagg.",
    "matplotlib/backends/_macosx.",
    "PIL/_imagingtk.",
    "PIL/_avif.",
    "PIL/_imagingmorph_tests.",
    "pillow.libs/libavif",
];
/// Of a package's own metadata: the rest is for installers.
const METADATA: [&str; 4] = ["METADATA", "RECORD", "entry_points.txt", "top_level.txt"];
/// Parts of the interpreter, from its `lib/python3.x` on.
const STANDARD_LIBRARY: [&str; 10] = [
    "site-packages",
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "turtle.py",
    "ensurepip",
    "pydoc_data",
    "lib2to3",
    "__phello__",
];
const STANDARD_MODULES: [&str; 6] = ["_tkinter.", "_test", "_ctypes_test.", "xxlimited", "xxsubtype.", "_xxtestfuzz."];

/// Removes it all from a tree.
pub(crate) fn trim(tree: &Path) -> Result<(), BuildError> {
    let site = tree.join("site");
    for part in PARTS {
        remove(&site.join(part))?;
    }
    for entry in walk(&site)? {
        trim_entry(&site, &entry)?;
    }
    trim_interpreter(&tree.join("python"))
}

fn trim_entry(site: &Path, entry: &Entry) -> Result<(), BuildError> {
    let inner = entry.path.strip_prefix(site).unwrap_or(&entry.path);
    let (name, inner_text) = (entry.name(), inner.to_string_lossy());
    let extension = inner.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let dist_info = inner.components().next().is_some_and(|first| first.as_os_str().to_string_lossy().ends_with(".dist-info"));
    let goes = if entry.is_dir {
        name == "__pycache__" || TEST_FOLDERS.contains(&name.as_str())
    } else if dist_info {
        !METADATA.contains(&name.as_str()) && !is_licence(&inner_text)
    } else {
        BUILD_FILES.contains(&extension) || MODULES.iter().any(|module| inner_text.starts_with(module))
    };
    if goes {
        remove(&entry.path)
    } else if name == "RECORD" && dist_info {
        keep_module_names(&entry.path)
    } else {
        Ok(())
    }
}

fn is_licence(path: &str) -> bool {
    let path = path.to_lowercase();
    ["licen", "copying", "notice", "authors", "copyright"].iter().any(|word| path.contains(word))
}

/// A package's list of files, cut to the lines that say what can be imported.
fn keep_module_names(record: &Path) -> Result<(), BuildError> {
    let text = std::fs::read_to_string(record).map_err(BuildError::io(record))?;
    let names_one = |line: &&str| {
        let path = line.split(',').next().unwrap_or_default();
        path.ends_with("/__init__.py") && path.matches('/').count() == 1 || !path.contains('/')
    };
    let kept = text.lines().filter(names_one).fold(String::new(), |text, line| text + line + "\n");
    std::fs::write(record, kept).map_err(BuildError::io(record))
}

fn trim_interpreter(python: &Path) -> Result<(), BuildError> {
    for part in ["include", "share", "BUILD", "lib/pkgconfig"] {
        remove(&python.join(part))?;
    }
    let bin = python.join("bin");
    for entry in list(&bin)? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_interpreter = name == "python" || name.strip_prefix("python3").is_some_and(|rest| !rest.contains(['-', 'c']));
        if !is_interpreter {
            remove(&entry)?;
        }
    }
    let program = std::fs::canonicalize(bin.join("python3")).map_err(BuildError::io(&bin))?;
    let needs_library = elf::needs(&std::fs::read(&program).map_err(BuildError::io(&program))?, "libpython");
    for entry in list(&python.join("lib"))? {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("python3") {
            trim_standard_library(&entry)?;
        } else if !(name.starts_with("libpython") && needs_library) {
            // Tcl, Tk and their kin; and the library, where the program has all of it inside.
            remove(&entry)?;
        }
    }
    Ok(())
}

fn trim_standard_library(library: &Path) -> Result<(), BuildError> {
    for part in STANDARD_LIBRARY {
        remove(&library.join(part))?;
    }
    for entry in list(library)? {
        if entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with("config-")) {
            remove(&entry)?;
        }
    }
    for entry in walk(library)? {
        let name = entry.name();
        let is_test = TEST_FOLDERS.contains(&name.as_str()) || name == "idle_test";
        let module = STANDARD_MODULES.iter().any(|module| name.starts_with(module)) && name.contains(".so");
        if entry.is_dir && (name == "__pycache__" || is_test) || module {
            remove(&entry.path)?;
        }
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, BuildError> {
    Ok(std::fs::read_dir(directory).map_err(BuildError::io(directory))?.flatten().map(|entry| entry.path()).collect())
}

fn remove(path: &Path) -> Result<(), BuildError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.map_err(BuildError::io(path))
}
