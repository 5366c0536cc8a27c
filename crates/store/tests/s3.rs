//! The bucket against a real S3 server that the test starts, and with everything that networks do to one.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_s3::config::Credentials;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use store::{Fetched, Kept, S3, StoreError, Version};

const WELL: u8 = 0;
const NEVER: u8 = 1;
const UNAVAILABLE: u8 = 2;
const HALF: u8 = 3;
const CHANGED: u8 = 4;

struct Bucket {
    store: Arc<S3>,
    mood: Arc<AtomicU8>,
    requests: Arc<AtomicUsize>,
    root: tempfile::TempDir,
}

/// One server for one test.
async fn bucket() -> Bucket {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("s3/bucket")).unwrap();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path().join("s3")).unwrap());
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (mood, requests) = (Arc::new(AtomicU8::new(WELL)), Arc::new(AtomicUsize::new(0)));
    let (moods, count) = (mood.clone(), requests.clone());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (service, moods, count) = (service.clone(), moods.clone(), count.clone());
            let handle = service_fn(move |request: Request<Incoming>| {
                let (service, mood, count) = (service.clone(), moods.load(Ordering::Relaxed), count.clone());
                async move {
                    count.fetch_add(1, Ordering::Relaxed);
                    answer(&service, request, mood).await
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handle));
        }
    });
    let known = aws_config::defaults(aws_config::BehaviorVersion::latest())
        .endpoint_url(format!("http://{address}"))
        .region(aws_config::Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("key", "secret", None, None, "the test"));
    let store = Arc::new(S3::open_with(known, "bucket", Duration::from_secs(3)).await);
    Bucket { store, mood, requests, root }
}

type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, Box<dyn std::error::Error + Send + Sync>>;

async fn answer(
    service: &s3s::service::S3Service,
    request: Request<Incoming>,
    mood: u8,
) -> Result<Response<Body>, std::io::Error> {
    let get = request.method() == Method::GET;
    match mood {
        NEVER => std::future::pending().await,
        UNAVAILABLE => {
            let body = http_body_util::Empty::new().map_err(Into::into).boxed_unsync();
            return Ok(Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(body).unwrap());
        }
        _ => {}
    }
    let response = service.call(request.map(s3s::Body::from)).await.map_err(std::io::Error::other)?;
    let (parts, body) = response.into_parts();
    if !get || mood == WELL {
        return Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()));
    }
    let mut bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes().to_vec();
    let mut parts = parts;
    if mood == HALF {
        // As a proxy does that takes what it got for the whole.
        bytes.truncate(bytes.len() / 2);
        parts.headers.remove("content-length");
    } else {
        bytes[0] ^= 1;
    }
    parts.headers.retain_checksums();
    Ok(Response::from_parts(parts, http_body_util::Full::new(bytes.into()).map_err(Into::into).boxed_unsync()))
}

trait RetainChecksums {
    /// Takes away what would tell the client by another way than the store's own.
    fn retain_checksums(&mut self);
}

impl RetainChecksums for hyper::HeaderMap {
    fn retain_checksums(&mut self) {
        let names = self.keys().filter(|name| name.as_str().starts_with("x-amz-checksum")).cloned().collect::<Vec<_>>();
        for name in names {
            self.remove(name);
        }
    }
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}

fn version(fetched: Fetched) -> Version {
    match fetched {
        Fetched::Whole(version) | Fetched::Damaged(version) => version,
        Fetched::Absent => panic!("there is nothing"),
    }
}

#[tokio::test]
async fn an_object_comes_back_as_it_was_put_and_is_written_once() {
    let bucket = bucket().await;
    let (from, to) = (bucket.root.path().join("from"), bucket.root.path().join("to"));
    let content = vec![7; 3 << 20];
    write(&from, &content);
    assert_eq!(bucket.store.fetch("packages/a b.zip", &to, 1 << 30).await.unwrap(), Fetched::Absent);
    assert_eq!(bucket.store.keep("packages/a b.zip", &from, None).await.unwrap(), Kept::New);
    assert!(matches!(bucket.store.fetch("packages/a b.zip", &to, 1 << 30).await.unwrap(), Fetched::Whole(_)));
    assert_eq!(std::fs::read(&to).unwrap(), content);
    write(&from, b"another");
    assert_eq!(bucket.store.keep("packages/a b.zip", &from, None).await.unwrap(), Kept::AlreadyThere);
    assert!(matches!(bucket.store.fetch("packages/a b.zip", &to, 1000).await, Err(StoreError::TooLarge(_))));
}

#[tokio::test]
async fn of_many_that_race_one_writes_and_all_are_content() {
    let bucket = bucket().await;
    let from = bucket.root.path().join("from");
    write(&from, &vec![7; 1 << 20]);
    let race = (0..6).map(|_| {
        let (store, from) = (bucket.store.clone(), from.clone());
        tokio::spawn(async move { store.keep("packages/race.zip", &from, None).await })
    });
    for racer in race.collect::<Vec<_>>() {
        racer.await.unwrap().unwrap();
    }
    let to = bucket.root.path().join("to");
    assert!(matches!(bucket.store.fetch("packages/race.zip", &to, 1 << 30).await.unwrap(), Fetched::Whole(_)));
}

#[tokio::test]
async fn half_an_object_and_a_changed_one_are_seen() {
    let bucket = bucket().await;
    let (from, to) = (bucket.root.path().join("from"), bucket.root.path().join("to"));
    write(&from, &vec![7; 1 << 20]);
    bucket.store.keep("packages/a.zip", &from, None).await.unwrap();
    for mood in [HALF, CHANGED] {
        bucket.mood.store(mood, Ordering::Relaxed);
        assert!(!matches!(bucket.store.fetch("packages/a.zip", &to, 1 << 30).await, Ok(Fetched::Whole(_) | Fetched::Absent)));
    }
    bucket.mood.store(WELL, Ordering::Relaxed);
    assert!(matches!(bucket.store.fetch("packages/a.zip", &to, 1 << 30).await.unwrap(), Fetched::Whole(_)));
}

/// C17c: it was there already, for ever.
#[tokio::test]
async fn a_damaged_object_is_replaced_by_the_first_that_has_it_whole() {
    let bucket = bucket().await;
    let (from, to) = (bucket.root.path().join("from"), bucket.root.path().join("to"));
    write(&from, b"whole");
    bucket.store.keep("packages/a.zip", &from, None).await.unwrap();
    for spoilt in [&b"spoilt"[..], b"spoil", b""] {
        write(&bucket.root.path().join("s3/bucket/packages/a.zip"), spoilt);
        let Fetched::Damaged(seen) = bucket.store.fetch("packages/a.zip", &to, 1 << 30).await.unwrap() else {
            panic!("{spoilt:?} is not what was put there")
        };
        assert_eq!(bucket.store.keep("packages/a.zip", &from, Some(&seen)).await.unwrap(), Kept::New);
        assert!(matches!(bucket.store.fetch("packages/a.zip", &to, 1 << 30).await.unwrap(), Fetched::Whole(_)));
        assert_eq!(std::fs::read(&to).unwrap(), b"whole");
    }
}

#[tokio::test]
async fn what_has_been_replaced_meanwhile_is_left_alone() {
    let bucket = bucket().await;
    let (from, to) = (bucket.root.path().join("from"), bucket.root.path().join("to"));
    write(&from, b"first");
    bucket.store.keep("packages/a.zip", &from, None).await.unwrap();
    let seen = version(bucket.store.fetch("packages/a.zip", &to, 1 << 30).await.unwrap());
    write(&from, b"second");
    assert_eq!(bucket.store.keep("packages/a.zip", &from, Some(&seen)).await.unwrap(), Kept::New);
    write(&from, b"third");
    assert_eq!(bucket.store.keep("packages/a.zip", &from, Some(&seen)).await.unwrap(), Kept::AlreadyThere);
    bucket.store.fetch("packages/a.zip", &to, 1 << 30).await.unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), b"second");
}

#[tokio::test]
async fn a_service_that_hangs_or_is_out_of_order_is_given_up_after_a_while() {
    let bucket = bucket().await;
    let to = bucket.root.path().join("to");
    write(&to, b"x");
    for mood in [NEVER, UNAVAILABLE] {
        bucket.mood.store(mood, Ordering::Relaxed);
        assert!(matches!(bucket.store.fetch("packages/a.zip", &to, 1000).await, Err(StoreError::Service(_))));
        assert!(matches!(bucket.store.keep("packages/a.zip", &to, None).await, Err(StoreError::Service(_))));
    }
    // Each was tried twice at most.
    assert!(bucket.requests.load(Ordering::Relaxed) <= 8);
}
