# Loads the harness from a descriptor (a JSON object: module name -> source) and starts the zygote.
# Passed with `python -I -S -B -c`, so nothing of ours is on the module path or on disk where user code could change it.
import builtins
import json
import os
import sys
from importlib.machinery import ModuleSpec


class HarnessFinder:
    def __init__(self, sources):
        self.sources = sources

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in self.sources else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        # A copy: what user code does to its builtins must not reach ours.
        module.__dict__["__builtins__"] = dict(vars(builtins))
        exec(compile(self.sources[module.__name__], f"<harness {module.__name__}>", "exec"), module.__dict__)


with os.fdopen(3, "rb") as file:
    start = json.load(file)
finder = HarnessFinder(start["sources"])
sys.meta_path.insert(0, finder)
import harness_zygote

sys.meta_path.remove(finder)
harness_zygote.main(start["config"])
