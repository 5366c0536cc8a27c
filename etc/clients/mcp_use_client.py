"""mcp-use."""

import contextlib
import importlib.metadata
import os

os.environ["MCP_USE_ANONYMIZED_TELEMETRY"] = "false"

import checks
from mcp_use import MCPClient


class Session(checks.Session):
    def __init__(self, session):
        self.session = session

    async def tools(self):
        return [tool.name for tool in await self.session.list_tools()]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        return checks.answer(await self.session.call_tool(name, arguments))


@contextlib.asynccontextmanager
async def open_session():
    server = {"url": checks.URL}
    if checks.DOOR == "stdio":
        server = {"command": checks.COMMAND[0], "args": checks.COMMAND[1:], "env": checks.ENV}
    client = MCPClient.from_dict({"mcpServers": {"python": server}})
    await client.create_all_sessions()
    try:
        yield Session(client.get_session("python"))
    finally:
        await client.close_all_sessions()


NO_PROGRESS = "asks for no progress"
checks.run(
    "mcp-use", importlib.metadata.version("mcp-use"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS},
)  # fmt: skip
