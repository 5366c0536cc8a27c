"""The restricted policy's second line: what a cell does through libraries, as the interpreter's own audit events tell it.

Rule: who asks is read off the frames, from the innermost out: the cell by its globals, the import system by its code, a
module by the globals that it had before the cell ran or by its code's file. Never by a text in a dict, which code can write."""

import importlib._bootstrap
import importlib._bootstrap_external
import os
import sys

_NEVER = (
    "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "subprocess.", "pty.", "webbrowser.", "urllib.",
    "http.",
)  # fmt: skip
# Imports do these too: of the import system's and of what a module does at its top.
_ONLY_IMPORTS = (
    "ctypes.", "os.", "shutil.", "tempfile.", "glob.", "pathlib.", "sqlite3.", "mmap.",
    "pickle.", "marshal.", "code.__new__", "function.__new__",
    "sys.settrace", "sys.setprofile", "sys._current", "pdb.", "cpython.",
)  # fmt: skip
_DOES_NOT = "a restricted cell does not do this"
# All real imports go through the first; who asks only where a module is lists folders in the second.
_IMPORT = importlib._bootstrap._find_and_load.__code__
_LIST_FOLDER = importlib._bootstrap_external.FileFinder._fill_cache.__code__
# Whose code is text that they have made themselves, or that they only read.
_COMPILERS = frozenset(("collections", "dataclasses", "traceback", "harness_cell"))
_EXPRESSION_READERS = "pandas.core.computation."
# Which read what a cell names, for it.
_READERS_FOR_THE_CELL = frozenset(("functools", "string", "operator", "harness_policy_guards", "harness_policy_pandas"))
_OF_THE_CELL = (None, "harness_policy_guards", "harness_policy_pandas")  # the guards only do what it asks for
_TIME_ZONES = "/usr/share/zoneinfo/"
# Libraries ask how many threads are worth it.
_MACHINE = (
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/sys/fs/cgroup/", "/sys/devices/system/cpu/",
)  # fmt: skip


def audit_hook(namespace, authorized, refuse):
    """The hook for one cell, whose globals are `namespace`."""
    frame_of, ours = sys._getframe, globals()
    tree = [path for path in (*sys.path, sys.base_prefix, os.environ["MPLCONFIGDIR"]) if path]
    readable = tuple(f"{path.rstrip('/')}/" for path in tree) + _MACHINE
    resolved = []
    of_stack = frozenset(("numpy", "pandas"))
    # Each with its globals, which so live as long as their identity is asked for.
    loaded = {id(vars(module)): (name, vars(module)) for name, module in list(sys.modules.items()) if type(module) is type(sys)}
    by_file = {}

    def callers():
        """The frames that run, from the innermost out, the cell's first one included."""
        frame = frame_of()
        while frame is not None:
            if frame.f_globals is not ours:
                yield frame
            if frame.f_globals is namespace:
                return
            frame = frame.f_back

    def names_of_callers():
        """The modules that run, from the innermost out, until it is the cell, which is None."""
        for frame in callers():
            variables = frame.f_globals
            if variables is namespace:
                yield None
            elif id(variables) in loaded:
                yield loaded[id(variables)][0]
            else:
                yield name_by_file(frame.f_code.co_filename)

    def name_by_file(path):
        """The module whose code was read from a file of the tree; no name for other code."""
        if path not in by_file:
            folders = sorted((each for each in tree if path.startswith(f"{each.rstrip('/')}/")), key=len)
            inner = path[len(folders[-1].rstrip("/")) + 1 :] if folders and path.endswith(".py") else ""
            by_file[path] = inner.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return by_file[path]

    def imports(code=_IMPORT):
        return any(frame.f_code is code for frame in callers())

    def open_is_allowed(path, mode, flags):
        if imports():
            return True
        writes = any(letter in mode for letter in "wax+") if type(mode) is str else flags & (os.O_ACCMODE | os.O_CREAT)
        if not writes and type(path) is str and path.startswith("<") and "/" not in path:
            return True  # the interpreter looks for the source of a text that it can't read
        if writes or type(path) is not str or "/../" in path:
            return False
        if path.startswith(_TIME_ZONES):
            return True
        return is_of_tree(path) and next(names_of_callers(), None) not in _OF_THE_CELL

    def is_of_tree(path):
        if path.startswith(readable):
            return True
        if not resolved:  # libraries may name their files without links
            resolved.append(tuple(f"{os.path.realpath(path)}/" for path in tree))
        return path.startswith(resolved[0])

    def code_is_allowed():
        if imports():
            return True
        for name in names_of_callers():
            if name in _COMPILERS:
                return True
            if name == "ast":
                continue
            if not name or name in _OF_THE_CELL:
                return False
            package = name.partition(".")[0]
            if package in of_stack:
                return name.startswith(_EXPRESSION_READERS)
            # What an operator adds may make code as it likes.
            return package not in stdlib and package in added
        return False

    def loop_starts():
        return "asyncio.runners" in names_of_callers()

    stdlib = sys.stdlib_module_names
    added = frozenset(name.partition(".")[0] for name in authorized.names)

    def hook(event, args):
        if event == "open":
            if not open_is_allowed(*args):
                what = repr(args[0]) if type(args[0]) in (str, bytes, int) else "a file"
                refuse(f"opening {what}", "a restricted cell has no files")
        elif event == "compile" or event == "exec":
            if not code_is_allowed():
                refuse(event, _DOES_NOT)
        elif event == "object.__getattr__":
            if args[1] != "f_code":
                name = next(names_of_callers(), None)
                if name is None or name in _READERS_FOR_THE_CELL:
                    refuse(f"the attribute {args[1]}", "it leads to the interpreter's insides")
        elif event.startswith(_NEVER):
            refuse(event, _DOES_NOT)
        elif event.startswith("socket."):
            if event != "socket.__new__" or not loop_starts():
                refuse(event, _DOES_NOT)
        elif event.startswith("gc."):
            if not authorized("gc"):  # who authorises it gives away every object there is
                refuse(event, _DOES_NOT)
        elif event == "os.listdir" and (next(names_of_callers(), None) == "importlib.metadata" or imports(_LIST_FOLDER)):
            pass  # plugins and modules are looked for along the path
        elif event.startswith(_ONLY_IMPORTS) and not imports():
            refuse(event, _DOES_NOT)

    return hook
