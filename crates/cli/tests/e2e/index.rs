//! A package index of the test's own, with wheels good and bad.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// How a file is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// With the hash of another file.
    WrongHash,
    /// The connection ends in the middle.
    Half,
    /// Nothing comes before the test is over.
    Never,
    /// The second half comes when the test says so.
    Held,
}

#[derive(Clone)]
struct Entry {
    file: String,
    bytes: Arc<Vec<u8>>,
    manner: Manner,
    uploaded: &'static str,
}

#[derive(Default)]
struct State {
    /// By package.
    entries: HashMap<String, Vec<Entry>>,
    /// What a package needs.
    requires: HashMap<String, Vec<String>>,
    served: Vec<String>,
    /// The path of every request.
    asked: Vec<String>,
    credentials: Option<String>,
    released: bool,
}

/// Serves until the test ends.
#[derive(Clone)]
pub(crate) struct Index {
    address: String,
    state: Arc<Mutex<State>>,
    release: Arc<Condvar>,
}

fn metadata(name: &str, version: &str, requires: &[String]) -> String {
    requires.iter().fold(format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"), |mut text, requirement| {
        if let Some((_, extra)) = requirement.split_once("extra == ") {
            let _ = writeln!(text, "Provides-Extra: {}", extra.trim_matches('"'));
        }
        let _ = writeln!(text, "Requires-Dist: {requirement}");
        text
    })
}

/// A wheel of these files.
pub(crate) fn wheel(name: &str, version: &str, requires: &[&str], files: &[(&str, &str)]) -> Vec<u8> {
    pack(name, version, requires, files, 0)
}

/// With a file of so many times 8 MB of nothing.
fn pack(name: &str, version: &str, requires: &[&str], files: &[(&str, &str)], zeros: usize) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let mut record = String::new();
    let info = format!("{}-{version}.dist-info", name.replace('-', "_"));
    let metadata = [
        (format!("{info}/METADATA"), metadata(name, version, &requires.iter().map(ToString::to_string).collect::<Vec<_>>())),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned()),
    ];
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).chain(metadata);
    for (name, text) in files {
        archive.start_file(&name, SimpleFileOptions::default()).unwrap();
        archive.write_all(text.as_bytes()).unwrap();
        let _ = writeln!(record, "{name},,");
    }
    if zeros > 0 {
        archive.start_file("bomb.bin", SimpleFileOptions::default()).unwrap();
        let nothing = vec![0; 8 << 20];
        for _ in 0..zeros {
            archive.write_all(&nothing).unwrap();
        }
        let _ = writeln!(record, "bomb.bin,,");
    }
    let _ = writeln!(record, "{info}/RECORD,,");
    archive.start_file(format!("{info}/RECORD"), SimpleFileOptions::default()).unwrap();
    archive.write_all(record.as_bytes()).unwrap();
    archive.finish().unwrap().into_inner()
}

/// A wheel that is small, and of two gigabytes when unpacked.
pub(crate) fn bomb(name: &str) -> Vec<u8> {
    pack(name, "1.0", &[], &[], 256)
}

impl Index {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let index = Self { address: listener.local_addr().unwrap().to_string(), state: Arc::default(), release: Arc::default() };
        let serving = index.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let index = serving.clone();
                std::thread::spawn(move || index.serve(stream));
            }
        });
        index
    }

    /// Asks for a user and a password from here on, in the form of an `Authorization` header.
    pub(crate) fn ask_for(&self, credentials: &str) {
        self.state.lock().unwrap().credentials = Some(credentials.to_owned());
    }

    pub(crate) fn add(&self, package: &str, file: &str, bytes: Vec<u8>, manner: Manner) {
        let uploaded = if file.contains("-9.0") { "2099-01-01T00:00:00Z" } else { "2020-01-01T00:00:00Z" };
        let entry = Entry { file: file.to_owned(), bytes: Arc::new(bytes), manner, uploaded };
        self.state.lock().unwrap().entries.entry(package.to_owned()).or_default().push(entry);
    }

    /// A wheel with one module that holds its version.
    pub(crate) fn add_module(&self, package: &str, version: &str, requires: &[&str]) {
        let needs = requires.iter().map(ToString::to_string).collect();
        self.state.lock().unwrap().requires.insert(package.to_owned(), needs);
        let module = package.replace('-', "_");
        let text = format!("__version__ = {version:?}\n");
        let bytes = wheel(package, version, requires, &[(&format!("{module}/__init__.py"), &text)]);
        self.add(package, &format!("{module}-{version}-py3-none-any.whl"), bytes, Manner::Well);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/simple/", self.address)
    }

    pub(crate) fn url_with(&self, user_info: &str) -> String {
        format!("http://{user_info}@{}/simple/", self.address)
    }

    /// How often a file was asked for as a whole.
    pub(crate) fn times_served(&self, file: &str) -> usize {
        self.state.lock().unwrap().served.iter().filter(|served| *served == file).count()
    }

    /// Whether a file was begun to be served.
    pub(crate) fn serves(&self, file: &str) -> bool {
        self.times_served(file) > 0
    }

    /// Lets go of what is held.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().released = true;
        self.release.notify_all();
    }

    /// Where it is, for what is not on it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The paths of all requests that are none for a package's page or for one of its files.
    pub(crate) fn asked_beside(&self) -> Vec<String> {
        let ours = |path: &&String| path.starts_with("/simple/") || path.starts_with("/files/");
        self.state.lock().unwrap().asked.iter().filter(|path| !ours(path)).cloned().collect()
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let mut request = String::new();
            reader.read_line(&mut request).ok().filter(|read| *read > 0)?;
            let mut authorization = None;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok()?;
                if line.trim().is_empty() {
                    break;
                }
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("authorization")
                {
                    authorization = Some(value.trim().to_owned());
                }
            }
            let path = request.split(' ').nth(1)?.to_owned();
            self.state.lock().unwrap().asked.push(path.clone());
            let wanted = self.state.lock().unwrap().credentials.clone();
            if wanted.is_some() && authorization != wanted {
                let head = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(head.as_bytes()).ok()?;
                continue;
            }
            let name = path.trim_matches('/').rsplit('/').next()?.to_owned();
            if path.starts_with("/simple/") {
                let page = self.page(&name);
                let status = if page.is_some() { "200 OK" } else { "404 Not Found" };
                let page = page.unwrap_or_default();
                let kind = "application/vnd.pypi.simple.v1+json";
                write!(stream, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{page}", page.len())
                    .ok()?;
                continue;
            }
            // What a wheel says of itself, so that resolving needs no download: PEP 658.
            if let Some(wheel) = name.strip_suffix(".metadata") {
                let (package, version) = (wheel.split('-').next()?.replace('_', "-"), wheel.split('-').nth(1)?);
                let requires = self.state.lock().unwrap().requires.get(&package).cloned().unwrap_or_default();
                let text = metadata(&package, version, &requires);
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).ok()?;
                continue;
            }
            let entry = self.state.lock().unwrap().entries.values().flatten().find(|entry| entry.file == name).cloned()?;
            if entry.manner == Manner::Never {
                std::thread::sleep(Duration::from_secs(60));
                return None;
            }
            if request.starts_with("GET") {
                self.state.lock().unwrap().served.push(name);
            }
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", entry.bytes.len()).ok()?;
            if request.starts_with("GET") {
                let (first, second) = entry.bytes.split_at(entry.bytes.len() / 2);
                stream.write_all(first).ok()?;
                match entry.manner {
                    Manner::Half => return None,
                    Manner::Held => drop(self.release.wait_while(self.state.lock().unwrap(), |state| !state.released)),
                    _ => {}
                }
                stream.write_all(second).ok()?;
            }
        }
    }

    fn page(&self, package: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let files = state.entries.get(package)?.iter().map(|entry| {
            let hash = match entry.manner {
                Manner::WrongHash => Sha256::digest(b"another"),
                _ => Sha256::digest(&*entry.bytes),
            };
            let url = format!("http://{}/files/{}", self.address, entry.file);
            serde_json::json!({
                "filename": entry.file, "url": url, "hashes": {"sha256": format!("{hash:x}")},
                "upload-time": entry.uploaded, "size": entry.bytes.len(),
                "core-metadata": !entry.file.contains(".tar."),
            })
        });
        let page = serde_json::json!({
            "meta": {"api-version": "1.1"}, "name": package, "versions": [], "files": files.collect::<Vec<_>>(),
        });
        Some(page.to_string())
    }
}
