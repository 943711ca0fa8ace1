"""An entry as it is shown to people: what the leader answers, and what a program makes of that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from amqptasks.beat.schedules import BaseSchedule
from amqptasks.beat.state import from_us
from amqptasks.exceptions import DecodeError
from amqptasks.wire.reprs import printable, short_repr

__all__ = ["CONFIG", "RUN_TIME", "EntryView", "plain_copy", "words"]

#: Where an entry comes from.
CONFIG: Final = "config"
RUN_TIME: Final = "run time"
#: Arguments that are larger as JSON are shown shortened.
MAX_SHOWN: Final = 262_144
_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
_FIELDS: Final = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
_MAX_US: Final = 253_370_764_800_000_000
_MAX_TEXT: Final = 2000


@dataclass(frozen=True, slots=True)
class EntryView:
    """An entry of the schedule, as its leader has it.

    Attributes:
        name: Its name.
        task: The task's name.
        schedule: When it is due, as ``describe`` has it.
        words: The same for people.
        source: Where it comes from, "config" or "run time".
        paused: Whether it is held back.
        runs: How often it was sent.
        last_run: When it was sent last, in UTC; None if never.
        next_run: When it is due next, in UTC; None if it is held back, or nobody can tell.
        missed: What becomes of missed runs, "skip", "once" or "all".
        problem: Why it cannot be used, if so.
        args, kwargs, options: What is sent; only where one entry was asked for.
        next_runs: Its next runs, in UTC; only where one entry was asked for.
    """

    name: str
    task: str
    schedule: Any
    words: str
    source: str
    paused: bool = False
    runs: int = 0
    last_run: datetime | None = None
    next_run: datetime | None = None
    missed: str | None = None
    problem: str | None = None
    args: Any = None
    kwargs: Any = None
    options: Any = None
    next_runs: tuple[datetime, ...] = field(default=())

    @classmethod
    def from_plain(cls, plain: Any) -> EntryView:
        """Read what a leader, or anybody, has answered.

        Raises:
            DecodeError: It is no entry.
        """
        if not isinstance(plain, dict) or not isinstance(plain.get("name"), str):
            raise DecodeError(f"expected an entry of a schedule, got: {plain!r:.80}")
        upcoming = plain.get("next_runs") or []
        runs = plain.get("runs")
        return cls(
            name=plain["name"], task=_text(plain.get("task")) or "?", schedule=plain.get("schedule"),
            words=_text(plain.get("words")) or "?", source=RUN_TIME if plain.get("source") == RUN_TIME else CONFIG,
            paused=plain.get("paused") is True, runs=runs if type(runs) is int else 0,
            last_run=_moment(plain.get("last_run")), next_run=_moment(plain.get("next_run")),
            missed=_text(plain.get("missed")), problem=_text(plain.get("problem")), args=plain.get("args"),
            kwargs=plain.get("kwargs"), options=plain.get("options"),
            next_runs=tuple(filter(None, map(_moment, upcoming if isinstance(upcoming, list) else ()))),
        )  # fmt: skip


def _text(value: Any) -> str | None:
    return None if value is None else printable(value, _MAX_TEXT)


def _moment(value: Any) -> datetime | None:
    is_moment = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_US
    return from_us(value) if is_moment else None


def words(rule: Any) -> str:
    """Return a schedule as people read it: ``every 10 seconds``, ``crontab */5 * * * *``."""
    described = rule.describe() if isinstance(rule, BaseSchedule) else None
    kind = described.get("type") if isinstance(described, Mapping) else None
    if kind == "schedule" and described is not None:
        return _every(described["every"]) + (", by the clock" if described["relative"] else "")
    if kind == "crontab" and described is not None:
        return " ".join(["crontab", *(_field(described[name]) for name in _FIELDS)]) + (
            " (either day)" if described["day_or"] else ""
        )
    if kind == "solar" and described is not None:
        return f"{described['event']} at {described['lat']:g}, {described['lon']:g}"
    return printable(short_repr(rule), 200)


def _every(seconds: float) -> str:
    parts = []
    rest = round(seconds, 6)
    for name, unit in _UNITS:
        count = rest if unit == 1 else rest // unit
        rest = round(rest - count * unit, 6)
        if count:
            parts.append(name if count == 1 and seconds == unit else f"{count:.10g} {name}{'' if count == 1 else 's'}")
    return f"every {' '.join(parts)}"


def _field(spec: Any) -> str:
    # As it would be written in a line; what was given as a list has no spaces in it.
    return ",".join(map(str, spec)) if isinstance(spec, list) else "".join(str(spec).split())


def plain_copy(value: Any) -> Any:
    """Return arguments as plain data for JSON; what JSON has no words for, or is very large, as a short text."""
    try:
        text = json.dumps(value, default=short_repr)
    except (TypeError, ValueError, RecursionError):
        return short_repr(value)
    return json.loads(text) if len(text) <= MAX_SHOWN else short_repr(value)
