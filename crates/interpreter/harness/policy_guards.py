"""The guards of the restricted policy: what a cell's code calls, unseen, wherever it reads an attribute, writes one,
imports or matches. They know at run time what syntax does not show: that a name leads to a module, to a function that
opens files, or to one that reads attributes by a text.

Rule: everything they go by is bound in closures, and nothing of it can be reached or replaced from the cell."""

import _string
import abc
import builtins
import functools
import operator
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GenericAlias,
    MethodType,
    ModuleType,
    SimpleNamespace,
    TracebackType,
    UnionType,
)

from harness_policy_pandas import (
    BY_TEXT,
    EXPRESSIONS,
    FILES,
    NAMES_BY,
    expressions,
    named_methods,
    narrow_plots,
    reader_of_buffers,
)
from harness_policy_rules import BY_LITERAL_NAME, REFUSED_BUILTINS, PolicyDenied, attribute_refusal, is_dunder

# No source can spell these names.
READ, WRITE, MATCH, TYPE_NAME = "<read>", "<write>", "<match>", "<type name>"

_INSIDES = frozenset((FrameType, CodeType, TracebackType))
_ELSEWHERE = "it leads to a module that is not authorised"

_REFUSED_METHODS = frozenset(
    "to_pickle to_parquet to_feather to_hdf to_excel to_stata to_sql to_gbq to_orc to_iceberg to_clipboard tofile dump ctypes"
    " style".split()
)
_OURS = (__name__, expressions.__module__)
_DECORATORS = (classmethod, staticmethod)


class Guards:
    def __init__(self, authorized):
        self.first_refusal, self.refuse, self.forget = _refusals()
        self._read, self._member = _readers(authorized, self.refuse)
        self._importer = _importer(authorized, self._member, self.refuse)
        _narrow_libraries(self.refuse)

    def builtins(self):
        """What a cell finds as builtins: without what is refused, with the guards."""
        allowed = {name: value for name, value in vars(builtins).items() if not is_dunder(name)}
        allowed |= {name: _Refused(name, "it reaches around the policy", self.refuse) for name in REFUSED_BUILTINS}
        allowed |= {"__build_class__": builtins.__build_class__, "__import__": self._importer, "__debug__": __debug__}
        allowed |= {name: _by_name(name, self._read, self.refuse) for name in BY_LITERAL_NAME}
        decorators = {kind: _decorator(kind, self.refuse) for kind in _DECORATORS}
        allowed |= {kind.__name__: guarded for kind, guarded in decorators.items()}
        allowed["type"] = _TheType(self.refuse, decorators)
        allowed |= {READ: self._read, WRITE: _writer(self.refuse), MATCH: _matcher(self._read, self.refuse)}
        allowed[TYPE_NAME] = lambda value: type(value).__name__
        return allowed


def _refusals():
    """Remembers the first refusal: a cell that catches it is refused all the same."""
    first = []

    def refuse(what, why):
        error = PolicyDenied(what, why)
        if not first:
            first.append(error)
        raise error

    return lambda: first[0] if first else None, refuse, first.clear


class _Refused:
    """Stands for what is refused where it is found: it says so once it is used."""

    def __init__(self, name, why, refuse):
        self.tell = lambda: refuse(name, why)

    def __call__(self, *_args, **_named):
        self.tell()


def _is_alias(kind):
    """Whether it is a class of aliases, such as list[int], that pass on what is read of them."""
    return issubclass(kind, (GenericAlias, UnionType)) or kind.__module__ == "typing" and kind.__name__.endswith("Alias")


def _decorator(kind, refuse):
    """classmethod and staticmethod, of what is called: not of what they would copy the attributes of."""

    def decorator(function):
        own = isinstance(function, type) or type(type(function)) is type and type(function).__module__ == "__main__"
        if not own and not isinstance(function, (FunctionType, BuiltinFunctionType, MethodType, property, functools.partial, *_DECORATORS)):
            if type(function).__module__ != "functools":
                refuse(f"{kind.__name__} of other than a function", BY_TEXT)
        return kind(function)

    return decorator


def _narrow_libraries(refuse):
    """What every way through a library ends in: it is the libraries' own functions that are replaced, for this one cell."""
    narrow_plots(refuse)
    if functools.update_wrapper.__module__ == "functools":
        update = functools.update_wrapper

        def update_wrapper(wrapper, wrapped, *args, **named):
            if isinstance(wrapped, ModuleType) or _is_alias(type(wrapped)):
                refuse("a wrapper of a module", BY_TEXT)
            return update(wrapper, wrapped, *args, **named)

        functools.update_wrapper = update_wrapper


def _by_name(builtin, read, refuse):
    """getattr and hasattr by any way that reaches them, such as `map`."""

    def by_name(obj, name, *default):
        why = attribute_refusal(name) if type(name) is str else "it needs an attribute's name as text"
        if why is not None:
            refuse(f"{builtin} of {name}", why)
        try:
            value = read(obj, name)
        except AttributeError:
            if default:
                return default[0]
            if builtin == "hasattr":
                return False
            raise
        return True if builtin == "hasattr" else value

    return by_name


class _TheType:
    """Stands for `type`: tells an object's class. It makes no class, for that could have any attribute, and gives none away."""

    __slots__ = ("tell",)

    def __init__(self, refuse, decorators):
        def tell(args, named):
            if len(args) != 1 or named:
                refuse("type with more than one argument", "write a class statement")
            kind = type(args[0])
            if _is_alias(kind):
                refuse("the type of an alias", "it would read attributes of whatever it is given")
            return self if issubclass(kind, type) else decorators.get(kind, kind)

        self.tell = tell

    def __call__(self, *args, **named):
        return self.tell(args, named)

    def __instancecheck__(self, obj):
        return isinstance(obj, type)

    def __subclasscheck__(self, kind):
        return issubclass(kind, type)

    def __mro_entries__(self, _bases):
        self.tell((), {})

    def __getitem__(self, _of):
        return self

    def __or__(self, other):
        return type | other

    def __ror__(self, other):
        return other | type

    def __repr__(self):
        return "<class 'type'>"

    @property
    def __name__(self):
        return "type"


def _readers(authorized, refuse):
    """The guards for reading an attribute of anything, and a member of a module."""
    refused_values = frozenset(
        id(value)
        for value in (
            *(value for name, value in vars(builtins).items() if name in REFUSED_BUILTINS | BY_LITERAL_NAME),
            builtins.__import__,
            operator.attrgetter,
            operator.methodcaller,
        )
    )
    is_authorized = authorized.module

    def member(module, name):
        """A member of a module, as it may be had."""
        package = vars(module).get("__name__")
        if not is_authorized(module):
            value = getattr(module, name) if type(package) is str and authorized.holds(package) else None
            if isinstance(value, ModuleType) and (is_authorized(value) or authorized.holds(f"{package}.{name}")):
                return value
            refuse(f"the attribute {name} of {package}", _ELSEWHERE)
        why = authorized.member_refusal(package, name)
        if why is not None:
            refuse(f"the attribute {name} of {package}", why)
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            if not is_authorized(value):
                refuse(f"the attribute {name} of {package}", _ELSEWHERE)
            return value
        if id(value) in refused_values:
            refuse(f"the attribute {name} of {package}", "it reaches around the policy")
        if isinstance(value, type) and issubclass(value, type):
            refuse(f"the attribute {name} of {package}", "a restricted cell makes no metaclasses")
        return substitute(package.partition(".")[0], name, value)

    def substitute(package, name, value):
        """What a cell gets for the functions that would read attributes or files for it."""
        if value is functools.wraps:
            return safe_wraps
        if value is functools.update_wrapper:
            return safe_update_wrapper
        if value is functools.singledispatch or value is functools.singledispatchmethod:
            return safe_dispatch(value)
        if value is functools.total_ordering:
            return safe_ordering
        if package == "pandas" and name in NAMES_BY:
            return named_methods(value, name, refuse)
        if package == "pandas" and name in EXPRESSIONS:
            return expressions(value, name, refuse)
        if package == "pandas" and name.startswith("read_"):
            return reader_of_buffers(name, value, refuse)
        return value

    def safe_update_wrapper(wrapper, wrapped, *args, **named):
        # Only for functions: what else there is could tell it other attributes, or keep what it is given.
        if args or named or type(wrapper) is not FunctionType or not callable(wrapped) or isinstance(wrapped, type):
            refuse("update_wrapper of other than functions", BY_TEXT)
        return functools.update_wrapper(wrapper, wrapped)

    def safe_ordering(kind):
        if not isinstance(kind, type) or type.__getattribute__(kind, "__module__") != "__main__":
            refuse("total_ordering of other than a class of the cell's", "all code shares what it would change")
        return functools.total_ordering(kind)

    def safe_dispatch(dispatch):
        def of_function(function):
            inner = function.__func__ if type(function) in _DECORATORS else function
            if type(inner) is not FunctionType:
                refuse(f"{dispatch.__name__} of other than a function", BY_TEXT)
            return dispatch(function)

        return of_function

    def safe_wraps(wrapped, *args, **named):
        return lambda wrapper: safe_update_wrapper(wrapper, wrapped, *args, **named)

    plain = set()  # classes whose objects are neither modules nor the interpreter's insides

    def is_plain(kind):
        if issubclass(kind, (ModuleType, GenericAlias)) or kind in _INSIDES or kind is _Refused:
            return False
        plain.add(kind)
        return True

    def read(obj, name):
        # The way of nearly all reads: nothing about the object, the name or the value is special.
        if type(obj) not in plain and not is_plain(type(obj)):
            return read_of_special(obj, name)
        value = getattr(obj, name)
        if name in special or type(value) not in plain and not is_plain(type(value)):
            return special_value(obj, name, value)
        return value

    def read_of_special(obj, name):
        if isinstance(obj, ModuleType):
            return member(obj, name)
        if type(obj) is _Refused:
            obj.tell()
        if isinstance(obj, GenericAlias):
            return read(obj.__origin__, name)
        refuse(f"the attribute {name}", "it leads to the interpreter's insides")

    def special_value(obj, name, value):
        if name == "obj" and isinstance(obj, AttributeError):
            refuse(f"the attribute {name}", "it leads to whatever the error was about")
        if isinstance(value, ModuleType):
            if not is_authorized(value):
                refuse(f"the attribute {name}", _ELSEWHERE)
        elif name in careful and callable_of_a_library(value):
            return careful[name](value, name)
        elif name in _REFUSED_METHODS and _of_stack(value, obj):
            refuse(f"the attribute {name}", FILES)
        return value

    def callable_of_a_library(value):
        return callable(value) and getattr(value, "__module__", None) != "__main__"

    format_value = _formatter(read, refuse)

    def careful_format(value, name):
        if value is str.format or value is str.format_map:
            return lambda template, *args, **named: format_value(template, name, args, named)
        owner = getattr(value, "__self__", None)
        if type(value) is BuiltinFunctionType and isinstance(owner, str):
            return lambda *args, **named: format_value(owner, name, args, named)
        if isinstance(getattr(owner, "data", None), str):  # collections.UserString
            return lambda *args, **named: format_value(owner.data, name, args, named)
        refuse(f"the attribute {name}", BY_TEXT)

    def careful_register(value, _name):
        if getattr(value, "__func__", None) is not abc.ABCMeta.register:
            return value

        def register(kind):
            # Else a pattern for attributes of this class would read those of modules.
            if isinstance(kind, type) and issubclass(ModuleType, kind):
                refuse("registering modules as a class", _ELSEWHERE)
            return value(kind)

        return register

    def careful_of_stack(guarded):
        return lambda value, name: guarded(value, name, refuse) if _of_stack(value, None) else value

    careful = {"register": careful_register} | dict.fromkeys(("format", "format_map"), careful_format)
    for names, guarded in ((EXPRESSIONS, expressions), (NAMES_BY, named_methods)):
        for name in names:
            careful[name] = careful_of_stack(guarded)
    special = frozenset(careful) | _REFUSED_METHODS | {"obj"}
    return read, member


def _of_stack(value, obj):
    """Whether a value was made by pandas or numpy, or is a method of something that was."""
    owner = obj if obj is not None else getattr(value, "__self__", value)
    kinds = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    modules = [getattr(value, "__module__", None), *(kind.__module__ for kind in kinds)]
    return any(isinstance(module, str) and module.partition(".")[0] in ("pandas", "numpy") for module in modules)


def _formatter(read, refuse):
    """`str.format` whose fields read attributes as the cell's own code does."""

    def reads(template):
        for _text, field, spec, _conversion in _string.formatter_parser(template):
            if field is not None and ("." in field or "[" in field or reads(spec)):
                return True
        return False

    def get(field, args, named):
        first, rest = _string.formatter_field_name_split(field)
        value = args[first] if isinstance(first, int) else named[first]
        for is_attribute, name in rest:
            if is_attribute:
                why = attribute_refusal(name)
                if why is not None:
                    refuse(f"the attribute {name} in a format", why)
                value = read(value, name)
            else:
                value = value[name]
        return value

    def render(template, args, named, count, depth):
        parts = []
        for text, field, spec, conversion in _string.formatter_parser(template):
            parts.append(text)
            if field is None:
                continue
            if depth > 2:
                raise ValueError("Max string recursion exceeded")
            if field == "" or field[0] in ".[":  # counted by itself
                field = f"{count[0]}{field}"
                count[0] += 1
            value = get(field, args, named)
            value = {"r": repr, "s": str, "a": ascii}[conversion](value) if conversion else value
            parts.append(format(value, render(spec, args, named, count, depth + 1)))
        return "".join(parts)

    def format_value(template, way, args, named):
        if not reads(template):
            return getattr(str, way)(template, *args, **named)
        # What is formatted is what was read and looked at: nothing is read twice.
        if way == "format_map":
            args, named = (), args[0]
        return render(template, args, named, [0], 1)

    return format_value


def _importer(authorized, member, refuse):
    real = builtins.__import__

    def guarded_import(name, globals=None, locals=None, fromlist=(), level=0):
        if type(fromlist) is list:  # not the cell's statement but C code that it called, such as strptime's
            return real(name, globals, locals, fromlist, level)
        members = tuple(each for each in fromlist or () if each != "*")
        refused = authorized.import_refusal(name, members, level)
        if refused is not None:
            refuse(*refused)
        module = real(name, globals, locals, members or ("__name__",) if fromlist else None, 0)
        _narrow_libraries(refuse)
        if not fromlist:
            return module
        if "*" in fromlist:
            members = getattr(module, "__all__", None) or [each for each in vars(module) if not each.startswith("_")]
        found = {}
        for each in members:
            if "*" in fromlist and (why := star_refusal(module, each)) is not None:
                found[each] = _Refused(each, why, refuse)
            elif not hasattr(module, each):
                raise ImportError(f"cannot import name {each!r} from {name!r}", name=name)
            else:
                found[each] = member(module, each)
        return SimpleNamespace(__all__=list(found), **found)

    def star_refusal(module, name):
        value = vars(module).get(name)
        if isinstance(value, ModuleType) and not authorized.module(value):
            return _ELSEWHERE
        return authorized.member_refusal(module.__name__, name)

    return guarded_import


def _writer(refuse):
    def writable(obj, name):
        """What has an attribute written to or deleted: not modules and classes of others, which all code shares."""
        if isinstance(obj, ModuleType) or isinstance(obj, type) and type.__getattribute__(obj, "__module__") != "__main__":
            refuse(f"changing {getattr(obj, '__name__', obj)}", "only a cell's own objects and classes can be changed")
        if name.startswith("_") and type(obj).__module__.partition(".")[0] in ("pandas", "numpy"):
            refuse(f"changing {name}", "it is internal")
        if type(obj) in _DECORATORS or isinstance(obj, GenericAlias):
            refuse(f"changing {name}", "it may be another's")
        return obj

    return writable


def _matcher(read, refuse):
    """What patterns go by. They read attributes by themselves, and a class twice: each class is evaluated once, and stands
    behind one that has each attribute read by the guard first."""

    class Looks(type):
        def __instancecheck__(cls, obj):
            return cls.looks(obj)

    def looking(kind, count, keywords):
        if not isinstance(kind, type) or not count and not keywords:
            return kind  # the statement says so itself
        positional = getattr(kind, "__match_args__", None)
        if count and positional is None and kind.__flags__ & 1 << 22 and not keywords:
            return kind  # such as int(x), which is the value itself
        positional = () if positional is None else positional
        if type(positional) is not tuple or any(type(name) is not str for name in positional):
            refuse("__match_args__", "it takes attributes' names")
        names = (*positional[:count], *keywords)

        def looks(obj):
            if not isinstance(obj, kind):
                return False
            for name in names:
                why = attribute_refusal(name)
                if why is not None:
                    refuse(f"the attribute {name}", why)
                try:
                    found = read(obj, name)
                except AttributeError:
                    continue
                if isinstance(found, FunctionType) and found.__module__ in _OURS:
                    refuse(f"a pattern for {name}", "it would take what only a call may have")
            return True

        return Looks(kind.__name__, (), {"looks": staticmethod(looks), "__match_args__": positional})

    def matchers(classes, values):
        of_classes = {f"class{at}": looking(*each) for at, each in enumerate(classes)}
        return SimpleNamespace(**of_classes, **{f"value{at}": each for at, each in enumerate(values)})

    return matchers
