"""LlamaIndex: the blocks of a tool's output, which its agents hand to a model."""

import contextlib
import importlib.metadata

import checks
from llama_index.tools.mcp import BasicMCPClient, McpToolSpec


class Session(checks.Session):
    async def tools(self):
        if checks.DOOR == "stdio":
            client = BasicMCPClient(checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV, timeout=60)
        else:
            client = BasicMCPClient(checks.URL, timeout=60)
        tools = await McpToolSpec(client=client).to_tool_list_async()
        self.found = {tool.metadata.name: tool for tool in tools}
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got = await self.found[name].acall(**arguments)
        return checks.seen(got.blocks, error=got.is_error or None)


@contextlib.asynccontextmanager
async def open_session():
    session = Session()
    await session.tools()
    yield session


NO_PROGRESS = "asks for no progress"
checks.run(
    "LlamaIndex", importlib.metadata.version("llama-index-tools-mcp"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "unknown": "calls only tools that were listed"},
)  # fmt: skip
