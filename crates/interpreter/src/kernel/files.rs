//! The files that the code leaves in its directory, as they come back with the answer.
//!
//! Rule: they are taken when everything of the call is dead and before its directory goes, on a thread that nothing else
//! waits for. A call that leaves none pays for one look into a directory.

use std::path::Path;
use std::time::Duration;

use protocol::{Limits, OutputFile, shortened};
use sandbox::{LeftFiles, TakeBounds};

use super::Kernel;

/// Files that come back; more are counted.
const MAX_FILES: usize = 64;
/// Files that are named in one warning.
const MAX_NAMED: usize = 8;
/// How long the look at the files may take, and for each second more what an operator lets come back beyond the usual.
const PATIENCE: Duration = Duration::from_secs(1);
const BYTES_A_SECOND: u64 = 64 << 20;

/// What has come of the files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) files: Vec<OutputFile>,
    pub(crate) warnings: Vec<String>,
}

impl Kernel {
    /// Takes the files that the code has left. After [`Kernel::kill`].
    pub(crate) async fn take_files(&self, limits: &Limits) -> Files {
        let Some(home) = self.home() else { return Files::default() };
        let (directory, user) = (home.work(), home.user());
        if !sandbox::may_have_files(&directory) {
            return Files::default();
        }
        let (process, dead, limits) = (self.process.clone(), self.is_dead(), *limits);
        let work = move || {
            if !dead || !process.wait_dead() {
                return failed("something of the call could not be ended");
            }
            take(&directory, user, &limits)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_default()
    }
}

fn take(directory: &Path, user: Option<u32>, limits: &Limits) -> Files {
    let patience = PATIENCE + Duration::from_secs(limits.files_bytes as u64 / BYTES_A_SECOND);
    match sandbox::left_files(directory, user, &TakeBounds { files: MAX_FILES, bytes: limits.files_bytes, patience }) {
        Ok(left) => Files { warnings: warnings(&left, limits), files: left.files.into_iter().map(output_file).collect() },
        Err(_) => failed("the directory can't be read"),
    }
}

fn failed(reason: &str) -> Files {
    Files { files: Vec::new(), warnings: vec![format!("the files that the code has left do not come back: {reason}")] }
}

/// What does not come back, and why.
fn warnings(left: &LeftFiles, limits: &Limits) -> Vec<String> {
    let mut warnings = Vec::new();
    let large = left.files.iter().filter(|file| file.bytes.is_none()).collect::<Vec<_>>();
    if !large.is_empty() {
        let named = large.iter().map(|file| format!("{} ({} bytes)", shortened(&file.name), file.size));
        warnings.push(format!(
            "files come back without their contents, and are not kept: {}; the contents of all files of an answer may take {} \
             bytes (MAX_FILES_BYTES)",
            listed(named, large.len()),
            limits.files_bytes
        ));
    }
    if left.more_files > 0 {
        warnings.push(format!(
            "{} more files do not come back, and are not kept: an answer has at most {MAX_FILES}",
            left.more_files
        ));
    }
    if !left.refused.is_empty() {
        let named = left.refused.iter().map(|(name, reason)| format!("{} ({reason})", shortened(name)));
        let refused = listed(named, left.refused.len() + left.more_refused);
        warnings.push(format!("not all that was left comes back, only plain files with plain names: {refused}"));
    }
    if left.unfinished {
        warnings.push("there were too many files to look at them all".to_owned());
    }
    warnings
}

fn listed(things: impl Iterator<Item = String>, all: usize) -> String {
    let mut listed = things.take(MAX_NAMED).collect::<Vec<_>>();
    if all > listed.len() {
        listed.push(format!("and {} more", all - listed.len()));
    }
    listed.join(", ")
}

fn output_file(file: sandbox::LeftFile) -> OutputFile {
    let bytes = file.bytes.unwrap_or_default();
    OutputFile { mime_type: mime_type(&file.name, &bytes).to_owned(), name: file.name, bytes, size: file.size }
}

/// By the name, as text where a model can read it; what has no extension is text if it reads as such.
fn mime_type(name: &str, bytes: &[u8]) -> &'static str {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "csv" => "text/csv",
        "tsv" => "text/tab-separated-values",
        "txt" | "log" => "text/plain",
        "md" => "text/markdown",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "js" => "text/javascript",
        "py" => "text/x-python",
        "xml" => "application/xml",
        "json" | "geojson" => "application/json",
        "jsonl" | "ndjson" => "text/x-ndjson",
        "ipynb" => "application/x-ipynb+json",
        "yaml" | "yml" => "text/yaml",
        "toml" => "text/x-toml",
        "tex" => "text/x-tex",
        "sql" => "text/x-sql",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "bmp" => "image/bmp",
        "tif" | "tiff" => "image/tiff",
        "svg" => "image/svg+xml",
        "pdf" => "application/pdf",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "xls" => "application/vnd.ms-excel",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "pptx" => "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "ods" => "application/vnd.oasis.opendocument.spreadsheet",
        "parquet" => "application/vnd.apache.parquet",
        "arrow" | "feather" => "application/vnd.apache.arrow.file",
        "sqlite" | "db" => "application/vnd.sqlite3",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "" if std::str::from_utf8(bytes).is_ok_and(|text| !bytes.is_empty() && !text.contains('\0')) => "text/plain",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_names_and_what_has_no_extension_its_contents() {
        for (name, bytes, expected) in [
            ("a/b.CSV", &b""[..], "text/csv"),
            ("p.old.png", b"", "image/png"),
            ("Makefile", "all: grün\n".as_bytes(), "text/plain"),
            ("data", b"a\0b", "application/octet-stream"),
            ("data", b"\xff", "application/octet-stream"),
            ("too-large-to-be-read", b"", "application/octet-stream"),
            ("model.pkl", b"text", "application/octet-stream"),
        ] {
            assert_eq!(mime_type(name, bytes), expected, "{name}");
        }
    }

    #[test]
    fn what_does_not_come_is_told_in_few_words() {
        let limits = Limits { files_bytes: 100, ..Limits::default() };
        assert!(warnings(&LeftFiles::default(), &limits).is_empty());
        let large = |number| sandbox::LeftFile { name: format!("{number}.bin"), size: 1000, bytes: None };
        let left = LeftFiles {
            files: (0..20).map(large).collect(),
            more_files: 3,
            refused: vec![("l".repeat(1000), "a link"); 8],
            more_refused: 5000,
            unfinished: true,
        };
        let told = warnings(&left, &limits);
        assert!(
            told[0].contains("7.bin (1000 bytes), and 12 more; ") && told[0].contains("100 bytes (MAX_FILES_BYTES)"),
            "{}",
            told[0]
        );
        assert_eq!(told[1], "3 more files do not come back, and are not kept: an answer has at most 64");
        assert!(told[2].ends_with(" (a link), and 5000 more") && told[2].len() < 4000, "{}", told[2]);
        assert_eq!(told.len(), 4);
    }
}
