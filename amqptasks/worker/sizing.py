"""How many tasks a worker runs at once, and how many messages it fetches ahead for them; both may change as it runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Final

from amqptasks.broker.consumer import QueueConsumer
from amqptasks.broker.loop import Loop
from amqptasks.entities import Queue
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.settings import Conf
from amqptasks.worker.autoscaling import Autoscaler, Bounds
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.pools.pool import Pool
from amqptasks.worker.prefetching import prefetching

#: The pools whose size can be changed while they run.
RESIZABLE: Final = ("prefork", "threads")
#: How many tasks the asyncio pool runs at once, where it is not said.
ASYNCIO_PLACES: Final = 100


class Sizing:
    """Keeps the size of a worker's pool and its prefetch counts. Belongs to the loop's thread.

    Args:
        multiplier: The prefetch multiplier given to the worker; None: that of the settings.
        autoscale: How many tasks run at once at most and at least, instead of ``concurrency``.

    Attributes:
        concurrency: How many tasks run at once.
        prefetch: How many messages are fetched ahead for each queue; 0: no limit.

    Raises:
        ImproperlyConfigured: This kind of pool cannot change its size, or the bounds are none.
    """

    def __init__(
        self, conf: Conf, pool_name: str, concurrency: int, multiplier: int | None, autoscale: tuple[int, int] | None
    ) -> None:
        self._pool_name = pool_name
        self._bounds = None if autoscale is None else Bounds(*autoscale)
        if self._bounds is not None and pool_name not in RESIZABLE:
            raise ImproperlyConfigured(_fixed(pool_name))
        self.concurrency = concurrency if self._bounds is None else self._bounds.least
        self._keepalive_s: float = conf.worker_autoscale_keepalive
        self._rule = prefetching(conf, multiplier, pool_name, 0 if self._bounds is None else self._bounds.most)
        self.prefetch = self._rule.count(self.concurrency)
        self._is_short = False
        self._autoscaler: Autoscaler | None = None

    def attach(
        self, loop: Loop, pool: Pool, dispatcher: Dispatcher, consumers: Sequence[tuple[Queue, QueueConsumer]],
        expect: Callable[[int], None], give_back_beyond: Callable[[int], None], is_over: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Learn what there is to size.

        Args:
            expect: Is told how many deliveries the broker may have outstanding with the worker; 0: any number.
            give_back_beyond: Puts the waiting tasks beyond so many back into their queues.
            is_over: Whether the worker is about to end.
        """
        self._pool = pool
        self._consumers = consumers
        self._expect = expect
        self._give_back_beyond = give_back_beyond
        self._is_over = is_over
        if self._bounds is not None:
            self._autoscaler = Autoscaler(
                loop, pool, dispatcher, self._bounds, self._keepalive_s, self._resize, is_over
            )
        expect(self._outstanding())

    def start(self) -> None:
        """Let the size follow what there is to do, if it is to."""
        if self._autoscaler is not None:
            self._autoscaler.start()

    @property
    def text(self) -> str:
        """How many tasks run at once, for people."""
        return f"{self.concurrency}" if self._bounds is None else f"{self._bounds.least} to {self._bounds.most}"

    @property
    def bounds(self) -> Bounds | None:
        """How many tasks run at once at most and at least; None where that does not follow what there is to do."""
        return None if self._autoscaler is None else self._autoscaler.bounds

    # -- size

    def grow(self, count: int) -> None:
        """Let so many more tasks run at once.

        Raises:
            ValueError: The pool has a fixed size, or one that follows what there is to do, or count is below 1.
        """
        self._check(count, "pool_grow")
        self._resize(count)

    def shrink(self, count: int) -> None:
        """Let so many fewer tasks run at once; those that run now run on.

        Raises:
            ValueError: As of `grow`, or there would be nothing left.
        """
        self._check(count, "pool_shrink")
        if count >= self.concurrency:
            raise ValueError(f"expected to shrink the pool by less than its {self.concurrency}, got: {count}")
        self._resize(-count)

    def autoscale(self, most: int | None = None, least: int | None = None) -> tuple[int, int]:
        """Change how many tasks run at once at most and at least; returns the two.

        Raises:
            ValueError: The worker was started without ``--autoscale``, or there are no such numbers.
        """
        if self._autoscaler is None:
            raise ValueError("Autoscale not enabled")
        old = self._autoscaler.bounds
        most = old.most if most is None else most
        try:
            self._bounds = Bounds(most, min(old.least, most) if least is None else least)
        except ImproperlyConfigured as error:
            raise ValueError(str(error)) from error
        self._rule = dataclasses.replace(self._rule, most=most)
        self._autoscaler.set_bounds(self._bounds)
        self._set_prefetch()
        return most, self._bounds.least

    def _check(self, count: int, what: str) -> None:
        if self._pool_name not in RESIZABLE:
            raise ValueError(_fixed(self._pool_name))
        if self._autoscaler is not None:
            raise ValueError(f"{what} is not supported with autoscale. Adjust autoscale range instead.")
        if count < 1:
            raise ValueError(f"expected {what} to get a number above 0, got: {count}")

    def _resize(self, change: int) -> None:
        if change > 0:
            self._pool.grow(change)
        else:
            self._pool.shrink(-change)
        self.concurrency = self._pool.size
        self._set_prefetch()

    # -- prefetch

    def prefetch_of(self, queue: Queue) -> int:
        """Return the prefetch count to begin with."""
        return self.prefetch if _can_follow(queue) else self._rule.count(max(self.concurrency, self._rule.most))

    def on_pace(self, is_short: bool) -> None:
        """Prefetch more while tasks are so short that acks and deliveries take longer than they do."""
        self._is_short = is_short
        self._set_prefetch()

    def queues_changed(self) -> None:
        """Learn that a queue has come or gone."""
        self._expect(self._outstanding())
        for queue, consumer in self._consumers:
            # One that has come back has what was right when it went.
            if _can_follow(queue):
                consumer.set_prefetch(self.prefetch)

    def _set_prefetch(self) -> None:
        before, prefetch = self.prefetch, self._rule.count(self.concurrency, self._is_short)
        if prefetch == before or self._is_over():
            return
        self.prefetch = prefetch
        self._expect(self._outstanding())
        followers = [consumer for queue, consumer in self._consumers if _can_follow(queue)]
        for consumer in followers:
            consumer.set_prefetch(prefetch)
        if followers and prefetch < before:
            self._give_back_beyond(prefetch)

    def _outstanding(self) -> int:
        return sum(self.prefetch_of(queue) for queue, _ in self._consumers) if self.prefetch else 0


def _can_follow(queue: Queue) -> bool:
    """Whether the prefetch count of a queue can be changed, which takes a new consumer."""
    # That would go to the end of the line where only the first is active, and a queue that ends with its last consumer
    # would end between the two.
    return not (queue.auto_delete or (queue.queue_arguments or {}).get("x-single-active-consumer"))


def _fixed(pool: str) -> str:
    if pool == "asyncio":
        return (
            "the asyncio pool has a fixed number of places, and free ones cost nothing: give it as many as it should "
            "ever have with --concurrency"
        )
    return f"the {pool} pool has a fixed size: expected the pool to be one of {', '.join(RESIZABLE)}"


def concurrency_of(pool: str, wanted: int | str | None) -> int:
    """Return how many tasks a kind of pool runs at once: so many as are wanted, else what suits it."""
    if pool == "solo":
        return 1
    if wanted and wanted != "auto":
        return int(wanted)
    return ASYNCIO_PLACES if pool == "asyncio" else _cores()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0)) or 1
    except AttributeError:
        # Only Linux tells which cores this process may use.
        return os.cpu_count() or 1
