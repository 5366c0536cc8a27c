"""Codex CLI against a model that is a script."""

import os
import subprocess

from agents import DOOR, HOME, SERVER, SPIN, Checks, OpenAi, calls, end, interrupt, run, script, server_entry

CODEX = "codex"


def configure(address):
    """What a person writes, with a model that is on this machine."""
    model = f'model = "script"\nmodel_provider = "script"\n[model_providers.script]\nname = "script"\nbase_url = "{address}/v1"\nwire_api = "responses"\n'
    with open(os.path.join(HOME, "config.toml"), "w") as file:
        file.write(model + server())


def server():
    if DOOR == "http":
        return f'[mcp_servers.{SERVER}]\nurl = "{os.environ["SERVER_URL"]}"\ntool_timeout_sec = 150\n'
    command, arguments, environment = server_entry()
    variables = "".join(f'{name} = {value!r}\n' for name, value in environment.items())
    return (f'[mcp_servers.{SERVER}]\ncommand = "{command}"\nargs = {arguments}\ntool_timeout_sec = 150\n'
            f"[mcp_servers.{SERVER}.env]\n{variables}")


def main():
    environment = {"PATH": os.environ["PATH"], "HOME": HOME, "CODEX_HOME": HOME, "LANG": "C.UTF-8"}
    command = [CODEX, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-C", HOME, "go"]
    version = subprocess.run([CODEX, "--version"], env=environment, capture_output=True, text=True).stdout.split()[-1]
    checks = Checks("Codex CLI", version)

    model = OpenAi(calls())
    configure(model.address)
    checks.session(model, lambda: run(command, environment))

    model = OpenAi([("cancel", *script(code=SPIN, timeout=90))])
    configure(model.address)
    agent = interrupt(command, environment)
    checks.cancelled("Ctrl-C")
    end(agent)


main()
