"""Loads the harness from what came by a descriptor (module name -> source) and starts the holder: so nothing of ours is
on the module path, or on disk where user code could change it."""

import builtins
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


finder = HarnessFinder(start["sources"])
sys.meta_path.insert(0, finder)
if start["config"]["held"] is None:
    # First and alone: where it is to be had, all else is loaded anew in a root of its own.
    import harness_namespaces

    start["config"]["held"] = harness_namespaces.enter(start)
import harness_zygote

sys.meta_path.remove(finder)
harness_zygote.main(start["config"])
