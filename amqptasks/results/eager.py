"""`EagerResult`: the result of a task that ran at once, where it was called."""

from __future__ import annotations

from typing import Any

from amqptasks.exceptions import TaskRevokedError
from amqptasks.results.context import assert_will_not_block
from amqptasks.results.handles import AsyncResult
from amqptasks.results.record import ResultRecord
from amqptasks.results.relations import Callback
from amqptasks.states import PROPAGATE_STATES, READY_STATES, REVOKED

__all__ = ["EagerResult"]


class EagerResult(AsyncResult):
    """The result of a task that ran at once, in this process. It is always ready and asks no backend."""

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(id)
        self._value = ret_value
        self._final = ResultRecord.now(
            id, state, traceback=traceback, children=None, extra={"name": name} if name else {}
        )

    def _record(self) -> ResultRecord:
        assert self._final is not None
        return self._final

    def get(  # type: ignore[override]  # the rest of AsyncResult.get's options mean nothing here
        self, timeout: float | None = None, propagate: bool = True, **options: Any,
    ) -> Any:  # fmt: skip
        """Return what the task returned, or raise what it raised; with ``propagate=False`` return it.

        Raises:
            RuntimeError: Called inside a task, and ``disable_sync_subtasks`` is not false.
        """
        if options.get("disable_sync_subtasks", True):
            assert_will_not_block()
        if self.state not in READY_STATES:
            return None
        return self.maybe_throw(propagate, options.get("callback"))

    wait = get  # type: ignore[assignment]

    async def aget(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Return what the task returned, or raise what it raised, as `get`."""
        return self.get(timeout, propagate, **options)

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the task's exception if it failed; return its value otherwise."""
        if propagate and self.state in PROPAGATE_STATES:
            self.throw(self._value if isinstance(self._value, BaseException) else Exception(self._value))
        if callback is not None:
            callback(self.id, self._value)
        return self._value

    maybe_reraise = maybe_throw

    @property
    def result(self) -> Any:
        """What the task returned or raised."""
        return self._value

    info = result

    def ready(self) -> bool:
        """Return True: it has run."""
        return True

    def exists(self) -> bool:
        """Return True: it has run."""
        return True

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Mark it as revoked: what the task returned is replaced by a TaskRevokedError."""
        del args, kwargs
        self._value = TaskRevokedError("revoked")
        self._final = ResultRecord.now(self.id, REVOKED)

    def _forget(self) -> None:
        """Do nothing: nothing was kept."""

    def _meta(self) -> dict[str, Any]:
        return {**self._record().to_plain(), "result": self._value}

    def __copy__(self) -> EagerResult:
        make, arguments = self.__reduce__()
        copy: EagerResult = make(*arguments)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return EagerResult, (self.id, self._value, self.state, self.traceback, self.name)
