"""openai-agents: an agent run with a model that says what it is told to; what counts is the tool's output in its next request."""

import contextlib
import importlib.metadata
import json

import checks
from agents import Agent, Runner, set_tracing_disabled
from agents.items import ModelResponse
from agents.mcp import MCPServerStdio, MCPServerStreamableHttp
from agents.models.interface import Model
from agents.usage import Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

set_tracing_disabled(True)


class Says(Model):
    def __init__(self, name, arguments):
        self.calls, self.got = [(name, json.dumps(arguments))], None

    async def get_response(self, system_instructions, input, *_, **__):
        if self.calls:
            name, arguments = self.calls.pop()
            output = ResponseFunctionToolCall(type="function_call", call_id="c", name=name, arguments=arguments)
        else:
            self.got = input[-1]["output"]
            text = ResponseOutputText(type="output_text", text="done", annotations=[])
            output = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[output], usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise NotImplementedError


class Session(checks.Session):
    def __init__(self, server):
        self.server = server

    async def tools(self):
        return [tool.name for tool in await self.server.list_tools()]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        model = Says(name, arguments)
        await Runner.run(Agent(name="check", model=model, mcp_servers=[self.server]), "go")
        return checks.seen(model.got)


@contextlib.asynccontextmanager
async def open_session():
    if checks.DOOR == "stdio":
        server = MCPServerStdio({"command": checks.COMMAND[0], "args": checks.COMMAND[1:], "env": checks.ENV}, client_session_timeout_seconds=60)
    else:
        server = MCPServerStreamableHttp({"url": checks.URL}, client_session_timeout_seconds=60)
    async with server:
        yield Session(server)


NO_PROGRESS = "asks for no progress"
checks.run(
    "openai-agents", importlib.metadata.version("openai-agents"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "unknown": "the framework answers itself where a tool is not known"},
)  # fmt: skip
