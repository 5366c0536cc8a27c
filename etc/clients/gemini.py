"""Gemini CLI against a model that is a script."""

import json
import os
import subprocess

from agents import HOME, PATH, SPIN, Checks, Gemini, calls, end, interrupt, paste, run, script

GEMINI = "gemini"
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
    command = [GEMINI, "--skip-trust", "--approval-mode", "yolo", "--model", "gemini-2.5-flash", "--prompt", "go"]
    model = Gemini(calls())
    paste("gemini", GEMINI, environment(model))
    said = subprocess.run([GEMINI, "--version"], env=environment(model), capture_output=True, text=True).stdout
    checks = Checks("Gemini CLI", said.split()[-1])
    checks.session(model, lambda: run(command, environment(model)))

    model = Gemini([("cancel", *script(code=SPIN, timeout=90))])
    agent = interrupt(command, environment(model))
    checks.cancelled("Ctrl-C")
    end(agent)


main()
