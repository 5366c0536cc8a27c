"""What a restricted cell gets for pandas' functions that take a text for an expression, a method's name, a module or a path.

Rule: what is looked at is what is handed on, as an exact text or a copy, so that it can't be another the next time."""

import sys

from harness_policy_rules import NAMED_METHODS, expression_refusal

FILES = "a restricted cell has no files"
BY_TEXT = "it would read attributes by a text"
# Methods of pandas' and numpy's objects that take a text for an expression, or for a method's name.
EXPRESSIONS = frozenset(("eval", "query"))
NAMES_BY = {"agg": 0, "aggregate": 0, "apply": 0, "transform": 0, "pivot_table": 3, "crosstab": 5}  # the place of the name
_OF_EXPRESSIONS = {"inplace": (False, True), "engine": ("python", "numexpr", None), "parser": ("pandas", "python")}


def narrow_plots(refuse):
    """Every way to plot ends in one function of pandas' own, which is replaced for this one cell."""
    plotting = sys.modules.get("pandas.plotting._core")
    if plotting is not None and plotting._load_backend.__module__ == plotting.__name__:
        load = plotting._load_backend

        def load_backend(backend):
            if type(backend) is not str or backend != "matplotlib":
                refuse("a backend for plots", "it would import any module; plots are matplotlib's")
            return load(backend)

        plotting._load_backend = load_backend


def expressions(value, name, refuse):
    """pandas' `eval` and `query`: their text has columns, numbers and `@names`, but no way to attributes of these."""

    def expression(*args, **named):
        owner = getattr(value, "__self__", None)  # none for pd.eval: there all names are the cell's
        if args:
            named["expr"], *more = args
        elif "expr" not in named:
            more = [None]
        else:
            more = ()
        text = named.pop("expr", None)
        if type(text) is not str or more:
            refuse(f"{name} of other than a text", BY_TEXT)
        for option, given in named.items():
            allowed = _OF_EXPRESSIONS.get(option, ())
            if not any(type(given) is type(each) and given == each for each in allowed):
                refuse(f"{option} for {name}", "names of other than columns and the cell's would be read")
        if owner is not None and type(owner).__module__.partition(".")[0] != "pandas":
            refuse(f"{name} of a class of the cell's", "it could name anything")
        why = expression_refusal(text, owner is not None)
        if why is not None:
            refuse(f"this text for {name}", why)
        return value(text, level=1, **named)  # of the frame whose names it may see: one further out than ours

    return expression


def named_methods(value, name, refuse):
    """pandas' ways to call a method by its name: by the names of ordinary ones."""
    place = NAMES_BY[name] + (not hasattr(value, "__self__") and name != "crosstab")

    def named_method(*args, **named):
        args = list(args)
        if len(args) > place:
            args[place] = looked_at(args[place], 0)
        else:
            for each in ("func", "aggfunc", "arg"):
                if each in named:
                    named[each] = looked_at(named[each], 0)
                    break
            else:
                if name in ("agg", "aggregate"):
                    named = {key: of_column(given) for key, given in named.items()}
        return value(*args, **named)

    def of_column(given):
        """Of `total=("column", "sum")` the second is a method's name."""
        if isinstance(given, tuple) and len(given) == 2:
            column, function = tuple.__iter__(given)
            return (column, looked_at(function, 0))
        return looked_at(given, 0) if isinstance(given, str) else given

    def looked_at(given, depth):
        """What was looked at, as what can't be another the next time."""
        if isinstance(given, str):
            if type(given) is not str or given not in NAMED_METHODS:
                refuse(f"{given!s} for {name}" if type(given) is str else f"this name for {name}", "it takes a function or an ordinary name")
        elif isinstance(given, dict) and depth < 5:
            return {key: looked_at(each, depth + 1) for key, each in dict.items(given)}
        elif type(given) in (list, tuple, set, frozenset) and depth < 5:
            return type(given)([looked_at(each, depth + 1) for each in given])
        elif given is not None and (not callable(given) or hasattr(type(given), "__iter__")):
            refuse(f"this for {name}", "it takes functions and ordinary names, in lists and dicts")
        return given

    return named_method


def reader_of_buffers(name, value, refuse):
    """pandas' readers, of what the cell holds already."""

    def reader(*args, **named):
        given = args[0] if args else next(iter(named.values()), None)
        if not callable(getattr(given, "read", None)):
            refuse(f"{name} of a path", FILES)
        return value(*args, **named)

    return reader
