//! What the operator decides, and the Python that packages are for.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::folders;

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct PackagesConfig {
    /// Whether anything is installed at all.
    pub allow_install: bool,
    /// Where sets are kept.
    pub directory: PathBuf,
    /// The uv to install with; looked for beside the tree and on the path when not named, not used when empty.
    pub uv: Option<PathBuf>,
    /// The index; the installer's own default when not named.
    pub index: Option<IndexUrl>,
    /// How long resolving and installing may take together.
    pub timeout: Duration,
    /// Names that are never installed.
    pub blocked: Vec<String>,
    /// The only names that are installed, when there are any.
    pub allowed: Vec<String>,
    /// Names that are right although they look like a slip.
    pub known: Vec<String>,
    /// How long a file must have been on the index.
    pub min_age: Option<Duration>,
    /// A list of pins with hashes: nothing else is installed.
    pub hashes: Option<PathBuf>,
    /// What all sets may take on disk, in bytes.
    pub cache_bytes: u64,
    /// What one install may take, in bytes.
    pub install_bytes: u64,
    /// How many packages one install may bring.
    pub install_packages: usize,
    /// The bucket where sets are shared with other environments.
    pub s3_bucket: Option<String>,
}

impl PackagesConfig {
    /// Makes the folder that kernels must be able to read, as a rule for it needs it to be there. None where nothing is
    /// installed, or it can't be used.
    pub fn provide_folder(&self) -> Option<PathBuf> {
        if !self.allow_install {
            return None;
        }
        match folders::make(&self.directory) {
            Ok(()) => Some(self.directory.join(folders::SETS)),
            Err(error) => {
                tracing::warn!(folder = %self.directory.display(), %error, "PACKAGE_DIR can't be used");
                None
            }
        }
    }
}

/// The address of a package index, perhaps with credentials: nothing that is written down for people shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct IndexUrl(String);

impl From<String> for IndexUrl {
    fn from(address: String) -> Self {
        Self(address)
    }
}

impl fmt::Debug for IndexUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("IndexUrl(****)")
    }
}

impl IndexUrl {
    /// Whether it was left empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// When it is no address that installers can ask, without a word of it.
    pub fn check(&self) -> Result<(), &'static str> {
        match Url::parse(&self.0) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(()),
            _ => Err("must be an address such as https://pypi.org/simple"),
        }
    }

    /// For the installer, and for nobody else.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The text without the user and the password, whether as they are written in the address or decoded.
    pub(crate) fn redact(&self, text: &str) -> String {
        let Ok(url) = Url::parse(&self.0) else { return text.replace(&self.0, "****") };
        let written = [url.password().unwrap_or_default(), url.username()];
        let decoded = written.map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned());
        let secrets = written.map(str::to_owned).into_iter().chain(decoded).filter(|part| part.len() > 2);
        secrets.fold(text.to_owned(), |text, secret| text.replace(&secret, "****"))
    }
}

/// The Python that packages are for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The tree's folder.
    pub root: PathBuf,
    /// The interpreter.
    pub python: PathBuf,
    /// The stack.
    pub site: PathBuf,
    /// `3.13.0`
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_shows_no_credentials() {
        let index = IndexUrl::from("https://reader:se%40cret@index.example/simple".to_owned());
        assert_eq!(format!("{:?}", Some(&index)), "Some(IndexUrl(****))");
        assert_eq!(index.redact("reader said se%40cret and se@cret"), "**** said **** and ****");
        assert_eq!(IndexUrl::from("https://index.example/simple".to_owned()).redact("a text"), "a text");
        // Where it was not written as an address is.
        let raw = IndexUrl::from("https://reader:sé{cret@index.example/simple".to_owned());
        assert_eq!(raw.redact("sé{cret s%C3%A9%7Bcret"), "**** ****");
    }

    #[test]
    fn what_is_no_address_of_an_index_is_refused_unseen() {
        let check = |address: &str| IndexUrl::from(address.to_owned()).check();
        for address in ["https://pypi.org/simple", "http://user:secret@[::1]:8080/simple/"] {
            assert_eq!(check(address), Ok(()), "{address}");
        }
        for address in ["pypi.org/simple", "user:secret@index.example", "file:///srv/wheels", "/srv/wheels", " "] {
            assert!(check(address).is_err_and(|why| !why.contains("secret")), "{address}");
        }
    }
}
