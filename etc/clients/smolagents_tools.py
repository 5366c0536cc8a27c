"""smolagents: what a tool gives to its agents."""

import asyncio
import contextlib
import importlib.metadata

import checks
from mcp import StdioServerParameters
from smolagents import MCPClient


class Session(checks.Session):
    def __init__(self, tools):
        self.found = {tool.name: tool for tool in tools}

    async def tools(self):
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got = await asyncio.to_thread(lambda: self.found[name](**arguments))
        return checks.seen(got if isinstance(got, (str, dict, list)) else str(got))


@contextlib.asynccontextmanager
async def open_session():
    server = {"url": checks.URL, "transport": "streamable-http"}
    if checks.DOOR == "stdio":
        server = StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
    client = await asyncio.to_thread(lambda: MCPClient(server, structured_output=False))
    try:
        yield Session(client.get_tools())
    finally:
        await asyncio.to_thread(client.disconnect)


NO_PROGRESS = "asks for no progress"
checks.run(
    "smolagents", importlib.metadata.version("smolagents"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "cancel": "calls can't be given up", "unknown": "calls only tools that were listed"},
)  # fmt: skip
