"""Google's Agent Development Kit: what a tool gives to its agents."""

import contextlib
import importlib.metadata
from unittest.mock import MagicMock

import checks
from google.adk.tools.mcp_tool.mcp_session_manager import StdioConnectionParams, StreamableHTTPConnectionParams
from google.adk.tools.mcp_tool.mcp_toolset import McpToolset
from mcp import StdioServerParameters

CONTEXT = MagicMock(state={})  # the agent's, of which a call reads nothing here


class Session(checks.Session):
    def __init__(self, toolset):
        self.toolset = toolset

    async def tools(self):
        self.found = {tool.name: tool for tool in await self.toolset.get_tools()}
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got = await self.found[name]._run_async_impl(args=arguments, tool_context=CONTEXT, credential=None)
        return checks.seen(got["content"] if "content" in got else got, error=got.get("isError", got.get("is_error", "error" in got)))


@contextlib.asynccontextmanager
async def open_session():
    server = StreamableHTTPConnectionParams(url=checks.URL, timeout=60)
    if checks.DOOR == "stdio":
        server = StdioConnectionParams(server_params=StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV), timeout=60)
    toolset = McpToolset(connection_params=server)
    session = Session(toolset)
    await session.tools()
    try:
        yield session
    finally:
        await toolset.close()


NO_PROGRESS = "asks for no progress"
checks.run(
    "Google ADK", importlib.metadata.version("google-adk"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "unknown": "calls only tools that were listed"},
)  # fmt: skip
