"""Results that RabbitMQ itself keeps: with ``persist_result`` the last states of a task stay in a queue of its own,
where any process can read them by the task's id.

It costs a queue per task (30 to 60 kB of the broker's memory, a few milliseconds to declare), so it is for tasks that
matter, not for all: some ten thousand such results at a time are no trouble. The queue goes ``result_expires`` after it
was last written or looked at.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from amqptasks.broker.needs import Need
from amqptasks.exceptions import BackendGetMetaError, ContentError, OperationalError, ResultUnreachable
from amqptasks.results.backend import OnRecord, timed_out
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.wire.reprs import printable

if TYPE_CHECKING:
    from amqptasks.broker.admin import Admin
    from amqptasks.broker.parameters import Endpoint

__all__ = ["KeptResults", "kept_need", "kept_queue"]

logger = logging.getLogger(__name__)

#: States kept of each task. More than one, so that a late report of a second run does not push a success out.
STATES: Final = 8
#: The first pause between two looks at a result that is waited for, and the longest. Seconds.
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.5
#: How long a wait goes on while the broker cannot be reached, if it has no timeout. Seconds.
PATIENCE_S: Final = 30.0
#: While one process looks at a state no other can see it: an empty queue is looked at again, so often and so soon.
SECOND_LOOKS: Final = 8
SECOND_LOOK_S: Final = 0.01
_MAX_QUEUE_BYTES: Final = 255


def kept_queue(prefix: str, task_id: str) -> str | None:
    """Return the name of the queue that keeps a task's states; None for an id that is too long for one."""
    name = f"{prefix}.result.{task_id}"
    return name if len(name.encode("utf-8", "replace")) <= _MAX_QUEUE_BYTES else None


def kept_need(queue: str, expires_s: float | None) -> Need:
    """Return what must be declared before a state can be kept."""

    def steps(_version: tuple[int, ...] | None) -> Sequence[Any]:
        from amqptasks.broker.topology import DeclareQueue

        # Classic: quorum queues cost ten times as much, and count each look as a delivery.
        arguments: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": STATES}
        if expires_s:
            arguments["x-expires"] = max(1, int(expires_s * 1000))
        return (DeclareQueue(queue, arguments=arguments),)

    return Need(f"queue {queue}", steps)


class KeptResults:
    """Reads what is kept. Each call opens a connection of its own, so it works in any thread and any process.

    Args:
        read: Turns a message into a record; raises ContentError.
        is_used: Whether tasks here keep results at all: otherwise nobody is asked for unknown ids.
    """

    def __init__(
        self, endpoints: Callable[[], Sequence[Endpoint]], prefix: str, read: Callable[[Any, bytes], ResultRecord],
        is_used: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._endpoints = endpoints
        self._prefix = prefix
        self._read = read
        self._is_used = is_used

    def is_used(self) -> bool:
        """Whether any task of this app keeps its results."""
        return self._is_used()

    def fetch(self, task_id: str) -> ResultRecord | None:
        """Return the newest state of a task; None if nothing is known of it.

        Raises:
            BackendGetMetaError: The broker could not be asked.
        """
        try:
            with self._admin() as admin:
                return self._look(admin, task_id)[1]
        except OperationalError as error:
            raise _unreadable(task_id, error) from error

    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None) -> ResultRecord:
        """Wait until a task is finished, looking at growing intervals of up to half a second.

        Raises:
            TimeoutError: It was not finished in time.
            ResultUnreachable: The task has no queue for its result.
            BackendGetMetaError: The broker could not be asked.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        patient_until: float | None = None
        pause_s, seen = FIRST_PAUSE_S, None
        admin = self._admin()
        try:
            while True:
                trouble: OperationalError | None = None
                try:
                    exists, record = self._look(admin, task_id)
                    patient_until = None
                except OperationalError as error:
                    # A broker that restarts is back within the time that somebody is willing to wait.
                    trouble, exists, record = error, True, None
                    patient_until = patient_until or time.monotonic() + PATIENCE_S
                if not exists:
                    raise ResultUnreachable(f"no result of task {_shown(task_id)} is kept, or it has expired")
                if record is not None and record != seen:
                    seen = record
                    if on_record is not None:
                        on_record(record)
                    if record.is_final:
                        return record
                limit = patient_until if deadline is None else deadline
                left_s = None if limit is None else limit - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise timed_out() if trouble is None else _unreadable(task_id, trouble)
                time.sleep(pause_s if left_s is None else min(pause_s, left_s))
                pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
        finally:
            admin.close()

    def forget(self, task_id: str) -> None:
        """Delete what is kept of a task."""
        queue = kept_queue(self._prefix, task_id)
        if queue is None:
            return
        try:
            with self._admin() as admin:
                admin.delete(queue)
        except OperationalError as error:
            raise BackendGetMetaError(
                f"the kept result of task {_shown(task_id)} cannot be forgotten: {error}"
            ) from error

    def _admin(self) -> Admin:
        from amqptasks.broker.admin import Admin

        return Admin(self._endpoints())

    def _look(self, admin: Admin, task_id: str) -> tuple[bool, ResultRecord | None]:
        queue = kept_queue(self._prefix, task_id)
        found = None if queue is None else admin.peek(queue, STATES)
        looks = SECOND_LOOKS
        while queue is not None and found == [] and looks:
            # At random, so that two who meet do not meet again.
            time.sleep(random.uniform(0.0, SECOND_LOOK_S))
            found, looks = admin.peek(queue, STATES), looks - 1
        newest: ResultRecord | None = None
        for properties, body in found or ():
            try:
                record = self._read(properties, body)
            except ContentError as error:
                logger.error("A kept state of task %s cannot be read: %s", _shown(task_id), error)
                continue
            if record.task_id == task_id and supersedes(record, newest):
                newest = record
        return found is not None, newest


def _shown(task_id: str) -> str:
    return printable(task_id, 64)


def _unreadable(task_id: str, error: OperationalError) -> BackendGetMetaError:
    return BackendGetMetaError(f"the kept result of task {_shown(task_id)} cannot be read: {error}")
