"""Time as this package sees it: aware UTC moments, and a monotonic clock for durations.

One place, so that a test can put another clock in it.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

monotonic = time.monotonic
#: Seconds since 1970, as the machine's clock has it.
wall_clock = time.time


def utcoffset() -> float:
    """Return how far this machine's zone is from UTC, in hours; positive to the west, as `time.timezone` has it."""
    return (time.altzone if time.localtime().tm_isdst else time.timezone) / 3600


def utcnow() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(timezone.utc)


def as_utc(moment: datetime, zone: tzinfo | None = None) -> datetime:
    """Return an aware UTC moment; a naive one is taken to be in ``zone`` (UTC without one)."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone or timezone.utc)
    return moment.astimezone(timezone.utc)


def parse_moment(text: str, zone: tzinfo | None = None) -> datetime:
    """Read an ISO 8601 moment as aware UTC; without an offset it is taken to be in ``zone`` (UTC without one).

    Raises:
        ValueError: It is no such text.
    """
    if not isinstance(text, str) or len(text) > 64:
        raise ValueError(f"expected an ISO 8601 date and time, got: {text!r:.80}")
    # fromisoformat learnt the suffix Z in Python 3.11 only.
    try:
        return as_utc(datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text), zone)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"expected an ISO 8601 date and time, got: {text!r:.80}") from error


def seconds_until(moment: datetime, now: datetime | None = None) -> float:
    """Return how long until a moment, in seconds; negative once it has passed."""
    return (moment - (now or utcnow())) / timedelta(seconds=1)


#: A counter that claims to be further than this is not believed: JavaScript's monitors could not read it.
MAX_CLOCK = 1 << 53


class LamportClock:
    """Counts what an app sends and receives, so that events and commands of many programs can be put in order.

    Safe from any thread.
    """

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return str(self._value)

    def __repr__(self) -> str:
        return f"<LamportClock {self._value}>"

    @property
    def value(self) -> int:
        """Where it stands."""
        return self._value

    def forward(self) -> int:
        """Count something that is sent; returns its number."""
        with self._lock:
            self._value += 1
            return self._value

    def adjust(self, other: Any) -> int:
        """Count something received that claims to come after ``other``; returns its number. Whatever is no such number
        is passed over."""
        if type(other) is not int or not 0 <= other <= MAX_CLOCK:
            other = 0
        with self._lock:
            self._value = max(self._value, other) + 1
            return self._value
