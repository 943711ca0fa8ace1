"""The progress of several tasks, shown while a program goes on with what they return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO, Any

from amqptasks.results.bar import shown
from amqptasks.results.sets import ResultSet

__all__ = ["track"]


def track(
    results: Iterable[Any], label: str = "tasks", *, timeout: float | None = None, file: IO[str] | None = None
) -> Iterator[Any]:
    """Yield the handle of each task when it is finished, and show on the way how many are; see `Bar`.

    Args:
        results: A `ResultSet` or `GroupResult`, or any handles.
        label: What is counted.
        timeout: Seconds to wait at most, for all of them together.
        file: Where to show it; standard error unless given.

    Raises:
        TimeoutError: Not all are finished in time.
        ResultUnreachable: This process can never see one of the results.
        RuntimeError: Called inside a task.
    """
    several = results if isinstance(results, ResultSet) else ResultSet(list(results))
    return shown(several, label, timeout, file)
