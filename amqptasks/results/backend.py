"""The contract every result backend keeps, and the backend of those who have none.

A backend stores records and lets callers wait for the final one. It knows nothing of handles, tasks or the app, so a
new one needs only this file and `results/record.py`; `tests/conformance/test_result_backends.py` says whether it keeps
the contract. Methods may be called from any thread unless they say otherwise.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from amqptasks.exceptions import BackendGetMetaError, ImproperlyConfigured, TimeoutError
from amqptasks.results.named import CeleryNames
from amqptasks.results.record import ResultRecord

if TYPE_CHECKING:
    from amqptasks.wire.message import Message

__all__ = ["DisabledBackend", "NoResultBackend", "OnRecord", "ResultBackend", "Unavailable", "timed_out"]

#: Called with every record that comes in while waiting, the final one included.
OnRecord = Callable[[ResultRecord], None]


def timed_out() -> TimeoutError:
    """Make the error of a wait that took too long, with Celery's text."""
    return TimeoutError("The operation timed out.")


class NoResultBackend(ImproperlyConfigured, NotImplementedError):
    """A result was asked for, but the app keeps none. (Celery raises NotImplementedError here: that catches it too.)"""


class Unavailable(BackendGetMetaError):
    """The store could not be read, and may be back soon: who waits may go on waiting."""


class ResultBackend(CeleryNames, ABC):
    """Where results are kept, or how they travel.

    Attributes:
        persistent: Whether any process can read any result by id. If not, only the process that sent the task can.
        in_message: Whether results travel as messages: the worker then publishes what `message` makes, together with
            whatever else follows the task, instead of calling `store`.
        compresses: Whether ``result_compression`` acts on what it keeps.
        expires_failures: Whether ``result_failure_expires`` does.
        counts_chords: Whether it counts the parts of chords of Celery's kind.
        joins_stored: Whether it only counts them: a result is to be stored before its part is counted.
    """

    persistent: bool = True
    in_message: bool = False
    compresses: bool = False
    expires_failures: bool = False
    counts_chords: bool = False
    joins_stored: bool = False

    # -- the worker's side

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Get ready to store. Called once by a worker that starts, on a thread where it may take its time.

        Raises:
            ImproperlyConfigured: It never will be ready; the worker stops.
            BackendError: It is not now; the worker says so and goes on.
        """

    @abstractmethod
    def store(self, record: ResultRecord) -> None:
        """Keep a record. Storing it twice is storing it once; `record.supersedes` says what may replace what.

        Raises:
            BackendStoreError: It could not be kept.
        """

    def message(self, record: ResultRecord, reply_to: str | None, correlation_id: str | None) -> Message | None:
        """Make the message that carries a record to who waits for it; None if nobody does, or if results do not travel.

        Raises:
            EncodeError: The result cannot be serialized.
        """
        del record, reply_to, correlation_id
        return None

    # -- the caller's side

    def reply_to(self) -> str | None:
        """Return the name of the queue that answers must be sent to; None for a backend that stores them."""
        return None

    def expect(self, task_id: str) -> None:
        """Get ready for an answer. Called before the task is sent, so that no answer can come too early.

        May be called more than once for one id. `unexpect` takes it back.
        """
        del task_id

    def unexpect(self, task_id: str) -> None:
        """Take `expect` back: the task was not sent. Asks nobody, for nobody knows of it."""
        del task_id

    @abstractmethod
    def fetch(self, task_id: str) -> ResultRecord | None:
        """Return the newest record of a task at once; None when nothing is known of it.

        Raises:
            BackendGetMetaError: The store could not be read.
        """

    @abstractmethod
    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None = None) -> ResultRecord:
        """Wait until the task is finished and return its final record. Any number of threads may wait for one id.

        Args:
            timeout_s: None waits for as long as it takes; zero or less only looks.
            on_record: Called on the waiting thread with each record that is seen while waiting, the final one included.

        Raises:
            TimeoutError: It was not finished in time.
            ResultUnreachable: This process can never see that result.
            BackendGetMetaError: The store could not be read.
        """

    def subscribe(self, task_id: str, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call ``wake``, on any thread, when there may be news of a task; returns what ends that.

        None if this backend cannot: then it is asked now and then. One that can must answer `wait` without waiting when
        its timeout is zero. For asyncio programs.

        Raises:
            ResultUnreachable: This process can never see that result.
        """
        del task_id, wake
        return None

    def wait_any(
        self, task_ids: Collection[str], timeout_s: float | None, on_record: OnRecord | None = None
    ) -> list[ResultRecord]:
        """Wait until at least one of several tasks is finished and return the final records of all that are.

        This version looks at every task between waits for the first. Backends that can be told should do better.

        Args:
            timeout_s: None waits for as long as it takes; zero or less only looks.
            on_record: Called on the waiting thread with each record that is returned; by a backend that is told of
                news, with the others that come meanwhile too.

        Raises:
            TimeoutError: None was finished in time.
            ResultUnreachable: This process can never see one of those results.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.01
        while True:
            records = [record for record in map(self.fetch, task_ids) if record is not None and record.is_final]
            if records:
                for record in records:
                    if on_record is not None:
                        on_record(record)
                return records
            left_s = None if deadline is None else deadline - time.monotonic()
            if not task_ids or (left_s is not None and left_s <= 0):
                raise timed_out()
            try:
                self.wait(next(iter(task_ids)), pause_s if left_s is None else min(pause_s, left_s))
            except TimeoutError:
                # Grows, so that a long wait costs little; bounded, so that it stays lively.
                pause_s = min(pause_s * 1.5, 0.5)

    @abstractmethod
    def forget(self, task_id: str) -> None:
        """Drop what is known of a task, and stop expecting it. Unknown ids are fine."""

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep the plain form of a group's results for `fetch_group`, instead of any kept before.

        It expires with ``result_expires``, as results do. Stores of keys and values keep it as Celery does, so that
        both read it: the map ``{"result": plain}``, serialized as results are, under ``celery-taskset-meta-<id>``.

        Args:
            plain: What `GroupResult.as_tuple` returns: ``((id, parent), [((member, parent), None), …])``. Lists and
                tuples are the same here, and members that are groups have lists of their own.

        Raises:
            NoResultBackend: This backend keeps no groups.
            BackendStoreError: It could not be kept.
        """
        del group_id, plain
        raise self._cannot_keep_groups()

    def fetch_group(self, group_id: str) -> Any:
        """Return the plain form that `save_group` kept; None when nothing is.

        Raises:
            NoResultBackend: This backend keeps no groups.
            BackendGetMetaError: The store could not be read.
        """
        del group_id
        raise self._cannot_keep_groups()

    def delete_group(self, group_id: str) -> None:
        """Drop what `save_group` kept. Unknown ids are fine."""
        del group_id
        raise self._cannot_keep_groups()

    def _cannot_keep_groups(self) -> NoResultBackend:
        return NoResultBackend(
            f"the result backend {self.as_uri()} cannot save groups; use one that stores results, or keep the "
            "GroupResult itself"
        )

    # -- chords of Celery's kind, where `counts_chords`

    def begin_chord(self, group_id: str, size: int, plain: Any, *, is_nested: bool, is_again: bool) -> None:
        """Get ready to count the parts of a chord, whose header is not sent yet.

        Args:
            size: How many they are.
            plain: The results of the header, as for `save_group`.
            is_nested: There are groups among them: `plain` is needed to put the parts together.
            is_again: It may have been begun before, by the same task run twice: what is counted stays counted.

        Raises:
            BackendStoreError: It could not be told.
        """
        del group_id, size, plain, is_nested, is_again

    def add_to_chord(self, group_id: str, key: str) -> None:
        """Count one more part of a chord that is running, before it is sent. Twice with the same key is once.

        Raises:
            NotImplementedError: This backend cannot.
            BackendStoreError: It could not be told.
        """
        raise NotImplementedError(
            f"the result backend {self.as_uri()} cannot add parts to a chord that it counts: use redis://, or let "
            "RabbitMQ count (chord_join = 'broker')"
        )

    def count_part(
        self, group_id: str, task_id: str, index: int | None, state: str, value: Any, size: int | None = None
    ) -> bool:
        """Count the end of a part of a chord of Celery's; returns whether it was the last. Counting twice is counting
        once, and gives the same answer. `size` is how many there are, if the chord's body says so.

        Raises:
            BackendStoreError: It could not be counted.
        """
        del group_id, task_id, index, state, value, size
        return False

    def counted_parts(self, group_id: str) -> list[tuple[str, str, Any]]:
        """Return the id, the state and the result (or error, plain) of each part, in the header's order.

        Raises:
            BackendGetMetaError: They could not be read.
        """
        del group_id
        return []

    # -- life

    def cleanup(self) -> int:
        """Delete what has expired, where the store does not do so by itself; return how much."""
        return 0

    def as_uri(self) -> str:
        """Name the backend for logs and errors, without passwords."""
        return f"{type(self).__name__.removesuffix('Backend').lower()}://"

    @abstractmethod
    def close(self) -> None:
        """Let go of everything, waking whoever waits. Safe to call twice, and before first use. Never blocks long."""


class DisabledBackend(ResultBackend):
    """The backend of an app without one: what workers store vanishes, and every read says what to do about it."""

    persistent = False

    def store(self, record: ResultRecord) -> None:
        """Keep nothing: without a backend, results are thrown away."""

    def fetch(self, task_id: str) -> ResultRecord | None:
        """Refuse: nothing was ever kept."""
        raise self._disabled(task_id)

    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None = None) -> ResultRecord:
        """Refuse: it would wait for ever."""
        raise self._disabled(task_id)

    def subscribe(self, task_id: str, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Refuse: there will be no news."""
        raise self._disabled(task_id)

    def wait_any(
        self, task_ids: Collection[str], timeout_s: float | None, on_record: OnRecord | None = None
    ) -> list[ResultRecord]:
        """Refuse: it would wait for ever."""
        raise self._disabled(next(iter(task_ids), ""))

    def forget(self, task_id: str) -> None:
        """Do nothing: nothing was ever kept."""

    def close(self) -> None:
        """Do nothing: nothing is held."""

    @staticmethod
    def _disabled(task_id: str) -> NoResultBackend:
        return NoResultBackend(
            f"No result backend is configured, so the result of task {task_id} is not kept. "
            "Give the app one, for example App(backend='rpc://')."
        )
