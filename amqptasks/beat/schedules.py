"""When periodic tasks run: the contract of schedules, and the plain one, "every so often".

A schedule is a pure function of time: `BaseSchedule.next_after` says when it comes next after a moment. Everything else
(``is_due`` and its relatives, by which Celery asks) follows from that and from what time it is now. A class of one's
own may define the one or the others.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from amqptasks.app.current import current_app_or_none, require_app
from amqptasks.beat.walltime import DAY, UTC, passes, usable
from amqptasks.clock import utcnow

if TYPE_CHECKING:
    from amqptasks.app.app import App

ZERO: Final = timedelta(0)
_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
#: How Celery asks a schedule.
_ANSWERS: Final = frozenset(("is_due", "remaining_estimate", "remaining_delta"))


class schedstate(NamedTuple):
    """Whether a task is due, and in how many seconds to look again."""

    is_due: bool
    next: float


class BaseSchedule:
    """What every schedule can say. Derive from it for a schedule of your own, and define `next_after`.

    Classes written for Celery define ``is_due`` or ``remaining_estimate`` instead, and work too.

    Args:
        nowfun: Says what time it is; without it the app's clock does.
        app: The app, whose zone counts. Without one it is the current app; without that, the zone is UTC.
    """

    nowfun: Callable[[], datetime] | None = None
    _app: App | None = None
    _tz: tzinfo | None = None

    def __init__(self, nowfun: Callable[[], datetime] | None = None, app: App | None = None) -> None:
        self.nowfun = nowfun
        self._app = app

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first time after a moment, in UTC; None if there is none. Safe from any thread.

        Args:
            moment: Aware; a naive one is taken to be in UTC.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither next_after nor is_due")

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return how long it is until the first time after the last run; negative if that has passed.

        If it never comes, this is ``timedelta.max``.
        """
        due = self.next_after(self.maybe_make_aware(last_run_at))
        return timedelta.max if due is None else due - self._instant(self.now())

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether the task is due now, and in how many seconds to look again."""
        remaining = self.remaining_estimate(last_run_at)
        if remaining > ZERO:
            return schedstate(False, remaining.total_seconds())
        return schedstate(True, max(self.remaining_estimate(self.now()), ZERO).total_seconds())

    def now(self) -> datetime:
        """Return what time it is."""
        if self.nowfun is not None:
            return self.nowfun()
        app = self._app or current_app_or_none()
        return utcnow() if app is None else app.now()

    def maybe_make_aware(self, dt: datetime, naive_as_utc: bool = True) -> datetime:
        """Return a naive moment in the schedule's zone, and an aware one as it is.

        Args:
            dt: The moment.
            naive_as_utc: A naive moment is in UTC, rather than in the schedule's zone.
        """
        if dt.tzinfo is not None:
            return dt
        return dt.replace(tzinfo=UTC).astimezone(self._zone) if naive_as_utc else dt.replace(tzinfo=self._zone)

    def to_local(self, dt: datetime) -> datetime:
        """Return a moment in the schedule's zone."""
        return self.maybe_make_aware(dt).astimezone(self._zone)

    @property
    def app(self) -> App:
        """The app it belongs to, or else the current one.

        Raises:
            ImproperlyConfigured: There is none.
        """
        return self._app or require_app(repr(self))

    @app.setter
    def app(self, app: App | None) -> None:
        self._app = app

    @property
    def tz(self) -> tzinfo:
        """The zone whose clocks count: the app's, unless it was set."""
        if self._tz is not None:
            return self._tz
        app = self._app or current_app_or_none()
        return UTC if app is None else app.timezone or UTC

    @tz.setter
    def tz(self, zone: tzinfo | None) -> None:
        self._tz = zone

    @property
    def utc_enabled(self) -> bool:
        """True: moments always travel in UTC."""
        return True

    @property
    def _zone(self) -> tzinfo:
        return usable(self.tz)

    def _instant(self, moment: datetime) -> datetime:
        return self.maybe_make_aware(moment).astimezone(UTC)

    def describe(self) -> dict[str, Any]:
        """Return what it is as plain data, for JSON. `amqptasks.beat.descriptions.rebuild` reads that of our own kinds.

        Schedules with equal descriptions, of these kinds and in one zone, always come at the same times.
        """
        return {"type": f"{type(self).__module__}.{type(self).__qualname__}", "repr": repr(self)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseSchedule):
            return NotImplemented
        return type(other) is type(self) and _state(other) == _state(self)

    def __hash__(self) -> int:
        return hash(type(self))


def _state(each: BaseSchedule) -> dict[str, Any]:
    return {name: value for name, value in vars(each).items() if name != "_app"}


class schedule(BaseSchedule):
    """Every so often, counted from the last run.

    Args:
        run_every: How often: seconds or a timedelta, more than zero.
        relative: By the clock: on the full day, hour, minute or second, whichever is the largest that ``run_every`` is
            not shorter than. Every two hours, last at 10:17, is then at 12:00.
        nowfun: Says what time it is.
        app: The app.
    """

    relative: bool = False

    def __init__(
        self,
        run_every: float | timedelta | None = None,
        relative: bool = False,
        nowfun: Callable[[], datetime] | None = None,
        app: App | None = None,
    ) -> None:
        self.run_every = None if run_every is None else as_interval(run_every)
        self.relative = relative
        super().__init__(nowfun=nowfun, app=app)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the moment plus ``run_every``, or with ``relative`` the full hour (day, …) last before that."""
        start, every = self._instant(moment), self._every
        try:
            return next_full(start, every, self._zone) if self.relative else start + every
        except OverflowError:
            return None

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Return whether the task is due now, and in how many seconds to look again."""
        remaining = self.remaining_estimate(last_run_at)
        if remaining > ZERO:
            return schedstate(False, remaining.total_seconds())
        return schedstate(True, self.remaining_estimate(self.now()).total_seconds() if self.relative else self.seconds)

    @property
    def _every(self) -> timedelta:
        if self.run_every is None:
            raise TypeError("this schedule does not say how often: expected run_every to be seconds or a timedelta")
        return self.run_every

    @property
    def seconds(self) -> float:
        """``run_every`` in seconds."""
        return self._every.total_seconds()

    @property
    def human_seconds(self) -> str:
        """``run_every`` for people: ``1.50 minutes``."""
        seconds = round(self.seconds, 2)
        for name, unit in _UNITS:
            count = seconds / unit
            if count >= 1:
                return f"{count:.2f} {name if count == 1 else name + 's'}"
        return f"{self.seconds:g} seconds"

    def describe(self) -> dict[str, Any]:
        """Return what it is as plain data, for JSON."""
        if type(self) is not schedule:
            return super().describe()
        return {"type": "schedule", "every": self.seconds, "relative": self.relative}

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_every, self.relative, self.nowfun)

    def __eq__(self, other: object) -> bool:
        return self.run_every == (other.run_every if isinstance(other, schedule) else other)

    def __hash__(self) -> int:
        return hash(self.run_every)


def as_interval(value: Any) -> timedelta:
    """Return seconds or a timedelta as a timedelta that is more than zero.

    Raises:
        TypeError, ValueError: It is nothing of the kind.
    """
    if isinstance(value, timedelta):
        interval = value
    elif isinstance(value, Real) and value is not True and value is not False:
        try:
            interval = timedelta(seconds=float(value))
        except (ValueError, OverflowError):
            raise ValueError(f"expected run_every to be a number of seconds, got: {value!r}") from None
    else:
        raise TypeError(f"expected run_every to be seconds or a timedelta, got: {value!r}")
    if interval <= ZERO:
        raise ValueError(f"expected run_every to be more than zero, got: {value!r}")
    return interval


def next_full(start: datetime, every: timedelta, zone: tzinfo) -> datetime:
    """Return the last full day, hour, minute or second after ``start`` and not after ``start + every``, in UTC.

    Which it is depends on the interval: the largest that fits into it. Days are counted by the calendar, however long.
    Where clocks were put back in between, there may be none: then it is the next.
    """
    end = start + every
    if every < timedelta(minutes=1):
        rounded = end.replace(microsecond=0)
        return rounded if rounded > start else end
    if every >= DAY:
        local = (start.astimezone(zone) + every).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        midnight = passes(local)
        return midnight.second if midnight.second and midnight.first <= start else midnight.first
    hourly = every >= timedelta(hours=1)
    unit = timedelta(hours=1) if hourly else timedelta(minutes=1)
    full = end.astimezone(zone).replace(second=0, microsecond=0, fold=0)
    full = full.replace(minute=0) if hourly else full
    # Two before and three after: enough for clocks that are put back or forward by up to two hours.
    around = [passes(full + count * unit) for count in range(-2, 4)]
    found = sorted({each for pair in around for each in (pair.first, pair.second) if each and each > start})
    in_time = [each for each in found if each <= end]
    return in_time[-1] if in_time else next(iter(found), end)


def plans_ahead(each: Any) -> bool:
    """Return whether `next_after` is all there is to know of a schedule, so that a daemon need not ask ``is_due``.

    It is not for a class, such as many of those written for Celery, that puts its own ``is_due`` or
    ``remaining_estimate`` above the `next_after` that it inherits, or has none.
    """
    for kind in type(each).__mro__:
        if "next_after" in vars(kind):
            return kind is not BaseSchedule
        if not _ANSWERS.isdisjoint(vars(kind)):
            return False
    return False


def maybe_schedule(s: Any, relative: bool = False, app: App | None = None) -> Any:
    """Return a schedule: that of a number of seconds or a timedelta, and one that is one already as it is.

    Args:
        s: Seconds, a timedelta, a schedule, an object of one's own that has ``is_due``, or None, which stays None.
        relative: For seconds and timedeltas: by the clock (`schedule`).
        app: The app that it shall belong to.

    Raises:
        TypeError, ValueError: It is nothing of the kind.
    """
    if s is None:
        return None
    if isinstance(s, (Real, timedelta)):
        return schedule(as_interval(s), relative, app=app)
    if not callable(getattr(s, "is_due", None)) or isinstance(s, type):
        raise TypeError(f"expected a schedule: seconds, a timedelta, crontab(…) or another one; got: {s!r}")
    s.app = app
    return s
