"""Strands Agents: the tool result that its agents hand to a model."""

import asyncio
import contextlib
import importlib.metadata
from datetime import timedelta

import checks
from mcp import StdioServerParameters, stdio_client
from strands.tools.mcp import MCPClient

try:
    from mcp.client.streamable_http import streamable_http_client as http_client
except ImportError:
    from mcp.client.streamable_http import streamablehttp_client as http_client


def transport():
    if checks.DOOR == "stdio":
        return stdio_client(StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV))
    return http_client(checks.URL)


class Session(checks.Session):
    def __init__(self, client):
        self.client = client

    async def tools(self):
        return [tool.tool_name for tool in await asyncio.to_thread(self.client.list_tools_sync)]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got = await self.client.call_tool_async("1", name, arguments, read_timeout_seconds=timedelta(seconds=60))
        return checks.seen(got["content"], error=got["status"] == "error")


@contextlib.asynccontextmanager
async def open_session():
    client = MCPClient(transport)
    await asyncio.to_thread(client.__enter__)
    try:
        yield Session(client)
    finally:
        await asyncio.to_thread(client.__exit__, None, None, None)


NO_PROGRESS = "asks for no progress"
checks.run("Strands Agents", importlib.metadata.version("strands-agents"), open_session, {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS})
