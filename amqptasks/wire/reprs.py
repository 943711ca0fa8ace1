"""Short texts of arguments and results, for headers, logs and events.

Bounded in length and in work, and never raising: a value's own ``__repr__`` may be slow, huge or broken.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable
from typing import Any

#: Length of the argument and result texts that travel with a task.
DEFAULT_LENGTH = 1024
#: Depth to which they show what is within, as in Celery.
DEFAULT_LEVELS = 3

_PLAIN = frozenset({int, float, bool, type(None)})
_SHORT_TEXT = 128
_FEW = 16


class _Bounded(reprlib.Repr):
    def __init__(self, length: int, levels: int) -> None:
        super().__init__()
        self.maxlevel = levels
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxdict = 64
        self.maxarray = 64
        self.maxstring = self.maxother = length
        self.maxlong = 128


_bounded_repr = functools.lru_cache(16)(_Bounded)


def short_repr(value: Any, length: int = DEFAULT_LENGTH, levels: int = DEFAULT_LEVELS) -> str:
    """Return ``repr(value)``, cut to about ``length`` characters at each level and to ``length`` in all.

    What is deeper than ``levels`` is shown as dots.
    """
    kind = type(value)
    if kind in _PLAIN:
        is_short = kind is not int or -(1 << 256) < value < 1 << 256
        return _cut(repr(value), length) if is_short else _bounded(value, length, levels)
    if kind is str and len(value) <= _SHORT_TEXT:
        return _cut(repr(value), length)
    if not value and kind in (tuple, list, dict):
        return repr(value)
    if (kind is tuple or kind is list) and len(value) <= _FEW:
        for each in value:
            each_kind = type(each)
            if each_kind is str:
                if len(each) > _SHORT_TEXT:
                    break
            elif each_kind not in _PLAIN or (each_kind is int and not -(1 << 256) < each < 1 << 256):
                break
        else:
            return _cut(repr(value), length)
    return _bounded(value, length, levels)


def shortener(levels: int) -> Callable[[Any], str]:
    """Return `short_repr` for a number of levels."""
    return short_repr if levels == DEFAULT_LEVELS else functools.partial(short_repr, levels=levels)


def _bounded(value: Any, length: int, levels: int) -> str:
    try:
        text = _bounded_repr(length, levels).repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: its repr() raised {type(error).__name__}>"
    return _cut(text, length)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def shown_name(task: str | None, shadow: str | None) -> str | None:
    """Return what a call is named in logs: the task's name, or one given instead, which may hold anything."""
    return printable(shadow, 255) if shadow else task


def printable(text: Any, length: int = 200) -> str:
    """Return text from the wire so that a log line or a terminal cannot be tricked by it: one line, no control
    characters."""
    shown = str(text)[: length + 1]
    if len(shown) > length:
        shown = shown[: length - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode("ascii")
        for each in shown
    )
