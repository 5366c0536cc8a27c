"""Gemini CLI against a model that is a script."""

import json
import os
import subprocess

from agents import HOME, INTERRUPTED, PATH, Agent, Checks, calls, paste, run
from models import Gemini

GEMINI = "gemini"
OPTIONS = ["--skip-trust", "--approval-mode", "yolo", "--model", "gemini-2.5-flash"]
SETTINGS = {
    "security": {"auth": {"selectedType": "gemini-api-key"}},
    "privacy": {"usageStatisticsEnabled": False},
    "general": {"enableAutoUpdate": False},
}


def environment(model):
    return {
        "PATH": PATH, "HOME": HOME, "LANG": "C.UTF-8",
        "GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": model.address,
    }


def main():
    os.makedirs(os.path.join(HOME, ".gemini"), exist_ok=True)
    with open(os.path.join(HOME, ".gemini", "settings.json"), "w") as file:
        json.dump(SETTINGS, file)
    model = Gemini(calls())
    paste("gemini", GEMINI, environment(model))
    said = subprocess.run([GEMINI, "--version"], env=environment(model), capture_output=True, text=True).stdout
    checks = Checks("Gemini CLI", said.split()[-1])
    checks.session(model, lambda: run([GEMINI, *OPTIONS, "--prompt", "go"], environment(model)))

    # What editors speak.
    model = Gemini(INTERRUPTED)
    agent = Agent([GEMINI, "--acp", *OPTIONS], environment(model))
    agent.ask("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
    agent.ask("authenticate", {"methodId": "gemini-api-key"})
    session = agent.ask("session/new", {"cwd": HOME, "mcpServers": []})["sessionId"]

    def turn(text):
        return agent.begin("session/prompt", {"sessionId": session, "prompt": [{"type": "text", "text": text}]})

    first = turn("go")

    def stop():
        agent.tell({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": session}})
        agent.answer(first)

    checks.cancelled(model, agent, stop, lambda: turn("go on"))


main()
