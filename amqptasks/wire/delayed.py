"""What is noted of delayed calls, so that workers can tell what waits: a list of them in one message. JSON, and hostile
when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from amqptasks.exceptions import DecodeError
from amqptasks.wire.serializers import Limits, dumps, loads
from amqptasks.wire.task import MAX_ID_CHARACTERS, MAX_NAME_CHARACTERS

__all__ = ["DelayNotes", "Delayed", "Note", "encode_notes", "read_notes"]

#: Calls noted by one message.
MAX_NOTES: Final = 1000
#: Of the texts of arguments so much is kept.
MAX_TEXT: Final = 100
MAX_QUEUE: Final = 255
_LIMITS: Final = Limits(max_bytes=4 << 20, max_items=MAX_NOTES + 10, max_depth=5)
_ACCEPT: Final = frozenset({"application/json"})


#: A `Delayed` as it is made in a hurry.
Note = tuple[str, str, float, str, str | None, str | None]


class Delayed(NamedTuple):
    """One call that waits in the broker.

    Attributes:
        due_at: When its time comes, seconds since 1970.
        queue: The name under which it waits: of a queue, or of what the delay ladder calls an exchange.
        args, kwargs: Its arguments as texts, cut.
    """

    id: str
    name: str
    due_at: float
    queue: str
    args: str | None = None
    kwargs: str | None = None


@dataclass(frozen=True, slots=True)
class DelayNotes:
    """What one message says: calls, or nothing but a reader's sign of how far it has read."""

    calls: tuple[Delayed, ...] = ()
    marker: str | None = None


def encode_notes(calls: Iterable[Note], marker: str | None = None) -> bytes:
    """Encode notes. At most `MAX_NOTES` of them."""
    rows = [
        (task_id, name, due_at, queue, args and args[:MAX_TEXT], kwargs and kwargs[:MAX_TEXT])
        for task_id, name, due_at, queue, args, kwargs in calls
    ]
    return dumps({"calls": rows, "marker": marker}, "json")[2]


def read_notes(body: bytes) -> DelayNotes:
    """Decode notes; what is wrong with one of them leaves out that one.

    Raises:
        DecodeError: It is something else.
    """
    plain = loads(body, "application/json", "utf-8", _ACCEPT, _LIMITS)
    if not isinstance(plain, dict) or not isinstance(plain.get("calls"), list):
        raise DecodeError("expected notes of delayed calls to be a map with a list of calls")
    marker = plain.get("marker")
    calls = tuple(Delayed(*row) for row in plain["calls"][:MAX_NOTES] if _is_call(row))
    return DelayNotes(calls, marker if isinstance(marker, str) else None)


def _is_call(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 6:
        return False
    task_id, name, due_at, queue, args, kwargs = row
    return (
        _is_text(task_id, MAX_ID_CHARACTERS)
        and _is_text(name, MAX_NAME_CHARACTERS)
        and _is_text(queue, MAX_QUEUE)
        and type(due_at) in (int, float)
        and 0 <= due_at < 1e11
        and all(each is None or (isinstance(each, str) and len(each) <= MAX_TEXT) for each in (args, kwargs))
    )


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most
