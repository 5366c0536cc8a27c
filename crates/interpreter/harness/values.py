"""Values as text, bounded: a huge or hostile object costs a bounded amount of output and never an exception."""

import reprlib

MAX_TEXT = 64_000


class _BoundedRepr(reprlib.Repr):
    """The repr of built-in containers with at most some items each. Other objects bound themselves (arrays and frames
    do) or are cut afterwards."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 20
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxarray = self.maxdict = 1000
        self.maxstring = self.maxlong = self.maxother = MAX_TEXT

    def repr1(self, value, level):
        if type(value) in _CONTAINERS:
            return super().repr1(value, level)
        if type(value) is dict:
            return self._dict(value, level)
        return repr(value)

    def _dict(self, value, level):
        # reprlib sorts keys; Python keeps their order.
        if level <= 0:
            return "{...}"
        shown = [
            f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}"
            for key, item in (pair for pair, _ in zip(value.items(), range(self.maxdict)))
        ]
        if len(value) > self.maxdict:
            shown.append("...")
        return "{" + ", ".join(shown) + "}"


_CONTAINERS = frozenset((list, tuple, set, frozenset))
_bounded = _BoundedRepr()


def value_text(value, as_repr, limit=MAX_TEXT):
    """The value as text of about `limit` characters: its repr, or for the variable `result` its str."""
    try:
        if type(value) in _CONTAINERS or type(value) is dict:
            text = _bounded.repr(value)
        else:
            text = repr(value) if as_repr else str(value)
        if not isinstance(text, str):
            raise TypeError(f"__repr__ returned {type(text).__name__}")
        return plain(text, limit)
    except BaseException as error:
        if isinstance(error, MemoryError):
            raise
        return f"<{type(value).__name__} object; its repr raised {type(error).__name__}>"


def plain(text, limit):
    """`text` as valid Unicode (lone surrogates escaped), cut in the middle to about `limit` characters."""
    text = str.__str__(text)
    if len(text) > limit:
        half = limit // 2
        # What is escaped grows: it is cut once more.
        first, last = _valid(text[:half])[:half], _valid(text[-half:])[-half:]
        return f"{first}\n… [{len(text) - 2 * half:,} characters left out] …\n{last}"
    valid = _valid(text)
    return valid if len(valid) <= limit else plain(valid, limit)


def _valid(text):
    return text.encode("utf-8", "backslashreplace").decode()
