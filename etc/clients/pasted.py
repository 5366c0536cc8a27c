"""Does what README.md and docs/clients.md tell people to paste: parses each block, starts the commands it names, asks the addresses.

What needs another program (npx, uvx, an agent) is run as it stands by that program's script; here it is seen to that it is.
"""

import json
import os
import pathlib
import shlex
import subprocess
import tomllib
import urllib.request

import pages
import yaml

DOOR = os.environ["DOOR"]
DOCKER_URL = pages.URL.replace("127.0.0.1", "host.docker.internal")
INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "pasted", "version": "1"}}
PRINT = {"name": "execute_python", "arguments": {"code": "print('hel' + 'lo')"}}
PARSERS = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
AGENTS = ("claude", "codex", "gemini")  # their scripts run the lines of paste.toml
PROGRAMS = ("code-interpreter", "/path/to/target/release/code-interpreter")
PASTED = pages.ROOT / "etc/clients/paste.toml"
OTHERS = (["npx", "-y", "mcp-remote"],)  # gateway.py runs it


class Wrong(Exception):
    """What is not right in a page."""


def servers(said):
    """All that a configuration tells to start or to ask."""
    if isinstance(said, dict):
        if "command" in said:
            yield [said["command"], *said.get("args", [])]
        for key in ("url", "httpUrl"):
            if key in said:
                yield said[key]
        for inner in said.values():
            yield from servers(inner)


def told(kind: str, block: str):
    """What a block tells: commands as lists, addresses as strings."""
    if kind in PARSERS:
        return list(servers(PARSERS[kind](block)))
    found = []
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        found += [words[words.index("code-interpreter") :]] if "code-interpreter" in words else []
        found += [word for word in words if word.startswith("http://")]
    return found


def ask(address: str) -> None:
    if address not in (pages.URL, DOCKER_URL):
        raise Wrong(f"names the address {address}")
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": PRINT}).encode()
    request = urllib.request.Request(os.environ["SERVER_URL"], body, {"content-type": "application/json", "accept": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as got:
        heard(got.read().decode())


def start(command: list[str]) -> None:
    if command[:3] in OTHERS:
        return
    if command[0] not in PROGRAMS:
        raise Wrong(f"starts {command[0]}")
    requests = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": PRINT},
    ]
    own = [pathlib.PurePath(command[0]).name, *command[1:]]
    with subprocess.Popen(own, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        for request in requests:
            server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        for line in server.stdout:
            if json.loads(line).get("id") == 2:
                heard(line)
                break
        server.stdin.close()


def heard(answer: str) -> None:
    if "hello" not in answer:
        raise Wrong(f"the answer was {answer[:200]}")


def lines_are_run() -> None:
    """Each line for an agent is one that its script runs: paste.toml has those."""
    run = {line for lines in tomllib.loads(PASTED.read_text()).values() for line in lines.values()}
    said = {line.partition("  #")[0].strip() for _, _, block in pages.blocks() for line in block.splitlines() if line.startswith(AGENTS)}
    if said != run:
        raise Wrong(f"only in the pages: {sorted(said - run)}; only in paste.toml: {sorted(run - said)}")


def say(check: str, works: list) -> None:
    faults = []
    for work, *given in works:
        try:
            work(*given)
        except Exception as wrong:
            faults.append(f"{type(wrong).__name__}: {wrong}")
    line = {"client": "pages", "version": "", "door": DOOR, "check": check, "ok": not faults, "note": "; ".join(faults)[:300]}
    print(json.dumps(line), flush=True)


ENVIRONMENT = pages.environment()
os.environ["PATH"] = ENVIRONMENT["PATH"]
places = {}
for place, kind, block in pages.blocks():
    works = places.setdefault(place, [])
    try:
        wanted = [one for one in told(kind, block) if isinstance(one, str) == (DOOR == "http")]
    except ValueError as wrong:
        raise SystemExit(f"{place}: can't be parsed: {wrong}") from wrong
    works += [(ask if isinstance(one, str) else start, one) for one in wanted]
for place, works in places.items():
    if works:
        say(f"what {place} says", works)
if DOOR == "stdio" and PASTED.exists():
    say("agents' lines are run as they stand", [(lines_are_run,)])
