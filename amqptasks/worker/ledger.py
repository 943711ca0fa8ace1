"""Which tasks this worker runs or has just finished, so that a redelivery after a lost connection is not run twice.

A key is the task's id with the number of its retry. Looked at only for deliveries that the broker marks as redelivered,
and for what beat sends: its ids are made of the due times, so that what was sent twice can be told.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

from amqptasks.wire.dead_letter import CRASHES, DEATHS
from amqptasks.worker.request import Request

#: Finished tasks remembered at least.
MIN_FINISHED: Final = 1_000
#: Finished tasks remembered where nothing bounds what one lost connection can bring back.
UNBOUNDED_FINISHED: Final = 10_000

#: The header of what beat sends; Celery's.
BEAT_HEADER: Final = "celery_beat_task"

Key = tuple[str, int]


class Ledger:
    """The running and the recently finished attempts. Belongs to the loop's thread."""

    def __init__(self, limit: int = MIN_FINISHED) -> None:
        #: How many calls were accepted of each task, since the worker has started.
        self.totals: defaultdict[str, int] = defaultdict(int)
        self._limit = limit
        self._running: dict[Key, Request] = {}
        self._finished: set[Key] = set()
        self._oldest: deque[Key] = deque()

    def expect(self, outstanding: int) -> None:
        """Remember enough for the deliveries that the broker may have outstanding with this worker; 0: any number."""
        # What a lost connection brings back was not acked in the broker's eyes, so it is within the prefetch counts;
        # twice that, for the copies that come while the first are still being told apart. Never less than before: what
        # was delivered under a larger count may still come back.
        self._limit = max(self._limit, 2 * outstanding or UNBOUNDED_FINISHED)

    def begin(self, request: Request) -> None:
        """Take note of a task that was accepted."""
        self._running[request.key] = request
        self.totals[request.task_name] += 1

    def end(self, request: Request) -> None:
        """Take note that it was settled. Its ack may still be lost on the way."""
        key = request.key
        if self._running.get(key) is request:
            del self._running[key]
        if key in self._finished:
            # A second copy of the message. Noted twice, the first note's end would take the second with it.
            return
        self._finished.add(key)
        self._oldest.append(key)
        if len(self._oldest) > self._limit:
            self._finished.discard(self._oldest.popleft())

    def forget(self, request: Request) -> None:
        """Take note that it went back to its queue: when it comes again, it is to be run."""
        if self._running.get(request.key) is request:
            del self._running[request.key]

    def running(self, key: Key) -> Request | None:
        """Return the request of this attempt that is waiting or running here, if there is one."""
        return self._running.get(key)

    def has_finished(self, task_id: str) -> bool:
        """Whether any attempt of a task was settled here. Slow: for people."""
        return any(key[0] == task_id for key in self._finished)

    def is_finished(self, key: Key) -> bool:
        """Whether this attempt was settled here."""
        return key in self._finished

    def knows(self, key: Key) -> bool:
        """Whether this attempt was accepted here, whatever has become of it."""
        return key in self._finished or key in self._running


def is_first_of_beat(request: Request) -> bool:
    """Whether a message is as beat sent it: not one that comes again for a reason, by the same id.

    Beat repeats the task's id as ``message_id``, which nobody else does.
    """
    headers, delivery = request.headers, request.delivery
    return (
        BEAT_HEADER in headers
        and delivery.properties.message_id == request.id
        and not delivery.redelivered
        and DEATHS not in headers
        and CRASHES not in headers
    )
