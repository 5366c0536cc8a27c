//! Sets that servers share through a bucket.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Shop, Tool};
use crate::client::Home;
use crate::index::{Index, Manner, wheel};

/// A real S3 server for one test, with one bucket.
async fn s3(root: &Path) -> String {
    std::fs::create_dir_all(root.join("shared")).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("key", "of-the-bucket"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service.clone()));
        }
    });
    format!("http://{address}")
}

/// What the bucket has whole. What it knows of an object it writes down last; of ours that is the digest.
fn whole_objects(bucket: &Path) -> Vec<PathBuf> {
    let known = std::fs::read_dir(bucket).unwrap().flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let known = known.collect::<String>();
    let is_whole = |object: &PathBuf| {
        let digest = <sha2::Sha256 as sha2::Digest>::digest(std::fs::read(object).unwrap_or_default());
        known.contains(&format!("{digest:x}"))
    };
    let objects = std::fs::read_dir(bucket.join("shared/code-interpreter/packages/v1")).into_iter().flatten().flatten();
    objects.map(|entry| entry.path()).filter(is_whole).collect()
}

/// C17c: what was damaged stayed so, and each server installed anew.
/// What a server of this bucket is told.
fn shared<'a>(index: &'a str, endpoint: &'a str) -> [(&'static str, &'a str); 6] {
    [
        ("PACKAGE_INDEX", index),
        ("S3_BUCKET", "shared"),
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "of-the-bucket"),
        ("AWS_REGION", "eu-west-1"),
    ]
}

#[tokio::test]
async fn a_set_that_one_server_has_built_is_fetched_by_the_next_and_a_damaged_one_is_built_anew_and_replaced() {
    let bucket = tempfile::tempdir().unwrap();
    let endpoint = s3(bucket.path()).await;
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let url = index.url();
    let settings = shared(&url, &endpoint);
    let code = "import good_one, os; print(good_one.__version__, 'of-the-bucket' in str(os.environ))";
    for (round, times_built) in ["built", "fetched", "built anew", "fetched again"].into_iter().zip([1, 1, 2, 2]) {
        let shop = Shop::open(Home::Caller, Tool::Uv, &settings);
        let result = shop.run(&["good-one"], code).await;
        assert_eq!(result["stdout"], "1.0 False\n", "{round}: {result}");
        assert_eq!(index.times_served("good_one-1.0-py3-none-any.whl"), times_built, "{round}");
        let started = Instant::now();
        while whole_objects(bucket.path()).is_empty() {
            assert!(started.elapsed() < Duration::from_secs(30), "{round}: the bucket has no whole object");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if round == "fetched" {
            std::fs::write(&whole_objects(bucket.path())[0], "spoilt").unwrap();
        }
    }
    // Out of order altogether: the call works all the same.
    let broken = [&settings[..2], &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")], &settings[3..]].concat();
    let shop = Shop::open(Home::Caller, Tool::Uv, &broken);
    assert_eq!(shop.run(&["good-one"], code).await["stdout"], "1.0 False\n");
}

/// C17: a server that only ever fetched kept all of it.
#[tokio::test]
async fn what_was_fetched_counts_in_what_all_packages_may_take() {
    let bucket = tempfile::tempdir().unwrap();
    let endpoint = s3(bucket.path()).await;
    let index = Index::start();
    let large = "#".repeat(700_000);
    for name in ["large-one", "large-two"] {
        let module = name.replace('-', "_");
        let bytes = wheel(name, "1.0", &[], &[(&format!("{module}.py"), &large)]);
        index.add(name, &format!("{module}-1.0-py3-none-any.whl"), bytes, Manner::Well);
    }
    let url = index.url();
    let settings = [&shared(&url, &endpoint)[..], &[("PACKAGE_CACHE_MB", "1")]].concat();
    let first = Shop::open(Home::Caller, Tool::Uv, &settings);
    for (name, kept) in [("large-one", 1), ("large-two", 2)] {
        assert_eq!(first.run(&[name], "1").await["success"], true);
        let started = Instant::now();
        while whole_objects(bucket.path()).len() < kept {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was offered to the bucket");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let served = || ["large_one", "large_two"].map(|module| index.times_served(&format!("{module}-1.0-py3-none-any.whl")));
    let (before, second) = (served(), Shop::open(Home::Caller, Tool::Uv, &settings));
    let within = |folder: &str| std::fs::read_dir(second.folder.path().join("packages").join(folder)).unwrap().count();
    for name in ["large-one", "large-two"] {
        assert_eq!(second.run(&[name], "1").await["success"], true);
        // While its bytecode is being compiled a set is in use.
        let started = Instant::now();
        while within("compiled") == 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "no bytecode");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(served(), before, "both were fetched");
    assert_eq!(within("sets"), 1, "there is room for one");
}
