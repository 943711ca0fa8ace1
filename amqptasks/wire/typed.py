"""Values that JSON and msgpack lack, as maps ``{"__type__": name, "__value__": plain}``: kombu's notation, exactly.

datetime, date, time, Decimal, UUID and bytes come back as what they were (a subclass as its base). A naive datetime
stays naive; an aware one keeps its offset, not the name of its zone. A Decimal travels as text, so it may be NaN or
infinite.
The reader knows these names and no others, builds nothing else, and refuses a value that does not fit its name.
"""

from __future__ import annotations

import base64
import sys
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

__all__ = ["MARK", "check_lookalikes", "from_typed", "to_typed"]

#: A body without these bytes has no typed values, so the reader can do without the hook.
MARK = b"__type__"


def _typed(name: str, value: Any) -> dict[str, Any]:
    return {"__type__": name, "__value__": value}


def _bytes_to_typed(value: bytes | bytearray | memoryview) -> dict[str, Any]:
    raw = bytes(value)
    try:
        return _typed("bytes", raw.decode("utf-8"))
    except UnicodeDecodeError:
        return _typed("base64", base64.b64encode(raw).decode("ascii"))


# datetime stands before date, of which it is a kind.
_WRITERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    datetime: lambda value: _typed("datetime", value.isoformat()),
    date: lambda value: _typed("date", value.isoformat()),
    time: lambda value: _typed("time", value.isoformat()),
    Decimal: lambda value: _typed("decimal", str(value)),
    uuid.UUID: lambda value: _typed("uuid", {"hex": value.hex}),
    bytes: _bytes_to_typed,
    bytearray: _bytes_to_typed,
    memoryview: _bytes_to_typed,
}


def to_typed(value: Any) -> Any:
    """Give the plain form of a value that the encoder does not know; raise TypeError if there is none.

    An object with a ``__json__`` method is asked for its own plain form, and Django's lazy texts become texts, as in
    kombu.
    """
    writer = _WRITERS.get(type(value))
    if writer is not None:
        return writer(value)
    reduce = getattr(value, "__json__", None)
    if reduce is not None:
        return reduce()
    for kind, writer in _WRITERS.items():
        if isinstance(value, kind):
            return writer(value)
    # Looked up, never imported: a lazy text can only exist where Django is loaded already.
    django = sys.modules.get("django.utils.functional")
    if django is not None and isinstance(value, django.Promise):
        return str(value)
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not a kind of value that it can carry")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text as the typed value, got {type(value).__name__}")
    return value


def _uuid(value: Any) -> uuid.UUID:
    # kombu passes every key on to UUID(); we take the one that it writes.
    if isinstance(value, dict) and value.keys() == {"hex"}:
        return uuid.UUID(hex=_text(value["hex"]))
    raise ValueError('expected {"hex": text} as the typed value of a uuid')


_READERS: dict[str, Callable[[Any], Any]] = {
    "datetime": lambda value: datetime.fromisoformat(_text(value)),
    "date": lambda value: datetime.fromisoformat(_text(value)).date(),
    "time": lambda value: time.fromisoformat(_text(value)),
    "decimal": lambda value: Decimal(_text(value)),
    "uuid": _uuid,
    "bytes": lambda value: _text(value).encode("utf-8"),
    "base64": lambda value: base64.b64decode(_text(value), validate=True),
}


def from_typed(value: dict[Any, Any]) -> Any:
    """Give back what a typed map stands for, any other map as it is. Raises ValueError for a type it does not know."""
    if len(value) != 2 or "__type__" not in value or "__value__" not in value:
        return value
    name = value["__type__"]
    reader = _READERS.get(name) if isinstance(name, str) else None
    if reader is None:
        raise ValueError(f"unknown __type__ {ascii(name)[:100]}, expected one of {', '.join(_READERS)}")
    return reader(value["__value__"])


def check_lookalikes(value: Any) -> None:
    """Raise ValueError if a map in the value looks like a typed one that the reader would refuse.

    What would end in the dead-letter queue must fail where it is sent.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            from_typed(item)
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple)):
            waiting.extend(item)
