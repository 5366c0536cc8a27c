"""pydantic-ai: an agent run with a model that says what it is told to; what counts are the parts of its next request."""

import contextlib
import importlib.metadata

import checks
from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse, RetryPromptPart, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel


class Session(checks.Session):
    def __init__(self, toolset):
        self.toolset = toolset

    async def tools(self):
        return [tool.name for tool in await self.toolset.list_tools()]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got = []

        def says(messages, info):
            if not any(message.kind == "response" for message in messages):
                return ModelResponse([ToolCallPart(name, arguments)])
            got.extend(messages[-1].parts)
            return ModelResponse([TextPart("done")])

        await Agent(FunctionModel(says), toolsets=[self.toolset]).run("go")
        return checks.seen([part.content for part in got], error=any(isinstance(part, RetryPromptPart) for part in got) or None)


@contextlib.asynccontextmanager
async def open_session():
    server = checks.URL
    if checks.DOOR == "stdio":
        server = StdioTransport(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV, keep_alive=False)
    async with MCPToolset(server) as toolset:
        yield Session(toolset)


NO_PROGRESS = "asks for no progress"
checks.run(
    "pydantic-ai", importlib.metadata.version("pydantic-ai-slim"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "unknown": "the framework answers itself where a tool is not known"},
)  # fmt: skip
