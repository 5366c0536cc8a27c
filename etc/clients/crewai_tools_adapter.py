"""crewai-tools: the text that a tool gives to its agents."""

import asyncio
import contextlib
import importlib.metadata

import checks
from crewai_tools import MCPServerAdapter
from mcp import StdioServerParameters


class Session(checks.Session):
    def __init__(self, tools):
        self.found = {tool.name: tool for tool in tools}

    async def tools(self):
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        return checks.seen(await asyncio.to_thread(lambda: self.found[name].run(**arguments)))


@contextlib.asynccontextmanager
async def open_session():
    server = {"url": checks.URL, "transport": "streamable-http"}
    if checks.DOOR == "stdio":
        server = StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
    adapter = await asyncio.to_thread(MCPServerAdapter, server)
    try:
        yield Session(adapter.tools)
    finally:
        await asyncio.to_thread(adapter.stop)


NO_PROGRESS = "asks for no progress"
checks.run(
    "crewai-tools", importlib.metadata.version("crewai-tools"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "cancel": "calls can't be given up", "unknown": "calls only tools that were listed"},
)  # fmt: skip
