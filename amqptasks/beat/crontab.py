"""Crontab schedules: at these minutes of these hours of these days, by the clock on the wall."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import MAXYEAR, date, datetime, timedelta, tzinfo
from functools import lru_cache, partial
from operator import index
from typing import TYPE_CHECKING, Any

from amqptasks.app.current import current_app_or_none
from amqptasks.beat.crontab_grammar import (
    DAY_OF_MONTH,
    DAY_OF_WEEK,
    HOUR,
    MINUTE,
    MONTH_OF_YEAR,
    Cronspec,
    Field,
    ParseException,
    expand,
)
from amqptasks.beat.schedules import ZERO, BaseSchedule, schedstate
from amqptasks.beat.walltime import UTC, passes, put_forward, to_come_again, usable

if TYPE_CHECKING:
    from amqptasks.app.app import App

_FIELDS = (MINUTE, HOUR, DAY_OF_WEEK, DAY_OF_MONTH, MONTH_OF_YEAR)
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MINUTE = timedelta(minutes=1)


class crontab(BaseSchedule):
    """At certain minutes, hours and days, like a line of `crontab(5)`. ``crontab()`` is every minute.

    Each field is a number, a text (``"*/15"``, ``"mon-fri"``, ``"22-3"``, ``"1-7,15-21"``), or an iterable of those.
    Sunday is 0 or 7. A day must be in all three of ``day_of_week``, ``day_of_month`` and ``month_of_year``.

    Times are those of clocks in the app's zone. When clocks are put forward, a time that is skipped comes as much
    later: 02:30 at 03:30. When they are put back, a time that they show twice comes the first time only, unless the
    minute or the hour is like an interval: written with a ``*``, or all of them.

    Args:
        minute: 0 to 59.
        hour: 0 to 23.
        day_of_week: 0 (Sunday) to 6, or 7 for Sunday, or names such as ``mon`` or ``Monday``.
        day_of_month: 1 to 31.
        month_of_year: 1 to 12, or names such as ``jan`` or ``January``.
        nowfun: Says what time it is.
        app: The app.
        day_or: If neither ``day_of_week`` nor ``day_of_month`` has every day, a day in either will do, as for cron.

    Raises:
        ParseException: A text cannot be read (a ValueError).
        ValueError: A number is out of range, or there is no such day in any year: 30 February.
        TypeError: A field is nothing of the kind.
    """

    def __init__(
        self,
        minute: Cronspec = "*",
        hour: Cronspec = "*",
        day_of_week: Cronspec = "*",
        day_of_month: Cronspec = "*",
        month_of_year: Cronspec = "*",
        nowfun: Callable[[], datetime] | None = None,
        app: App | None = None,
        day_or: bool = False,
    ) -> None:
        self._orig_minute = _kept(minute)
        self._orig_hour = _kept(hour)
        self._orig_day_of_week = _kept(day_of_week)
        self._orig_day_of_month = _kept(day_of_month)
        self._orig_month_of_year = _kept(month_of_year)
        super().__init__(nowfun=nowfun, app=app)
        self._expand(day_or)

    def _expand(self, day_or: bool) -> None:
        minutes, hours = expand(self._orig_minute, MINUTE), expand(self._orig_hour, HOUR)
        self.minute, self.hour = minutes.numbers, hours.numbers
        self.day_of_week = expand(self._orig_day_of_week, DAY_OF_WEEK).numbers
        self.day_of_month = expand(self._orig_day_of_month, DAY_OF_MONTH).numbers
        self.month_of_year = expand(self._orig_month_of_year, MONTH_OF_YEAR).numbers
        self.day_or = bool(day_or)
        self._repeats = minutes.like_interval or hours.like_interval
        self._either = self.day_or and len(self.day_of_week) < 7 and len(self.day_of_month) < 31
        self._minutes, self._hours, self._months = _bits(self.minute), _bits(self.hour), _bits(self.month_of_year)
        self._weekdays, self._monthdays = _bits(self.day_of_week), _bits(self.day_of_month)
        if not self._either and min(self.day_of_month) > max(_LONGEST[month - 1] for month in self.month_of_year):
            raise ValueError(
                f"Invalid crontab: day_of_month {self._orig_day_of_month!r} never occurs in "
                f"month_of_year {self._orig_month_of_year!r}."
            )

    @classmethod
    def from_string(cls, crontab: str, **options: Any) -> crontab:
        """Make one of a line such as ``"0 7 * * mon-fri"``: minute, hour, day of month, month, day of week.

        Args:
            crontab: The five fields, with any white space between them.
            **options: ``nowfun``, ``app``, ``day_or``.

        Raises:
            ParseException: These are not five fields, or one of them cannot be read.
        """
        fields = crontab.split()
        if len(fields) != 5:
            raise ParseException(
                f"expected five fields (minute hour day_of_month month_of_year day_of_week), got {len(fields)}: "
                f"{crontab!r}"
            )
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, **options)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first time after a moment, in UTC; None if there is none before the year 10000."""
        return self._next_after(self._instant(moment), self._zone)

    def _next_after(self, moment: datetime, zone: tzinfo) -> datetime | None:
        try:
            return self._search(moment, moment.astimezone(zone))
        except OverflowError:  # The ends of the calendar.
            return None

    def _search(self, moment: datetime, local: datetime) -> datetime | None:
        begin = local.replace(second=0, microsecond=0, fold=0) + _MINUTE - self._to_look_back(moment, local)
        found: datetime | None = None
        for wall in self._walls(begin):
            first, second, ordinary = passes(wall)
            for each in (first, second if self._repeats else None):
                if each is not None and each > moment and (found is None or each < found):
                    found = each
            # Times that clocks skip or repeat are out of order: others may come between. After an ordinary one none do.
            if ordinary and first > moment:
                break
        return found

    def _to_look_back(self, moment: datetime, local: datetime) -> timedelta:
        """Return how far behind the clock a time may lie that is still to come."""
        skipped = put_forward(moment, local)
        return max(skipped, to_come_again(local)) if self._repeats else skipped

    def _walls(self, begin: datetime) -> Iterator[datetime]:
        """Go through the times that the fields hold, in their order, from one on."""
        year, month, day, hour, minute = begin.year, begin.month, begin.day, begin.hour, begin.minute
        while year <= MAXYEAR:
            found = _next(self._months, month)
            if found != month:
                year, month = (year, found) if found > 0 else (year + 1, 1)
                day, hour, minute = 1, 0, 0
                if found < 0:
                    continue
            found = _next(_days(year, month, self._weekdays, self._monthdays, self._either), day)
            if found != day:
                (month, day) = (month, found) if found > 0 else (month + 1, 1)
                hour, minute = 0, 0
                if found < 0:
                    continue
            found = _next(self._hours, hour)
            if found != hour:
                (day, hour) = (day, found) if found >= 0 else (day + 1, 0)
                minute = 0
                if found < 0:
                    continue
            found = _next(self._minutes, minute)
            if found < 0:
                hour, minute = hour + 1, 0
                continue
            yield datetime(year, month, day, hour, found, tzinfo=begin.tzinfo)
            minute = found + 1

    def remaining_delta(
        self, last_run_at: datetime, tz: str | tzinfo | None = None
    ) -> tuple[datetime, timedelta, datetime]:
        """Return the last run, how long after it the next time comes, and now; all moments in UTC.

        Args:
            last_run_at: When it ran last.
            tz: The zone whose clocks count; the schedule's without.
        """
        start, now = self._instant(last_run_at), self._instant(self.now())
        due = self.next_after(start) if tz is None else self._next_after(start, _zone(tz))
        return start, timedelta.max if due is None else due - start, now

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return how long it is until the first time after the last run; negative if that has passed."""
        start, delta, now = self.remaining_delta(last_run_at)
        return delta if delta == timedelta.max else start + delta - now

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether the task is due now, and in how many seconds to look again.

        A time that was missed by more than ``beat_cron_starting_deadline`` seconds is not due.
        """
        remaining = self.remaining_estimate(last_run_at)
        if remaining > ZERO:
            return schedstate(False, remaining.total_seconds())
        now = self._instant(self.now())
        due = remaining == ZERO or not self._is_too_late(now)
        return schedstate(due, max(self.remaining_estimate(now), ZERO).total_seconds())

    def _is_too_late(self, now: datetime) -> bool:
        app = self._app or current_app_or_none()
        deadline_s = None if app is None else app.conf.beat_cron_starting_deadline
        if deadline_s is None:
            return False
        # A microsecond more, so that a time exactly at the deadline counts.
        return self.remaining_estimate(now - timedelta(seconds=deadline_s, microseconds=1)) > ZERO

    def describe(self) -> dict[str, Any]:
        """Return what it is as plain data, for JSON."""
        if type(self) is not crontab:
            return super().describe()
        fields = {field.name: _plain(getattr(self, f"_orig_{field.name}"), field) for field in _FIELDS}
        return {"type": "crontab", **fields, "day_or": self.day_or}

    def __repr__(self) -> str:
        fields = (
            f"{self._orig_minute} {self._orig_hour} {self._orig_day_of_month} {self._orig_month_of_year} "
            f"{self._orig_day_of_week} (m/h/dM/MY/d)"
        )
        return f"<crontab: {fields}, day_or>" if self.day_or else f"<crontab: {fields}>"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = tuple(getattr(self, f"_orig_{field.name}") for field in _FIELDS)
        kind = partial(type(self), day_or=True) if self.day_or else type(self)
        # The app stays behind: it is another one where this is read.
        return kind, fields, {"nowfun": self.nowfun, "tz": self._tz}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.nowfun, self._tz = state["nowfun"], state["tz"]

    def __eq__(self, other: object) -> bool:
        """Whether the fields hold the same: ``*/20`` and ``0,20,40`` do. `describe` tells these apart."""
        if not isinstance(other, crontab):
            return NotImplemented
        return self._fields() == other._fields() and self.nowfun == other.nowfun

    def __hash__(self) -> int:
        return hash(self._fields())

    def _fields(self) -> tuple[Any, ...]:
        return self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year, self.day_or


def _kept(spec: Any) -> Any:
    """Return a specification that nobody can change or use up any more."""
    if isinstance(spec, (str, tuple, frozenset, range)) or not isinstance(spec, Iterable):
        return spec
    return set(spec) if isinstance(spec, set) else list(spec)


def _plain(spec: Any, field: Field) -> int | str | list[int | str]:
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, Iterable):
        return index(spec)
    items = [each if isinstance(each, str) else index(each) for each in spec]
    return items if isinstance(spec, (list, tuple, range)) else sorted(items, key=str)


def _zone(tz: str | tzinfo) -> tzinfo:
    if isinstance(tz, tzinfo):
        return usable(tz)
    from zoneinfo import ZoneInfo

    return UTC if tz == "UTC" else ZoneInfo(tz)


@lru_cache(maxsize=4096)
def _bits(numbers: frozenset[int]) -> int:
    return sum(1 << number for number in numbers)


def _next(bits: int, start: int) -> int:
    """Return the first number from ``start`` on that is in a set of bits; -1 if none is."""
    rest = bits >> start
    return start + (rest & -rest).bit_length() - 1 if rest else -1


@lru_cache(maxsize=4096)
def _days(year: int, month: int, weekdays: int, monthdays: int, either: bool) -> int:
    """Return the days of a month that are wanted, as bits."""
    first, length = date(year, month, 1).isoweekday(), monthrange(year, month)[1]
    by_weekday = sum(1 << day for day in range(1, length + 1) if weekdays >> (first + day - 1) % 7 & 1)
    by_date = monthdays & (1 << length + 1) - 1
    return by_weekday | by_date if either else by_weekday & by_date
