"""AutoGen: its loader turns each input schema into a pydantic class, and a call gives the text that its agents show to a model."""

import contextlib
import importlib.metadata

import checks
from autogen_core import CancellationToken
from autogen_ext.tools.mcp import McpWorkbench, StdioServerParams, StreamableHttpServerParams, mcp_server_tools

SERVER = StreamableHttpServerParams(url=checks.URL)
if checks.DOOR == "stdio":
    SERVER = StdioServerParams(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV, read_timeout_seconds=60)


class Session(checks.Session):
    def __init__(self, workbench):
        self.workbench = workbench

    async def tools(self):
        return [tool.schema["name"] for tool in await mcp_server_tools(SERVER)]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        self.token = CancellationToken()
        got = await self.workbench.call_tool(name, arguments, self.token)
        return checks.seen(got.result, error=got.is_error)

    async def cancel(self, running):
        self.token.cancel()


@contextlib.asynccontextmanager
async def open_session():
    async with McpWorkbench(SERVER) as workbench:
        yield Session(workbench)


NO_PROGRESS = "asks for no progress"
checks.run("AutoGen", importlib.metadata.version("autogen-ext"), open_session, {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS})
