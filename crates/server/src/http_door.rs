//! The HTTP door: MCP at four paths, `/health`, and the manners clients expect around rmcp's transport.
//!
//! Rule: whatever is refused is refused with a JSON-RPC error body, which a page of a served origin may read; Host and Origin
//! are checked before a body is read, and rmcp is given no body that was not bounded and taken apart before.

mod accept;
mod answer;
mod batch;
mod body;
mod calls;
mod cors;
mod listener;
mod names;
mod stream;
mod visit;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use rmcp::model::RequestId;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::Instrument;

use self::accept::Takes;
use self::answer::{JSON, KEEP_ALIVE, Work};
use self::body::Bodies;
use self::calls::{Calls, InFlight, SESSION_ID, Session, TakenBack};
pub use self::names::ServedNames;
use self::visit::Visit;
use crate::batch::is_one;
use crate::mcp::McpServer;
use crate::message::{self, InEvents, Lifted, Meaning, Message};
use crate::refusal::{self, Refusal};
use crate::service::{Call, Door as CallDoor, Service};

/// Where MCP is served.
const MCP_PATHS: [&str; 4] = ["/lambda/mcp/", "/lambda/mcp", "/mcp/", "/mcp"];
const METHODS: HeaderValue = HeaderValue::from_static("POST, DELETE, OPTIONS");
/// What rmcp asks for; what the client takes has been read by then.
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
    /// How long what runs may go on when the server is to stop.
    pub drain: Duration,
}

type Mcp = StreamableHttpService<McpServer, NeverSessionManager>;

/// MCP for those who take events only, and for all others.
struct Door {
    streaming: Mcp,
    plain: Mcp,
    bodies: Bodies,
    calls: Arc<Calls>,
}

/// The whole HTTP service.
pub fn router(service: &Arc<Service>, options: &HttpOptions) -> Router {
    let handler = McpServer::new(service.clone());
    let mcp_service = |json_response: bool| {
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(json_response)
            .with_sse_keep_alive(Some(KEEP_ALIVE))
            .with_sse_retry(None)
            // Each of these is checked before.
            .with_max_request_body_bytes(usize::MAX)
            .disable_allowed_hosts()
            .disable_allowed_origins();
        let handler = handler.clone();
        StreamableHttpService::new(move || Ok(handler.clone()), Arc::new(NeverSessionManager::default()), config)
    };
    let bodies = Bodies::new(options.max_body_bytes);
    let door = Arc::new(Door { streaming: mcp_service(false), plain: mcp_service(true), bodies, calls: Arc::default() });
    let mut router = Router::new()
        .route("/health", get(health).with_state(service.clone()))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready).with_state(service.clone()));
    for path in MCP_PATHS {
        router = router.route(path, any(mcp).with_state(door.clone()));
    }
    let router = router.fallback(|| async {
        let body = json!({"error": format!("nothing is here; MCP is served at {}, the server's state at /health", MCP_PATHS[0])});
        (StatusCode::NOT_FOUND, axum::Json(body))
    });
    let names = Arc::new(options.names.clone());
    router
        .layer(from_fn(bring_call))
        .layer(from_fn_with_state(names.clone(), check_names))
        .layer(cors::layer(&names))
        .layer(from_fn_with_state(names, check_preflight))
}

/// Every request comes with the call that it is: the one that it has from who stands before this door, with what guards it.
async fn bring_call(mut request: Request, next: Next) -> Response {
    request.extensions_mut().get_or_insert_with(|| Call::new(CallDoor::Http));
    next.run(request).await
}

async fn check_names(State(names): State<Arc<ServedNames>>, request: Request, next: Next) -> Response {
    match names.admit(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// A preflight is answered before all else, but for this.
async fn check_preflight(names: State<Arc<ServedNames>>, request: Request, next: Next) -> Response {
    if request.method() == Method::OPTIONS { check_names(names, request, next).await } else { next.run(request).await }
}

async fn mcp(State(door): State<Arc<Door>>, request: Request) -> Response {
    // What else it is, rmcp refuses without a look at the body.
    if request.method() == Method::POST && is_json(request.headers()) {
        return door.post(request).await.unwrap_or_else(Refusal::into_response);
    }
    if request.method() == Method::DELETE && request.headers().contains_key(SESSION_ID) {
        // There is nothing else of a session.
        if let Some(session) = Session::of(request.headers()) {
            door.calls.close(session);
        }
        return StatusCode::NO_CONTENT.into_response();
    }
    let mut request = request.map(|_| Body::empty());
    request.headers_mut().insert(ACCEPT, BOTH);
    let mut response = speak_json_rpc(door.plain.handle(request).await.map(Body::new), false, None).await;
    if let Some(allowed) = response.headers_mut().get_mut(ALLOW) {
        *allowed = METHODS;
    }
    response
}

impl Door {
    /// Reads the body, and answers what is in it.
    async fn post(self: Arc<Self>, request: Request) -> Result<Response, Refusal> {
        let visit = request.extensions().get::<Arc<Visit>>().cloned();
        if visit.as_ref().is_some_and(|visit| visit.is_guest()) {
            return Err(Refusal::busy("calls run on all connections that the server takes"));
        }
        let (mut parts, body) = request.into_parts();
        if let Some(encoding) = parts.headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return Err(Refusal::encoded(&String::from_utf8_lossy(encoding.as_bytes())));
        }
        let held = self.bodies.read(body).await?;
        if let Some(visit) = visit {
            visit.is_served();
        }
        let takes = Takes::of(&parts.headers);
        // They were the whole body's.
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
        parts.headers.insert(ACCEPT, BOTH);
        let told = InEvents::new(takes == Takes::Events);
        parts.extensions.insert(told.clone());
        let call = parts.extensions.get::<Call>().cloned();
        let opened = async {
            match &call {
                Some(call) => call.must_open().await,
                None => std::future::pending().await,
            }
        };
        let room = held.room.map(Arc::new);
        if is_one(&held.bytes) && batch::is_spoken(&parts.headers) {
            let as_events = takes == Takes::Events;
            let work = self.all(parts, held.bytes, room, as_events).await?;
            return Ok(answer::answer(work, as_events, &told, opened).await);
        }
        let bytes = held.bytes;
        let message = message::away(bytes.len(), move || message::lift_for(&bytes, takes != Takes::Json)).await?;
        let as_events = takes == Takes::Events || message.wants_progress;
        let work = self.one(parts, message, room, takes == Takes::Events);
        let response = answer::answer(work, as_events, &told, opened).await;
        // Nobody waits for it: Python's clients break when JSON comes as they close, and let events go by.
        let goes_by = takes != Takes::Json && response.extensions().get::<TakenBack>().is_some();
        Ok(if goes_by { answer::in_event(response) } else { response })
    }

    /// One message, known from here on.
    fn one(
        self: Arc<Self>,
        mut parts: Parts,
        message: Message,
        room: Option<Arc<OwnedSemaphorePermit>>,
        streaming: bool,
    ) -> Work {
        let Message { text, arguments, id, meaning, .. } = message;
        if meaning == Meaning::Answers {
            return Box::pin(async { StatusCode::ACCEPTED.into_response() });
        }
        let session = Session::of(&parts.headers);
        if let (Meaning::Cancels(id), Some(session)) = (&meaning, session) {
            self.calls.cancel(session, id);
        }
        let call = id.clone().zip(session).map(|(id, session)| self.calls.begin(session, id));
        parts.extensions.insert(Lifted::new(arguments, room));
        if let Some(in_flight) = &call
            && let Some(call) = parts.extensions.remove::<Call>()
        {
            parts.extensions.insert(call.ended_by(in_flight.end()));
        }
        let work = async move {
            let service = if streaming { &self.streaming } else { &self.plain };
            let response = service.handle(Request::from_parts(parts, Body::from(text))).await.map(Body::new);
            let mut response = speak_json_rpc(response, true, id).await;
            if meaning == Meaning::Opens
                && response.status().is_success()
                && let Some(session) = Session::mint().and_then(Session::header)
            {
                response.headers_mut().insert(SESSION_ID, session);
            }
            if call.as_ref().is_some_and(InFlight::is_taken_back) {
                response.extensions_mut().insert(TakenBack);
            }
            if !answer::is_events(response.headers()) {
                return response;
            }
            // It is in flight until the last of its events.
            let keep = move |frame| {
                let _ = &call;
                frame
            };
            response.map(|body| Body::new(body.map_frame(keep)))
        };
        Box::pin(work.in_current_span())
    }

    /// All messages of a batch, each known from here on.
    async fn all(
        self: Arc<Self>,
        parts: Parts,
        body: Bytes,
        room: Option<Arc<OwnedSemaphorePermit>>,
        as_events: bool,
    ) -> Result<Work, Refusal> {
        let messages = message::away(body.len(), move || batch::lift(&body)).await?;
        let is_asked = messages.iter().any(|message| message.as_ref().map_or(true, |message| message.id.is_some()));
        let take = |message: Result<Message, Refusal>| match message {
            Ok(message) => self.clone().one(parts.clone(), message, room.clone(), false),
            Err(refusal) => Box::pin(async { refusal.into_response() }),
        };
        let works = messages.into_iter().map(take).collect();
        Ok(Box::pin(batch::answer(works, is_asked, as_events).in_current_span()))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let written = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    written.split(';').next().is_some_and(|essence| JSON == essence.trim().to_ascii_lowercase())
}

/// Gives events their name, and every refusal the form of a JSON-RPC error.
async fn speak_json_rpc(response: Response, judged: bool, id: Option<RequestId>) -> Response {
    if answer::is_events(response.headers()) {
        return answer::named(response);
    }
    let is_json = response.headers().get(CONTENT_TYPE).is_some_and(|written| written.as_bytes().starts_with(JSON.as_bytes()));
    if response.status().is_success() || is_json {
        return response;
    }
    refusal::explain(response, judged, id).await
}

async fn health(State(service): State<Arc<Service>>) -> impl IntoResponse {
    let status = service.status();
    let is_any = |state: &str| status.stages.iter().any(|stage| stage.state == state);
    let word = match () {
        () if service.is_draining() => "draining",
        () if is_any("dead") || is_any("starting") => "starting",
        () if is_any("failed") || status.quarantined > 0 => "degraded",
        () => "ok",
    };
    let body = json!({
        "status": word,
        "version": env!("CARGO_PKG_VERSION"),
        "sandbox": service.layers(),
        "engine": status,
    });
    axum::Json(body)
}

/// That the server answers: whatever stands still beside it.
async fn live() -> impl IntoResponse {
    axum::Json(json!({"status": "live"}))
}

/// Whether code that needs no library would run now.
async fn ready(State(service): State<Arc<Service>>) -> impl IntoResponse {
    let draining = service.is_draining().then_some("draining");
    let state = draining.unwrap_or_else(|| service.status().stages.first().map_or("dead", |stage| stage.state));
    let code = if state == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(json!({"status": state})))
}

/// Serves HTTP until `stop` completes, and then goes on for as long as calls run and their answers go out, up to
/// [`HttpOptions::drain`]; new ones are refused meanwhile. What still runs then is dropped with its connection, and so killed.
pub async fn serve(listener: TcpListener, service: &Arc<Service>, options: &HttpOptions, stop: impl Future<Output = ()> + Send) {
    let router = router(service, options);
    let drained = async {
        stop.await;
        tracing::info!(
            calls = service.in_flight(),
            "the server stops; what runs may end within {:?} (DRAIN_SECONDS)",
            options.drain
        );
        let until = Instant::now() + options.drain;
        if tokio::time::timeout_at(until, service.drain()).await.is_err() {
            tracing::warn!(calls = service.in_flight(), "calls still run, and are ended");
            return None;
        }
        Some(until)
    };
    listener::serve(listener, router, options.max_connections, options.idle_timeout, drained).await;
}
