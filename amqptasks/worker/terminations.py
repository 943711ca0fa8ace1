"""Ending tasks that run and were revoked. Belongs to the loop's thread."""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Callable

from amqptasks.broker.loop import Loop
from amqptasks.logs import TASK_LOGGER
from amqptasks.wire.revocation import Revocation
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.request import Request
from amqptasks.worker.revoked import names

logger = logging.getLogger(TASK_LOGGER + ".trace.worker")

#: How often, and after which pause in seconds, it is tried to end a task that cannot be ended at this moment.
TRIES = 20
AGAIN_S = 0.1
#: How many of the tasks that were ended are remembered.
REMEMBERED = 1000
#: In the place of a signal: the task was not revoked. Its message is the broker's again, and is run anew.
CANCELLED = 0


class Terminations:
    """Carries out the orders to end running tasks, and remembers which ones until their places are free.

    Attributes:
        terminate: Ends the task of a slot with a signal; False if that cannot be had now. The pool's.
    """

    def __init__(self, loop: Loop, dispatcher: Dispatcher) -> None:
        self.terminate: Callable[[Slot, Request, int], bool] = _cannot
        self._loop = loop
        self._dispatcher = dispatcher
        self._ordered: dict[Request, int] = {}
        #: The tasks that were ended last, by id. An order may come twice: kept in the broker, and as a command.
        self.ended: deque[str] = deque(maxlen=REMEMBERED)

    def order(self, revocation: Revocation, tries: int = TRIES) -> None:
        """End the running tasks that a revocation names."""
        number = signal.Signals[revocation.signal]
        left: Request | None = None
        for slot, request in self._dispatcher.assigned():
            if request in self._ordered or not names(revocation, request.id, request.headers):
                continue
            self._ordered[request] = number
            if self.terminate(slot, request, number):
                self.ended.append(request.id)
                logger.warning("Terminating %s[%s] (%s)", request.task_name, request.id, number.name)
            else:
                del self._ordered[request]
                left = request
        if left is None:
            return
        if tries > 1:
            self._loop.call_later(AGAIN_S, lambda: self.order(revocation, tries - 1))
        else:
            logger.error("Revoked task %s[%s] runs on: its pool cannot end it", left.task_name, left.id)

    def cancel(self, tries: int = TRIES) -> None:
        """End the running tasks whose messages the broker has taken back."""
        left: Request | None = None
        for slot, request in self._dispatcher.assigned():
            if request in self._ordered or not request.is_late or request.is_acked or request.delivery.is_current:
                continue
            self._ordered[request] = CANCELLED
            if self.terminate(slot, request, signal.SIGTERM):
                logger.warning("Cancelling %s[%s]: the connection was lost", request.task_name, request.id)
            else:
                del self._ordered[request]
                left = request
        if left is None:
            return
        if tries > 1:
            self._loop.call_later(AGAIN_S, lambda: self.cancel(tries - 1))
        else:
            logger.error("Task %s[%s] runs on: its pool cannot cancel it", left.task_name, left.id)

    def is_cancelled(self, request: Request) -> bool:
        """Whether a running task is being ended because its message is the broker's again."""
        return self._ordered.get(request) == CANCELLED

    def take(self, request: Request) -> int | None:
        """Return the signal a task was ended with, once; None if it was not."""
        return self._ordered.pop(request, None) if self._ordered else None


def _cannot(_slot: Slot, _request: Request, _number: int) -> bool:
    return False
