"""Claude Code against a model that is a script."""

import glob
import json
import os
import subprocess

from agents import DOOR, ENVIRONMENT, HOME, SERVER, SPIN, Anthropic, Checks, await_code, calls, end, run, script, server_entry

# The program itself: what is on the PATH is a script that wants to have installed it first.
CLAUDE = glob.glob(f"{ENVIRONMENT}/node_modules/@anthropic-ai/claude-code-*/claude")[0]


def configure():
    """What `claude mcp add` writes into a project: the file is the same for a team."""
    if DOOR == "http":
        entry = {"type": "http", "url": os.environ["SERVER_URL"]}
    else:
        command, arguments, variables = server_entry()
        entry = {"type": "stdio", "command": command, "args": arguments, "env": variables}
    path = os.path.join(HOME, "mcp.json")
    with open(path, "w") as file:
        json.dump({"mcpServers": {SERVER: entry}}, file)
    return path


def environment(model):
    return {
        "PATH": os.environ["PATH"], "HOME": HOME, "LANG": "C.UTF-8",
        "ANTHROPIC_BASE_URL": model.address, "ANTHROPIC_API_KEY": "none",
        "ENABLE_TOOL_SEARCH": "false", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
    }


def main():
    command = [CLAUDE, "-p", "--mcp-config", configure(), "--strict-mcp-config", "--allowedTools", f"mcp__{SERVER}", "--verbose"]
    model = Anthropic(calls())
    said = subprocess.run([CLAUDE, "--version"], env=environment(model), capture_output=True, text=True).stdout
    checks = Checks("Claude Code", said.split()[0])
    checks.session(model, lambda: run([*command, "--", "go"], environment(model)))

    # A person's Escape, while the code runs; the session goes on.
    model = Anthropic([("cancel", *script(code=SPIN, timeout=90)), ("after", *script(code="print(1)"))])
    streams = ["--input-format", "stream-json", "--output-format", "stream-json"]
    agent = subprocess.Popen([*command, *streams], env=environment(model), stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    tell(agent, {"type": "user", "message": {"role": "user", "content": "go"}})
    await_code(agent)
    tell(agent, {"type": "control_request", "request_id": "1", "request": {"subtype": "interrupt"}})
    checks.cancelled("interrupt")
    tell(agent, {"type": "user", "message": {"role": "user", "content": "go on"}})
    checks.say("interrupted session", model.finished.wait(30), "the next call after the interrupt is answered")
    agent.stdin.close()
    end(agent)


def tell(agent, message):
    agent.stdin.write(json.dumps(message) + "\n")
    agent.stdin.flush()


main()
