"""Codex CLI against a model that is a script."""

import os
import subprocess

from agents import HOME, PATH, SPIN, Checks, OpenAi, calls, end, interrupt, paste, run, script

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

    model = OpenAi([("cancel", *script(code=SPIN, timeout=90))])
    configure(model.address)
    agent = interrupt(command, ENVIRONMENT)
    checks.cancelled("Ctrl-C")
    end(agent)


main()
