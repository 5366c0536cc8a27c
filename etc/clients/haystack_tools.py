"""Haystack: what a tool gives to its agents, or the words of the error that it raises."""

import asyncio
import contextlib
import importlib.metadata
import json

import checks
from haystack.tools.errors import ToolInvocationError
from haystack_integrations.tools.mcp import MCPToolset, StdioServerInfo, StreamableHttpServerInfo


class Session(checks.Session):
    def __init__(self, tools):
        self.found = {tool.name: tool for tool in tools}

    async def tools(self):
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        try:
            got = await asyncio.to_thread(lambda: self.found[name].invoke(**arguments))
        except ToolInvocationError as told:  # its agents hand these words to the model
            return checks.seen(str(told), error=True)
        return checks.seen(json.loads(got) if isinstance(got, str) else got)


@contextlib.asynccontextmanager
async def open_session():
    if checks.DOOR == "stdio":
        server = StdioServerInfo(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
    else:
        server = StreamableHttpServerInfo(url=checks.URL)
    toolset = await asyncio.to_thread(lambda: MCPToolset(server, invocation_timeout=60))
    await asyncio.to_thread(toolset.warm_up)
    try:
        yield Session(toolset)
    finally:
        await asyncio.to_thread(toolset.close)


NO_PROGRESS = "asks for no progress"
checks.run(
    "Haystack", importlib.metadata.version("mcp-haystack"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "cancel": "calls can't be given up", "unknown": "calls only tools that were listed"},
)  # fmt: skip
