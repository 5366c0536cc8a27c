"""Agno: the result that a tool gives to its agents."""

import contextlib
import importlib.metadata
import inspect
from types import SimpleNamespace

import checks
from agno.tools.mcp import MCPTools
from mcp import StdioServerParameters


class Session(checks.Session):
    def __init__(self, toolkit):
        self.found = toolkit.functions

    async def tools(self):
        return list(self.found)

    async def call(self, arguments, name=checks.TOOL, progress=None):
        entry = self.found[name].entrypoint
        context = {"run_context": None, "agent": SimpleNamespace(name="check"), "team": None}
        given = {key: value for key, value in context.items() if key in inspect.signature(entry).parameters}
        got = await entry(**given, **arguments)
        if isinstance(got, str):
            return checks.seen(got, error=True)
        return checks.seen([got.content, [image.content for image in got.images or []]])


@contextlib.asynccontextmanager
async def open_session():
    if checks.DOOR == "stdio":
        toolkit = MCPTools(server_params=StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV), timeout_seconds=60)
    else:
        toolkit = MCPTools(transport="streamable-http", url=checks.URL, timeout_seconds=60)
    async with toolkit:
        yield Session(toolkit)


NO_PROGRESS = "asks for no progress"
checks.run(
    "Agno", importlib.metadata.version("agno"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "unknown": "calls only tools that were listed"},
)  # fmt: skip
