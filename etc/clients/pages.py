"""What README.md and docs/clients.md tell people to paste, and a machine on which it can be done: the program is on the PATH there."""

import json
import os
import pathlib
import re
import shlex
import socket

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
URL = "http://127.0.0.1:8000/lambda/mcp/"  # as the pages have it


def blocks():
    """Each fenced block about clients: the page and heading it stands under, its language, its text."""
    for page in (ROOT / "README.md", ROOT / "docs/clients.md"):
        heading = page.name
        for found in re.finditer(r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
            if found[1]:
                heading = found[1]
            elif page.name != "README.md" or heading == "Clients":
                yield f"{page.name}, {heading}", found[2], found[3]


def line(start: str, holding: str) -> list[str]:
    """The words of the line that starts and holds so."""
    for _, _, block in blocks():
        for said in block.splitlines():
            if said.startswith(start) and holding in said:
                return shlex.split(said)
    raise SystemExit(f"no page has a line that starts with {start} and holds {holding}")


def here(words: list[str]) -> list[str]:
    """The words with this run's address in them."""
    return [os.environ["SERVER_URL"] if word == URL else word for word in words]


def environment() -> dict[str, str]:
    """The environment, with `code-interpreter` on the PATH: the server to test, and what it wants to be started with."""
    folder = pathlib.Path(os.environ["HOME"]) / "bin"
    folder.mkdir(exist_ok=True)
    variables = [f"{name}={value}" for name, value in json.loads(os.environ["SERVER_ENV"]).items()]
    program = folder / "code-interpreter"
    own = shlex.join([*variables, json.loads(os.environ["SERVER_COMMAND"])[0]])
    program.write_text(f'#!/bin/sh\nexec env {own} "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
