//! The MCP server: its tools and resources.
//!
//! Rule: what is not declared is not there. A wrong argument is a tool's result, which a model reads; an error of the protocol
//! is for a client that does not speak it.

mod catalogue;
#[cfg(feature = "conformance")]
mod fixtures;
mod progress;
mod reply;
mod resources;

use std::sync::{Arc, OnceLock};

use protocol::{ArgumentError, Arguments, ErrorCode, Outcome, shortened};
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestMethod, CompleteRequestParams,
    CompleteResult, ErrorData, Implementation, ListPromptsRequestMethod, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, MetaObject, PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams,
    ReadResourceResponse, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde_json::{Map, json};

use self::catalogue::{ENVIRONMENT, EXECUTE, INSTALL_ALIAS, INSTRUCTIONS, PACKAGES};
use self::progress::{Listener, Progress};
use crate::message::{self, Lifted};
use crate::service::{Call, INSTALL, InstallReport, Service, requirements};

/// How long a client may keep the tool list: it changes with a deployment only.
const TOOLS_TTL_MS: u64 = 300_000;

/// Where results of the newest protocol name the server.
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

/// The MCP face of a service.
#[derive(Clone)]
pub(crate) struct McpServer {
    service: Arc<Service>,
    /// The tools with this server's bounds, once they were asked for.
    catalogue: Arc<OnceLock<Vec<Tool>>>,
}

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
        let tools = self.catalogue().to_vec();
        #[cfg(feature = "conformance")]
        let tools = [tools, fixtures::tools()].concat();
        let mut list = ListToolsResult::with_all_items(tools);
        list.meta = meta(&context);
        Ok(list.with_ttl_ms(TOOLS_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.catalogue().iter().find(|tool| tool.name == name).cloned()
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
            PACKAGES => reply::of_report(&self.service.list_packages(), true)?,
            ENVIRONMENT => reply::of_report(&self.service.environment(), true)?,
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
        let read = resources::read(&self.service, &request.uri);
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
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { service, catalogue: Arc::default() }
    }

    fn catalogue(&self) -> &[Tool] {
        self.catalogue.get_or_init(|| catalogue::tools(self.service.defaults(), self.service.status().allowed))
    }

    async fn execute(&self, arguments: Arguments, context: &RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        let call = call(context)?;
        let service = self.service.clone();
        let request = match message::away(arguments.bytes(), move || service.check(arguments)).await {
            Ok(request) => request,
            Err(error) => return self.answer(refused(&error), usize::MAX).await,
        };
        let progress = Progress::default();
        let mut listener = Listener(wants_progress(context).then_some(&progress));
        let run = Box::pin(self.service.execute(&call, request, &mut listener));
        let outcome = told(context, &progress, run).await;
        self.answer(outcome, reply::room(context, progress.has_sent())).await
    }

    async fn answer(&self, outcome: Outcome, room: usize) -> Result<CallToolResult, ErrorData> {
        let structured = self.service.structured_content();
        let bytes = outcome.bytes();
        message::away(bytes, move || reply::of_outcome(outcome, structured, room)).await
    }

    async fn install(&self, arguments: Arguments, context: &RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        let call = call(context)?;
        let (requirements, warnings) = match requirements(arguments) {
            Ok(asked) => asked,
            Err(error) => return reply::of_report(&InstallReport::refused(error.to_string()), false),
        };
        let progress = Progress::default();
        let mut listener = Listener(wants_progress(context).then_some(&progress));
        let mut report = told(context, &progress, self.service.install(&call, &requirements, &mut listener)).await;
        report.warnings.splice(0..0, warnings);
        reply::of_report(&report, report.success)
    }
}

fn wants_progress(context: &RequestContext<RoleServer>) -> bool {
    context.meta.get_progress_token().is_some()
}

/// Does the work, and tells meanwhile what is heard of it where the caller listens.
async fn told<T>(context: &RequestContext<RoleServer>, progress: &Progress, work: impl Future<Output = T>) -> T {
    let Some(token) = context.meta.get_progress_token() else { return work.await };
    let work = async {
        let done = work.await;
        progress.end();
        done
    };
    let (done, ()) = tokio::join!(work, progress.forward(&context.peer, token));
    done
}

/// The call that the request came with from its door.
fn call(context: &RequestContext<RoleServer>) -> Result<Call, ErrorData> {
    let by_http = context.extensions.get::<http::request::Parts>().and_then(|parts| parts.extensions.get::<Call>());
    let call = by_http.or_else(|| context.extensions.get::<Call>());
    let call = call.ok_or_else(|| ErrorData::internal_error("the request came without a call", None))?;
    Ok(call.clone().ended_by(context.ct.clone()))
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
