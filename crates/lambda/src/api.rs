//! The Runtime API, as AWS describes it for runtimes of one's own: the next event, and its streamed answer.
//!
//! Rule: each request has a connection of its own. None is kept that could have died while the environment was frozen, and
//! the head of an answer never waits behind anything.

use std::fmt;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lambda_http::Error;
use tokio::net::TcpStream;

const INVOCATION: &str = "/2018-06-01/runtime/invocation";
const REQUEST_ID: &str = "lambda-runtime-aws-request-id";
const DEADLINE: &str = "lambda-runtime-deadline-ms";
/// Newer than the request id: whoever sends it wants it back.
const INVOCATION_ID: &str = "lambda-runtime-invocation-id";
/// How much of an unexpected answer is kept.
const SAID: usize = 300;

/// Where the Runtime API is.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    address: String,
}

/// One invocation.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Event {
    /// Whether both are one invocation, and not two tries of one request.
    pub(crate) fn is_same(&self, id: &str, headers: &HeaderMap) -> bool {
        self.id == id && self.headers.get(DEADLINE) == headers.get(DEADLINE)
    }
}

/// What came of asking for the next event.
#[derive(Debug)]
pub(crate) enum Answer {
    Event(Event),
    Other(StatusCode, String),
    /// None came.
    Failed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => write!(to, "it gave the event {}", event.id),
            Self::Other(status, said) => write!(to, "it answered {status}: {said}"),
            Self::Failed(error) => write!(to, "it gave no answer: {error}"),
        }
    }
}

impl Api {
    pub(crate) fn from_environment() -> Result<Self, String> {
        let address =
            std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(|_| "AWS_LAMBDA_RUNTIME_API is not set: this is no function")?;
        Ok(Self { address: address.trim_start_matches("http://").to_owned() })
    }

    pub(crate) fn socket_address(&self) -> Option<std::net::SocketAddr> {
        self.address.parse().ok()
    }

    /// Asks for the next event, for as long as it takes.
    pub(crate) async fn next(&self) -> Answer {
        let asked = async {
            let request = Request::get(format!("{INVOCATION}/next")).header(HOST, &self.address).body(Body::empty())?;
            let (parts, body) = self.send(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            if parts.status != StatusCode::OK {
                let said = String::from_utf8_lossy(&body[..body.len().min(SAID)]).trim().to_owned();
                return Ok(Answer::Other(parts.status, said));
            }
            let id = parts.headers.get(REQUEST_ID).ok_or("an event without a request id")?.to_str()?.to_owned();
            Ok::<_, Error>(Answer::Event(Event { id, headers: parts.headers, body }))
        };
        asked.await.unwrap_or_else(|error| Answer::Failed(describe(&*error)))
    }

    /// Sends the answer to an event as it comes; `body` begins with the head that API Gateway reads.
    pub(crate) async fn respond(&self, event: &Event, body: Body) -> Result<(), Error> {
        let request = self
            .about(event, "response")
            .header("lambda-runtime-function-response-mode", "streaming")
            .header(CONTENT_TYPE, "application/vnd.awslambda.http-integration-response");
        self.post(request.body(body)?).await
    }

    /// Says that there is no answer to an event: its caller does not wait any longer.
    pub(crate) async fn fail(&self, event: &Event, why: &str) -> Result<(), Error> {
        let request = self.about(event, "error").header("lambda-runtime-function-error-type", "unhandled");
        let body = serde_json::json!({"errorType": "Runtime.Failed", "errorMessage": why});
        self.post(request.body(Body::from(body.to_string()))?).await
    }

    fn about(&self, event: &Event, what: &str) -> http::request::Builder {
        let request = Request::builder().method(Method::POST).uri(format!("{INVOCATION}/{}/{what}", event.id));
        let request = request.header(HOST, &self.address);
        match event.headers.get(INVOCATION_ID) {
            Some(id) => request.header(INVOCATION_ID, id),
            None => request,
        }
    }

    async fn post(&self, request: Request<Body>) -> Result<(), Error> {
        let response = self.send(request).await?;
        let status = response.status();
        let said = response.into_body().collect().await?.to_bytes();
        if status.is_success() { Ok(()) } else { Err(format!("{status}: {}", String::from_utf8_lossy(&said)).into()) }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }
}

/// With its causes: hyper's own words name none.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
