"""The `mcp` package 2.x; the argument is the era: auto, legacy or 2026-07-28."""

import contextlib
import importlib.metadata
import sys

import checks
from mcp import Client, StdioServerParameters


class Session(checks.Session):
    def __init__(self, client):
        self.client = client

    async def tools(self):
        return [tool.name for tool in (await self.client.list_tools()).tools]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        async def told(done, total, message=None):
            progress.append(message)

        return checks.answer(await self.client.call_tool(name, arguments, progress_callback=None if progress is None else told))


@contextlib.asynccontextmanager
async def open_session():
    server = checks.URL
    if checks.DOOR == "stdio":
        server = StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
    async with Client(server, mode=sys.argv[1]) as client:
        yield Session(client)


checks.run("mcp (Python)", importlib.metadata.version("mcp"), open_session)
