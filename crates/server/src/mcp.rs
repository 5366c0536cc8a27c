//! The MCP server: tool list and tool calls.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use protocol::{
    ArgumentError, Arguments, CellRequest, ErrorCode, ExecuteArguments, ExecutionResult, Outcome, OutputEvent, Stream, shortened,
};
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, Implementation, JsonObject,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde::Serialize;

use crate::environment::EnvironmentInfo;
use crate::install::{self, InstallArguments, InstallReport};
use crate::invocation::Invocation;
use crate::message::{self, Lifted};
use crate::progress::Progress;
use crate::tools::{Interpreter, PackageList};

/// How long a client may keep the tool list: it changes with a deployment only.
const TOOLS_TTL_MS: u64 = 300_000;

/// How long an answer waits for the last lines of progress before it: a slow client slows nothing.
const LAST_LINES_PATIENCE: Duration = Duration::from_millis(100);

const INSTRUCTIONS: &str = "Runs Python in a fresh, isolated process with numpy, pandas, scipy, scikit-learn, matplotlib and more. \
    The value of the last expression (or of a variable named `result`) comes back with stdout, stderr and figures. \
    Nothing is kept between calls.";

const EXECUTE: &str = "execute_python";
const INSTALL: &str = "install_packages";
/// What some clients call it.
const INSTALL_ALIAS: &str = "pip_install";
const PACKAGES: &str = "list_preinstalled_packages";
const ENVIRONMENT: &str = "get_environment_info";

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| {
    let read_only = || ToolAnnotations::new().read_only(true).destructive(false).open_world(false);
    vec![
        Tool::new(
            EXECUTE,
            "Execute Python code in a fresh, isolated process with the data-science stack already loaded. Returns the value of \
             the last expression (or of a variable named `result`), stdout, stderr, and matplotlib figures as images. Top-level \
             `await` works. Nothing is kept between calls, and there is no input(). Packages that are not preinstalled go into \
             `requirements`.",
            JsonObject::new(),
        )
        .with_title("Run Python")
        .with_input_schema::<ExecuteArguments>()
        .with_output_schema::<ExecutionResult>()
        .with_annotations(ToolAnnotations::new().read_only(false).destructive(false).idempotent(false).open_world(false)),
        Tool::new(ENVIRONMENT, "Python version, platform, limits, installed packages and active sandbox layers.", no_arguments())
            .with_title("Describe the environment")
            .with_output_schema::<EnvironmentInfo>()
            .with_annotations(read_only()),
        Tool::new(
            INSTALL,
            "Install Python packages ahead of time (wheels from the package index), so that an execute_python call with the same \
             `requirements` starts at once. Calls without these requirements don't see them.",
            JsonObject::new(),
        )
        .with_title("Install packages")
        .with_input_schema::<InstallArguments>()
        .with_output_schema::<InstallReport>()
        .with_annotations(ToolAnnotations::new().read_only(false).destructive(false).idempotent(true).open_world(true)),
        Tool::new(PACKAGES, "The Python packages that can be imported, with versions and import names.", no_arguments())
            .with_title("List installed packages")
            .with_output_schema::<PackageList>()
            .with_annotations(read_only()),
    ]
});

fn no_arguments() -> JsonObject {
    let schema = serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false});
    schema.as_object().cloned().unwrap_or_default()
}

/// The MCP face of an interpreter.
#[derive(Clone)]
pub(crate) struct McpServer(pub(crate) Arc<Interpreter>);

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("lambda-code-interpreter", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let list = ListToolsResult::with_all_items(TOOLS.clone());
        Ok(list.with_ttl_ms(TOOLS_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        TOOLS.iter().find(|tool| tool.name == name).cloned()
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // The message's own are empty: see `message.rs`.
        let arguments = Lifted::of(&context);
        let result = match &*request.name {
            EXECUTE => self.execute(arguments, context).await?,
            INSTALL | INSTALL_ALIAS => self.install(&arguments, context).await?,
            PACKAGES => {
                refuse_arguments(&arguments)?;
                structured(&self.0.list_packages(), true)?
            }
            ENVIRONMENT => {
                refuse_arguments(&arguments)?;
                structured(&self.0.environment(), true)?
            }
            other => {
                let message = format!(
                    "there is no tool {:?}; there are {EXECUTE}, {INSTALL}, {ENVIRONMENT} and {PACKAGES}",
                    shortened(other)
                );
                return Err(ErrorData::invalid_params(message, None));
            }
        };
        Ok(result.into())
    }
}

impl McpServer {
    async fn execute(&self, arguments: Arguments, context: RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        let interpreter = self.0.clone();
        let checked = message::away(arguments.bytes(), move || interpreter.check(arguments)).await;
        let request = checked.map_err(|error| invalid(&error))?;
        let invocation = invocation(&context);
        let progress = Progress::default();
        let mut on_output = |event: OutputEvent<'_>| progress.push(event);
        let mut silent = |_: OutputEvent<'_>| {};
        let wants_progress = context.meta.get_progress_token().is_some();
        let run = self.guarded(invocation, request, if wants_progress { &mut on_output } else { &mut silent });
        // A run that is dropped is killed.
        let outcome = heard(&context, &progress, Box::pin(run)).await;
        let outcome = outcome.unwrap_or_else(|| Outcome::refused(ErrorCode::Cancelled, "the caller went away"));
        let mut result = structured(&outcome.result, outcome.result.success)?;
        result.content.extend(
            outcome.images.iter().map(|image| {
                ContentBlock::image(base64::engine::general_purpose::STANDARD.encode(&image.bytes), image.mime_type)
            }),
        );
        Ok(result)
    }

    async fn install(&self, arguments: &Arguments, context: RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        let requirements = install::requirements(arguments).map_err(|error| invalid(&error))?;
        let deadline = invocation(&context).map(Invocation::latest_end);
        let progress = Progress::default();
        let mut say = |text: &str| {
            progress.push(OutputEvent { stream: Stream::Notice, bytes: format!("{text}\n").as_bytes() });
        };
        // An installer that is dropped is killed.
        let report = heard(&context, &progress, Box::pin(self.0.install(&requirements, deadline, &mut say))).await;
        let report = report.ok_or_else(|| ErrorData::invalid_request("the caller went away", None))?;
        structured(&report, report.success)
    }

    /// Runs the cell within what its door asks for.
    async fn guarded(
        &self,
        invocation: Option<&Invocation>,
        mut request: CellRequest,
        on_output: &mut (dyn FnMut(OutputEvent<'_>) + Send),
    ) -> Outcome {
        let Some(invocation) = invocation else { return self.0.execute(request, on_output).await };
        let warning = match invocation.guard.before_code().await {
            Ok(warning) => warning,
            Err(reason) => {
                tracing::error!(reason, "user code was not run");
                return Outcome::refused(ErrorCode::Internal, reason);
            }
        };
        request.deadline = Some(invocation.latest_end());
        let mut outcome = self.0.execute(request, on_output).await;
        outcome.result.warnings.extend(warning);
        invocation.guard.after_code().await;
        outcome
    }
}

/// Does the work and passes on what it says, where the caller listens; none when the caller goes away meanwhile.
async fn heard<T>(context: &RequestContext<RoleServer>, progress: &Progress, work: impl Future<Output = T>) -> Option<T> {
    let forward = async {
        match context.meta.get_progress_token() {
            Some(token) => progress.forward(&context.peer, token).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        done = work => {
            // What it said last may not have been on its way yet.
            if let Some(token) = context.meta.get_progress_token() {
                let _ = tokio::time::timeout(LAST_LINES_PATIENCE, progress.send_lines(&context.peer, &token)).await;
            }
            Some(done)
        }
        never = forward => match never {},
        () = context.ct.cancelled() => None,
    }
}

fn invocation(context: &RequestContext<RoleServer>) -> Option<&Invocation> {
    context.extensions.get::<http::request::Parts>().and_then(|parts| parts.extensions.get::<Invocation>())
}

/// A result as structured content and, for clients that read only text, as pretty-printed JSON.
fn structured(value: &impl Serialize, success: bool) -> Result<CallToolResult, ErrorData> {
    let internal = |error: serde_json::Error| ErrorData::internal_error(error.to_string(), None);
    let text = serde_json::to_string_pretty(value).map_err(internal)?;
    let mut result = if success { CallToolResult::success(vec![]) } else { CallToolResult::error(vec![]) };
    result.content.push(ContentBlock::text(text));
    result.structured_content = Some(serde_json::to_value(value).map_err(internal)?);
    Ok(result)
}

fn invalid(error: &ArgumentError) -> ErrorData {
    ErrorData::invalid_params(error.to_string(), Some(serde_json::json!({"field": error.field})))
}

fn refuse_arguments(arguments: &Arguments) -> Result<(), ErrorData> {
    match arguments.unknown(&[]) {
        Some(name) => Err(invalid(&ArgumentError::new(name, "is not an argument; this tool takes none"))),
        None => Ok(()),
    }
}
