"""langchain-mcp-adapters under a LangGraph agent with a model that says what it is told to: what counts is the tool message it gets."""

import contextlib
import importlib.metadata

import checks
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from langgraph.prebuilt import create_react_agent

SERVER = {"transport": "streamable_http", "url": checks.URL}
if checks.DOOR == "stdio":
    SERVER = {"transport": "stdio", "command": checks.COMMAND[0], "args": checks.COMMAND[1:], "env": checks.ENV}


class Model(GenericFakeChatModel):
    def bind_tools(self, *_, **__):
        return self


class Session(checks.Session):
    def __init__(self):
        self.told = None
        self.client = MultiServerMCPClient({"python": SERVER}, callbacks=Callbacks(on_progress=self.on_progress))

    async def on_progress(self, done, total, message, context):
        if self.told is not None:
            self.told.append(message)

    async def tools(self):
        self.found = await self.client.get_tools()
        return [tool.name for tool in self.found]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        self.told = progress
        says = [AIMessage("", tool_calls=[{"id": "1", "name": name, "args": arguments}]), AIMessage("done")]
        agent = create_react_agent(Model(messages=iter(says)), self.found)
        message = (await agent.ainvoke({"messages": [("user", "go")]}))["messages"][-2]
        return checks.seen(message.content, error=message.status == "error" or None)


@contextlib.asynccontextmanager
async def open_session():
    session = Session()
    await session.tools()
    yield session


checks.run(
    "langchain-mcp-adapters", importlib.metadata.version("langchain-mcp-adapters"), open_session,
    {"unknown": "LangGraph answers itself where a tool is not known"},
)  # fmt: skip
