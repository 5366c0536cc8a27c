"""DSPy: its loader turns each tool into a `dspy.Tool`; what a call gives is what its agents show to a model."""

import contextlib
import importlib.metadata

import checks
import dspy
from mcp import Client, StdioServerParameters


class Session(checks.Session):
    def __init__(self, client):
        self.client = client

    async def tools(self):
        listed = (await self.client.list_tools()).tools
        self.found = {tool.name: dspy.Tool.from_mcp_tool(self.client, tool) for tool in listed}
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        try:
            return checks.seen(await self.found[name].acall(**arguments))
        except RuntimeError as told:  # how DSPy tells what is marked as an error
            return checks.Answer(str(told), error=True)


@contextlib.asynccontextmanager
async def open_session():
    server = checks.URL
    if checks.DOOR == "stdio":
        server = StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
    async with Client(server, mode="legacy") as client:
        session = Session(client)
        await session.tools()
        yield session


NO_PROGRESS = "asks for no progress"
checks.run(
    "DSPy", importlib.metadata.version("dspy"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "unknown": "calls only tools that were listed"},
)  # fmt: skip
