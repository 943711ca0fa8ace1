"""How many messages the broker sends ahead for each queue: by the number of slots, and by how long tasks take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from amqptasks.settings import Conf

#: The prefetch multiplier while tasks are very short, where none is set.
SHORT_MULTIPLIER: Final = 64
#: The largest prefetch count that AMQP can carry.
MAX_PREFETCH: Final = 65_535


@dataclass(frozen=True, slots=True)
class Prefetching:
    """The rule of one worker.

    Attributes:
        multiplier: Messages for each slot; 0: no limit.
        short_multiplier: The same while tasks are very short.
        most: The largest number of slots, if it follows what there is to do.
    """

    multiplier: int
    short_multiplier: int
    most: int = 0

    def count(self, slots: int, is_short: bool = False) -> int:
        """Return the prefetch count of each consumer; 0: no limit."""
        multiplier = self.short_multiplier if is_short else self.multiplier
        # One more than there are slots, where there can be more slots: only a task that waits calls for one.
        least = min(slots + 1, self.most) if multiplier else 0
        return min(max(slots * multiplier, least), MAX_PREFETCH)


def prefetching(conf: Conf, given: int | None, pool: str, most: int) -> Prefetching:
    """Make the rule by the settings and the multiplier given to the worker, if one was."""
    multiplier = int(conf.worker_prefetch_multiplier if given is None else given)
    # Whoever sets the multiplier means it. Left alone, it is for tasks of some length.
    is_default = given is None and "worker_prefetch_multiplier" not in conf.changed()
    if conf.worker_disable_prefetch:
        multiplier, is_default = 1, False
    short = SHORT_MULTIPLIER if is_default and pool != "asyncio" else multiplier
    return Prefetching(multiplier, short, most)
