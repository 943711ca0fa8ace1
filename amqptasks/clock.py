"""Time as this package sees it: aware UTC moments, and a monotonic clock for durations.

One place, so that a test can put another clock in it.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone, tzinfo

monotonic = time.monotonic
#: Seconds since 1970, as the machine's clock has it.
wall_clock = time.time


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
