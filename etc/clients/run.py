"""Runs real clients against this server and tells what works: README.md beside this file says what a client is, and `--help` the options.

The rule it keeps: nothing is believed of a client that was not seen in this run, and nothing that fails goes unexplained. Only what it started is ended, by its id.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("the clients want Python 3.11 or later as python3")

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import tomllib

import report
import watch
from environments import Environments

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "clients"
PASSED_ON = re.compile(r"(PIP|UV|SSL|REQUESTS|CURL|HTTPS?|NO|ALL)_|(http|https|no|all)_proxy|LANG|TMPDIR|NODE_EXTRA_CA_CERTS")


@dataclasses.dataclass
class Client:
    name: str
    title: str
    script: str
    doors: list[str]
    environment: str = ""  # none: the script wants the standard library only
    arguments: list[str] = dataclasses.field(default_factory=list)
    light: bool = False
    seconds: int = 180


def server_environment() -> dict[str, str]:
    """What the server is started with in both doors: enough output for the large answer, packages kept here, and the way to the index."""
    kept = {name: value for name, value in os.environ.items() if PASSED_ON.match(name) or name == "HOME"}
    settings = {"UV": uv() or "off", "PACKAGE_DIR": str(BUILD / "packages"), "MAX_OUTPUT_BYTES": "4194304", "LOG": "info"}
    settings |= {name: value for name, value in os.environ.items() if name == "PYTHON_TREE"}
    return kept | {"PATH": os.environ["PATH"]} | {f"CODE_INTERPRETER_{name}": value for name, value in settings.items()}


def uv() -> str:
    """The whole path, as what is started stands in other folders."""
    own = ROOT / "build/tools/bin/uv"
    named = os.environ.get("UV") or (own if own.exists() else shutil.which("uv"))
    return str(pathlib.Path(named).absolute()) if named else ""


def commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "an unknown commit"


class Server:
    """The HTTP door, on a free port of this machine."""

    def __init__(self, program: pathlib.Path, log: pathlib.Path):
        self.log = log
        environment = server_environment() | {"HOST": "127.0.0.1", "PORT": "0"}
        with log.open("wb") as out:
            self.process = subprocess.Popen([program, "serve"], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=BUILD)
        self.url = self.wait_for_address()

    def wait_for_address(self) -> str:
        for _ in range(600):
            if found := re.search(r"serving MCP at (http://\S+)", self.log.read_text(errors="replace")):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        self.end()
        sys.exit(f"the server did not start; {self.log} has:\n{self.log.read_text(errors='replace')[-2000:]}")

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_client(client: Client, door: str, program: pathlib.Path, environments: Environments) -> list[dict]:
    """One script against a server of its own; what it said, one record a check."""
    name = f"{client.name}-{door}"
    home = BUILD / "homes" / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    logs = BUILD / "logs"
    server = Server(program, logs / f"{name}.server.log")
    watcher = watch.Watch()
    try:
        environment = {name: value for name, value in os.environ.items() if PASSED_ON.match(name) or name == "OFFLINE"}
        environment |= {
            "DOOR": door,
            "SERVER_URL": server.url,
            "SERVER_COMMAND": json.dumps([str(program), "stdio"]),
            "SERVER_ENV": json.dumps(server_environment()),
            "SPIN_CODE": watcher.code,
            "WATCH_URL": watcher.url,
            "ENVIRONMENT": str(BUILD / client.environment),
            "HOME": str(home),
            "PATH": f"{environments.path(client.environment)}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [*environments.interpreter(client.environment, client.script), HERE / client.script, *client.arguments]
        with (logs / f"{name}.err").open("wb") as err:
            script = subprocess.Popen(
                command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, start_new_session=True
            )
            try:
                out, _ = script.communicate(timeout=client.seconds)
                ended = "" if script.returncode == 0 else f"exit code {script.returncode}"
            except subprocess.TimeoutExpired:
                ended = f"ended after {client.seconds} s"
            finally:
                # The script's group is ours: start_new_session made it.
                try:
                    os.killpg(script.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if ended.startswith("ended"):
                out, _ = script.communicate()
    finally:
        watcher.end()
        server.end()
    (logs / f"{name}.out").write_bytes(out)
    records = [json.loads(line) for line in out.decode(errors="replace").splitlines() if line.startswith('{"')]
    version = records[0]["version"] if records else "?"
    if ended or not records:
        records.append({"client": client.title, "version": version, "door": door, "check": "run", "ok": False, "note": ended or "said nothing"})
    return [record | {"name": client.name, "title": client.title, "door": door} for record in records]


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs real clients against this server.")
    parser.add_argument("--server", type=pathlib.Path, default=ROOT / "target/release/code-interpreter", help="the program to test")
    parser.add_argument("--only", default="", help="names of clients, with commas between; a name's start is enough")
    parser.add_argument("--light", action="store_true", help="the half that CI runs")
    parser.add_argument("--lock", action="store_true", help="resolve the environments anew, and run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="how many clients run at the same time")
    options = parser.parse_args()
    book = tomllib.loads((HERE / "clients.toml").read_text())
    environments = Environments(book, HERE / "environments", BUILD, uv())
    clients = [Client(name=name, **entry) for name, entry in book["client"].items()]
    only = [name for name in options.only.split(",") if name]
    if unknown := [name for name in only if not any(client.name.startswith(name) for client in clients)]:
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(client.name for client in clients)}")
    clients = [client for client in clients if (not only or client.name.startswith(tuple(only))) and (client.light or not options.light)]
    for folder in ("logs", "homes"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    wanted = {client.environment for client in clients if client.environment}
    if options.lock:
        environments.lock(wanted)
        return 0
    program = options.server.resolve()
    if not program.is_file():
        parser.error(f"{program} does not exist: build it, or name another with --server")
    started = time.monotonic()
    failures = environments.prepare(wanted)
    print(f"environments ready after {time.monotonic() - started:.0f} s", flush=True)
    results = report.Results(tomllib.loads((HERE / "known.toml").read_text()).get("known", []))
    for client in clients:
        if client.environment in failures:
            results.not_run(client.title, f"its environment could not be made: {failures[client.environment]}")

    def one(client: Client, door: str) -> list[dict]:
        began = time.monotonic()
        records = run_client(client, door, program, environments)
        print(f"{report.line(records)}  ({time.monotonic() - began:.0f} s)", flush=True)
        return records

    runs = [(client, door) for client in clients if client.environment not in failures for door in client.doors]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for records in pool.map(one, *zip(*runs)):
            results.add(records)
    for absent in book.get("absent", []):
        results.not_run(absent["title"], absent["why"], known=True)
    if not only and not options.light:
        results.write(ROOT / "docs" / "clients.md", f"server at {commit()}")
    print(results.summary(time.monotonic() - started), flush=True)
    return 0 if results.explained() else 1


if __name__ == "__main__":
    sys.exit(main())
