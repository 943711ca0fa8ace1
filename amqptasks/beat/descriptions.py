"""Schedules as plain data and back: what `BaseSchedule.describe` returns, read again.

What is read may come over the wire: nothing but schedules of our own kinds is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from amqptasks.beat.crontab import crontab
from amqptasks.beat.schedules import BaseSchedule, schedule
from amqptasks.beat.solar import solar

_FIELDS: Final = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
#: No field needs more: every minute by number takes 169 characters, or 60 items.
_MAX_TEXT: Final = 500
_MAX_ITEMS: Final = 100


def rebuild(data: Any) -> BaseSchedule:
    """Make the schedule that a description is of. It belongs to no app yet.

    Args:
        data: What `describe` returned, of a `schedule`, `crontab` or `solar`.

    Raises:
        ValueError: It is no such description.
        ImproperlyConfigured: It is of a `solar`, and ephem is not installed.
    """
    kind = data.get("type") if isinstance(data, Mapping) else None
    maker = _MAKERS.get(kind) if isinstance(kind, str) else None
    if maker is None:
        raise ValueError(f"expected the description of one of {', '.join(_MAKERS)}, got: {data!r:.200}")
    try:
        return maker(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this describes no {kind}: {_text(error)}; got: {data!r:.200}") from error


def _text(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _schedule(data: Mapping[str, Any]) -> BaseSchedule:
    return schedule(data["every"], relative=_flag(data, "relative"))


def _crontab(data: Mapping[str, Any]) -> BaseSchedule:
    fields = {name: _field(data[name]) for name in _FIELDS}
    return crontab(**fields, day_or=_flag(data, "day_or"))


def _solar(data: Mapping[str, Any]) -> BaseSchedule:
    event, lat, lon = data["event"], data["lat"], data["lon"]
    if not isinstance(event, str):
        raise TypeError(f"expected event to be a text, got: {event!r:.80}")
    for each in (lat, lon):
        if not isinstance(each, (int, float)):
            raise TypeError(f"expected lat and lon to be numbers, got: {each!r:.80}")
    return solar(event, lat, lon)


def _field(spec: Any) -> Any:
    if isinstance(spec, str) and len(spec) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} characters, got {len(spec)}")
    if isinstance(spec, (list, tuple)):
        if len(spec) > _MAX_ITEMS:
            raise ValueError(f"expected at most {_MAX_ITEMS} items, got {len(spec)}")
        return [_field(each) if isinstance(each, str) else each for each in spec]
    if not isinstance(spec, (str, int)):
        raise TypeError(f"expected a number, a text or a list of those, got: {spec!r:.80}")
    return spec


def _flag(data: Mapping[str, Any], name: str) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} to be True or False, got: {value!r:.80}")
    return value


_MAKERS: Final[dict[str, Callable[[Mapping[str, Any]], BaseSchedule]]] = {
    "schedule": _schedule,
    "crontab": _crontab,
    "solar": _solar,
}
