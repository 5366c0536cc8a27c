"""mcpo, started by the lines that docs/clients.md tells to paste: what counts is what its HTTP endpoints answer."""

import asyncio
import contextlib
import importlib.metadata
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import checks
import pages


class Session(checks.Session):
    def __init__(self, address):
        self.address = address

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/{path}", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as got:
                return json.load(got), False
        except urllib.error.HTTPError as refused:
            return json.loads(refused.read()), True

    async def tools(self):
        found, _ = await asyncio.to_thread(self.ask, "openapi.json")
        return [path.strip("/") for path in found["paths"]]

    async def call(self, arguments, name=checks.TOOL, progress=None):
        got, error = await asyncio.to_thread(self.ask, name, arguments)
        return checks.seen(got, error=error)


@contextlib.asynccontextmanager
async def open_session():
    said = pages.line("uvx", "-- code-interpreter stdio" if checks.DOOR == "stdio" else "streamable-http")
    port = pages.free_port()
    words = pages.here(said[next(place for place, word in enumerate(said) if word.startswith("mcpo==")) + 1 :])
    words[words.index("--port") + 1] = str(port)
    mcpo = subprocess.Popen(["mcpo", *words], env=pages.environment(), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        session = Session(f"http://127.0.0.1:{port}")
        started = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                await session.tools()
                break
            if mcpo.poll() is not None or time.monotonic() - started > 30:
                raise RuntimeError("mcpo did not start")
            await asyncio.sleep(0.1)
        yield session
    finally:
        mcpo.terminate()
        mcpo.wait()


NO_PROGRESS = "answers once"
checks.run(
    "mcpo", importlib.metadata.version("mcpo"), open_session,
    {"progress": NO_PROGRESS, "heartbeat": NO_PROGRESS, "cancel": "does not notice that its client has gone"},
)  # fmt: skip
