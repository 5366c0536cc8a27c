"""The restricted policy's words: what is refused by its name, and the refusal itself.

Rule: only constants and functions of text, so that the check before a run and the guards in it can't differ."""

import re
import sys

# Of builtins, unless the cell makes something of its own by that name.
REFUSED_BUILTINS = frozenset(
    "open eval exec compile globals locals vars setattr delattr breakpoint input memoryview help".split()
)
# Only with a name that is written out and is no dunder.
BY_LITERAL_NAME = frozenset(("getattr", "hasattr"))
# Dunders that may be read; all others lead to the interpreter's insides.
READABLE_DUNDERS = frozenset(
    "__init__ __name__ __qualname__ __doc__ __version__ __str__ __repr__ __len__ __eq__ __hash__ __enter__ __exit__ __iter__"
    " __next__ __call__ __post_init__ __add__ __getitem__ __setitem__ __contains__ __lt__ __file__ __all__ __main__".split()
)
# Dunders that a cell may define. Not those by which libraries and the interpreter are told what an object is
# (__getattr__, __instancecheck__, __prepare__, __array_interface__, __del__, __reduce__ and the like).
DEFINABLE_DUNDERS = READABLE_DUNDERS | frozenset(
    "__new__ __slots__ __match_args__ __set_name__ __init_subclass__ __class_getitem__ __get__ __set__ __delete__ __format__"
    " __bytes__ __bool__ __int__ __float__ __complex__ __index__ __round__ __trunc__ __floor__ __ceil__ __abs__ __neg__ __pos__"
    " __invert__ __ne__ __le__ __gt__ __ge__ __delitem__ __missing__ __reversed__ __length_hint__ __dir__ __copy__ __deepcopy__"
    " __aenter__ __aexit__ __aiter__ __anext__ __await__".split()
) | frozenset(
    f"__{way}{name}__"
    for name in "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor".split()
    for way in ("", "r", "i")
)
FRAME_ATTRIBUTES = frozenset(
    "gi_frame gi_code gi_yieldfrom cr_frame cr_code cr_origin cr_await ag_frame ag_code ag_await tb_frame tb_next f_back f_builtins"
    " f_code f_globals f_locals f_generator mro func_globals func_code co_code co_consts".split()
)

# Members of modules, by top-level package: files, text that is run, attributes by a name that is no syntax, raw memory.
REFUSED_MEMBERS = {
    "numpy": frozenset(
        "load save savez savez_compressed savetxt loadtxt genfromtxt fromfile fromregex memmap open_memmap DataSource f2py"
        " ctypeslib distutils testing test core lookfor source show_runtime get_include as_strided npyio format introspect add_newdoc add_docstring".split()
    ),
    "pandas": frozenset(
        "read_pickle read_clipboard read_sql read_sql_query read_sql_table read_hdf read_gbq HDFStore ExcelFile ExcelWriter"
        " io core compat show_versions test register_dataframe_accessor register_series_accessor register_index_accessor".split()
    ),
    "operator": frozenset(("attrgetter", "methodcaller")),
    "string": frozenset(("Formatter",)),
    "typing": frozenset("get_type_hints ForwardRef evaluate_forward_ref".split()),
    "inspect": frozenset("get_annotations currentframe stack trace getattr_static getmembers".split()),
    "annotationlib": frozenset("get_annotations ForwardRef".split()),
    "dataclasses": frozenset(("make_dataclass",)),
    "types": frozenset("new_class prepare_class resolve_bases FunctionType CodeType LambdaType GenericAlias MethodType".split()),
}
# Of the parts of these packages only what analysis uses, unless AUTHORIZED_IMPORTS names a part itself.
AUTHORIZED_PARTS = {
    "numpy": frozenset(
        "linalg fft random polynomial ma char strings rec exceptions dtypes typing lib lib.stride_tricks"
        " lib.scimath polynomial.polynomial polynomial.chebyshev polynomial.legendre polynomial.hermite polynomial.hermite_e"
        " polynomial.laguerre polynomial.polyutils".split()
    ),
    "pandas": frozenset(
        "api api.types api.extensions api.indexers api.interchange api.typing arrays errors plotting testing tseries tseries.offsets"
        " tseries.frequencies tseries.holiday tseries.api util".split()
    ),
}

# By which pandas may call a method for its name: those that only reckon.
NAMED_METHODS = frozenset(
    "sum mean min max count std var median mode first last nth nunique unique size prod product any all cumsum cummax cummin"
    " cumprod cumcount ngroup rank describe idxmin idxmax quantile sem skew kurt kurtosis abs round diff shift pct_change ffill"
    " bfill fillna mad corr cov value_counts ohlc sqrt log log2 log10 log1p exp expm1 sin cos tan floor ceil sign square isna"
    " isnull notna notnull ptp average nanmean nansum nanmin nanmax nanstd nanvar nanmedian len str int float bool".split()
)
# What a text for pandas' `query` and `eval` may read of a column.
EXPRESSION_ATTRIBUTES = NAMED_METHODS | frozenset(
    "str dt cat contains startswith endswith lower upper title capitalize strip lstrip rstrip match fullmatch isdigit isalpha"
    " isalnum isnumeric isdecimal isspace islower isupper slice find zfill year month day hour minute second microsecond"
    " dayofweek day_of_week weekday dayofyear quarter day_name month_name days seconds total_seconds normalize is_month_start"
    " is_month_end is_year_start is_year_end is_leap_year isin between eq ne lt le gt ge add sub mul div truediv floordiv mod pow"
    " clip astype duplicated index values".split()
)
# As such a text is split: an attribute of something, also behind a comment or a continued line.
_EXPRESSION_ATTRIBUTE = re.compile(r"\.[\s\\)]*((?:[^\W\d]|[^\x00-\x7f])(?:\w|[^\x00-\x7f])*|#)")
_PLAIN_TEXT = re.compile(r"'[^']*'|\"[^\"]*\"")
_NOT_PLAIN = re.compile(r"[#`\\\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|\"\"\"|'''")


class PolicyDenied(BaseException):
    """What the policy refuses; `line` and `column` count from 1. No `except Exception` of a cell or a library hides it."""

    def __init__(self, what, why, node=None):
        place = f"line {node.lineno}, column {node.col_offset + 1}: " if node is not None else ""
        super().__init__(f"{place}{what} is refused by the policy: {why}")
        self.line = node.lineno if node is not None else None
        self.column = node.col_offset + 1 if node is not None else None


def is_dunder(name):
    return name.startswith("__") and name.endswith("__")


def attribute_refusal(name):
    """Why an attribute can't be read by this name, whatever has it; None when it can."""
    if is_dunder(name) and name not in READABLE_DUNDERS or name in FRAME_ATTRIBUTES:
        return "it leads to the interpreter's insides"
    return None


def expression_refusal(text, of_columns):
    """Why pandas may not evaluate this text, whose names are columns or else the cell's; None when it may."""
    if "__" in text or "._" in text:
        return "it may have none that are internal"
    code = _PLAIN_TEXT.sub("''", text) if _NOT_PLAIN.search(text) is None else text
    for name in _EXPRESSION_ATTRIBUTE.findall(code):
        if not of_columns or name not in EXPRESSION_ATTRIBUTES:
            return f"it may not read {name} of something"
    return None


class Authorized:
    """Which modules may be imported."""

    def __init__(self, names):
        self.names = frozenset(names)
        self._known = {}

    def __call__(self, module):
        """Whether a module of this name is authorised: named itself, or a public part of one that is named."""
        if module in self.names:
            return True
        parts = module.split(".")
        for count in range(len(parts) - 1, 0, -1):
            if ".".join(parts[:count]) in self.names:
                rest = parts[count:]
                known = AUTHORIZED_PARTS.get(module.partition(".")[0]) if count == 1 else None
                return ".".join(rest) in known if known is not None else not any(part.startswith("_") for part in rest)
        return False

    def module(self, module):
        """Whether a loaded module is one of these, by its own name or another that it is imported by (`os.path`)."""
        answer = self._known.get(id(module))
        if answer is None:
            name, modules = vars(module).get("__name__"), sys.modules
            answer = type(name) is str and modules.get(name) is module and self(name)
            answer = answer or any(each is module and self(name) for name, each in list(modules.items()))
            self._known[id(module)] = answer
        return answer

    def holds(self, package):
        """Whether something in this package is authorised, so that a chain of names may go through it."""
        return any(name.startswith(f"{package}.") for name in self.names)

    def member_refusal(self, module, name):
        """Why a module's member can't be read by this name; None when it can."""
        if f"{module}.{name}" in self.names or self.holds(f"{module}.{name}"):
            return None
        if name.startswith("_") and name not in READABLE_DUNDERS:
            return "names that start with an underscore are internal"
        if name in REFUSED_MEMBERS.get(module.partition(".")[0], ()):
            return "it reaches files, runs text or reads past what it is given"
        return None

    def import_refusal(self, name, members, level):
        """What of an import is refused, and why; None when nothing is."""
        if level:
            return f"import of {name or '.'}", "relative imports are not allowed"
        if not self(name):
            return f"import of {name}", f"authorised are {', '.join(sorted(self.names))}"
        for member in members or ():
            why = self.member_refusal(name, member)
            if why is not None:
                return f"import of {name}.{member}", why
        return None
