"""The Inspector's command line: a program for each call, which prints the protocol's result as JSON."""

import asyncio
import contextlib
import json
import os
import pathlib
import sys

import checks


class Session(checks.Session):
    async def inspector(self, *words):
        server = [str(checks.URL), "--transport", "http"]
        if checks.DOOR == "stdio":
            server = [word for name, value in checks.ENV.items() for word in ("-e", f"{name}={value}")] + checks.COMMAND
        program = await asyncio.create_subprocess_exec("mcp-inspector", "--cli", *server, *words, stdout=-1, stderr=-1)
        out, err = await program.communicate()
        sys.stderr.buffer.write(err)
        try:
            return json.loads(out)
        except ValueError:
            raise RuntimeError((err or out).decode(errors="replace").strip()[:300]) from None

    async def tools(self):
        return [tool["name"] for tool in (await self.inspector("--method", "tools/list"))["tools"]]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        given = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in arguments.items()]
        words = [word for one in given for word in ("--tool-arg", one)]
        got = await self.inspector("--method", "tools/call", "--tool-name", name, *words)
        texts = [part["text"] for part in got["content"] if part["type"] == "text"]
        images = [part["data"] for part in got["content"] if part["type"] == "image"]
        return checks.Answer("".join(texts), images, bool(got.get("isError")))


@contextlib.asynccontextmanager
async def open_session():
    yield Session()


PACKAGE = pathlib.Path(os.environ["ENVIRONMENT"]) / "node_modules/@modelcontextprotocol/inspector/package.json"
NO_PROGRESS = "prints one answer"
checks.run(
    "Inspector", json.loads(PACKAGE.read_text())["version"], open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "cancel": "one call, no way to end it but ending the program"},
)  # fmt: skip
