//! The HTTP door: MCP at four paths, `/health`, and the manners clients expect around rmcp's transport.
//!
//! Rule: whatever is refused is refused with a JSON-RPC error body; Host and Origin are checked before a body is read, and
//! rmcp is given no body that was not bounded and taken apart before.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::json;
use tokio::net::TcpListener;

use crate::body::Bodies;
use crate::listener::{self, Visit};
use crate::mcp::McpServer;
use crate::message::{self, Lifted};
use crate::names::ServedNames;
use crate::refusal::{self, Refusal};
use crate::reply::EventsOnly;
use crate::tools::Interpreter;

/// Where MCP is served.
const MCP_PATHS: [&str; 4] = ["/lambda/mcp/", "/lambda/mcp", "/mcp/", "/mcp"];
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const JSON: &str = "application/json";
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// What the operator decides about the HTTP door.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Hosts and origins that are served.
    pub names: ServedNames,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// How long a connection may wait for a request.
    pub idle_timeout: Duration,
}

type Mcp = StreamableHttpService<McpServer, NeverSessionManager>;

/// MCP for those who take events, and for those who don't.
struct Door {
    streaming: Mcp,
    plain: Mcp,
    bodies: Bodies,
}

/// The whole HTTP service.
pub fn router(interpreter: &Arc<Interpreter>, options: &HttpOptions) -> Router {
    let service = |json_response: bool| {
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(json_response)
            .with_sse_keep_alive(Some(KEEP_ALIVE))
            .with_sse_retry(None)
            // Each of these is checked before.
            .with_max_request_body_bytes(usize::MAX)
            .disable_allowed_hosts()
            .disable_allowed_origins();
        let handler = McpServer(interpreter.clone());
        StreamableHttpService::new(move || Ok(handler.clone()), Arc::new(NeverSessionManager::default()), config)
    };
    let bodies = Bodies::new(options.max_body_bytes);
    let door = Arc::new(Door { streaming: service(false), plain: service(true), bodies });
    let mut router = Router::new().route("/health", get(health).with_state(interpreter.clone()));
    for path in MCP_PATHS {
        router = router.route(path, any(mcp).with_state(door.clone()));
    }
    let router = router.fallback(|| async {
        let body = json!({"error": format!("nothing is here; MCP is served at {}, the server's state at /health", MCP_PATHS[0])});
        (StatusCode::NOT_FOUND, axum::Json(body))
    });
    router.layer(from_fn_with_state(Arc::new(options.names.clone()), check_names))
}

async fn check_names(State(names): State<Arc<ServedNames>>, request: Request, next: Next) -> Response {
    match names.admit(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn mcp(State(door): State<Arc<Door>>, request: Request) -> Response {
    let wants_events = accepts_events(request.headers());
    // What else it is, rmcp refuses without a look at the body.
    let judged = request.method() == Method::POST && is_json(request.headers());
    let mut request = if judged {
        match door.take(request).await {
            Ok(request) => request,
            Err(refusal) => return refusal.into_response(),
        }
    } else {
        request.map(|_| Body::empty())
    };
    if takes_events_only(request.headers()) {
        request.extensions_mut().insert(EventsOnly);
    }
    request.headers_mut().insert(ACCEPT, BOTH);
    let service = if wants_events { &door.streaming } else { &door.plain };
    speak_json_rpc(service.handle(request).await.map(Body::new), judged).await
}

impl Door {
    /// Reads the body, and leaves of it what rmcp is to read.
    async fn take(&self, request: Request) -> Result<Request, Refusal> {
        let visit = request.extensions().get::<Arc<Visit>>().cloned();
        if visit.as_ref().is_some_and(|visit| visit.is_guest()) {
            return Err(Refusal::busy("calls run on all connections that the server takes"));
        }
        let (mut parts, body) = request.into_parts();
        let held = self.bodies.read(body).await?;
        if let Some(visit) = visit {
            visit.is_served();
        }
        let message = message::away(held.bytes.len(), move || message::lift(&held.bytes)).await?;
        // They were the whole body's.
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
        parts.extensions.insert(Lifted::new(message.arguments, held.room));
        Ok(Request::from_parts(parts, Body::from(message.text)))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let written = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    written.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(JSON))
}

/// True unless the client says that it takes JSON only.
pub fn accepts_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    accepted.peek().is_none()
        || accepted.any(|value| value.contains("text/event-stream") || value.contains("*/*") || value.contains("text/*"))
}

/// True where the client names events and nothing that JSON would be.
fn takes_events_only(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    accepted.peek().is_some() && !accepted.any(|value| value.contains(JSON) || value.contains("*/*"))
}

/// Gives events their name, and every refusal the form of a JSON-RPC error.
async fn speak_json_rpc(response: Response, judged: bool) -> Response {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("text/event-stream") {
        return response.map(|body| Body::new(body.map_frame(|frame| frame.map_data(name_event))));
    }
    if response.status().is_success() || content_type.starts_with(JSON) {
        return response;
    }
    refusal::explain(response, judged).await
}

/// rmcp writes `data:` alone; the deployed clients look for `event: message`.
fn name_event(data: Bytes) -> Bytes {
    const NAME: &[u8] = b"event: message\n";
    if !data.starts_with(b"data:") {
        return data;
    }
    let mut named = BytesMut::with_capacity(NAME.len() + data.len());
    named.extend_from_slice(NAME);
    named.extend_from_slice(&data);
    named.freeze()
}

async fn health(State(interpreter): State<Arc<Interpreter>>) -> impl IntoResponse {
    let status = interpreter.engine().status();
    let healthy = status.stages.iter().all(|stage| stage.state != "dead");
    let body = json!({
        "status": if healthy { "ok" } else { "starting" },
        "version": env!("CARGO_PKG_VERSION"),
        "sandbox": interpreter.layers(),
        "engine": status,
    });
    axum::Json(body)
}

/// Serves HTTP until `stop` completes. Runs in flight are then dropped with their connections, and so killed.
pub async fn serve(
    listener: TcpListener,
    interpreter: &Arc<Interpreter>,
    options: &HttpOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let router = router(interpreter, options);
    listener::serve(listener, router, options.max_connections, options.idle_timeout, stop).await;
}
