"""Watches the time of the tasks that have a limit. Those without cost nothing here.

A task's time begins when it does, which nobody reports: it is read from its slot. So a task is looked at when it could
be over its limit at the earliest, and then again when it really will be.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

from amqptasks.broker.loop import Loop
from amqptasks.clock import monotonic
from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.request import Request

#: What could not be interrupted or ended is tried again after this long, seconds.
AGAIN_S: Final = 0.05
#: Tasks that have ended are let go of once there may be this many of them.
SPARE: Final = 1000

#: When to look, a number that makes entries unlike, the slot, the task, its number in the slot, whether it was
#: interrupted already.
Entry = tuple[float, int, Slot, Request, int, bool]


class Guard:
    """Interrupts tasks at their soft limit and ends them at their hard one. Belongs to the loop's thread."""

    def __init__(self, loop: Loop, pool: Pool) -> None:
        self._loop = loop
        self._pool = pool
        self._entries: list[Entry] = []
        self._count = 0
        self._prune_at = SPARE
        self._timer: Any = None
        self._timer_at = 0.0

    def watch(self, slot: Slot, request: Request) -> None:
        """Watch a task with limits that was given to a slot."""
        if len(self._entries) >= self._prune_at:
            # Long limits on short tasks: nearly all of these have ended.
            self._entries = [entry for entry in self._entries if _is_there(entry)]
            heapq.heapify(self._entries)
            self._prune_at = 2 * len(self._entries) + SPARE
        self._push(monotonic() + _first(request), slot, request, False)

    def _push(self, at: float, slot: Slot, request: Request, is_interrupted: bool) -> None:
        self._count += 1
        heapq.heappush(self._entries, (at, self._count, slot, request, request.number, is_interrupted))
        self._set_timer()

    def _set_timer(self) -> None:
        if not self._entries:
            return
        at = self._entries[0][0]
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._loop.remove_timeout(self._timer)
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        due: list[Entry] = []
        while self._entries and self._entries[0][0] <= now:
            due.append(heapq.heappop(self._entries))
        for entry in due:
            if _is_there(entry):
                self._judge(now, entry)
        self._set_timer()

    def _judge(self, now: float, entry: Entry) -> None:
        _at, _count, slot, request, _number, is_interrupted = entry
        started = slot.started(request)
        if started is None:
            # Not before now: it is sent ahead, or was.
            self._push(now + _first(request), slot, request, False)
            return
        assert request.limits is not None
        hard, soft = request.limits
        if hard and now >= started + hard:
            if not self._pool.end(slot, request, hard):
                self._push(now + AGAIN_S, slot, request, is_interrupted)
            return
        next_at = [started + hard] if hard else []
        if soft and not is_interrupted:
            if now < started + soft:
                next_at.append(started + soft)
            elif self._pool.interrupt(slot, request, soft):
                is_interrupted = True
            else:
                next_at.append(now + AGAIN_S)
        if next_at:
            self._push(min(next_at), slot, request, is_interrupted)


def _first(request: Request) -> float:
    """The shorter of a task's limits."""
    hard, soft = request.limits or (None, None)
    return min(each for each in (hard, soft) if each)


def _is_there(entry: Entry) -> bool:
    """Whether the task has neither ended nor been taken back."""
    _at, _count, slot, request, number, _is_interrupted = entry
    return request.number == number and request in slot.assigned
