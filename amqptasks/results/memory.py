"""Results kept in the memory of this process: `memory://` and `cache+memory://`.

For tests, and for apps that run their tasks eagerly. Values are kept as they are, not serialized. No other process sees
them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from amqptasks.exceptions import BackendGetMetaError, ImproperlyConfigured
from amqptasks.results.backend import OnRecord, ResultBackend, timed_out
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.results.registry import BackendApp
from amqptasks.urls import mask_url

__all__ = ["MemoryBackend", "from_app"]


def from_app(url: str, app: BackendApp) -> MemoryBackend:
    """Make the backend that the settings ask for."""
    if url.partition("://")[0] not in ("", "memory"):
        raise ImproperlyConfigured(f"expected the result backend cache+memory://, got: cache+{mask_url(url)}")
    return MemoryBackend(app.conf.result_cache_max)


class MemoryBackend(ResultBackend):
    """A bounded map from task id to its newest record.

    Args:
        max_results: How many results are kept; beyond it the one written longest ago is dropped. At least 1.
    """

    persistent = False

    def __init__(self, max_results: int = 50_000) -> None:
        if max_results < 1:
            raise ValueError(f"expected max_results to be at least 1, got: {max_results!r}")
        self._max_results = max_results
        self._records: OrderedDict[str, ResultRecord] = OrderedDict()
        self._groups: OrderedDict[str, Any] = OrderedDict()
        self._is_closed = False
        self._changed = threading.Condition()
        self._watchers: dict[str, list[Callable[[], None]]] = {}

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless what is known already says more."""
        with self._changed:
            if not supersedes(record, self._records.get(record.task_id)):
                return
            self._records[record.task_id] = record
            self._records.move_to_end(record.task_id)
            while len(self._records) > self._max_results:
                self._records.popitem(last=False)
            self._changed.notify_all()
            wakes = tuple(self._watchers.get(record.task_id, ())) if record.is_final else ()
        for wake in wakes:
            wake()

    def fetch(self, task_id: str) -> ResultRecord | None:
        """Return the newest record of a task, or None."""
        with self._changed:
            return self._records.get(task_id)

    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None = None) -> ResultRecord:
        """Wait for the final record of a task; for one that is never stored, until the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen: ResultRecord | None = None
        while True:
            with self._changed:
                record = self._records.get(task_id)
                while record is seen or record is None:
                    self._sleep_until(deadline)
                    record = self._records.get(task_id)
            # Outside the lock: the callback is the caller's code and may ask this backend something.
            seen = record
            if on_record is not None:
                on_record(record)
            if record.is_final:
                return record

    def wait_any(
        self, task_ids: Collection[str], timeout_s: float | None, on_record: OnRecord | None = None
    ) -> list[ResultRecord]:
        """Wait until at least one of several tasks is finished."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                known = (self._records.get(task_id) for task_id in task_ids)
                records = [record for record in known if record is not None and record.is_final]
                if records:
                    break
                if not task_ids:
                    raise timed_out()
                self._sleep_until(deadline)
        if on_record is not None:
            for record in records:
                on_record(record)
        return records

    def subscribe(self, task_id: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Wake a waiting coroutine, or whoever it is, when the task is finished."""

        def end() -> None:
            with self._changed:
                wakes = self._watchers.get(task_id, [])
                if wake in wakes:
                    wakes.remove(wake)
                if not wakes:
                    self._watchers.pop(task_id, None)

        with self._changed:
            self._watchers.setdefault(task_id, []).append(wake)
        return end

    def _sleep_until(self, deadline: float | None) -> None:
        """Sleep until something changes; the lock is held on entry and on return."""
        if self._is_closed:
            raise BackendGetMetaError("the memory result backend was closed while a result was waited for")
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise timed_out()
        self._changed.wait(left_s)

    def forget(self, task_id: str) -> None:
        """Drop the record of a task."""
        with self._changed:
            self._records.pop(task_id, None)

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep the plain tuple of a group's results."""
        with self._changed:
            self._groups[group_id] = plain
            self._groups.move_to_end(group_id)
            while len(self._groups) > self._max_results:
                self._groups.popitem(last=False)

    def fetch_group(self, group_id: str) -> Any:
        """Return what was kept of a group, or None."""
        with self._changed:
            return self._groups.get(group_id)

    def delete_group(self, group_id: str) -> None:
        """Drop what was kept of a group."""
        with self._changed:
            self._groups.pop(group_id, None)

    def close(self) -> None:
        """Wake whoever waits, with BackendGetMetaError. What is stored can still be fetched."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            wakes = [wake for several in self._watchers.values() for wake in several]
        for wake in wakes:
            wake()
