"""Codex CLI against a model that is a script."""

import os
import subprocess

from agents import HOME, INTERRUPTED, PATH, Agent, Checks, calls, paste, run
from models import OpenAi

CODEX = "codex"
ENVIRONMENT = {"PATH": PATH, "HOME": HOME, "LANG": "C.UTF-8"}
MODEL = """model = "script"
model_provider = "script"
[model_providers.script]
name = "script"
base_url = "{address}/v1"
wire_api = "responses"
"""


def configure(address):
    os.makedirs(os.path.join(HOME, ".codex"), exist_ok=True)
    with open(os.path.join(HOME, ".codex", "config.toml"), "w") as file:
        file.write(MODEL.format(address=address))
    paste("codex", CODEX, ENVIRONMENT)


def main():
    command = [CODEX, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-C", HOME, "go"]
    version = subprocess.run([CODEX, "--version"], env=ENVIRONMENT, capture_output=True, text=True).stdout.split()[-1]
    checks = Checks("Codex CLI", version)

    model = OpenAi(calls())
    configure(model.address)
    checks.session(model, lambda: run(command, ENVIRONMENT))

    # What the programs with a window speak, and Escape in the terminal too.
    model = OpenAi(INTERRUPTED)
    configure(model.address)
    agent = Agent([CODEX, "app-server"], ENVIRONMENT)
    agent.ask("initialize", {"clientInfo": {"name": "script", "version": "1"}})
    agent.tell({"method": "initialized"})
    thread = agent.ask("thread/start", {"cwd": HOME, "approvalPolicy": "never", "sandbox": "danger-full-access"})["thread"]["id"]

    def turn(text):
        return agent.ask("turn/start", {"threadId": thread, "input": [{"type": "text", "text": text}]})["turn"]["id"]

    first = turn("go")
    checks.cancelled(model, agent, lambda: agent.ask("turn/interrupt", {"threadId": thread, "turnId": first}), lambda: turn("go on"))


main()
