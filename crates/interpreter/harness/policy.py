"""The restricted policy: what a cell may import, call and reach, checked on its syntax before anything runs, and again at
run time by an import hook and an audit hook.

Rule: this is guidance for the model and defence in depth, never the wall. Python can't be confined from inside; the
process and the kernel's layers confine it."""

import ast
import builtins
import re
import sys

_DENIED_NAMES = frozenset(
    "open eval exec compile __import__ globals locals vars setattr delattr breakpoint input memoryview help"
    " __builtins__ __loader__ __spec__ __build_class__".split()
)
# Only with a name that is written out and is no dunder.
_BY_LITERAL_NAME = frozenset(("getattr", "hasattr"))
_ALLOWED_DUNDERS = frozenset(
    "__init__ __name__ __doc__ __version__ __str__ __repr__ __len__ __eq__ __hash__ __enter__ __exit__ __iter__ __next__"
    " __call__ __post_init__ __main__ __annotations__ __add__ __getitem__ __setitem__ __contains__ __lt__ __file__ __slots__ __all__ __match_args__".split()
)
_FRAME_ATTRIBUTES = frozenset(
    "gi_frame gi_code gi_yieldfrom cr_frame cr_code cr_origin ag_frame ag_code tb_frame tb_next f_back f_builtins f_code"
    " f_globals f_locals f_generator mro func_globals func_code co_code co_consts".split()
)
# Modules that other modules have imported, found through them.
_MODULE_ATTRIBUTES = frozenset(
    "os sys builtins subprocess importlib ctypes socket shutil pathlib _os _sys _io posix _thread threading inspect".split()
)
_DENIED_EVENTS = ("ctypes.", "socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill")
_FORMAT_REACHES_DUNDER = re.compile(r"\{[^{}]*[.\[]_")


class PolicyDenied(Exception):
    """What the policy refuses; `line` and `column` count from 1."""

    def __init__(self, what, why, node=None):
        place = f"line {node.lineno}, column {node.col_offset + 1}: " if node is not None else ""
        super().__init__(f"{place}{what} is refused by the policy: {why}")
        self.line = node.lineno if node is not None else None
        self.column = node.col_offset + 1 if node is not None else None


class Restricted:
    def __init__(self, authorized_imports):
        self._authorized = frozenset(authorized_imports)

    def check(self, tree):
        """Raises PolicyDenied for the first thing in the cell that is refused."""
        for node in sorted(
            (node for node in ast.walk(tree) if hasattr(node, "lineno")), key=lambda node: (node.lineno, node.col_offset)
        ):
            getattr(self, f"_check_{type(node).__name__}", _accept)(node)

    def confine(self, namespace):
        """For the cell's own code: builtins without what is refused, and hooks for what syntax does not show."""
        allowed = {name: value for name, value in vars(builtins).items() if name not in _DENIED_NAMES}
        # A class statement needs the first; the second is the hook.
        allowed["__build_class__"] = builtins.__build_class__
        allowed["__import__"] = self._import
        namespace["__builtins__"] = allowed
        sys.addaudithook(_refuse_event)

    def _import(self, name, globals=None, locals=None, fromlist=(), level=0):
        self._authorize(name, fromlist, level, None)
        return builtins.__import__(name, globals, locals, fromlist, level)

    def _authorize(self, name, members, level, node):
        what = f"import of {name or '.'}"
        if level:
            raise PolicyDenied(what, "relative imports are not allowed", node)
        parts = name.split(".")
        if not any(".".join(parts[:count]) in self._authorized for count in range(1, len(parts) + 1)):
            raise PolicyDenied(what, f"authorised are {', '.join(sorted(self._authorized))}", node)
        for member in members or ():
            if member.startswith("_"):
                raise PolicyDenied(f"import of {name}.{member}", "names that start with an underscore are internal", node)

    def _check_Import(self, node):
        for alias in node.names:
            self._authorize(alias.name, (), 0, node)

    def _check_ImportFrom(self, node):
        self._authorize(node.module or "", [alias.name for alias in node.names], node.level, node)

    def _check_Name(self, node):
        if node.id in _DENIED_NAMES or _is_dunder(node.id) and node.id not in _ALLOWED_DUNDERS:
            raise PolicyDenied(node.id, "it reaches around the policy", node)
        if node.id in _BY_LITERAL_NAME and not getattr(node, "called_by_literal_name", False):
            raise PolicyDenied(node.id, "it needs an attribute's name that is written out", node)

    def _check_Call(self, node):
        function = node.func
        if isinstance(function, ast.Name) and function.id in _BY_LITERAL_NAME and len(node.args) >= 2:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("_"):
                function.called_by_literal_name = name.value not in _FRAME_ATTRIBUTES

    def _check_Attribute(self, node):
        self._check_attribute_name(node.attr, node)

    def _check_MatchClass(self, node):
        for name in node.kwd_attrs:
            self._check_attribute_name(name, node)

    def _check_attribute_name(self, name, node):
        if _is_dunder(name) and name not in _ALLOWED_DUNDERS or name in _FRAME_ATTRIBUTES:
            raise PolicyDenied(f"the attribute {name}", "it leads to the interpreter's insides", node)
        if name in _MODULE_ATTRIBUTES:
            raise PolicyDenied(f"the attribute {name}", "it leads to a module that is not authorised", node)

    def _check_Constant(self, node):
        if isinstance(node.value, str) and _FORMAT_REACHES_DUNDER.search(node.value):
            raise PolicyDenied("this text", "as a format it would read internal attributes", node)


def _accept(_node):
    pass


def _is_dunder(name):
    return name.startswith("__")


def _refuse_event(event, args):
    if event.startswith(_DENIED_EVENTS):
        raise PolicyDenied(event, "a restricted cell does not do this")
