//! From API Gateway's event to the service and back.
//!
//! Rule: who calls and how long it may take comes from the Lambda context, never from a header of the client.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream;
use http::{Request, Uri};
use http_body_util::BodyExt;
use lambda_http::RequestExt;
use lambda_http::request::RequestContext;
use server::{Call, Door as CallDoor, Principal, Service};
use tower::ServiceExt;
use tracing::Instrument;

use crate::guard::InvocationGuard;
use crate::lock::Lock;
use crate::workspace::Workspace;

/// The longest a function can run: what is assumed when the context's deadline is no time of this clock.
const LONGEST: Duration = Duration::from_secs(900);

/// The service behind the function's door.
pub(crate) struct Door {
    router: Router,
    service: Arc<Service>,
    lock: Option<Arc<Lock>>,
    workspace: Option<Arc<Workspace>>,
    /// Where the Runtime API is, when a library has the connection to it.
    library_to: Option<SocketAddr>,
}

impl Door {
    pub(crate) fn new(
        router: Router,
        service: Arc<Service>,
        lock: Option<Arc<Lock>>,
        workspace: Option<Workspace>,
        library_to: Option<SocketAddr>,
    ) -> Self {
        Self { router, service, lock, workspace: workspace.map(Arc::new), library_to }
    }

    /// Answers with a response that is open before user code runs.
    pub(crate) async fn stream(&self, request: lambda_http::Request) -> Response {
        let span = span(&request);
        let (request, guard) = self.admit(request);
        // Comes at the latest when user code waits for it to be open.
        let (parts, body) = respond(self.router.clone().oneshot(request).instrument(span).await).into_parts();
        Response::from_parts(parts, opening(guard, body))
    }

    /// Answers with a response that is whole.
    pub(crate) async fn buffer(&self, request: lambda_http::Request) -> http::Response<lambda_http::Body> {
        let span = span(&request);
        let (request, _) = self.admit(request);
        let response = respond(self.router.clone().oneshot(request).instrument(span).await);
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body = match String::from_utf8(bytes.to_vec()) {
            Ok(text) => lambda_http::Body::Text(text),
            Err(error) => lambda_http::Body::Binary(error.into_bytes()),
        };
        http::Response::from_parts(parts, body)
    }

    fn admit(&self, request: lambda_http::Request) -> (Request<Body>, Arc<InvocationGuard>) {
        if let Some(api) = self.library_to {
            // The connection that brought this request takes the response.
            sandbox::send_at_once(api);
        }
        let guard = Arc::new(InvocationGuard::new(self.lock.clone(), self.workspace.clone(), self.service.clone()));
        let call = call(&request).guarded(guard.clone());
        let path = path_without_stage(&request);
        let (mut parts, body) = request.into_parts();
        if let Some(uri) = path {
            parts.uri = uri;
        }
        parts.extensions.insert(call);
        (Request::from_parts(parts, Body::from(body.to_vec())), guard)
    }
}

/// The call that a request is.
fn call(request: &lambda_http::Request) -> Call {
    let caller = request.request_context_ref().and_then(caller);
    let call = Call::new(CallDoor::Lambda).by(caller.map_or(Principal::Anonymous, Principal::Named));
    let Some(context) = request.lambda_context_ref() else { return call.until(Instant::now() + LONGEST) };
    let deadline = Instant::now() + time_left(context.deadline);
    call.with_id(&context.request_id).of_tenant(context.tenant_id.clone()).until(deadline)
}

/// For the log lines of one request.
fn span(request: &lambda_http::Request) -> tracing::Span {
    let context = request.lambda_context_ref();
    let tenant = context.and_then(|context| context.tenant_id.as_deref());
    let request_id = context.map(|context| context.request_id.as_str());
    let caller = request.request_context_ref().and_then(caller);
    tracing::info!(request_id, tenant, caller, method = %request.method(), path = request.raw_http_path(), "a request");
    tracing::info_span!("request", request_id, tenant)
}

/// Whom API Gateway has verified: the subject of a token, an IAM principal, or an API key.
fn caller(context: &RequestContext) -> Option<String> {
    let RequestContext::ApiGatewayV1(context) = context else { return None };
    let subject = context.authorizer.fields.get("claims").and_then(|claims| claims["sub"].as_str());
    let identity = &context.identity;
    subject.or(identity.caller.as_deref()).or(identity.api_key_id.as_deref()).map(str::to_owned)
}

fn time_left(deadline_millis: u64) -> Duration {
    let deadline = UNIX_EPOCH + Duration::from_millis(deadline_millis);
    deadline.duration_since(SystemTime::now()).unwrap_or(LONGEST).min(LONGEST)
}

/// The path as API Gateway was asked for it, without the stage, which its events put before it.
fn path_without_stage(request: &lambda_http::Request) -> Option<Uri> {
    let path = request.raw_http_path();
    let mut parts = request.uri().clone().into_parts();
    let path = request.uri().query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn respond(response: Result<Response, Infallible>) -> Response {
    response.unwrap_or_else(|never| match never {})
}

/// A body that tells the guard when the runtime begins to send it.
fn opening(guard: Arc<InvocationGuard>, body: Body) -> Body {
    let frames = stream::once(async move {
        guard.open();
        body.into_data_stream()
    });
    Body::from_stream(frames.flatten())
}
