"""Puts the settings table, printed by the program itself, between the README's markers."""

import pathlib
import re
import subprocess

table = subprocess.run(
    ["cargo", "run", "--quiet", "-p", "cli", "--", "settings", "markdown"], check=True, capture_output=True, text=True
).stdout
readme = pathlib.Path("README.md")
text = readme.read_text()
start, end = "<!-- settings -->\n", "<!-- /settings -->"
readme.write_text(re.sub(f"{start}.*?{end}", lambda _: f"{start}{table}{end}", text, flags=re.S))
