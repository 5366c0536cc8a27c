"""Gemini CLI against a model that is a script."""

import json
import os
import subprocess

from agents import DOOR, HOME, SERVER, SPIN, Checks, Gemini, calls, end, interrupt, run, script, server_entry

GEMINI = "gemini"


def configure():
    """What a person writes into settings.json. `trust` leaves out the question before each call."""
    if DOOR == "http":
        entry = {"httpUrl": os.environ["SERVER_URL"]}
    else:
        command, arguments, variables = server_entry()
        entry = {"command": command, "args": arguments, "env": variables}
    settings = {
        "mcpServers": {SERVER: {**entry, "timeout": 150_000, "trust": True}},
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
    }
    os.makedirs(os.path.join(HOME, ".gemini"), exist_ok=True)
    with open(os.path.join(HOME, ".gemini", "settings.json"), "w") as file:
        json.dump(settings, file)


def environment(model):
    return {
        "PATH": os.environ["PATH"], "HOME": HOME, "LANG": "C.UTF-8",
        "GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": model.address,
    }


def main():
    configure()
    command = [GEMINI, "--skip-trust", "--approval-mode", "yolo", "--model", "gemini-2.5-flash", "--prompt", "go"]
    model = Gemini(calls())
    said = subprocess.run([GEMINI, "--version"], env=environment(model), capture_output=True, text=True).stdout
    checks = Checks("Gemini CLI", said.split()[-1])
    checks.session(model, lambda: run(command, environment(model)))

    model = Gemini([("cancel", *script(code=SPIN, timeout=90))])
    agent = interrupt(command, environment(model))
    checks.cancelled("Ctrl-C")
    end(agent)


main()
