"""Claude Code against a model that is a script."""

import glob
import json
import subprocess

from agents import ENVIRONMENT, HOME, PATH, SERVER, SPIN, Anthropic, Checks, await_code, calls, end, paste, run, script

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

    # What a person does with Escape while the code runs; the session goes on.
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
