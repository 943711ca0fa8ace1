"""How many slots the pool should have: more at once when tasks wait, fewer after a while in which they were not needed.

`Demand` decides, as a function of time; `Autoscaler` looks and carries it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from amqptasks.broker.loop import Loop
from amqptasks.clock import monotonic
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.pools.pool import Pool

logger = logging.getLogger("amqptasks.worker")

#: How often the pool is looked at, at most and at least, seconds; within them, four times in the keepalive.
LOOK_S: Final = 1.0
SHORTEST_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many slots there are at most and at least.

    Raises:
        ImproperlyConfigured: There is no such number.
    """

    most: int
    least: int

    def __post_init__(self) -> None:
        if self.most < 1 or not 0 <= self.least <= self.most:
            raise ImproperlyConfigured(
                "expected to autoscale up to at least one, from no fewer than none and no more than that, got: up to "
                f"{self.most}, from {self.least}"
            )


@dataclass(frozen=True, slots=True)
class Load:
    """What the pool has to do.

    Attributes:
        slots: Those it has, without the ones that are to go.
        busy: Those of them that can take no task now.
        waiting: Tasks that wait for a slot.
    """

    slots: int
    busy: int
    waiting: int


class Demand:
    """Decides how many slots there should be.

    Args:
        keepalive_s: Slots that were not needed for so long are taken away.
        now: The time, in seconds.
    """

    def __init__(self, bounds: Bounds, keepalive_s: float, now: float) -> None:
        self.bounds = bounds
        self._keepalive_s = keepalive_s
        # Since when not all slots were needed, and how many were at most since then.
        self._since = now
        self._peak = 0

    def wanted(self, load: Load, now: float) -> int:
        """Return how many slots there should be from now on."""
        bounds, needed = self.bounds, load.busy + load.waiting
        size = min(max(load.slots, bounds.least), bounds.most)
        if needed >= load.slots or size != load.slots:
            self._begin(now)
            return min(max(size, needed), bounds.most)
        self._peak = max(self._peak, needed)
        if now - self._since < self._keepalive_s:
            return size
        size = min(size, max(self._peak, bounds.least))
        self._begin(now)
        return size

    def _begin(self, now: float) -> None:
        self._since, self._peak = now, 0


class Autoscaler:
    """Lets the pool's size follow what there is to do. Belongs to the loop's thread.

    Args:
        resize: Called with the change of the number of slots.
        is_over: Whether the worker is about to end: then nothing is changed any more.
    """

    def __init__(
        self, loop: Loop, pool: Pool, dispatcher: Dispatcher, bounds: Bounds, keepalive_s: float,
        resize: Callable[[int], None], is_over: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._pool = pool
        self._dispatcher = dispatcher
        self._resize = resize
        self._is_over = is_over
        self._look_s = max(SHORTEST_LOOK_S, min(LOOK_S, keepalive_s / 4))
        self._demand = Demand(bounds, keepalive_s, monotonic())

    def start(self) -> None:
        """Look from now on: from time to time, and whenever tasks wait."""
        self._dispatcher.on_full = self._scale
        self._loop.call_later(self._look_s, self._look)

    @property
    def bounds(self) -> Bounds:
        """How many slots there are at most and at least."""
        return self._demand.bounds

    def set_bounds(self, bounds: Bounds) -> None:
        """Change them, and the pool if it is outside of them."""
        self._demand.bounds = bounds
        self._scale()

    def _look(self) -> None:
        if not self._is_over():
            self._scale()
            self._loop.call_later(self._look_s, self._look)

    def _scale(self) -> None:
        if self._is_over():
            return
        load = self._load()
        change = self._demand.wanted(load, monotonic()) - load.slots
        if change:
            logger.info("Scaling %s %s processes.", "up" if change > 0 else "down", abs(change))
            self._resize(change)

    def _load(self) -> Load:
        slots = [slot for slot in self._pool.slots if not slot.is_leaving]
        busy = sum(1 for slot in slots if slot.assigned or not slot.is_open)
        # What waits while nothing may be begun waits for something else than a slot.
        waiting = 0 if self._dispatcher.is_paused else len(self._dispatcher.waiting)
        return Load(len(slots), busy, waiting)
