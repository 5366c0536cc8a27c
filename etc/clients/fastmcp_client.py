"""FastMCP's own client."""

import contextlib
import importlib.metadata

import checks
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport


class Session(checks.Session):
    def __init__(self, client):
        self.client = client

    async def tools(self):
        return [tool.name for tool in await self.client.list_tools()]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        async def told(done, total, message=None):
            progress.append(message)

        handler = None if progress is None else told
        return checks.answer(await self.client.call_tool(name, arguments, progress_handler=handler, raise_on_error=False))


@contextlib.asynccontextmanager
async def open_session():
    if checks.DOOR == "stdio":
        transport = StdioTransport(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV, keep_alive=False)
    else:
        transport = StreamableHttpTransport(checks.URL)
    async with Client(transport) as client:
        yield Session(client)


checks.run("FastMCP", importlib.metadata.version("fastmcp"), open_session)
