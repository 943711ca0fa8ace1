"""A revocation as it is written to the broker: which tasks are not to run, since when, and whether a running one is to
be ended. JSON, and hostile when it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from amqptasks.exceptions import DecodeError
from amqptasks.wire.serializers import Limits, dumps, loads
from amqptasks.wire.task import MAX_ID_CHARACTERS

#: Tasks named by one record at most.
MAX_IDS: Final = 1000
#: Stamps named by one record, and values of each.
MAX_STAMPS: Final = 20
MAX_TEXT: Final = 1000
#: Workers that one record may be meant for.
MAX_DESTINATIONS: Final = 1000
_LIMITS: Final = Limits(max_bytes=1 << 20, max_items=1 << 14, max_depth=5)
_ACCEPT: Final = frozenset({"application/json"})
#: Signals that a worker will send; as in Celery, by name.
SIGNALS: Final = frozenset({"SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGABRT"})


@dataclass(frozen=True, slots=True)
class Revocation:
    """What one record says.

    Attributes:
        ids: The tasks, by id.
        stamps: Header names and values: tasks stamped with any of them are meant too.
        terminate: End those that are running.
        signal: With which signal, where the pool has processes.
        at: When it was made, seconds since 1970.
        marker: Set in records that revoke nothing: a worker's sign of how far it has read.
        destinations: The workers that it is for, by their names; none: all.
    """

    ids: tuple[str, ...] = ()
    stamps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    terminate: bool = False
    signal: str = "SIGTERM"
    at: float = 0.0
    marker: str | None = None
    destinations: tuple[str, ...] = ()

    def to_body(self) -> bytes:
        """Encode it."""
        plain = {
            "ids": list(self.ids), "stamps": {name: list(values) for name, values in self.stamps.items()},
            "terminate": self.terminate, "signal": self.signal, "at": self.at, "marker": self.marker,
        }  # fmt: skip
        if self.destinations:
            plain["destinations"] = list(self.destinations)
        return dumps(plain, "json")[2]


def read_revocation(body: bytes) -> Revocation:
    """Decode a record.

    Raises:
        DecodeError: It is none.
    """
    plain = loads(body, "application/json", "utf-8", _ACCEPT, _LIMITS)
    if not isinstance(plain, dict):
        raise DecodeError(f"expected a revocation to be a map, got: {type(plain).__name__}")
    ids, stamps = plain.get("ids"), plain.get("stamps")
    if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(_is_text(each, MAX_ID_CHARACTERS) for each in ids):
        raise DecodeError(f"expected a revocation's ids to be a list of at most {MAX_IDS} texts")
    if not isinstance(stamps, dict) or len(stamps) > MAX_STAMPS:
        raise DecodeError(f"expected a revocation's stamps to be a map of at most {MAX_STAMPS} headers")
    for values in stamps.values():
        if (
            not isinstance(values, list)
            or len(values) > MAX_IDS
            or not all(_is_text(each, MAX_TEXT) for each in values)
        ):
            raise DecodeError(f"expected the values of a stamp to be a list of at most {MAX_IDS} texts")
    names = plain.get("destinations", [])
    if (
        not isinstance(names, list)
        or len(names) > MAX_DESTINATIONS
        or not all(_is_text(each, MAX_TEXT) for each in names)
    ):
        raise DecodeError(f"expected a revocation's destinations to be a list of at most {MAX_DESTINATIONS} texts")
    at, number, marker = plain.get("at"), plain.get("signal"), plain.get("marker")
    is_time = isinstance(at, (int, float)) and not isinstance(at, bool)
    if (
        not is_time
        or not isinstance(number, str)
        or number not in SIGNALS
        or not (marker is None or _is_text(marker, MAX_TEXT))
    ):
        raise DecodeError("expected a revocation to have a time, the name of a signal, and perhaps a marker")
    return Revocation(
        tuple(ids), {str(name): tuple(values) for name, values in stamps.items()}, plain.get("terminate") is True,
        number, float(at or 0), marker, tuple(names),
    )  # fmt: skip


def stamp_values(value: Any) -> tuple[str, ...]:
    """Return the values of a stamp as texts: one, or those of a list."""
    values: Iterable[Any] = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    return tuple(str(each) for each in values)


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most
