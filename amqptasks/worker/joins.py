"""Runs the calls that join chords, in a place of their own: a body must not wait for tasks that happen to run here."""

from __future__ import annotations

from typing import Any, Final

from amqptasks.broker.consumer import Delivery
from amqptasks.worker import dead_letters
from amqptasks.worker.deliveries import Deliveries
from amqptasks.worker.helper import Helper, MakePool
from amqptasks.worker.outcome import FAILED, UNREADABLE, Outcome
from amqptasks.worker.pools.pool import Run
from amqptasks.worker.request import Request
from amqptasks.worker.settlement import Settlement

__all__ = ["Joins"]

#: A call that has ended its process this often is given up.
MAX_LOSSES: Final = 20


class _Join:
    """One call."""

    def __init__(self, request: Request, settlement: Settlement) -> None:
        self.request = request
        self.number = 0
        self.losses = 0
        self._settlement = settlement

    def to_frame(self, number: int) -> list[Any]:
        """Return the frame of its task."""
        return self.request.to_frame(number)

    def done(self, outcome: Outcome) -> None:
        """Settle it: what it asks for next, if it is to come again, then the ack."""
        request = self.request
        request.is_done = True
        if outcome.kind == UNREADABLE or (outcome.kind == FAILED and outcome.reason):
            reason = dead_letters.UNREADABLE if outcome.kind == UNREADABLE else dead_letters.TOO_MANY_CRASHES
            self._settlement.bury(request, reason, outcome.reason, request.ack)
        else:
            self._settlement.settle(request, outcome.follow_ups, request.ack)


class Joins(Helper):
    """Runs them one after another. Belongs to the loop's thread.

    Args:
        run: Runs a task, on the other side.
    """

    def __init__(self, make_pool: MakePool, run: Run, deliveries: Deliveries, settlement: Settlement) -> None:
        super().__init__("joins chords", make_pool, run, MAX_LOSSES)
        self._deliveries = deliveries
        self._settlement = settlement

    @property
    def is_busy(self) -> bool:
        """Whether chords are being joined."""
        return bool(self._jobs)

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a call in. One that comes a second time runs a second time: that does no harm."""
        request = self._deliveries.examined(delivery)
        if request is None:
            return

        def counted(count: int | None) -> None:
            if count is None:
                # Most sweeps end here: the chord has been joined long ago.
                request.ack()
            else:
                self.submit(_Join(request, self._settlement))

        self._settlement.count_collector(request, counted)
