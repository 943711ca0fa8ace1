"""The contract of a pool, and what its kinds share: a number of slots that come back when they break.

A pool promises one outcome per task assigned, also when the place where it ran has died: then `on_lost` is called with
it. `tests/conformance/test_pools.py` holds every kind to that.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.broker.loop import Loop
from amqptasks.exceptions import SoftTimeLimitExceeded
from amqptasks.worker.outcome import FollowUp, Outcome, Told
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

#: A place that dies sooner than this after its start, without a task, is replaced after a pause. Both in seconds.
QUICK_DEATH_S = 1.0
RESPAWN_S = 1.0
#: What starting a place raises where the system has no process, thread, descriptor or memory for it: `OSError`, and for
#: threads `RuntimeError`.
SCARCITY: Final = (OSError, RuntimeError)


#: Runs the task of a frame; the second argument sends a frame to the parent at once.
Run = Callable[[list[Any], Callable[[bytes], None]], Outcome]


def _unwatched(request: Request, limit_s: float) -> None:
    raise RuntimeError(f"task {request.id} has a time limit of {limit_s:g} s, and nobody takes care of that")


@dataclass(frozen=True, slots=True)
class PoolEvents:
    """Who the pool tells. Called on the loop's thread.

    Attributes:
        on_outcome: A task has ended.
        on_message: A running task sends a message, or tells an event.
        on_lost: The place where a task ran has died; the text says how. ``begun`` is False for tasks that had not
        started.
        on_free: A slot can take a task.
        on_soft_limit: A task was interrupted at its soft time limit, so many seconds.
        on_hard_limit: A task was ended at its hard time limit, so many seconds.
    """

    on_outcome: Callable[[Slot, Request, Outcome], None]
    on_message: Callable[[Slot, Request, FollowUp | Told], None]
    on_lost: Callable[[Request, bool, str], None]
    on_free: Callable[[], None]
    on_soft_limit: Callable[[Request, float], None] = _unwatched
    on_hard_limit: Callable[[Request, float], None] = _unwatched


class Pool(ABC):
    """Slots, each running one task at a time. Belongs to the loop's thread."""

    #: Whether a running task can be ended from outside.
    can_kill = False
    #: Whether its size can be changed.
    can_resize = False
    #: Whether what runs its tasks can be replaced.
    can_restart = False

    def __init__(self, loop: Loop, size: int, events: PoolEvents, run: Run) -> None:
        self.loop = loop
        self.size = size
        self.slots: list[Slot] = []
        self.is_stopping = False
        self._events = events
        self._run = run

    @abstractmethod
    def spawn(self, index: int) -> Slot:
        """Make one slot and what runs its tasks."""

    @abstractmethod
    def stop(self) -> None:
        """Let every slot end once its task has; returns at once. No task may be assigned any more. Safe twice."""

    @property
    @abstractmethod
    def is_stopped(self) -> bool:
        """Whether everything that ran tasks is gone."""

    def kill(self) -> None:
        """End every slot now, running tasks included where the kind of pool can; else as `stop`."""
        self.stop()

    def describe(self) -> str:
        """Name the pool for the banner."""
        return type(self).__name__

    def start(self) -> None:
        """Make every slot."""
        for index in range(self.size):
            self.slots.append(self._make(index))

    def _make(self, index: int) -> Slot:
        slot = self.spawn(index)
        slot.index = index
        return slot

    # -- size

    def grow(self, count: int) -> None:
        """Add slots."""
        taken = {slot.index for slot in self.slots}
        free = [index for index in range(len(taken) + count) if index not in taken]
        for index in free[:count]:
            try:
                self.slots.append(self._make(index))
            except SCARCITY as error:
                logger.error("Cannot start place %d of the %s pool: %s", index + 1, self.describe(), error)
                break
            self.size += 1
        self._events.on_free()

    def shrink(self, count: int) -> None:
        """Take slots away: idle ones at once, and of the busy ones each after its task. None gets another task."""
        staying = [slot for slot in self.slots if not slot.is_leaving]
        # The last to come first, as far as they are idle.
        staying.sort(key=lambda slot: (bool(slot.assigned), -slot.index))
        for slot in staying[:count]:
            self.size -= 1
            slot.is_leaving = slot.is_retiring = True
            for request in reversed(slot.take_back()):
                self._events.on_lost(request, False, "the pool has become smaller")
            self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        """Let a slot go that is to leave, once it has nothing to do."""
        if not slot.assigned and slot in self.slots:
            if not slot.is_replaced:
                self.slots.remove(slot)
            slot.close()

    def restart(self) -> None:
        """Replace every slot: idle ones at once, and of the busy ones each after its task."""
        for slot in list(self.slots):
            if slot.is_leaving:
                continue
            slot.is_leaving = slot.is_replaced = slot.is_retiring = True
            for request in reversed(slot.take_back()):
                self._events.on_lost(request, False, "the pool is restarted")
            self._leave(slot)

    # -- what slots report

    def on_outcome(self, slot: Slot, request: Request, outcome: Outcome) -> None:
        """Pass it on."""
        self._events.on_outcome(slot, request, outcome)
        if slot.is_leaving:
            self._leave(slot)

    def on_message(self, slot: Slot, request: Request, message: FollowUp | Told) -> None:
        """Pass it on."""
        self._events.on_message(slot, request, message)

    # -- time limits

    def interrupt(self, slot: Slot, request: Request, limit_s: float) -> bool:
        """Raise `SoftTimeLimitExceeded` in a task that has begun. False if that cannot be had now."""
        if not slot.interrupt(request, SoftTimeLimitExceeded()):
            return False
        self._events.on_soft_limit(request, limit_s)
        return True

    def end(self, slot: Slot, request: Request, limit_s: float) -> bool:
        """End a task that has begun, or give it up: another gets its place. False if that cannot be had now."""
        if not slot.give_up(request):
            return False
        self._events.on_hard_limit(request, limit_s)
        self._events.on_free()
        return True

    def terminate(self, slot: Slot, request: Request, number: int) -> bool:
        """End a task that has begun because it was revoked; with a signal, where there are processes. False if that
        cannot be had now, or not in this kind of pool."""
        return False

    # -- slots that end

    def on_retired(self, slot: Slot) -> None:
        """Replace a slot that begins nothing any more."""
        if slot not in self.slots:
            return
        slot.is_retiring = True
        left = slot.abandon()
        slot.close()
        if self.is_stopping or (slot.is_leaving and not slot.is_replaced):
            self.slots.remove(slot)
        else:
            self._replace(slot)
        for request in left:
            self._events.on_lost(request, False, "it was replaced")

    def on_broken(self, slot: Slot) -> None:
        """Report what a slot leaves behind, and replace it."""
        self.lose(slot, "its connection to the worker broke")

    def lose(self, slot: Slot, how: str) -> None:
        """Take a slot out, report its tasks as lost, and put a new one in its place unless the pool is stopping."""
        if slot not in self.slots:
            return
        begun, _started = slot.begun()
        left = slot.abandon()
        slot.close()
        if self.is_stopping or (slot.is_leaving and not slot.is_replaced):
            self.slots.remove(slot)
        elif slot.is_replaced:
            logger.info("%s ended (%s): the pool is restarted", slot.name, how)
            self._replace(slot)
        elif not begun and time.monotonic() - slot.born < QUICK_DEATH_S:
            # It did not live to see a task: whatever kills it would kill the next one at once, and so on for ever.
            logger.error("%s ended right after its start (%s); trying again in %g s", slot.name, how, RESPAWN_S)
            self.loop.call_later(RESPAWN_S, lambda: self._replace(slot))
        else:
            level = logging.WARNING if slot.timed_out is None else logging.INFO
            logger.log(level, "%s ended (%s); starting another", slot.name, how)
            self._replace(slot)
        timed_out, limit_s = slot.timed_out or (None, 0.0)
        for request in left:
            if request is timed_out:
                self._events.on_hard_limit(request, limit_s)
            else:
                self._events.on_lost(request, request.number <= begun, how)

    def _replace(self, slot: Slot) -> None:
        if self.is_stopping or slot not in self.slots:
            return
        try:
            made = self._make(slot.index)
        except SCARCITY as error:
            logger.error("Cannot start another %s: %s; trying again in %g s", slot.name, error, RESPAWN_S)
            self.loop.call_later(RESPAWN_S, lambda: self._replace(slot))
            return
        self.slots[self.slots.index(slot)] = made
        self._events.on_free()
