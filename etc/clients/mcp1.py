"""The `mcp` package 1.x, from 1.8 on."""

import contextlib
import importlib.metadata
import inspect

import checks
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client

HAS_CALLBACK = "progress_callback" in inspect.signature(ClientSession.call_tool).parameters


class Session(checks.Session):
    def __init__(self, session, told):
        self.session, self.told = session, told

    async def tools(self):
        return [tool.name for tool in (await self.session.list_tools()).tools]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        self.number = self.session._request_id
        if progress is None:
            return checks.answer(await self.session.call_tool(name, arguments))
        if HAS_CALLBACK:
            async def told(done, total, message=None):
                progress.append(message)

            return checks.answer(await self.session.call_tool(name, arguments, progress_callback=told))
        self.told[:] = [progress]
        params = types.CallToolRequestParams(name=name, arguments=arguments, _meta={"progressToken": self.number})
        request = types.CallToolRequest(method="tools/call", params=params)
        return checks.answer(await self.session.send_request(types.ClientRequest(request), types.CallToolResult))

    async def cancel(self, running):
        # Cancelling the task sends nothing in 1.x: a host that means it sends the notification.
        params = types.CancelledNotificationParams(requestId=self.number, reason="the user")
        note = types.CancelledNotification(method="notifications/cancelled", params=params)
        await self.session.send_notification(types.ClientNotification(note))


@contextlib.asynccontextmanager
async def open_session():
    told = []

    async def heard(message):
        root = getattr(message, "root", message)
        if told and isinstance(root, types.ProgressNotification):
            told[0].append(root.params.progress)

    if checks.DOOR == "stdio":
        server = StdioServerParameters(command=checks.COMMAND[0], args=checks.COMMAND[1:], env=checks.ENV)
        transport = stdio_client(server)
    else:
        transport = streamablehttp_client(checks.URL)
    async with transport as (reader, writer, *_), ClientSession(reader, writer, message_handler=heard) as session:
        await session.initialize()
        yield Session(session, told)


checks.run("mcp (Python)", importlib.metadata.version("mcp"), open_session)
