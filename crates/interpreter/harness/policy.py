"""The restricted policy: what a cell may import, call and reach. Its syntax is checked before anything runs; then each
attribute that it reads is rewritten to go through a guard, because only the run knows what has the attribute.

Rule: this is guidance for the model and defence in depth, never the wall. Python can't be confined from inside; the
process and the kernel's layers confine it."""

import ast
import sys
from types import ModuleType

from harness_policy_guards import READ, TYPE_NAME, WRITE, MATCH, Guards
from harness_policy_hook import audit_hook
from harness_policy_rules import (
    BY_LITERAL_NAME,
    DEFINABLE_DUNDERS,
    REFUSED_BUILTINS,
    Authorized,
    PolicyDenied,
    attribute_refusal,
    is_dunder,
)

_OURS = tuple(f"harness_{name}" for name in ("policy", "policy_rules", "policy_pandas", "policy_guards", "policy_hook", "cell", "kernel"))
_FORMAT_METHODS = frozenset(("format", "format_map"))


class Restricted:
    """The policy for the cells of one kernel: what it has put in force stays."""

    def __init__(self, authorized_imports):
        self._authorized = Authorized(authorized_imports)
        self._guards = None

    def check(self, tree):
        """Raises PolicyDenied for the first thing in the cell that is refused."""
        _Check(self._authorized, tree).run()

    def confine(self, namespace, tree):
        """For the cell's own code: builtins without what is refused, guards in its tree, and a hook for what they don't see."""
        _Rewrite().visit(tree)
        if self._guards is not None:
            return
        self._guards = Guards(self._authorized)
        namespace["__builtins__"] = self._guards.builtins()
        hook = audit_hook(namespace, self._authorized, self._guards.refuse)
        for name in _OURS:  # nobody finds the policy by its name
            sys.modules.pop(name, None)
        sys.addaudithook(hook)

    def begin(self):
        """Another cell comes."""
        if self._guards is not None:
            self._guards.forget()

    def refusal(self):
        """The first refusal of the cell, also one that it has caught."""
        return self._guards.first_refusal() if self._guards else None


class _Check:
    def __init__(self, authorized, tree):
        self._authorized = authorized
        self._nodes = list(ast.walk(tree))
        self._own = set()
        self._modules = {}
        for node in self._nodes:
            self._note_names(node)
        self._allowed = set()

    def run(self):
        placed = [node for node in self._nodes if hasattr(node, "lineno")]
        for node in sorted(placed, key=lambda node: (node.lineno, node.col_offset)):
            for name in (*_names_bound(node), *((node.arg,) if isinstance(node, ast.keyword) and node.arg else ())):
                if is_dunder(name) and name not in DEFINABLE_DUNDERS:
                    raise PolicyDenied(name, "it reaches around the policy", node)
            getattr(self, f"_check_{type(node).__name__}", _accept)(node)

    def _note_names(self, node):
        """Which names are the cell's own, and which stand for a module and nothing else."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                self._modules.setdefault(name, alias.name if alias.asname else name)
        else:
            self._own.update(_names_bound(node))

    def _module(self, node):
        """The loaded module that a chain of names stands for."""
        if isinstance(node, ast.Name):
            name = self._modules.get(node.id) if node.id not in self._own else None
            return sys.modules.get(name)
        if isinstance(node, ast.Attribute):
            parent = self._module(node.value)
            found = vars(parent).get(node.attr) if parent is not None else None
            return found if isinstance(found, ModuleType) else None
        return None

    def _check_Import(self, node):
        for alias in node.names:
            self._check_import(node, alias.name, (), 0)

    def _check_ImportFrom(self, node):
        members = [alias.name for alias in node.names]
        self._check_import(node, node.module or "", members, node.level)
        module = sys.modules.get(node.module)
        for member in members if module is not None else ():
            self._check_found(node, f"import of {node.module}.{member}", vars(module).get(member))

    def _check_import(self, node, name, members, level):
        refused = self._authorized.import_refusal(name, members, level)
        if refused is not None:
            raise PolicyDenied(*refused, node)

    def _check_found(self, node, what, found):
        if isinstance(found, ModuleType) and not (self._authorized.module(found) or self._authorized.holds(found.__name__)):
            raise PolicyDenied(what, "it leads to a module that is not authorised", node)

    def _check_Name(self, node):
        if is_dunder(node.id) and node.id not in DEFINABLE_DUNDERS or node.id in REFUSED_BUILTINS and node.id not in self._own:
            raise PolicyDenied(node.id, "it reaches around the policy", node)
        if node.id in BY_LITERAL_NAME and node not in self._allowed and node.id not in self._own:
            raise PolicyDenied(node.id, "it needs an attribute's name that is written out", node)

    def _check_Call(self, node):
        function = node.func
        if isinstance(function, ast.Name) and function.id in BY_LITERAL_NAME and len(node.args) >= 2:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith("_"):
                if attribute_refusal(name.value) is None:
                    self._allowed.add(function)
        elif isinstance(function, ast.Attribute) and function.attr in _FORMAT_METHODS and isinstance(function.value, ast.Constant):
            text = function.value.value
            if isinstance(text, str) and _reaches_dunder(text):
                raise PolicyDenied("this text", "as a format it would read internal attributes", node)

    def _check_Attribute(self, node):
        if node.attr == "__name__" and isinstance(node.value, ast.Attribute) and node.value.attr == "__class__":
            self._allowed.add(node.value)  # only a text; it is rewritten as a whole
        if node in self._allowed or _is_new_of_super(node):
            return
        self._check_attribute_name(node.attr, node)
        module = self._module(node.value)
        if module is not None:
            why = self._authorized.member_refusal(module.__name__, node.attr)
            if why is not None:
                raise PolicyDenied(f"the attribute {node.attr}", why, node)
            self._check_found(node, f"the attribute {node.attr}", vars(module).get(node.attr))

    def _check_MatchClass(self, node):
        for name in node.kwd_attrs:
            self._check_attribute_name(name, node)

    def _check_attribute_name(self, name, node):
        why = attribute_refusal(name)
        if why is not None:
            raise PolicyDenied(f"the attribute {name}", why, node)

    def _check_ClassDef(self, node):
        for statement in node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == "__match_args__" for target in targets):
                self._check_match_args(statement)

    def _check_match_args(self, statement):
        items = statement.value.elts if isinstance(statement.value, ast.Tuple) else [None]
        for item in items:
            name = item.value if isinstance(item, ast.Constant) else None
            if not isinstance(name, str) or attribute_refusal(name) is not None:
                raise PolicyDenied("__match_args__", "it takes attributes' names that are written out and not internal", statement)

    def _check_TryStar(self, node):
        raise PolicyDenied("except*", "a restricted cell does without; write except", node)


class _Rewrite(ast.NodeTransformer):
    """Puts the guards into a cell's tree, under names that no source can spell."""

    def __init__(self):
        self._classes = []
        self._matches = 0

    def visit_ClassDef(self, node):
        for field in ("decorator_list", "bases", "keywords"):
            setattr(node, field, [self.visit(each) for each in getattr(node, field)])
        self._classes.append(node.name)
        for field in ("type_params", "body"):
            setattr(node, field, [self.visit(each) for each in getattr(node, field)])
        self._classes.pop()
        return node

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Load):
            if node.attr == "__name__" and isinstance(node.value, ast.Attribute) and node.value.attr == "__class__":
                return _call(node, TYPE_NAME, self.visit(node.value.value))
            return _call(node, READ, self.visit(node.value), ast.Constant(self._mangled(node.attr)))
        node.value = _call(node.value, WRITE, self.visit(node.value), ast.Constant(self._mangled(node.attr)))
        return node

    def visit_Match(self, node):
        """Patterns read attributes by themselves: what they name is looked at first, and kept for them as it was then."""
        classes, values = [], []
        self._matches += 1
        kept = f"<matched {self._matches}>"

        def keep(several, kind, old, new):
            several.append(new)
            found = ast.Attribute(ast.Name(kept, ast.Load()), f"{kind}{len(several) - 1}", ast.Load())
            return ast.fix_missing_locations(ast.copy_location(found, old))

        for pattern in (each for case in node.cases for each in ast.walk(case.pattern)):
            if isinstance(pattern, ast.MatchClass):
                how = (ast.Constant(len(pattern.patterns)), ast.Constant(tuple(pattern.kwd_attrs)))
                given = ast.Tuple([self._loaded(pattern.cls), *how], ast.Load())
                pattern.cls = keep(classes, "class", pattern.cls, given)
            elif isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Attribute):
                pattern.value = keep(values, "value", pattern.value, self._loaded(pattern.value))
            elif isinstance(pattern, ast.MatchMapping):
                pattern.keys = [
                    keep(values, "value", key, self._loaded(key)) if isinstance(key, ast.Attribute) else key for key in pattern.keys
                ]
        for case in node.cases:
            case.guard = self.visit(case.guard) if case.guard else None
            case.body = [self.visit(each) for each in case.body]
        subject = self.visit(node.subject)
        if classes or values:
            several = [ast.copy_location(ast.Tuple(each, ast.Load()), node.subject) for each in (classes, values)]
            matchers = ast.NamedExpr(ast.Name(kept, ast.Store()), _call(node.subject, MATCH, *several))
            subject = ast.Subscript(ast.Tuple([subject, matchers], ast.Load()), ast.Constant(0), ast.Load())
            subject = ast.fix_missing_locations(ast.copy_location(subject, node.subject))
        node.subject = subject
        return node

    def _loaded(self, node):
        """A copy of a chain of names, guarded."""
        if isinstance(node, ast.Attribute):
            return _call(node, READ, self._loaded(node.value), ast.Constant(self._mangled(node.attr)))
        return node

    def _mangled(self, name):
        if name.startswith("__") and not name.endswith("__") and self._classes and self._classes[-1].strip("_"):
            return f"_{self._classes[-1].lstrip('_')}{name}"
        return name


def _call(node, guard, *arguments):
    call = ast.Call(ast.Name(guard, ast.Load()), list(arguments), [])
    for new in (call, call.func, *(each for each in arguments if not hasattr(each, "lineno"))):
        ast.copy_location(new, node)
    return call


def _names_bound(node):
    """Names that a statement, a pattern or an argument gives to something."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            return (name,)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return (name,)
        case ast.MatchMapping(rest=str(name)):
            return (name,)
        case ast.TypeVar(name=name) | ast.ParamSpec(name=name) | ast.TypeVarTuple(name=name):
            return (name,)
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return names
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name.partition(".")[0] for alias in names]
    return ()


def _is_new_of_super(node):
    call = node.value
    return (
        node.attr == "__new__"
        and isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "super"
        and not call.args
    )


def _reaches_dunder(text):
    """Whether a field of a format names something internal: `{a.__b}`, `{a[__b]}`."""
    return any(".__" in field or "[__" in field for field in text.split("{")[1:])


def _accept(_node):
    pass
