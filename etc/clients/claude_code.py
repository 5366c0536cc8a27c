"""Claude Code against a model that is a script."""

import glob
import subprocess

from agents import ENVIRONMENT, HOME, INTERRUPTED, PATH, Agent, Checks, calls, paste, run
from models import SERVER, Anthropic

# The program itself: what is on the PATH is a script that wants to have installed it first.
CLAUDE = glob.glob(f"{ENVIRONMENT}/node_modules/@anthropic-ai/claude-code-*/claude")[0]


def environment(model):
    return {
        "PATH": PATH, "HOME": HOME, "LANG": "C.UTF-8",
        "ANTHROPIC_BASE_URL": model.address, "ANTHROPIC_API_KEY": "none",
        "ENABLE_TOOL_SEARCH": "false", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
    }


def main():
    command = [CLAUDE, "-p", "--allowedTools", f"mcp__{SERVER}", "--verbose"]
    model = Anthropic(calls())
    paste("claude-code", CLAUDE, environment(model))
    said = subprocess.run([CLAUDE, "--version"], env=environment(model), capture_output=True, text=True).stdout
    checks = Checks("Claude Code", said.split()[0])
    checks.session(model, lambda: run([*command, "--", "go"], environment(model)))

    # What Escape does.
    model = Anthropic(INTERRUPTED)
    agent = Agent([*command, "--input-format", "stream-json", "--output-format", "stream-json"], environment(model))

    def turn(text):
        agent.tell({"type": "user", "message": {"role": "user", "content": text}})

    turn("go")
    interrupt = {"type": "control_request", "request_id": "1", "request": {"subtype": "interrupt"}}
    checks.cancelled(model, agent, lambda: agent.tell(interrupt), lambda: turn("go on"))


main()
