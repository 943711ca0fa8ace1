"""What is due: pure functions of a schedule, the time that was dealt with last, and now. Nothing here looks at a clock.

Each entry of a schedule has an *anchor*: the due time that was dealt with last, or when the entry was first seen. What
is due is what the schedule says between the anchor and now; what is sent of it, if that is more than one, the policy
for missed runs says. `step` decides for one entry, `Timetable` keeps many in order.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from amqptasks.beat.crontab import crontab
from amqptasks.beat.schedules import plans_ahead, schedule

__all__ = ["MISSED", "Firing", "Plan", "Step", "Timetable", "step"]

#: What becomes of runs that were missed: none is made up for, the last one is, or all are.
MISSED: Final = ("skip", "once", "all")
#: With the policy "skip" a run counts as missed once it is this late. It covers a takeover and a short outage.
SKIP_AFTER: Final = timedelta(seconds=30)
#: When the clock is put back by more than this, times of the wall clock come again; by less, they are waited for.
REPEATS_AFTER: Final = timedelta(hours=3)
#: How much the clock may go back before everything is looked at anew.
STEP_BACK: Final = timedelta(seconds=1)
#: After an entry's schedule has failed it is asked again this much later.
AFTER_FAILURE: Final = timedelta(minutes=1)
#: A schedule that must be asked is asked again at the earliest after this.
LEAST_WAIT_S: Final = 0.01
_FIRST_WINDOW: Final = timedelta(minutes=1)
_WINDOW_GROWTH: Final = 8
#: So many due times more than are wanted are gone through one by one.
_GONE_THROUGH: Final = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides when an entry is due.

    Attributes:
        schedule: The schedule.
        missed: One of `MISSED`.
        most: How many missed runs are made up for at most, with the policy "all".
        deadline: Runs of a crontab that are later than this are not made up for.
    """

    schedule: Any
    missed: str = "once"
    most: int = 100
    deadline: timedelta | None = None


class Step(NamedTuple):
    """What `step` decided.

    Attributes:
        due: The due times to send now, oldest first.
        anchor: The due time that is dealt with now.
        next: When to look again; None for never.
        missed: How many runs are left out, at least: of very many not all are counted.
    """

    due: tuple[datetime, ...]
    anchor: datetime
    next: datetime | None
    missed: int


def step(plan: Plan, anchor: datetime, now: datetime) -> Step:
    """Decide what of an entry is due. Pure: the same arguments always give the same answer.

    A due time is sent never before it has come, and never twice: the anchor only goes forward, unless the clock was put
    back far (`restarted`).

    Args:
        plan: The entry's plan; its schedule must plan ahead (`plans_ahead`).
        anchor: The due time that was dealt with last, or when the entry was first seen; aware.
        now: The present moment; aware.
    """
    anchor = restarted(plan.schedule, anchor, now)
    following = next_after(plan.schedule, anchor)
    if following is None or following > now:
        return Step((), anchor, following, 0)
    found, uncounted = _passed(plan, anchor, now)
    last = found[-1]
    wanted = [due for due in found if not _is_too_late(plan, due, now)]
    if plan.missed != "all":
        wanted = wanted[-1:]
    wanted = wanted[-plan.most :]
    return Step(tuple(wanted), last, next_after(plan.schedule, last), uncounted + len(found) - len(wanted))


def restarted(rule: Any, anchor: datetime, now: datetime) -> datetime:
    """Return the anchor, or now, if the clock was put back so far that waiting for it to catch up is no use.

    An interval is waited for at most twice its length. Times of the wall clock that were dealt with are not dealt with
    again, unless the clock was wrong by more than `REPEATS_AFTER`.
    """
    if anchor <= now:
        return anchor
    most = rule.run_every if isinstance(rule, schedule) and rule.run_every is not None else REPEATS_AFTER
    return now if anchor - now > most else anchor


def next_after(rule: Any, moment: datetime) -> datetime | None:
    """Ask a schedule for the next time after a moment.

    Raises:
        ValueError: Its answer is not after that.
    """
    found: datetime | None = rule.next_after(moment)
    if found is not None and found <= moment:
        raise ValueError(f"expected {rule!r} to say a time after {moment}, got: {found}")
    return found


def _is_too_late(plan: Plan, due: datetime, now: datetime) -> bool:
    if plan.missed == "skip" and now - due > SKIP_AFTER:
        return True
    return plan.deadline is not None and isinstance(plan.schedule, crontab) and now - due > plan.deadline


def _passed(plan: Plan, anchor: datetime, now: datetime) -> tuple[list[datetime], int]:
    """Return the last due times after the anchor and not after now, as many as can matter, and how many more there
    were, as far as that is known. There is at least one."""
    rule, most = plan.schedule, plan.most if plan.missed == "all" else 1
    if type(rule) is schedule and not rule.relative and rule.run_every is not None:
        every = rule.run_every
        count = (now - anchor) // every
        first = max(1, count - most + 1)
        return [anchor + every * number for number in range(first, count + 1)], first - 1
    limit: int | None = most + _GONE_THROUGH
    if isinstance(rule, schedule):
        # It counts from the last time, which must be known: all are gone through, but for those of a rhythm.
        anchor, limit = _near(rule, anchor, now, most), None
    found, count = _collect(rule, anchor, now, most, limit)
    if limit is None or count <= limit:
        return list(found), count - len(found)
    # Too many to go through: nearer and nearer to the anchor, until enough are found.
    window = _FIRST_WINDOW
    while True:
        start = max(anchor, now - window) if window < now - anchor else anchor
        found, there = _collect(rule, start, now, most)
        if len(found) >= most or start == anchor:
            return list(found), max(count, there) - len(found)
        window *= _WINDOW_GROWTH


def _near(rule: schedule, anchor: datetime, now: datetime, most: int) -> datetime:
    """Return a time at which an interval by the clock came due, so many before now, without going through all before.

    On full minutes and seconds it comes in a rhythm; on full hours and days that depends on the zone.
    """
    every, first = rule.run_every, next_after(rule, anchor)
    if every is None or first is None or every >= timedelta(hours=1) or first > now:
        return anchor
    unit = timedelta(minutes=1) if every >= timedelta(minutes=1) else timedelta(seconds=1)
    rhythm = max(every // unit, 1) * unit
    skipped = (now - first) // rhythm - most - 2
    return first + skipped * rhythm if skipped > 0 else anchor


def _collect(
    rule: Any, start: datetime, now: datetime, most: int, limit: int | None = None
) -> tuple[deque[datetime], int]:
    """Return the last due times after ``start`` and not after now, and how many there were; beyond the limit it stops
    counting."""
    found: deque[datetime] = deque(maxlen=most)
    count = 0
    due = next_after(rule, start)
    while due is not None and due <= now and (limit is None or count <= limit):
        found.append(due)
        count += 1
        due = next_after(rule, due)
    return found, count


class Firing(NamedTuple):
    """An entry that is to be sent for a due time. ``due`` is None where the schedule does not plan ahead: it is due
    now."""

    name: str
    due: datetime | None


@dataclass(slots=True)
class _Row:
    plan: Plan
    anchor: datetime
    number: int
    is_planned: bool
    #: Due times that are still to be handed out, in a tick that had too many.
    left: deque[datetime] = field(default_factory=deque)


class Timetable:
    """Many entries, in the order in which they are to be looked at. Belongs to one thread; looks at no clock.

    Args:
        on_failure: Called with an entry's name and what its schedule raised. It is asked again a minute later.
        on_missed: Called with an entry's name and how many of its runs are left out.
    """

    def __init__(
        self, on_failure: Callable[[str, Exception], None], on_missed: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self._on_failure = on_failure
        self._on_missed = on_missed
        self._rows: dict[str, _Row] = {}
        # Moment, number, name: the number tells apart what an entry was entered with before, and is no longer.
        self._heap: list[tuple[datetime, int, str]] = []
        self._number = 0
        self._latest: datetime | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def set(self, name: str, plan: Plan, anchor: datetime, now: datetime) -> None:
        """Enter an entry, or enter it anew."""
        row = _Row(plan, anchor, 0, plans_ahead(plan.schedule))
        self._rows[name] = row
        self._enter(name, row, now)

    def remove(self, name: str) -> None:
        """Take an entry out, if it is there."""
        self._rows.pop(name, None)

    def anchor(self, name: str) -> datetime | None:
        """Return the due time of an entry that was dealt with last; None if there is no such entry."""
        row = self._rows.get(name)
        return None if row is None else row.anchor

    def next(self, name: str) -> datetime | None:
        """Return when an entry is due next; None if never, or if only asking at that time can tell."""
        row = self._rows.get(name)
        if row is None or not row.is_planned:
            return None
        try:
            return row.left[0] if row.left else next_after(row.plan.schedule, row.anchor)
        except Exception:
            return None

    @property
    def wakes_at(self) -> datetime | None:
        """When something is to be looked at next; None if never."""
        heap = self._heap
        while heap and not self._is_current(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: datetime, most: int) -> list[Firing]:
        """Return what is due, at most so many, in the order of due times; what is left comes with the next call."""
        if self._latest is not None and now < self._latest - STEP_BACK:
            self._look_anew(now)
        self._latest = now
        firings: list[Firing] = []
        looked: set[str] = set()
        while len(firings) < most:
            moment = self.wakes_at
            if moment is None or moment > now or self._heap[0][2] in looked:
                break
            name = heapq.heappop(self._heap)[2]
            self._take_one(name, self._rows[name], now, most - len(firings), firings)
            # Once in each call: of what is due again at once, the others must not wait for ever.
            looked.add(name)
        return firings

    def _take_one(self, name: str, row: _Row, now: datetime, room: int, firings: list[Firing]) -> None:
        try:
            if not row.is_planned:
                self._ask(name, row, now, firings)
                return
            if not row.left:
                found = step(row.plan, row.anchor, now)
                row.anchor = found.anchor if not found.due else row.anchor
                row.left.extend(found.due)
                if found.missed:
                    self._on_missed(name, found.missed)
            while row.left and room > 0:
                row.anchor = row.left.popleft()
                firings.append(Firing(name, row.anchor))
                room -= 1
            self._enter(name, row, now)
        except Exception as error:
            self._on_failure(name, error)
            self._push(name, row, now + AFTER_FAILURE)

    def _ask(self, name: str, row: _Row, now: datetime, firings: list[Firing]) -> None:
        is_due, wait_s = row.plan.schedule.is_due(row.anchor)
        if is_due:
            firings.append(Firing(name, None))
            row.anchor = now
        self._push(name, row, now + timedelta(seconds=max(float(wait_s), LEAST_WAIT_S)))

    def _enter(self, name: str, row: _Row, now: datetime) -> None:
        if row.left or not row.is_planned:
            self._push(name, row, now)
            return
        try:
            anchor = restarted(row.plan.schedule, row.anchor, now)
            following = next_after(row.plan.schedule, anchor)
        except Exception as error:
            self._on_failure(name, error)
            following = now + AFTER_FAILURE
        if following is not None:
            self._push(name, row, following)

    def _push(self, name: str, row: _Row, moment: datetime) -> None:
        self._number += 1
        row.number = self._number
        heapq.heappush(self._heap, (moment, row.number, name))

    def _is_current(self, item: tuple[datetime, int, str]) -> bool:
        row = self._rows.get(item[2])
        return row is not None and row.number == item[1]

    def _look_anew(self, now: datetime) -> None:
        self._heap.clear()
        for name, row in self._rows.items():
            row.anchor = restarted(row.plan.schedule, row.anchor, now)
            self._enter(name, row, now)


def decide(
    plans: Mapping[str, Plan], anchors: Mapping[str, datetime], now: datetime
) -> tuple[list[Firing], dict[str, datetime], datetime | None]:
    """Decide for a whole schedule: what to send now, the anchors after that, and when to look again. Pure.

    What `Timetable` does piece by piece, said in one go.
    """
    firings: list[Firing] = []
    after: dict[str, datetime] = {}
    following: list[datetime] = []
    for name, plan in plans.items():
        found = step(plan, anchors[name], now)
        after[name] = found.anchor
        firings += (Firing(name, due) for due in found.due)
        following += _some(found.next)
    firings.sort(key=lambda each: each.due or now)
    return firings, after, min(following, default=None)


def _some(moment: datetime | None) -> Iterable[datetime]:
    return () if moment is None else (moment,)
