//! `local_gateway --rie PROGRAM --bootstrap PROGRAM`: a function under AWS's Runtime Interface Emulator, behind a small
//! stand-in for API Gateway's REST API, so that a client sees what it would see in an account.
//!
//! It makes REST (version 1) events with a stage, takes the tenant from the API key as the template does, and decodes
//! streamed and buffered answers; an answer of the other kind than the integration's is a 502, as in API Gateway.

#![expect(clippy::print_stderr, reason = "it says where it serves and why it refuses")]
#![expect(clippy::disallowed_methods, reason = "there is no server in this process")]

use std::net::TcpListener;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use base64::Engine;
use clap::{Parser, ValueEnum};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Between the head and the body of a streamed answer.
const SEPARATOR: [u8; 8] = [0; 8];
const HOST: &str = "abcdef1234.execute-api.eu-central-1.amazonaws.com";
const INVOKE: &str = "/2015-03-31/functions/function/invocations";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Integration {
    Stream,
    Buffered,
}

#[derive(Clone, Debug, Parser)]
struct Options {
    /// AWS's emulator.
    #[arg(long)]
    rie: String,
    /// The function's program.
    #[arg(long)]
    bootstrap: String,
    /// A program that is given the emulator's command line, to start it with fewer rights.
    #[arg(long, num_args = 1.., value_delimiter = ' ')]
    launcher: Vec<String>,
    /// Port of the gateway on the loopback; 0 takes a free one.
    #[arg(long, default_value = "0")]
    port: u16,
    #[arg(long, default_value = "dev")]
    stage: String,
    #[arg(long, value_enum, default_value = "stream")]
    integration: Integration,
    /// Send bodies as base64, as for a binary media type.
    #[arg(long)]
    base64: bool,
    /// Seconds a call of the function may take.
    #[arg(long, default_value = "60")]
    timeout: u64,
}

#[derive(Clone)]
struct Gateway {
    options: Options,
    emulator: String,
    /// The emulator has one environment, which takes one event at a time.
    turn: Arc<Mutex<()>>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let (emulator, runtime_api) = (free_address(), free_address());
    let mut function = start(&options, &emulator, &runtime_api);
    for _ in 0..1000 {
        if TcpStream::connect(&emulator).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", options.port)).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    eprintln!("the Runtime API is at {runtime_api}");
    eprintln!("serving http://{address}/{}", options.stage);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let gateway = Gateway { options, emulator, turn: Arc::default() };
    let service = Router::new().fallback(forward).with_state(gateway);
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a signal");
    tokio::select! {
        _ = axum::serve(listener, service).into_future() => {}
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    stop(&mut function).await;
    ExitCode::SUCCESS
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// Starts the emulator, which starts the function with its environment.
fn start(options: &Options, emulator: &str, runtime_api: &str) -> Child {
    let emulator_line = [&options.rie, "--runtime-interface-emulator-address", emulator, "--runtime-api-address", runtime_api];
    let line = options.launcher.iter().map(String::as_str).chain(emulator_line).chain([options.bootstrap.as_str()]);
    let line = line.collect::<Vec<_>>();
    Command::new(line[0])
        .args(&line[1..])
        .env("AWS_LAMBDA_FUNCTION_NAME", "code-interpreter")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "2048")
        .env("AWS_LAMBDA_FUNCTION_TIMEOUT", options.timeout.to_string())
        .env("AWS_ACCESS_KEY_ID", "of-the-function")
        .env("AWS_SECRET_ACCESS_KEY", "secret-of-the-function")
        .env("LAMBDA_TASK_ROOT", "/var/task")
        .spawn()
        .expect("the emulator starts")
}

/// As Lambda ends an environment: the emulator tells the function, and kills it when it does not end.
async fn stop(function: &mut Child) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(function), rustix::process::Signal::TERM);
    for _ in 0..500 {
        if function.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = function.kill();
    let _ = function.wait();
}

async fn forward(State(gateway): State<Gateway>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Some(path) = parts.uri.path().strip_prefix(&format!("/{}", gateway.options.stage)).filter(|path| path.starts_with('/'))
    else {
        return (StatusCode::FORBIDDEN, r#"{"message":"Forbidden"}"#).into_response();
    };
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let key = parts.headers.get("x-api-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let event = event(&gateway.options, &parts, path, &body, key.as_deref());
    let turn = gateway.turn.clone().lock_owned().await;
    let answer = match invoke(&gateway.emulator, &event, key.as_deref()).await {
        Ok(answer) => answer,
        Err(error) => return bad_gateway(&error),
    };
    let mut frames = answer.into_data_stream();
    let mut head = Vec::new();
    while !head.windows(SEPARATOR.len()).any(|window| window == SEPARATOR) {
        match frames.next().await {
            Some(Ok(bytes)) => head.extend_from_slice(&bytes),
            Some(Err(error)) => return bad_gateway(&error.to_string()),
            None if gateway.options.integration == Integration::Buffered => return decode_whole(&head),
            None => return bad_gateway(&format!("no streamed answer: {}", String::from_utf8_lossy(&head))),
        }
    }
    if gateway.options.integration == Integration::Buffered {
        return bad_gateway("a streamed answer");
    }
    let end = head.windows(SEPARATOR.len()).position(|window| window == SEPARATOR).unwrap_or(0);
    let first = Bytes::copy_from_slice(&head[end + SEPARATOR.len()..]);
    let rest = futures_util::stream::once(async { Ok(first) }).chain(frames).map(move |frame| {
        let _turn = &turn;
        frame
    });
    respond(&head[..end], Body::from_stream(rest))
}

fn event(options: &Options, parts: &http::request::Parts, path: &str, body: &[u8], key: Option<&str>) -> Value {
    let mut headers = Map::new();
    for (name, value) in &parts.headers {
        headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into());
    }
    // API Gateway answers to its own names only, and tells the function so.
    headers.insert("host".to_owned(), HOST.into());
    let many = headers.iter().map(|(name, value)| (name.clone(), json!([value]))).collect::<Map<_, _>>();
    let text = std::str::from_utf8(body).ok().filter(|_| !options.base64);
    let encoded = || base64::engine::general_purpose::STANDARD.encode(body);
    json!({
        "resource": "/{proxy+}", "path": path, "httpMethod": parts.method.as_str(),
        "headers": headers, "multiValueHeaders": many,
        "queryStringParameters": null, "multiValueQueryStringParameters": null, "pathParameters": null, "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012", "apiId": "abcdef1234", "stage": options.stage, "protocol": "HTTP/1.1",
            "path": format!("/{}{path}", options.stage), "httpMethod": parts.method.as_str(), "resourceId": "r",
            "resourcePath": "/{proxy+}", "requestId": "11111111-2222-3333-4444-555555555555",
            "requestTimeEpoch": 1_700_000_000_000_u64, "identity": {"sourceIp": "203.0.113.1", "apiKeyId": key},
        },
        "body": text.map_or_else(encoded, str::to_owned), "isBase64Encoded": text.is_none(),
    })
}

async fn invoke(emulator: &str, event: &Value, tenant: Option<&str>) -> Result<hyper::body::Incoming, String> {
    let said = |error: hyper::Error| error.to_string();
    let stream = TcpStream::connect(emulator).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    tokio::spawn(connection);
    let mut request = hyper::Request::post(INVOKE).header("host", emulator);
    if let Some(tenant) = tenant {
        request = request.header("x-amz-tenant-id", tenant);
    }
    let request = request.body(Full::new(Bytes::from(event.to_string()))).map_err(|error| error.to_string())?;
    Ok(sender.send_request(request).await.map_err(said)?.into_body())
}

/// A buffered answer: `statusCode`, headers, `body`.
fn decode_whole(answer: &[u8]) -> Response {
    let Ok(value) = serde_json::from_slice::<Value>(answer) else { return bad_gateway("an answer that is no JSON") };
    let Some(text) = value["body"].as_str() else { return bad_gateway(&format!("an answer without a body: {value}")) };
    let body = match value["isBase64Encoded"].as_bool() {
        Some(true) => base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default(),
        _ => text.as_bytes().to_vec(),
    };
    respond(answer, Body::from(body))
}

/// With the status and headers that the head names.
fn respond(head: &[u8], body: Body) -> Response {
    let Ok(head) = serde_json::from_slice::<Value>(head) else { return bad_gateway("an answer whose head is no JSON") };
    let Some(status) = head["statusCode"].as_u64().and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok())
    else {
        return bad_gateway(&format!("an answer without a status: {head}"));
    };
    let mut headers = HeaderMap::new();
    let single = head["headers"].as_object().into_iter().flatten().map(|(name, value)| (name, value.clone()));
    let many = head["multiValueHeaders"].as_object().into_iter().flatten();
    let many = many.flat_map(|(name, values)| values.as_array().into_iter().flatten().map(move |value| (name, value.clone())));
    for (name, value) in single.chain(many) {
        let name = http::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Some(Ok(value))) = (name, value.as_str().map(str::parse)) {
            headers.insert(name, value);
        }
    }
    (status, headers, body).into_response()
}

fn bad_gateway(why: &str) -> Response {
    eprintln!("502: {why}");
    (StatusCode::BAD_GATEWAY, r#"{"message":"Internal server error"}"#).into_response()
}
