//! SHA-256 of files, in hexadecimal.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Reads the whole file, off the runtime's threads.
pub(crate) async fn of_file(path: &Path) -> io::Result<String> {
    let path: PathBuf = path.to_owned();
    let work = move || {
        let mut hash = Sha256::new();
        io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
        Ok(format!("{:x}", hash.finalize()))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
