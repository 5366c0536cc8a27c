//! The HTTP door: MCP at four paths, `/health`, and the manners clients expect around rmcp's transport.
//!
//! Rule: whatever is refused is refused with a JSON-RPC error body; Host and Origin are checked before a body is read.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::json;
use tokio::net::TcpListener;

use crate::mcp::McpServer;
use crate::refusal;
use crate::tools::Interpreter;

/// Where MCP is served.
const MCP_PATHS: [&str; 4] = ["/lambda/mcp/", "/lambda/mcp", "/mcp/", "/mcp"];
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// What the operator decides about the HTTP door.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Host headers that are served; `*` serves all.
    pub allowed_hosts: Vec<String>,
    /// Origin headers that are served (a request without one always is); `*` serves all.
    pub allowed_origins: Vec<String>,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
}

/// The whole HTTP service.
pub fn router(interpreter: &Arc<Interpreter>, options: &HttpOptions) -> Router {
    let service = |json_response: bool| {
        let mut config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(json_response)
            .with_sse_keep_alive(Some(KEEP_ALIVE))
            .with_sse_retry(None)
            .with_max_request_body_bytes(options.max_body_bytes);
        config = if options.allowed_hosts.iter().any(|host| host == "*") {
            config.disable_allowed_hosts()
        } else {
            config.with_allowed_hosts(options.allowed_hosts.clone())
        };
        config = if options.allowed_origins.iter().any(|origin| origin == "*") {
            config.disable_allowed_origins()
        } else {
            config.with_allowed_origins(options.allowed_origins.clone()).enforce_origin_validation()
        };
        let handler = McpServer(interpreter.clone());
        StreamableHttpService::new(move || Ok(handler.clone()), Arc::new(NeverSessionManager::default()), config)
    };
    let (streaming, plain) = (service(false), service(true));
    let mcp = tower_service(move |mut request: Request| {
        let wants_events = accepts_events(request.headers());
        request.headers_mut().insert(ACCEPT, BOTH);
        let service = if wants_events { streaming.clone() } else { plain.clone() };
        async move { service.handle(request).await.map(Body::new) }
    });
    let mut router = Router::new().route("/health", get(health).with_state(interpreter.clone()));
    for path in MCP_PATHS {
        router = router.route(path, axum::routing::any(mcp.clone()).layer(from_fn(speak_json_rpc)));
    }
    router.fallback(|| async {
        let body = json!({"error": format!("nothing is here; MCP is served at {}, the server's state at /health", MCP_PATHS[0])});
        (StatusCode::NOT_FOUND, axum::Json(body))
    })
}

/// Makes an axum handler of a closure from request to response.
fn tower_service<F, R>(handle: F) -> impl Fn(Request) -> R + Clone + Send + Sync + 'static
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response> + Send,
{
    handle
}

/// True unless the client says that it takes JSON only.
pub fn accepts_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    accepted.peek().is_none()
        || accepted.any(|value| value.contains("text/event-stream") || value.contains("*/*") || value.contains("text/*"))
}

/// Gives events their name, and every refusal the form of a JSON-RPC error.
async fn speak_json_rpc(request: Request, next: Next) -> Response {
    let (request, seen) = refusal::remember_body(request);
    let response = next.run(request).await;
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if content_type.starts_with("text/event-stream") {
        let (parts, body) = response.into_parts();
        return Response::from_parts(parts, Body::new(body.map_frame(|frame| frame.map_data(name_event))));
    }
    if response.status().is_success() || content_type.starts_with("application/json") {
        return response;
    }
    refusal::explain(response, &seen).await
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

/// Serves HTTP until `stop` completes.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    interpreter: &Arc<Interpreter>,
    options: &HttpOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    use axum::serve::ListenerExt;
    let listener = listener.tap_io(|stream| {
        // Small answers must not wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
    });
    let server = axum::serve(listener, router(interpreter, options)).into_future();
    tokio::select! {
        result = server => result,
        // Runs in flight are dropped with their connections, and so killed.
        () = stop => Ok(()),
    }
}
