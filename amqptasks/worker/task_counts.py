"""Counts what becomes of tasks, for `/metrics`, where events of tasks would be told; and passes on what is to be told.

Names of tasks come from the registry, never from the wire: what is counted by them is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from amqptasks.clock import monotonic
from amqptasks.events import messages
from amqptasks.worker.metrics import Family, Histogram
from amqptasks.worker.outcome import FAILED, REJECTED, RETRYING, SUCCEEDED, UNREADABLE, UNSTORED, Outcome

if TYPE_CHECKING:
    from amqptasks.worker.outcome import Told
    from amqptasks.worker.pools.slot import Slot
    from amqptasks.worker.request import Request
    from amqptasks.worker.services import TaskWatcher

__all__ = ["TaskCounts"]

_TYPES: Final = {
    SUCCEEDED: messages.TASK_SUCCEEDED, FAILED: messages.TASK_FAILED, RETRYING: messages.TASK_RETRIED,
    REJECTED: messages.TASK_REJECTED, UNREADABLE: messages.TASK_FAILED, UNSTORED: messages.TASK_FAILED,
}  # fmt: skip


class TaskCounts:
    """A `TaskWatcher` that counts in front of another one. Belongs to the loop's thread.

    Args:
        told: Gets everything too, while it wants it.
        worker: The node's name.
    """

    def __init__(self, told: TaskWatcher, worker: str) -> None:
        self.enabled = True
        self._told = told
        self._worker = worker
        self._counts: dict[tuple[str, str], int] = {}
        self._runtimes = Histogram("flower_task_runtime_seconds", "Task runtime", ("worker", "task"))
        #: Names of the tasks that have ever begun.
        self._begun: set[str] = set()

    def families(self, running: Iterable[tuple[Slot, Request]]) -> list[Family]:
        """Return the metrics, with those that depend on what runs now."""
        worker = self._worker
        waited = dict.fromkeys(self._begun, 0.0)
        for slot, request in running:
            started, received = slot.started(request), getattr(request, "received_at", None)
            if started is not None and received is not None:
                name = _name(request)
                waited[name] = max(waited.get(name, 0.0), started - received)
        return [
            Family(
                "flower_events_total", "counter", "Number of events", ("worker", "type", "task"),
                {(worker, *key): count for key, count in self._counts.items()},
            ),
            self._runtimes,
            Family(
                "flower_task_prefetch_time_seconds", "gauge",
                "The time the task spent waiting at the celery worker to be executed.", ("worker", "task"),
                {(worker, task): seconds for task, seconds in waited.items()},
            ),
        ]  # fmt: skip

    def _count(self, kind: str, name: str) -> None:
        key = kind, name
        self._counts[key] = self._counts.get(key, 0) + 1

    def _count_start(self, request: Request) -> None:
        if not getattr(request, "is_counted", True):
            request.is_counted = True
            name = _name(request)
            self._begun.add(name)
            self._count(messages.TASK_STARTED, name)

    # -- the watcher

    def received(self, request: Request) -> None:
        """Count it."""
        request.received_at, request.is_counted = monotonic(), False
        self._count(messages.TASK_RECEIVED, _name(request))
        if self._told.enabled:
            self._told.received(request)

    def started(self, request: Request, ago_s: float = 0.0) -> None:
        """Count it, once."""
        self._count_start(request)
        if self._told.enabled:
            self._told.started(request, ago_s)

    def ended(self, request: Request, outcome: Outcome) -> None:
        """Count it, and how long it took."""
        if outcome.kind != UNREADABLE:
            self._count_start(request)
        kind, name = _TYPES.get(outcome.kind), _name(request)
        if kind is not None:
            self._count(kind, name)
        if outcome.kind == SUCCEEDED:
            self._runtimes.observe((self._worker, name), outcome.runtime_s)
        if self._told.enabled:
            self._told.ended(request, outcome)

    def failed(self, request: Request, error: Exception) -> None:
        """Count it."""
        self._count_loss(messages.TASK_FAILED, request)
        if self._told.enabled:
            self._told.failed(request, error)

    def retried(self, request: Request, error: Exception) -> None:
        """Count it."""
        self._count_loss(messages.TASK_RETRIED, request)
        if self._told.enabled:
            self._told.retried(request, error)

    def rejected(self, request: Request) -> None:
        """Count it."""
        self._count_loss(messages.TASK_REJECTED, request)
        if self._told.enabled:
            self._told.rejected(request)

    def revoked(self, request: Request, terminated: bool, signum: int | None, expired: bool) -> None:
        """Count it."""
        self._count_loss(messages.TASK_REVOKED, request)
        if self._told.enabled:
            self._told.revoked(request, terminated, signum, expired)

    def cancelled(self, request: Request) -> None:
        """Count it."""
        self._count_loss(messages.TASK_CANCELLED, request)
        if self._told.enabled:
            self._told.cancelled(request)

    def said(self, request: Request, told: Told) -> None:
        """Pass it on: what a task says itself is told whether or not others are."""
        self._told.said(request, told)

    def _count_loss(self, kind: str, request: Request) -> None:
        if request.number:
            # Nobody may have looked between its beginning and its end.
            self._count_start(request)
        self._count(kind, _name(request))


def _name(request: Request) -> str:
    return "" if request.task is None else str(request.task.name)
