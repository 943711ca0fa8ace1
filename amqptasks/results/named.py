"""What programs ask of ``app.backend`` by Celery's names: a task's state, its result, and to store one by hand.

All of it is said in terms of `fetch`, `wait` and `store`, so every backend has it.
"""

from __future__ import annotations

from typing import Any

from amqptasks.exceptions import TaskRevokedError
from amqptasks.results.record import ResultRecord
from amqptasks.states import EXCEPTION_STATES, FAILURE, PENDING, RETRY, REVOKED, STARTED, SUCCESS

__all__ = ["CeleryNames"]


class CeleryNames:
    """Celery's names for what a backend can do. Errors are those of `fetch`, `wait` and `store`."""

    in_message: bool

    # -- asking

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """Return what is known of a task: ``status``, ``result`` (an error as an exception), ``traceback`` and so on.

        Args:
            cache: Accepted because Celery has it. Nothing is kept here that could be old.
        """
        del cache
        backend: Any = self
        return _meta(backend.fetch(task_id))

    get_task_meta_for = get_task_meta

    def get_state(self, task_id: str) -> str:
        """Return a task's state; PENDING if nothing is known of it."""
        return str(self.get_task_meta(task_id)["status"])

    get_status = get_state

    def get_result(self, task_id: str) -> Any:
        """Return a task's result, or its error, or what it last reported; None if nothing is known of it."""
        return self.get_task_meta(task_id)["result"]

    def get_traceback(self, task_id: str) -> str | None:
        """Return the traceback of a task that failed, as text."""
        traceback: str | None = self.get_task_meta(task_id).get("traceback")
        return traceback

    def get_children(self, task_id: str) -> Any:
        """Return the plain forms of the results of what a task has started."""
        return self.get_task_meta(task_id).get("children")

    def wait_for(self, task_id: str, timeout: float | None = None, **_options: Any) -> dict[str, Any]:
        """Wait until a task has ended, and return what `get_task_meta` does.

        Raises:
            TimeoutError: It had not ended by then.
        """
        backend: Any = self
        return _meta(backend.wait(task_id, timeout))

    # -- storing

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_options: Any
    ) -> Any:
        """Store a state of a task by hand; returns `result`. A success that is stored stays.

        Args:
            result: An exception where the state is one of failing.
            request: Whose group and parent are noted, if it is given.

        Raises:
            NotImplementedError: Results travel in messages: only who runs a task can send one (`Task.update_state`).
        """
        backend: Any = self
        if self.in_message:
            raise NotImplementedError(
                f"the result backend {backend.as_uri()} sends results to who waits for them and stores none: report a "
                "state by update_state() in the task, or use a store such as redis://"
            )
        plain = result
        if state in EXCEPTION_STATES and isinstance(result, BaseException):
            from amqptasks.wire.failures import to_plain

            plain = to_plain(result)
        group_id, parent_id = (getattr(request, name, None) for name in ("group", "parent_id"))
        text = None if traceback is None else str(traceback)
        backend.store(
            ResultRecord.now(task_id, state, plain, traceback=text, group_id=group_id, parent_id=parent_id)
        )  # fmt: skip
        return result

    def mark_as_started(self, task_id: str, **meta: Any) -> Any:
        """Store that a task has begun."""
        return self.store_result(task_id, meta, STARTED)

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, state: str = SUCCESS) -> Any:
        """Store a result. What follows the task does not follow this."""
        return self.store_result(task_id, result, state, request=request)

    def mark_as_failure(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None, state: str = FAILURE
    ) -> Any:
        """Store a failure. No error callback is called."""
        return self.store_result(task_id, exc, state, traceback, request)

    def mark_as_retry(
        self, task_id: str, exc: BaseException, traceback: str | None = None, request: Any = None, state: str = RETRY
    ) -> Any:
        """Store that a task is to be tried again."""
        return self.store_result(task_id, exc, state, traceback, request)

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, state: str = REVOKED) -> Any:
        """Store that a task was revoked."""
        return self.store_result(task_id, TaskRevokedError(reason), state, request=request)


def _meta(record: ResultRecord | None) -> dict[str, Any]:
    if record is None:
        return {"status": PENDING, "result": None}
    meta = record.to_plain()
    if record.status in EXCEPTION_STATES:
        from amqptasks.wire.failures import from_plain

        meta["result"] = from_plain(record.result, record.traceback)
    return meta
