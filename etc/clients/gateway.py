"""The `mcp` package 1.x through a gateway, which the argument names: in the door `http` it makes stdio of the HTTP door, in `stdio` HTTP of the stdio door."""

import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pages

KIND = sys.argv[1]
HERE = pathlib.Path(__file__).resolve().parent
URL = os.environ["SERVER_URL"]
CLIENT = [sys.executable, "-P", HERE / "mcp1.py"]


def remote() -> list[str]:
    """mcp-remote as docs/clients.md configures it for Claude Desktop."""
    for _, kind, block in pages.blocks():
        if kind == "json" and "mcp-remote" in block:
            words = json.loads(block)["mcpServers"]["python"]["args"]
            return pages.here(words[words.index("mcp-remote") :])
    raise SystemExit("no page says how to start mcp-remote")


def version() -> str:
    file = pathlib.Path(os.environ["ENVIRONMENT"]) / "node_modules" / KIND / "package.json"
    return json.loads(file.read_text())["version"] if file.exists() else importlib.metadata.version(KIND)


def to_http(command: list[str], path: str) -> int:
    """Starts the gateway, and the client against its port."""
    port = pages.free_port()
    gateway = subprocess.Popen([word.replace("PORT", str(port)) for word in command], env=pages.environment(), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        changed = {"DOOR": "http", "SERVER_URL": f"http://127.0.0.1:{port}{path}"}
        return subprocess.run(CLIENT, env=os.environ | changed).returncode
    finally:
        gateway.terminate()
        gateway.wait()


def to_stdio(command: list[str]) -> None:
    changed = {"DOOR": "stdio", "SERVER_COMMAND": json.dumps(command), "SERVER_ENV": json.dumps(dict(os.environ))}
    os.execve(CLIENT[0], CLIENT, os.environ | changed)


os.environ["SHOWN_VERSION"] = version()
match KIND, os.environ["DOOR"]:
    case "mcp-remote", "http":
        to_stdio(remote())
    case "supergateway", "http":
        to_stdio(["supergateway", "--logLevel", "none", "--streamableHttp", URL])
    case "mcp-proxy", "http":
        to_stdio(["mcp-proxy", "--transport", "streamablehttp", URL])
    case "mcp-proxy", "stdio":
        sys.exit(to_http(["mcp-proxy", "--pass-environment", "--host", "127.0.0.1", "--port", "PORT", "--", "code-interpreter", "stdio"], "/mcp"))
