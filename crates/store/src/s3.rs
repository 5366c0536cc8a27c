//! Objects in a bucket of S3.

use std::path::Path;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::error::{DisplayErrorContext, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use tokio::io::AsyncWriteExt;

use crate::{Fetched, Kept, StoreError, Version, digest};

/// Where an object's digest is, in its own metadata.
const DIGEST: &str = "sha256";
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 2;

/// A bucket.
#[derive(Debug)]
pub struct S3 {
    client: Client,
    bucket: String,
    patience: Duration,
}

impl S3 {
    /// A bucket with the credentials, region and endpoint that AWS's own tools would find. `patience`: how long one object
    /// may take.
    pub async fn open(bucket: &str, patience: Duration) -> Self {
        Self::open_with(aws_config::defaults(BehaviorVersion::latest()), bucket, patience).await
    }

    /// The same, where some of it is known already.
    pub async fn open_with(known: ConfigLoader, bucket: &str, patience: Duration) -> Self {
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_PATIENCE).operation_timeout(patience).build();
        let tls = aws_smithy_http_client::tls::Provider::Rustls(aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring);
        let config = known
            .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https())
            .timeout_config(timeouts)
            // The store's own digest says what is damaged; theirs would say that the service failed.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .load()
            .await;
        // Servers that are not AWS's have no names for buckets.
        let path_style = config.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
        let config = aws_sdk_s3::config::Builder::from(&config).force_path_style(path_style).build();
        Self { client: Client::from_conf(config), bucket: bucket.to_owned(), patience }
    }

    /// Writes the object to the file `to`. What is in the file is of use only when the object is whole.
    ///
    /// # Errors
    /// When the service fails or is late, the file can't be written, or the object has more than `max_bytes`.
    pub async fn fetch(&self, key: &str, to: &Path, max_bytes: u64) -> Result<Fetched, StoreError> {
        Box::pin(self.within(self.download(key, to, max_bytes))).await
    }

    /// Keeps the file `from`: where there is no object of that name, or in the place of `damaged`, as it was when it was seen.
    ///
    /// # Errors
    /// When the service fails or is late, or the file can't be read.
    pub async fn keep(&self, key: &str, from: &Path, damaged: Option<&Version>) -> Result<Kept, StoreError> {
        Box::pin(self.within(self.upload(key, from, damaged))).await
    }

    async fn download(&self, key: &str, to: &Path, max_bytes: u64) -> Result<Fetched, StoreError> {
        let mut object = match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(object) => object,
            Err(error) if error.as_service_error().is_some_and(GetObjectError::is_no_such_key) => return Ok(Fetched::Absent),
            Err(error) => return Err(StoreError::Service(DisplayErrorContext(error).to_string())),
        };
        let version = Version(object.e_tag().map(str::to_owned));
        let Some(wanted) = object.metadata().and_then(|metadata| metadata.get(DIGEST)).cloned() else {
            return Ok(Fetched::Damaged(version));
        };
        let mut file = tokio::fs::File::create(to).await?;
        let mut written = 0;
        while let Some(part) = object.body.next().await {
            let part = part.map_err(|error| StoreError::Service(DisplayErrorContext(error).to_string()))?;
            written += part.len() as u64;
            if written > max_bytes {
                return Err(StoreError::TooLarge(key.to_owned()));
            }
            file.write_all(&part).await?;
        }
        file.flush().await?;
        let is_whole = digest::of_file(to).await? == wanted;
        Ok(if is_whole { Fetched::Whole(version) } else { Fetched::Damaged(version) })
    }

    async fn upload(&self, key: &str, from: &Path, damaged: Option<&Version>) -> Result<Kept, StoreError> {
        let digest = digest::of_file(from).await?;
        let body = ByteStream::from_path(from).await.map_err(|error| StoreError::Service(error.to_string()))?;
        let put = self.client.put_object().bucket(&self.bucket).key(key).metadata(DIGEST, digest).body(body);
        let put = match damaged {
            None => put.if_none_match("*"),
            Some(Version(Some(e_tag))) => put.if_match(e_tag),
            // A service that gives objects no tags knows no conditions for them either.
            Some(Version(None)) => put,
        };
        match put.send().await {
            Ok(_) => Ok(Kept::New),
            Err(error) if was_there(&error) => Ok(Kept::AlreadyThere),
            Err(error) => Err(StoreError::Service(DisplayErrorContext(error).to_string())),
        }
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let late = || StoreError::Service(format!("no answer within {} s", self.patience.as_secs_f64()));
        tokio::time::timeout(self.patience, work).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Somebody else was first, or is just writing it.
fn was_there<E>(error: &SdkError<E>) -> bool {
    error.raw_response().is_some_and(|response| matches!(response.status().as_u16(), 409 | 412))
}
