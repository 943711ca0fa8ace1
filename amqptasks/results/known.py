"""What a handle tells of its task as it is now, without waiting."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime
from typing import Any

from amqptasks.results.record import ResultRecord
from amqptasks.states import FAILURE, SUCCESS
from amqptasks.wire.failures import from_plain

__all__ = ["KnownResult", "value_of"]


def value_of(record: ResultRecord) -> Any:
    """Return the value in a record, or a new exception of the one that it describes."""
    # Rebuilt each time: an exception raised twice, or in two threads, would gather tracebacks that are not its own.
    if record.is_exception:
        return from_plain(record.result, record.traceback)
    return record.result


def _extended(key: str, doc: str) -> property:
    def read(self: KnownResult) -> Any:
        return self._record().extra.get(key)

    return property(read, doc=f"{doc} None unless results are extended (``result_extended``).")


class KnownResult:
    """The looking side of `AsyncResult`."""

    id: str

    @abstractmethod
    def _record(self) -> ResultRecord:
        """The newest record."""

    @property
    def state(self) -> str:
        """Where the task stands: a name of `amqptasks.states`, or a custom one. An unknown id is PENDING."""
        return self._record().status

    @property
    def status(self) -> str:
        """Another name of `state`."""
        return self._record().status

    @property
    def result(self) -> Any:
        """The return value, the exception of a failed task, or the meta of a custom state; None while unknown."""
        return value_of(self._record())

    @property
    def info(self) -> Any:
        """Another name of `result`."""
        return value_of(self._record())

    @property
    def traceback(self) -> str | None:
        """The worker's traceback of a failed task, as text."""
        return self._record().traceback

    def ready(self) -> bool:
        """Whether the task is finished, well or not."""
        return self._record().is_final

    def successful(self) -> bool:
        """Whether the task finished well."""
        return self._record().status == SUCCESS

    def failed(self) -> bool:
        """Whether the task failed."""
        return self._record().status == FAILURE

    @property
    def date_done(self) -> datetime | None:
        """When the task was finished."""
        text = self._record().date_done
        try:
            # Python 3.10 does not read the Z that other writers use for UTC.
            return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
        except ValueError:
            return None

    name = _extended("name", "The task's name.")
    args = _extended("args", "The arguments the task ran with.")
    kwargs = _extended("kwargs", "The keyword arguments the task ran with.")
    worker = _extended("worker", "The worker that ran the task.")
    retries = _extended("retries", "How often the task was retried.")
    queue = _extended("queue", "The queue the task came from.")

    @property
    def supports_native_join(self) -> bool:
        """Whether sets of such results are joined without polling. Always true."""
        return True

    @property
    def task_id(self) -> str:
        """Another name of `id`."""
        return self.id
