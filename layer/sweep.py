"""Imports every module of the layer and of the local tree: what only the tree can import must be on the list of known
exceptions, and nothing else may be on it. `make layer.test` runs it with the layer's own interpreter.

usage: sweep.py LAYER TREE"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))


def importable(site):
    """Names of all modules that can be imported, tests left out."""
    sys.path.append(site)
    warnings.simplefilter("ignore")
    names = []
    for module in pkgutil.walk_packages([site], onerror=lambda name: None):
        parts = module.name.split(".")
        if "tests" in parts or "test" in parts or parts[-1] in ("__main__", "conftest"):
            continue
        try:
            importlib.import_module(module.name)
            names.append(module.name)
        except BaseException:
            pass
    return names


def ask(place):
    """The same in a process of its own, by the interpreter that belongs to the place."""
    python, site = os.path.join(place, "python/bin/python3"), os.path.join(place, "site")
    command = [python, "-I", "-S", "-B", os.path.abspath(__file__), "--list", site]
    environment = {"MPLBACKEND": "Agg", "MPLCONFIGDIR": os.path.join(place, "matplotlib")}
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


def main():
    if sys.argv[1] == "--list":
        print("\n" + json.dumps(importable(sys.argv[2])), flush=True)
        os._exit(0)  # some modules leave threads behind
    layer, tree = (ask(place) for place in sys.argv[1:3])
    with open(os.path.join(HERE, "import_exceptions.txt")) as file:
        expected = {line.split("#")[0].strip() for line in file} - {""}
    for name in sorted(tree - layer - expected):
        print(f"the layer can't import {name}")
    for name in sorted(expected - (tree - layer)):
        print(f"{name} is on the list of exceptions, and is none")
    print(f"{len(layer)} modules of the layer and {len(tree)} of the tree can be imported")
    sys.exit(len(layer) < 1000 or tree - layer != expected)


main()
