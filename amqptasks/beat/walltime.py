"""What clocks on the wall show, and when: the two hours a year in which that is not one and the same.

When clocks are put forward, some times are skipped; when they are put back, some are shown twice. What this module
says of them is the rule of all schedules:

- A time that is skipped comes as much later as the clocks are put forward: 02:30 at 03:30. That is when it would have
  come with the clocks left alone.
- A time that is shown twice comes twice; whether the second counts is the schedule's to say.

All results are in UTC. Python compares two moments of the same zone by what their clocks show, which is no order here.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple

UTC = timezone.utc
DAY = timedelta(days=1)


class Passes(NamedTuple):
    """When a clock shows a certain time.

    Args:
        first: The first time, or as much later as clocks are put forward if they skip it.
        second: The second time, if clocks show it twice.
        ordinary: Clocks show it exactly once.
    """

    first: datetime
    second: datetime | None
    ordinary: bool


def passes(wall: datetime) -> Passes:
    """Return the moments at which clocks show a time.

    Args:
        wall: The time, with its zone. Its ``fold`` must be 0.
    """
    # PEP 495: of a skipped time, fold 0 has the offset before the change; of a repeated one too.
    before, after = _offset(wall), _offset(wall.replace(fold=1))
    first = (wall - before).replace(tzinfo=UTC)
    if before == after:
        return Passes(first, None, True)
    return Passes(first, (wall - after).replace(tzinfo=UTC) if after < before else None, False)


def put_forward(moment: datetime, local: datetime) -> timedelta:
    """Return by how much clocks were put forward in the last day. Zero otherwise, and if they were put back.

    Args:
        moment: The moment, in UTC.
        local: The same in the zone in question.
    """
    return max(_offset(local) - _offset((moment - DAY).astimezone(local.tzinfo)), timedelta(0))


def to_come_again(local: datetime) -> timedelta:
    """Return by how much clocks will be put back, if they are to show this time once more; zero otherwise."""
    return timedelta(0) if local.fold else max(_offset(local) - _offset(local.replace(fold=1)), timedelta(0))


def usable(zone: tzinfo) -> tzinfo:
    """Return a zone that obeys PEP 495 in the place of one of pytz, which only works through its own methods."""
    name: Any = getattr(zone, "zone", None)
    if not isinstance(name, str) or not hasattr(zone, "localize"):
        return zone
    from zoneinfo import ZoneInfo

    return UTC if name == "UTC" else ZoneInfo(name)


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta(0)
