//! The MCP server: its tools and resources.
//!
//! Rule: what is not declared is not there. A wrong argument is a tool's result, which a model reads; an error of the protocol
//! is for a client that does not speak it.

#[cfg(feature = "conformance")]
mod fixtures;

use std::sync::Arc;

use protocol::{ArgumentError, Arguments, CellRequest, ErrorCode, Outcome, OutputEvent, Stream, shortened};
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestMethod, CompleteRequestParams,
    CompleteResult, ErrorData, Implementation, ListPromptsRequestMethod, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, MetaObject, PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams,
    ReadResourceResponse, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Map, json};

use crate::calls;
use crate::catalogue::{ENVIRONMENT, EXECUTE, INSTALL, INSTALL_ALIAS, INSTRUCTIONS, PACKAGES};
use crate::install;
use crate::invocation::Invocation;
use crate::message::{self, Lifted};
use crate::progress::Progress;
use crate::reports::InstallReport;
use crate::tools::Interpreter;
use crate::{reply, resources};

/// How long a client may keep the tool list: it changes with a deployment only.
const TOOLS_TTL_MS: u64 = 300_000;

/// Where results of the newest protocol name the server.
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// The MCP face of an interpreter.
#[derive(Clone)]
pub(crate) struct McpServer(pub(crate) Arc<Interpreter>);

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_resources().build())
            .with_server_info(implementation())
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        only_page(page)?;
        let tools = self.0.catalogue().to_vec();
        #[cfg(feature = "conformance")]
        let tools = [tools, fixtures::tools()].concat();
        let mut list = ListToolsResult::with_all_items(tools);
        list.meta = meta(&context);
        Ok(list.with_ttl_ms(TOOLS_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.0.catalogue().iter().find(|tool| tool.name == name).cloned()
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // The message's own are empty: see `message.rs`.
        let arguments = Lifted::of(&context);
        let mut result = match &*request.name {
            EXECUTE => self.execute(arguments, &context).await?,
            INSTALL | INSTALL_ALIAS => self.install(arguments, &context).await?,
            // These have no use for arguments, and no place for a word about any.
            PACKAGES => reply::of_report(&self.0.list_packages(), true)?,
            ENVIRONMENT => reply::of_report(&self.0.environment(), true)?,
            #[cfg(feature = "conformance")]
            name if fixtures::has(name) => self.fixture(name, &context).await?,
            other => {
                let message = format!(
                    "there is no tool {:?}; there are {EXECUTE}, {INSTALL}, {ENVIRONMENT} and {PACKAGES}",
                    shortened(other)
                );
                return Err(ErrorData::invalid_params(message, None));
            }
        };
        result.meta = meta(&context);
        Ok(result.into())
    }

    async fn list_resources(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        only_page(page)?;
        Ok(ListResourcesResult { meta: meta(&context), ..resources::list() })
    }

    async fn list_resource_templates(
        &self,
        page: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        only_page(page)?;
        Ok(ListResourceTemplatesResult { meta: meta(&context), ..ListResourceTemplatesResult::default() })
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let read = resources::read(&self.0, &request.uri);
        #[cfg(feature = "conformance")]
        let read = fixtures::resource(&request.uri).map_or(read, Ok);
        let mut result = read?;
        result.meta = meta(&context);
        Ok(result.into())
    }

    /// rmcp would answer with an empty list.
    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListPromptsRequestMethod>())
    }

    /// rmcp would answer with nothing to complete.
    async fn complete(&self, _: CompleteRequestParams, _: RequestContext<RoleServer>) -> Result<CompleteResult, ErrorData> {
        Err(ErrorData::method_not_found::<CompleteRequestMethod>())
    }
}

impl McpServer {
    async fn execute(&self, arguments: Arguments, context: &RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        let interpreter = self.0.clone();
        let request = match message::away(arguments.bytes(), move || interpreter.check(arguments)).await {
            Ok(request) => request,
            Err(error) => return self.answer(refused(&error), usize::MAX).await,
        };
        let invocation = invocation(context);
        let progress = Progress::default();
        let mut on_output = |event: OutputEvent<'_>| progress.push(event);
        let mut silent = |_: OutputEvent<'_>| {};
        let wants_progress = context.meta.get_progress_token().is_some();
        let run = self.guarded(invocation, request, if wants_progress { &mut on_output } else { &mut silent });
        // A run that is dropped is killed.
        let outcome = heard(context, &progress, Box::pin(run)).await;
        let outcome =
            outcome.unwrap_or_else(|| Outcome::refused(ErrorCode::Cancelled, "the caller went away or took the call back"));
        self.answer(outcome, reply::room(context, progress.has_sent())).await
    }

    async fn answer(&self, outcome: Outcome, room: usize) -> Result<CallToolResult, ErrorData> {
        let structured = self.0.structured_content();
        let bytes = outcome.bytes();
        message::away(bytes, move || reply::of_outcome(outcome, structured, room)).await
    }

    async fn install(&self, arguments: Arguments, context: &RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        let (requirements, warnings) = match install::requirements(arguments) {
            Ok(asked) => asked,
            Err(error) => return reply::of_report(&InstallReport::refused(error.to_string()), false),
        };
        let deadline = invocation(context).map(Invocation::latest_end);
        let progress = Progress::default();
        let mut say = |text: &str| {
            progress.push(OutputEvent { stream: Stream::Notice, bytes: format!("{text}\n").as_bytes() });
        };
        // An installer that is dropped is killed.
        let report = heard(context, &progress, Box::pin(self.0.install(&requirements, deadline, &mut say))).await;
        let mut report = report.ok_or_else(|| ErrorData::invalid_request("the caller went away or took the call back", None))?;
        report.warnings.splice(0..0, warnings);
        reply::of_report(&report, report.success)
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
    let work = async {
        let done = work.await;
        progress.end();
        done
    };
    let both = async { tokio::join!(work, progress.forward(&context.peer, context.meta.get_progress_token())) };
    tokio::select! {
        (done, ()) = both => Some(done),
        () = context.ct.cancelled() => None,
        () = calls::taken_back(context) => None,
    }
}

fn invocation(context: &RequestContext<RoleServer>) -> Option<&Invocation> {
    context.extensions.get::<http::request::Parts>().and_then(|parts| parts.extensions.get::<Invocation>())
}

fn implementation() -> Implementation {
    Implementation::new("lambda-code-interpreter", env!("CARGO_PKG_VERSION"))
}

/// What is said with every result, where the protocol has it.
fn meta(context: &RequestContext<RoleServer>) -> Option<MetaObject> {
    let version = context.protocol_version()?;
    // Dates, which compare as they are written.
    let is_newest = version.as_str() >= ProtocolVersion::V_2026_07_28.as_str();
    is_newest.then(|| MetaObject(Map::from_iter([(SERVER_INFO.to_owned(), json!(implementation()))])))
}

/// Every list is whole: a cursor is none of ours.
fn only_page(page: Option<PaginatedRequestParams>) -> Result<(), ErrorData> {
    match page.and_then(|page| page.cursor).filter(|cursor| !cursor.is_empty()) {
        Some(_) => Err(ErrorData::invalid_params(
            "cursor: is not from here; this list is whole, and has none",
            Some(json!({"field": "cursor"})),
        )),
        None => Ok(()),
    }
}

fn refused(error: &ArgumentError) -> Outcome {
    Outcome::refused_as(ErrorCode::InvalidArgument, "ArgumentError", error.to_string())
}
