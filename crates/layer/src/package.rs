//! The zip that Lambda unpacks at `/opt`.
//!
//! Rule: the same tree gives the same bytes: names in order, one date, no owner. Links stay links, which `sam package` would
//! turn into copies, and modes stay what they are.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::BuildError;
use crate::files::walk;

/// Writes everything below `root`, under `prefix`, to `to`; gives the SHA-256 of the file.
pub(crate) fn pack(root: &Path, prefix: &str, to: &Path) -> Result<String, BuildError> {
    let broken = |error: zip::result::ZipError| BuildError::Io { path: to.to_owned(), source: error.into() };
    let mut archive = ZipWriter::new(File::create(to).map_err(BuildError::io(to))?);
    for entry in walk(root)? {
        let inner = entry.path.strip_prefix(root).unwrap_or(&entry.path).to_string_lossy();
        let name = if prefix.is_empty() { inner.into_owned() } else { format!("{prefix}/{inner}") };
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .unix_permissions(entry.mode)
            .last_modified_time(zip::DateTime::default());
        if entry.is_dir {
            archive.add_directory(name, options).map_err(broken)?;
        } else if entry.is_link {
            let target = std::fs::read_link(&entry.path).map_err(BuildError::io(&entry.path))?;
            archive.add_symlink(name, target.to_string_lossy(), options).map_err(broken)?;
        } else {
            archive.start_file(name, options).map_err(broken)?;
            let contents = std::fs::read(&entry.path).map_err(BuildError::io(&entry.path))?;
            archive.write_all(&contents).map_err(BuildError::io(to))?;
        }
    }
    archive.finish().map_err(broken)?;
    Ok(format!("{:x}", Sha256::digest(std::fs::read(to).map_err(BuildError::io(to))?)))
}

/// Unpacks a layer as Lambda does.
pub(crate) fn unpack(archive: &Path, to: &Path) -> Result<(), BuildError> {
    let broken = |error: zip::result::ZipError| BuildError::Io { path: archive.to_owned(), source: error.into() };
    let file = File::open(archive).map_err(BuildError::io(archive))?;
    ZipArchive::new(file).and_then(|mut archive| archive.extract(to)).map_err(broken)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_tree_comes_back_with_its_modes_and_links_and_the_same_bytes_each_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("tree");
        std::fs::create_dir_all(root.join("lib")).expect("a directory");
        std::fs::write(root.join("lib/real.so"), "library").expect("a file");
        std::fs::write(root.join("program"), "program").expect("a file");
        std::fs::set_permissions(root.join("program"), std::fs::Permissions::from_mode(0o711)).expect("a mode");
        std::os::unix::fs::symlink("real.so", root.join("lib/link.so")).expect("a link");
        let zips = ["a.zip", "b.zip"].map(|name| directory.path().join(name));
        let hashes = zips.each_ref().map(|zip| pack(&root, "inner", zip).expect("packed"));
        assert_eq!(hashes[0], hashes[1]);
        let back = directory.path().join("back");
        unpack(&zips[0], &back).expect("unpacked");
        assert_eq!(std::fs::read_link(back.join("inner/lib/link.so")).expect("a link"), Path::new("real.so"));
        assert_eq!(std::fs::read(back.join("inner/lib/link.so")).expect("its target"), b"library");
        let mode = back.join("inner/program").metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o711);
    }
}
