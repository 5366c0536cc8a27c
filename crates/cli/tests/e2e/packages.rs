//! Packages that a call requires: from an index of the test's own with everything that can go wrong.

mod bounds;
mod bucket;
mod calls;
mod lists;
mod refusals;
mod sets;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::client::{Home, Server};
use crate::index::{Index, Manner, wheel};

/// The program that installs. pip is in the tree; uv is what the tests were built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Uv,
    Pip,
}

/// A server with a package folder of its own.
struct Shop {
    server: Server,
    folder: tempfile::TempDir,
}

impl Shop {
    fn open(home: Home, tool: Tool, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        if home != Home::Caller {
            std::os::unix::fs::chown(folder.path(), Some(homes::USER), Some(homes::USER)).unwrap();
        }
        let directory = folder.path().join("packages").display().to_string();
        let uv = homes::repository().join("build/tools/bin/uv").display().to_string();
        let mut all = vec![("PRELOAD", "core"), ("PACKAGE_DIR", &*directory)];
        match tool {
            Tool::Uv => all.push(("UV", &uv)),
            Tool::Pip => all.push(("UV", "off")),
        }
        let certificates = std::env::var("SSL_CERT_FILE").unwrap_or_default();
        if !certificates.is_empty() {
            all.push(("SSL_CERT_FILE", &certificates));
        }
        all.extend(settings);
        Self { server: Server::with(home, &all), folder }
    }

    async fn run(&self, requirements: &[&str], code: &str) -> Value {
        self.server.run_with(json!({"code": code, "requirements": requirements})).await
    }

    /// Where a file of a set is for this process, that has this name for a call.
    fn outside(&self, name: &str) -> PathBuf {
        match Path::new(name).strip_prefix("/opt/packages") {
            Ok(below) => self.folder.path().join("packages/sets").join(below),
            Err(_) => name.into(),
        }
    }

    /// The reason and the message of a refusal.
    async fn refusal(&self, requirement: &str) -> (String, String) {
        let result = self.run(&[requirement], "1").await;
        let error = &result["error"];
        assert_eq!((&error["code"], &result["success"]), (&json!("package_error"), &json!(false)), "{result}");
        (error["type"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
    }
}

fn bad_index() -> Index {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    index.add_module("needs-more", "1.0", &["good-one", "blocked-one"]);
    index.add_module("blocked-one", "1.0", &[]);
    index.add_module("young-one", "9.0", &[]);
    index.add("sdist-only", "sdist_only-1.0.tar.gz", b"no wheel".to_vec(), Manner::Well);
    let of = |name: &str| wheel(name, "1.0", &[], &[("some_module.py", "x = 1\n")]);
    index.add("wrong-hash", "wrong_hash-1.0-py3-none-any.whl", of("wrong-hash"), Manner::WrongHash);
    index.add("half-one", "half_one-1.0-py3-none-any.whl", of("half-one"), Manner::Half);
    index.add("slow-one", "slow_one-1.0-py3-none-any.whl", of("slow-one"), Manner::Never);
    index
}
