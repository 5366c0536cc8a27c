//! The lock on the Runtime API while user code runs.
//!
//! The API answers 403 to `next`, `response` and `error` while a streamed response is open (`InvalidStateTransition`).
//! There is no acknowledgement of an opened response, so it is asked until it answers so. Before that, a second `next`
//! gives the event once more and changes nothing. This is how AWS's emulator, which shares its core with the service, does
//! it; the service itself was not reachable when this was written.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const NEXT: &str = "/2018-06-01/runtime/invocation/next";
const TRY: Duration = Duration::from_millis(250);
const BETWEEN_TRIES: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the Runtime API is.
#[derive(Debug)]
pub(crate) struct Lock {
    address: String,
}

impl Lock {
    pub(crate) fn from_environment() -> Result<Self, String> {
        let address =
            std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(|_| "AWS_LAMBDA_RUNTIME_API is not set: this is no function")?;
        Ok(Self { address: address.trim_start_matches("http://").to_owned() })
    }

    /// Comes back when the API refuses the next event.
    pub(crate) async fn confirm(&self) -> Result<(), String> {
        let confirmed = async {
            loop {
                match tokio::time::timeout(TRY, self.next()).await {
                    Ok(Ok(StatusCode::FORBIDDEN)) => return,
                    Ok(Err(error)) => tracing::warn!(%error, "the Runtime API can't be asked"),
                    Ok(Ok(_)) | Err(_) => {}
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        };
        tokio::time::timeout(PATIENCE, confirmed).await.map_err(|_| {
            "the code was not run: the Runtime API stayed open, and the code could have forged this answer. Is the \
             integration's responseTransferMode STREAM? RESPONSE_STREAMING=false runs without this lock"
                .to_owned()
        })
    }

    /// Lets events of the response go out when they are written.
    pub(crate) fn send_at_once(&self) {
        if let Ok(api) = self.address.parse() {
            sandbox::send_at_once(api);
        }
    }

    async fn next(&self) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(NEXT).header("host", &self.address).body(Empty::<Bytes>::new())?;
        tokio::select! {
            response = sender.send_request(request) => Ok(response?.status()),
            closed = connection => Err(closed.err().map_or_else(|| "it closed the connection".into(), Into::into)),
        }
    }
}
