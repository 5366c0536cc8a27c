"""Semantic Kernel: the contents that its plugin gives."""

import contextlib
import importlib.metadata

import checks
from semantic_kernel.connectors.mcp import MCPStdioPlugin, MCPStreamableHttpPlugin


class Session(checks.Session):
    def __init__(self, plugin):
        self.plugin = plugin

    async def tools(self):
        return [tool.name for tool in (await self.plugin.session.list_tools()).tools]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got = await self.plugin.call_tool(name, **arguments)
        texts = [getattr(part, "text", "") for part in got]
        images = [part.data_string for part in got if type(part).__name__ == "ImageContent"]
        return checks.seen([texts, images])


@contextlib.asynccontextmanager
async def open_session():
    if checks.DOOR == "stdio":
        plugin = MCPStdioPlugin(name="python", command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
    else:
        plugin = MCPStreamableHttpPlugin(name="python", url=checks.URL)
    async with plugin:
        yield Session(plugin)


NO_PROGRESS = "asks for no progress"
checks.run(
    "Semantic Kernel", importlib.metadata.version("semantic-kernel"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS},
)  # fmt: skip
