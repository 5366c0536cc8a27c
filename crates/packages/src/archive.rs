//! A set as one file, for the store.
//!
//! Rule: unpacking writes below its folder only, regular files only, and no more bytes than allowed. What is no such archive
//! is `InvalidData`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Packs everything below `folder` into the file `to`.
pub(crate) fn pack(folder: &Path, to: &Path) -> io::Result<()> {
    let mut archive = ZipWriter::new(File::create(to)?);
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                // Bytecode is made anew, where it is used.
                if entry.file_name() != "__pycache__" {
                    folders.push(entry.path());
                }
                continue;
            }
            let path = entry.path();
            let inner = path.strip_prefix(folder).map_err(io::Error::other)?;
            let name = inner.to_str().ok_or_else(|| io::Error::other("a file's name is no text"))?;
            archive.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Deflated))?;
            io::copy(&mut File::open(&path)?, &mut archive)?;
        }
    }
    archive.finish()?.flush()
}

/// Unpacks the file into the folder.
pub(crate) fn unpack(from: &Path, folder: &Path, max_bytes: u64) -> io::Result<()> {
    let mut archive = ZipArchive::new(File::open(from)?)?;
    let mut left = max_bytes;
    for index in 0..archive.len() {
        let file = archive.by_index(index)?;
        let inner = file.enclosed_name().ok_or_else(|| invalid("a file would be outside of its folder"))?;
        let path = folder.join(inner);
        if file.is_dir() {
            continue;
        }
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        let written = io::copy(&mut file.take(left), &mut File::create(path)?)?;
        left -= written;
        if left == 0 {
            return Err(io::Error::other("the archive is larger than MAX_INSTALL_MB when unpacked"));
        }
    }
    Ok(())
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_comes_back_without_its_bytecode_and_within_its_bounds() {
        let root = tempfile::tempdir().expect("a folder");
        let of = |name: &str| root.path().join(name);
        std::fs::create_dir_all(of("set/a/__pycache__")).expect("made");
        std::fs::write(of("set/a/b.py"), "x = 1").expect("written");
        std::fs::write(of("set/a/__pycache__/b.pyc"), "").expect("written");
        pack(&of("set"), &of("set.zip")).expect("packed");
        unpack(&of("set.zip"), &of("back"), 100).expect("unpacked");
        assert_eq!(std::fs::read_to_string(of("back/a/b.py")).expect("read"), "x = 1");
        assert!(!of("back/a/__pycache__").exists());
        unpack(&of("set.zip"), &of("small"), 5).expect_err("too large");
    }

    #[test]
    fn an_archive_that_leads_out_of_its_folder_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let archive = root.path().join("x.zip");
        let mut writer = ZipWriter::new(File::create(&archive).expect("made"));
        writer.start_file("../outside", SimpleFileOptions::default()).expect("begun");
        writer.write_all(b"x").expect("written");
        writer.finish().expect("finished");
        let error = unpack(&archive, &root.path().join("inside"), 100).expect_err("refused");
        assert!(error.kind() == io::ErrorKind::InvalidData && !root.path().join("outside").exists(), "{error}");
    }

    #[test]
    fn what_is_no_archive_is_told_from_what_there_is_no_room_for() {
        let root = tempfile::tempdir().expect("a folder");
        let of = |name: &str| root.path().join(name);
        std::fs::create_dir(of("set")).expect("made");
        std::fs::write(of("set/a.py"), "x = 1\n".repeat(1000)).expect("written");
        pack(&of("set"), &of("set.zip")).expect("packed");
        let whole = std::fs::read(of("set.zip")).expect("read");
        let kind = |bytes: &[u8], most: u64| {
            std::fs::write(of("it.zip"), bytes).expect("written");
            unpack(&of("it.zip"), &of("back"), most).map_err(|error| error.kind())
        };
        assert_eq!(kind(&whole, 10_000), Ok(()));
        assert_ne!(kind(&whole, 100), Err(io::ErrorKind::InvalidData));
        let mut changed = whole.clone();
        changed[60] ^= 0xff;
        for damaged in [&b"spoilt"[..], &whole[..whole.len() / 2], &changed] {
            assert_eq!(kind(damaged, 10_000), Err(io::ErrorKind::InvalidData));
        }
    }
}
