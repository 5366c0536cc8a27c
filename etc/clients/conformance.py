"""Runs the MCP conformance suite against `conformance-server`: this server with the tools that the suite calls.

The rule it keeps: whatever a check finds wrong, a SHOULD as well as a MUST, is in `conformance.toml` with the reason, and
nothing is there that passes. The suite has a list like that of its own, which has no reasons and judges only a part.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

from environments import Environments
from run import BUILD, HERE, ROOT, Server, uv

# The suite's version, what the table calls it, and what is asked of it.
RUNS = [
    ("0.1", "0.1.16", "2025-11-25", ["--suite", "all"]),
    ("0.2", "0.2.0-alpha.12", "2025-06-18", ["--suite", "all", "--spec-version", "2025-06-18"]),
    ("0.2", "0.2.0-alpha.12", "2025-11-25", ["--requirements", "2025-11-25"]),
    ("0.2", "0.2.0-alpha.12", "2026-07-28", ["--requirements", "2026-07-28"]),
]
# What a message looks like is never excused, wherever it was seen.
ALWAYS = "wire-schema-valid"
PAGE = ROOT / "docs" / "conformance.md"
START, END = "<!-- conformance -->\n", "<!-- /conformance -->"


class Expected:
    """Failures with their reason: `scenario` or `scenario:check`."""

    def __init__(self, entries: list[dict]):
        self.why = {name: entry["why"] for entry in entries for name in entry["checks"]}
        self.met, self.passed = set(), set()

    def take(self, scenario: str, checks: list[dict]) -> tuple[int, int, list[str]]:
        """How many passed, how many failed as expected, and what failed besides."""
        failed = [check for check in checks if check["status"] in ("FAILURE", "WARNING")]
        names = {name for name in (scenario, *(f"{scenario}:{check['id']}" for check in checks)) if name in self.why}
        unexpected, met = [], set()
        for check in failed:
            fitting = {scenario, f"{scenario}:{check['id']}"} & names if check["id"] != ALWAYS else set()
            if not fitting:
                unexpected.append(f"{scenario}:{check['id']}: {' '.join((check.get('errorMessage') or check['description']).split())}")
            met |= fitting
        self.met |= met
        self.passed |= names - met
        return sum(check["status"] == "SUCCESS" for check in checks), len(failed) - len(unexpected), unexpected

    def stale(self) -> list[str]:
        """What is listed and never failed."""
        return [f"{name} {'passes' if name in self.passed else 'was not run'}" for name in self.why if name not in self.met]

    def reasons(self) -> str:
        whys = {}
        for name, why in self.why.items():
            whys.setdefault(why, []).append(f"`{name}`")
        return "\n".join(f"- {why}: {', '.join(names)}." for why, names in whys.items())


def run(node: pathlib.Path, suite: str, arguments: list[str], url: str, folder: pathlib.Path) -> dict[str, list[dict]]:
    """The checks of every scenario."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = BUILD / "conformance" / "node_modules" / f"conformance-{suite}" / "dist" / "index.js"
    with (folder / "log").open("w") as log:
        done = subprocess.run([node, program, "server", "--url", url, "-o", folder, *arguments], stdin=subprocess.DEVNULL, stdout=log,
                              stderr=log, timeout=300, check=False)
    scenarios = {}
    for file in sorted(folder.glob("*/checks.json")):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT.*$", "", file.parent.name)
        scenarios.setdefault(scenario, []).extend(json.loads(file.read_text()))
    if done.returncode not in (0, 1) or not scenarios:
        sys.exit(f"the suite could not run; {folder}/log has:\n{(folder / 'log').read_text()[-2000:]}")
    return scenarios


def write(table: str) -> None:
    """Puts the table between the page's markers."""
    PAGE.write_text(re.sub(f"{START}.*?{END}", lambda _: f"{START}{table}\n{END}", PAGE.read_text(), flags=re.S))


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the MCP conformance suite.")
    parser.add_argument("--server", type=pathlib.Path, default=ROOT / "target/debug/conformance-server", help="the program to test")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--lock", action="store_true", help="resolve the suite's packages anew, and run nothing")
    options = parser.parse_args()
    environments = Environments(tomllib.loads((HERE / "clients.toml").read_text()), HERE / "environments", BUILD, uv())
    if options.lock:
        environments.lock({"conformance"})
        return 0
    if failures := environments.prepare({"conformance"}):
        sys.exit(f"the suite can't be installed: {failures['conformance']}")
    expected = Expected(tomllib.loads((HERE / "conformance.toml").read_text())["expected"])
    BUILD.joinpath("logs").mkdir(exist_ok=True)
    lines = ["| suite | protocol | scenarios | passed | expected to fail | failed |", "| --- | --- | --- | --- | --- | --- |"]
    passed, wrong = 0, []
    server = Server(options.server.resolve(), BUILD / "logs" / "conformance.server.log")
    try:
        for suite, version, protocol, arguments in RUNS:
            results = run(environments.node() / "bin/node", suite, arguments, server.url, BUILD / "logs" / f"conformance-{suite}-{protocol}")
            taken = [expected.take(scenario, checks) for scenario, checks in results.items()]
            good, known = (sum(part[number] for part in taken) for number in (0, 1))
            bad = [f"{version} {protocol} {line}" for *_, lines in taken for line in lines]
            lines.append(f"| {version} | {protocol} | {len(results)} | {good} | {known} | {len(bad)} |")
            passed += good
            wrong += bad
    finally:
        server.end()
    wrong += [f"conformance.toml: {line}" for line in expected.stale()]
    table = "\n".join(lines)
    if not wrong and options.write:
        write(f"{table}\n\nWhat is expected to fail, and why:\n\n{expected.reasons()}")
    print("\n".join([table, *wrong, f"conformance: {passed} passed, {len(wrong)} failed"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
