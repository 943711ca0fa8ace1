"""What a finished task leaves to do, as messages: its result, its callbacks, the next element of its chain, its
errbacks.

Used where tasks run, and by the parent for tasks whose child cannot speak for itself any more. Nothing is sent here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.app.eager import call_errback
from amqptasks.canvas.signature import maybe_signature
from amqptasks.exceptions import AmqptasksError, EncodeError
from amqptasks.results.backend import ResultBackend
from amqptasks.results.kept import kept_queue
from amqptasks.results.record import FOLLOWERS, ResultRecord
from amqptasks.states import FAILURE, RETRY, REVOKED, SUCCESS
from amqptasks.wire.failures import to_plain
from amqptasks.wire.message import PERSISTENT, encode
from amqptasks.wire.serializers import dumps
from amqptasks.worker.outcome import FollowUp, Keep, Next, made

logger = logging.getLogger(__name__)

#: Canvases in canvases are looked through this deep.
MAX_DEPTH = 100


class FollowUps:
    """Makes follow-ups for one app. Safe from any thread.

    Args:
        stores_later: Leave storing to whoever settles, instead of waiting for the result store here.
    """

    def __init__(self, app: App, hostname: str, *, stores_later: bool = False) -> None:
        self._app = app
        self._hostname = hostname
        self._stores_later = stores_later

    def record(self, request: Context, state: str, result: Any, traceback: str | None = None) -> ResultRecord:
        """Make the result record of a call."""
        children = [each.as_tuple() for each in request._children] if request._children else []
        extra: dict[str, Any] = {}
        if self._app.conf.result_extended:
            extra = self._extended(request)
        if request._followers and self._app.backend.in_message:
            extra = {**extra, FOLLOWERS: request._followers}
        return ResultRecord.now(
            request.id or "", state, result, traceback=traceback, children=children, group_id=request.group,
            parent_id=request.parent_id, extra=extra,
        )  # fmt: skip

    def _extended(self, request: Context) -> dict[str, Any]:
        serializer = self._app.conf.result_serializer
        arguments = {"args": request.args, "kwargs": request.kwargs}
        for key, text in (("args", request.argsrepr), ("kwargs", request.kwargsrepr)):
            try:
                dumps(arguments[key], serializer)
            except EncodeError:
                # What the arguments came in may carry more than results do.
                arguments[key] = text
        return {
            "name": request.task, **arguments, "worker": self._hostname, "retries": request.retries,
            "queue": (request.delivery_info or {}).get("routing_key"),
        }  # fmt: skip

    def answer(self, request: Context, record: ResultRecord) -> tuple[Next, ...]:
        """Store a record, or make the messages that carry it: to the caller, and to the queue that keeps it.

        Raises:
            EncodeError: The result cannot be serialized.
            BackendStoreError: It could not be stored.
        """
        backend = self._app.backend
        if not backend.in_message:
            if self._stores_later and record.is_final:
                return (Keep(record),)
            backend.store(record)
            return ()
        follow_ups: tuple[FollowUp, ...] = ()
        message = backend.message(record, request.reply_to, request.correlation_id)
        if message is not None:
            follow_ups = (FollowUp(encode(message, "", request.reply_to or ""), is_answer=True),)
        if self._is_kept(request):
            follow_ups += self._kept(backend, record)
        return follow_ups

    def _is_kept(self, request: Context) -> bool:
        task = self._app.tasks.get(request.task or "")
        keep = getattr(task, "persist_result", None)
        return bool(self._app.conf.task_persist_result if keep is None else keep)

    def _kept(self, backend: ResultBackend, record: ResultRecord) -> tuple[FollowUp, ...]:
        queue = kept_queue(self._app.conf.task_queue_prefix, record.task_id)
        message = None if queue is None else backend.message(record, queue, record.task_id)
        if queue is None or message is None:
            return ()
        message.delivery_mode = PERSISTENT
        return (FollowUp(encode(message, "", queue), is_answer=True, is_kept=True),)

    def after_success(self, request: Context, value: Any) -> tuple[Next, ...]:
        """Call what is linked to a success: callbacks, then the next element of the chain."""
        if not request.callbacks and not request.chain:
            return self.part(request, value) if request.chord else ()
        options = self._inherited(request)
        own = len(request.children)
        with self._app.sender.collecting(request.reply_to) as collected:
            for callback in request.callbacks or ():
                signature = maybe_signature(callback, app=self._app)
                request.children.append(signature.apply_async((value,), **options))
            if request.chain:
                rest = list(request.chain)
                signature = maybe_signature(rest.pop(), app=self._app)
                request.children.append(signature.apply_async((value,), chain=rest or None, **options))
        request._followers = [each.id for each in request.children[own:]]
        follow_ups = made(collected)
        return follow_ups + self.part(request, value) if request.chord else follow_ups

    def after_failure(
        self, request: Context, error: BaseException, plain: Mapping[str, Any], traceback: str | None, state: str
    ) -> tuple[Next, ...]:
        """Call the errbacks, and fail what the chain will never reach."""
        follow_ups: list[Next] = []
        if request.errbacks:
            with self._app.sender.collecting(request.reply_to) as collected:
                for errback in request.errbacks:
                    call_errback(self._app, errback, request, error, traceback, self._inherited(request))
            follow_ups.extend(made(collected))
        for element in request.chain or ():
            follow_ups.extend(self._fail_element(element, request, plain, traceback, state))
        return tuple(follow_ups)

    # -- parts of chords

    def part(self, request: Context, value: Any) -> tuple[Next, ...]:
        """Tell the chord whose part a task was what it has returned.

        Raises:
            EncodeError: That cannot be serialized, or is too large.
            BackendStoreError: It is a part of a chord of Celery's, and could not be counted.
        """
        from amqptasks.worker.parts import succeeded

        if not self._app.backend.counts_chords:
            return succeeded(self._app, request, value)
        from amqptasks.worker import celery_chords

        return (
            *succeeded(self._app, request, value),
            *celery_chords.succeeded(self._app, request, self.record(request, SUCCESS, value), self.never_run),
        )

    def failed_parts(self, request: Context, error: BaseException, traceback: str | None) -> tuple[Next, ...]:
        """Tell the chords whose parts will never be there: the task's own, and those of what its chain will not
        reach."""
        if not request.chord and not request.chain:
            return ()
        from amqptasks.worker.parts import failed

        ours = failed(self._app.conf, request, error, traceback)
        if not self._app.backend.counts_chords:
            return ours
        from amqptasks.worker import celery_chords

        return (*ours, *celery_chords.failed(self._app, request, error, FAILURE, self.never_run))

    def unreadable_part(self, request: Context, error: BaseException) -> tuple[Next, ...]:
        """Tell the chord whose part a message may have been that cannot be read."""
        if not request.group:
            return ()
        from amqptasks.worker.parts import unreadable

        return unreadable(self._app, request, error)

    def _fail_element(
        self, element: Any, request: Context, plain: Mapping[str, Any], traceback: str | None, state: str,
        depth: int = MAX_DEPTH,
    ) -> tuple[Next, ...]:  # fmt: skip
        options = element.get("options") if isinstance(element, Mapping) else None
        if not isinstance(options, Mapping) or depth <= 0:
            return ()
        kwargs, kind = element.get("kwargs"), element.get("subtask_type")
        if kind in ("chain", "group", "chord") and isinstance(kwargs, Mapping):
            # The ids are those of what it consists of.
            inner = [kwargs.get("body")] if kind == "chord" else []
            tasks = kwargs.get("header" if kind == "chord" else "tasks")
            inner += tasks if isinstance(tasks, (list, tuple)) else []
            return tuple(
                each for one in inner for each in self._fail_element(one, request, plain, traceback, state, depth - 1)
            )
        task_id, reply_to = options.get("task_id"), options.get("reply_to") or request.reply_to
        if not isinstance(task_id, str) or not isinstance(reply_to, (str, type(None))):
            return ()
        context = Context(
            id=task_id, task=element.get("task"), reply_to=reply_to, correlation_id=task_id,
            group=options.get("group_id"),
            root_id=request.root_id,
        )  # fmt: skip
        return self.answer(context, self.record(context, state, dict(plain), traceback))

    def failure(
        self, request: Context, error: BaseException, traceback: str | None, *, state: str = FAILURE, store: bool = True
    ) -> tuple[Next, ...]:
        """Make all that follows a failure, the answer first: its caller must learn of it whatever else goes wrong."""
        plain = to_plain(error, self._app.conf.result_serializer)
        follow_ups: tuple[Next, ...] = ()
        if store:
            follow_ups = self.answer(request, self.record(request, state, plain, traceback))
        follow_ups += self.failed_parts(request, error, traceback)
        try:
            return follow_ups + self.after_failure(request, error, plain, traceback, state)
        except AmqptasksError as trouble:
            logger.error("What follows the failure of task %s cannot be sent: %s", request.id, trouble)
            return follow_ups

    def never_run(self, request: Context, error: BaseException, traceback: str | None) -> tuple[Next, ...]:
        """Make all that follows the failure of a call that has not run and never will."""
        task = self._app.tasks.get(request.task or "")
        store = bool(request.id) and wants_result(self._app, task, request, FAILURE)
        return self.failure(request, error, traceback, store=store)

    @staticmethod
    def _inherited(request: Context) -> dict[str, Any]:
        return {"root_id": request.root_id or request.id, "parent_id": request.id}


def wants_result(app: App, task: Any, request: Context, state: str) -> bool:
    """Whether a caller may see this result: ``ignore_result`` in all its places, and errors kept in spite of it."""
    ignore = request.__dict__.get("ignore_result")
    if ignore is None and task is not None:
        ignore = task.ignore_result
    if not (app.conf.task_ignore_result if ignore is None else ignore):
        return True
    return state in (FAILURE, RETRY, REVOKED) and keeps_errors(app, task)


def keeps_errors(app: App, task: Any) -> bool:
    """Whether errors are told even if the result is ignored. Then a success is told too, without its value: who waits
    for an error must learn that there is none."""
    keep = None if task is None else task.store_errors_even_if_ignored
    return bool(app.conf.task_store_errors_even_if_ignored if keep is None else keep)
