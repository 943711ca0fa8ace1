"""Rate limits: how often a worker begins the tasks of one name.

A task that comes too early is parked in the broker, by a delay of its own, so that it neither holds a place in the
prefetch window nor keeps other tasks waiting. Only the last fraction of a second is waited out here. The decisions are
pure functions of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.broker.loop import Loop
from amqptasks.clock import monotonic
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.worker.request import Request

#: A wait this short is waited out in the worker: a trip through the broker is about as long. Seconds.
HOLD_S: Final = 0.25
#: A parked task comes back after this long at the latest, for limits may change. Seconds.
MAX_PARK_S: Final = 60.0
#: A task that began late leaves the next one its place, up to this part of the interval.
LATENESS: Final = 0.1

_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def interval_of(rate: Any) -> float | None:
    """Read a rate: ``"10/m"``, ``"2/s"``, ``"100/h"``, or a number a second. Returns the seconds between two tasks;
    None without a limit.

    Raises:
        ImproperlyConfigured: It is none of these.
    """
    if rate is None or rate == "":
        return None
    count, _, unit = rate.partition("/") if isinstance(rate, str) else (rate, "", "s")
    try:
        number = float(count)
        seconds = _SECONDS[unit or "s"]
    except (TypeError, ValueError, KeyError):
        number = -1.0
    if isinstance(rate, bool) or not 0 <= number < float("inf"):
        raise ImproperlyConfigured(
            f"expected a rate limit to be like '10/s', '10/m', '10/h' or a number a second, got: {rate!r:.80}"
        )
    return seconds / number if number else None


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait in the worker."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Park:
    """Wait in the broker."""

    wait_s: float


class Bucket:
    """The turns of one task's calls: one each ``interval_s``. Nothing is saved up while there are none."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        # When the next call may begin, and where the line of those that were sent to wait ends.
        self._free_at = float("-inf")
        self._line_end = float("-inf")

    def admit(self, now: float, can_hold: bool) -> Hold | Park | None:
        """Decide about a call that is here now; None lets it begin."""
        wait_s = self._free_at - now
        if wait_s <= 0:
            self._free_at = max(self._free_at, now - LATENESS * self.interval_s) + self.interval_s
            return None
        if wait_s <= HOLD_S and can_hold:
            self._free_at += self.interval_s
            return Hold(wait_s)
        turn = max(self._free_at, self._line_end)
        if turn - now > MAX_PARK_S:
            # Its turn is not kept for it: it asks again when it is back.
            return Park(MAX_PARK_S)
        self._line_end = turn + self.interval_s
        return Park(turn - now)


class RateLimits:
    """Lets the calls of limited tasks through in their turn. Belongs to the loop's thread.

    Args:
        rates: Names and rates of tasks.
        begin: Called with a task whose turn has come after it was held here.
        park: Called with a task that is to wait in the broker, and for how long, in milliseconds.
        max_held: How many tasks are held here at most.
    """

    def __init__(
        self,
        loop: Loop,
        rates: Iterable[tuple[str, Any]],
        begin: Callable[[Request], None],
        park: Callable[[Request, float], None],
        max_held: int,
    ) -> None:
        #: The limited tasks, by name. Empty where there are no limits, so that looking costs nothing.
        self.buckets: dict[str, Bucket] = {}
        self._loop = loop
        self._begin = begin
        self._park = park
        self._max_held = max_held
        self._held: dict[Request, Any] = {}
        for name, rate in rates:
            try:
                self.set_rate(name, rate)
            except ImproperlyConfigured as error:
                raise ImproperlyConfigured(f"task {name}: {error}") from error

    def set_rate(self, name: str, rate: Any) -> None:
        """Change the limit of a task; None or 0 takes it away."""
        interval_s = interval_of(rate)
        if interval_s is None:
            self.buckets.pop(name, None)
        else:
            self.buckets[name] = Bucket(interval_s)

    def admits(self, request: Request) -> bool:
        """Whether a task may begin now. If not, it is taken care of."""
        bucket = self.buckets.get(request.task_name)
        if bucket is None:
            return True
        decision = bucket.admit(monotonic(), len(self._held) < self._max_held)
        if decision is None:
            return True
        if isinstance(decision, Hold):
            self._held[request] = self._loop.call_later(decision.wait_s, lambda: self._release(request))
        else:
            self._park(request, decision.wait_s * 1000)
        return False

    def _release(self, request: Request) -> None:
        if self._held.pop(request, None) is not None:
            self._begin(request)

    @property
    def held(self) -> list[Request]:
        """The tasks held here."""
        return list(self._held)

    def take_back(self) -> list[Request]:
        """Return the tasks held here, which then do not begin."""
        return self.take_out(lambda _each: True)

    def take_out(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Return those of the tasks held here, which then do not begin."""
        found = [each for each in self._held if wanted(each)]
        for request in found:
            self._loop.remove_timeout(self._held.pop(request))
        return found

    def drop_stale(self) -> None:
        """Forget what is held and whose channel is gone: the broker delivers it again."""
        self.take_out(lambda each: not each.delivery.is_current)


def rates_of(tasks: Iterable[Any], default: Any) -> list[tuple[str, Any]]:
    """Return the names and rates of tasks, those without a rate of their own by the default."""
    return [(task.name, default if task.rate_limit is None else task.rate_limit) for task in tasks]
