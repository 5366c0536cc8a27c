"""What the clients said, as the table of docs/clients.md; each failure is either known, with its reason, or makes the run fail."""

import fnmatch
import pathlib
import re
import time

COLUMNS = [
    "list", "print", "error", "plot", "requirements", "progress", "heartbeat", "cancel", "timeout", "unknown", "arguments", "large", "images",
]  # fmt: skip
SIGNS = {True: "✓", False: "✗", None: "–"}


class Results:
    def __init__(self, known: list[dict]):
        self.known, self.records, self.absent, self.lost = known, [], [], []

    def add(self, records: list[dict]) -> None:
        self.records += records

    def not_run(self, title: str, why: str, known: bool = False) -> None:
        self.absent.append((title, why))
        if not known:
            self.lost.append(f"{title}: not run, {why}")

    def reason(self, record: dict) -> int | None:
        """Which known failure this is."""
        for number, entry in enumerate(self.known):
            if all(matches(record[key], entry.get(key, "*")) for key in ("name", "door", "check")):
                return number
        return None

    def unexplained(self) -> list[str]:
        failed = [record for record in self.records if record["ok"] is False and self.reason(record) is None]
        return self.lost + [f"{record['name']} {record['door']} {record['check']}: {record['note']}" for record in failed]

    def mended(self) -> list[str]:
        """Known failures that none of the checks that ran has any more."""
        failed = {self.reason(record) for record in self.records if record["ok"] is False}
        passed = {self.reason(record) for record in self.records if record["ok"]}
        return [f"{self.known[n]['name']}: {self.known[n]['why']}" for n in sorted(passed - failed - {None})]

    def explained(self) -> bool:
        return bool(self.records) and not self.unexplained()

    def summary(self, seconds: float) -> str:
        lines = [f"not explained: {line}" for line in self.unexplained()]
        lines += [f"passes now, so it can leave known.toml: {line}" for line in self.mended()]
        passed, failed = (sum(record["ok"] is ok for record in self.records) for ok in (True, False))
        clients = len({record["name"] for record in self.records})
        known = failed - len(self.unexplained()) + len(self.lost)
        lines.append(f"{clients} clients in {seconds:.0f} s: {passed} checks hold, {failed} do not, of which {known} are known")
        return "\n".join(lines)

    def table(self) -> str:
        rows = {}
        for record in self.records:
            rows.setdefault((record["title"], record["version"], record["door"]), {})[record["check"]] = record
        used = sorted({self.reason(record) for record in self.records if record["ok"] is False} - {None})
        numbers = {reason: place + 1 for place, reason in enumerate(used)}
        lines = [f"| client | version | door | {' | '.join(COLUMNS)} | not offered |", f"|{' --- |' * (len(COLUMNS) + 4)}"]
        for (title, version, door), checks in rows.items():
            cells = [self.cell(checks.get(column), numbers) for column in COLUMNS]
            if any(column in checks for column in COLUMNS):
                lines.append(f"| {title} | {version} | {door} | {' | '.join(cells)} | {notes(checks)} |")
        others = [record for record in self.records if record["check"] not in COLUMNS]
        if others:
            lines += ["", "| client | version | door | check | holds | note |", "| --- | --- | --- | --- | --- | --- |"]
            for record in others:
                sign = self.cell(record, numbers)
                lines.append(f"| {record['title']} | {record['version']} | {record['door']} | {record['check']} | {sign} | {plain(record['note'])} |")
        if used or self.unexplained():
            lines += ["", "What fails, and whose fault it is:", ""]
            lines += [f"{numbers[reason]}. {self.known[reason]['whose']}: {self.known[reason]['why']}" for reason in used]
            lines += [f"- not explained: {plain(line)}" for line in self.unexplained()]
        if self.absent:
            lines += ["", "Not run:", ""] + [f"- {title}: {why}" for title, why in self.absent]
        return "\n".join(lines)

    def cell(self, record: dict | None, numbers: dict[int, int]) -> str:
        if record is None:
            return ""
        number = numbers.get(self.reason(record)) if record["ok"] is False else None
        return SIGNS[record["ok"]] + (f" ({number})" if number else "")

    def write(self, page: pathlib.Path, of: str) -> None:
        """Puts the table between the page's markers."""
        start, end = "<!-- table -->\n", "<!-- /table -->"
        said = f"{start}Run on {time.strftime('%Y-%m-%d')}, {of}.\n\n{self.table()}\n{end}"
        text = page.read_text()
        if start not in text:
            raise SystemExit(f"{page} has no line {start.strip()}")
        page.write_text(re.sub(f"{start}.*?{end}", lambda _: said, text, flags=re.S))


def matches(value: str, patterns: str | list[str]) -> bool:
    return any(fnmatch.fnmatch(value, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns))


def notes(checks: dict[str, dict]) -> str:
    """Why checks are not offered, each reason once."""
    reasons = {}
    for check, record in checks.items():
        if record["ok"] is None and record["note"]:
            reasons.setdefault(record["note"], []).append(check)
    return "; ".join(f"{', '.join(names)}: {plain(reason)}" for reason, names in reasons.items())


def plain(text: str) -> str:
    """Text that can stand in a cell of a table."""
    return re.sub(r"([|<>`*_\\])", r"\\\1", text)[:200]


def line(records: list[dict]) -> str:
    """One client in one door, as a line for the terminal."""
    said = " ".join(f"{SIGNS[record['ok']]}{record['check']}" for record in records)
    return f"{records[0]['name']} {records[0]['version']} {records[0]['door']}: {said}"
