"""Runs one task and says how it ended. Lives where tasks run: in a child process, or in a slot's thread.

One value goes through named steps: read the body, make the request, run the function, encode what follows.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from amqptasks import signals
from amqptasks.app import context
from amqptasks.app.app import App
from amqptasks.app.context import FIELD_HEADERS, Context
from amqptasks.app.coroutines import run_coroutine
from amqptasks.app.handlers import ExceptionInfo, told_failure, told_retry, told_return, told_success
from amqptasks.exceptions import (
    AmqptasksError,
    BackendStoreError,
    ContentError,
    EncodeError,
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
)
from amqptasks.logs import TASK_LOGGER, bind_task
from amqptasks.results.context import denied_join_result
from amqptasks.results.record import ResultRecord
from amqptasks.states import FAILURE, RETRY, STARTED, SUCCESS
from amqptasks.wire.binding import SIGNED_TYPE
from amqptasks.wire.failures import format_traceback, to_plain
from amqptasks.wire.pipe import encode_frame
from amqptasks.wire.reprs import short_repr
from amqptasks.wire.serializers import accepted, dumps
from amqptasks.wire.task import TaskBody, read_body
from amqptasks.worker.dead_letters import dies_of_failure, failure_text
from amqptasks.worker.follow_ups import FollowUps, keeps_errors, wants_result
from amqptasks.worker.outcome import (
    FAILED,
    IGNORED,
    MESSAGE,
    REJECTED,
    RETRYING,
    SUCCEEDED,
    UNREADABLE,
    UNSTORED,
    Next,
    Outcome,
    Told,
    made,
)
from amqptasks.worker.pools.window import Abandoned, run_limited

logger = logging.getLogger(TASK_LOGGER + ".trace")

#: Sends a frame to the parent at once.
Emit = Callable[[bytes], None]
#: The number of the frame whose task is running in this context, and how that task sends.
emitting: ContextVar[tuple[int, Emit] | None] = ContextVar("amqptasks_emitting", default=None)


class Executor:
    """Runs tasks of one app. Shared by the slots of a process; what belongs to one run is kept in locals and in
    context variables."""

    def __init__(self, app: App, hostname: str) -> None:
        self.app = app
        self.hostname = hostname
        self._accept = accepted(app.conf.accept_content)
        self._limits = app.limits()
        self._follow_ups = FollowUps(app, hostname)
        self._track_started = bool(app.conf.task_track_started)
        self._due = app.sender.ladder.due
        conf = app.conf
        self._skips_done = bool(conf.worker_deduplicate_successful_tasks) and app.backend.persistent
        self._acks_late = bool(conf.task_acks_late)
        app.state_reporter = self.report_state
        app.event_reporter = self.report_event

    def run(self, frame: list[Any], emit: Emit) -> Outcome:
        """Run the task that a frame from the parent describes. Raises nothing that the task raised."""
        request = self.read(frame)
        if type(request) is Outcome:
            return request
        assert isinstance(request, Context)
        token = emitting.set((frame[0], emit))
        try:
            task = self.app.tasks[frame[1]]
            if self._skips_done and frame[13]:
                return self.done_before(task, request) or self._trace(task, request)
            return self._trace(task, request)
        except Exception as error:
            return self.broken(request, error)
        finally:
            emitting.reset(token)

    # -- the steps

    def read(self, frame: list[Any]) -> Context | Outcome:
        """Make the request of a frame; an outcome if it cannot be read."""
        headers, content_type = frame[3], frame[5]
        try:
            parsed = read_body(headers, content_type, frame[6], frame[4], self._accept, self._limits)
        except (ContentError, InvalidTaskError) as error:
            if content_type == SIGNED_TYPE:
                # No answer: it would be signed by us, whoever asked for it.
                return Outcome(UNREADABLE, 0.0, reason=f"{type(error).__name__}: {error}")
            return self._unreadable(frame[1], frame[2], headers, frame[7], frame[8], error)
        return describe(frame, parsed, self.hostname, self._due)

    def done_before(self, task: Any, request: Context) -> Outcome | None:
        """Return the outcome of a late-ack task that was delivered again although its success is stored; None if it
        is to be run."""
        late = task.acks_late
        if request.chord is not None or not (self._acks_late if late is None else late):
            # A chord counts it once more, if it must.
            return None
        try:
            record = self.app.backend.fetch(request.id or "")
        except AmqptasksError as error:
            logger.warning("Task %s[%s] runs again: its result cannot be looked up: %s", task.name, request.id, error)
            return None
        if record is None or record.status != SUCCESS:
            return None
        logger.info("Task %s[%s] has succeeded before; it is not run again", task.name, request.id)
        # What calls the tasks that follow is sent after the result is stored, so it may be lost: it is sent once more,
        # under the ids that they had.
        request.callbacks = with_ids(request.callbacks or (), record.children or (), bool(request.chain))
        return Outcome(SUCCEEDED, 0.0, self._follow_ups.after_success(request, record.result))

    def broken(self, request: Context, error: Exception) -> Outcome:
        """Say how a run ended that could not be finished. The caller still gets an answer, if one can be stored."""
        if isinstance(error, BackendStoreError):
            return self._unstored(request, error)
        # Not the task's fault: a handler or this package.
        logger.error("Task %s[%s] raised an internal error", request.task, request.id, exc_info=error)
        if signals.task_internal_error:
            signals.task_internal_error.send(
                self.app.tasks.get(request.task or ""), task_id=request.id, args=request.args, kwargs=request.kwargs,
                request=request, exception=error, traceback=error.__traceback__,
                einfo=ExceptionInfo(error, format_traceback(error), internal=True),
            )  # fmt: skip
        try:
            return self._failed(None, request, error, 0.0)
        except AmqptasksError as trouble:
            return self._unstored(request, trouble)

    def _trace(self, task: Any, request: Context) -> Outcome:
        token = context.push(task, request, is_entering=task.has_own_call)
        log_token = bind_task(request.task, request.id)
        hard, soft = request.timelimit
        try:
            self.told_start(task, request)
            started = time.perf_counter()
            try:
                with denied_join_result():
                    value = run_limited(_call, task, request) if hard or soft else _call(task, request)
            except Abandoned:
                # The worker has told its end already.
                raise
            except BaseException as error:
                # SystemExit and its kind too: a task must not end the worker by accident.
                return self.ended(task, request, None, error, time.perf_counter() - started)
            return self.ended(task, request, value, None, time.perf_counter() - started)
        finally:
            log_token()
            context.pop(token)

    def told_start(self, task: Any, request: Context) -> None:
        """Tell that a task begins."""
        if signals.task_prerun:
            signals.task_prerun.send(task, task_id=request.id, task=task, args=request.args, kwargs=request.kwargs)
        if self._track_started if task.track_started is None else task.track_started:
            self.report_state(task, request.id or "", STARTED, {"pid": os.getpid(), "hostname": self.hostname})

    def ended(
        self, task: Any, request: Context, value: Any, error: BaseException | None, runtime_s: float
    ) -> Outcome:  # fmt: skip
        """Make the outcome of a run that has returned a value or raised an error, and tell of it."""
        if error is None:
            outcome, state = self._succeeded(task, request, value, runtime_s)
        elif isinstance(error, Retry):
            value, state = error, RETRY
            outcome = self._retrying(task, request, error, runtime_s)
        elif isinstance(error, Ignore):
            outcome, state = Outcome(IGNORED, runtime_s, self._left_out(request, error)), "IGNORED"
            logger.info("Task %s[%s] ignored", request.task, request.id)
        elif isinstance(error, Reject):
            outcome, state = self._rejected(task, request, error, runtime_s), "REJECTED"
        else:
            value, state = error, FAILURE
            outcome = self._failed(task, request, error, runtime_s)
        if signals.task_postrun:
            signals.task_postrun.send(
                task, task_id=request.id, task=task, args=request.args, kwargs=request.kwargs, retval=value, state=state
            )
        if request._attempts:
            # However this one has ended: with throw=False it may have ended in any way.
            outcome.follow_ups += made(request._attempts)
        return outcome

    def _retrying(self, task: Any, request: Context, retry: Retry, runtime_s: float) -> Outcome:
        einfo = ExceptionInfo(retry, format_traceback(retry))
        follow_ups: tuple[Next, ...] = ()
        if wants_result(self.app, task, request, RETRY):
            plain = None if retry.exc is None else to_plain(retry.exc, self.app.conf.result_serializer)
            follow_ups = self._passing(request, self._follow_ups.record(request, RETRY, plain, einfo.traceback))
        told_retry(task, request, retry, einfo)
        outcome = Outcome(RETRYING, runtime_s, follow_ups)
        if request._tells:
            outcome.told = [told_text(short_repr(retry.exc)), told_text(einfo.traceback)]
        return outcome

    def _succeeded(self, task: Any, request: Context, value: Any, runtime_s: float) -> tuple[Outcome, str]:
        try:
            follow_ups = self._follow_ups.after_success(request, value)
            if wants_result(self.app, task, request, SUCCESS):
                follow_ups += self._follow_ups.answer(request, self._follow_ups.record(request, SUCCESS, value))
            elif keeps_errors(self.app, task):
                follow_ups += self._follow_ups.answer(request, self._follow_ups.record(request, SUCCESS, None))
        except EncodeError as error:
            return self._failed(task, request, error, runtime_s), FAILURE
        told_success(task, request, value, runtime_s)
        told_return(task, request, SUCCESS, value, None)
        outcome = Outcome(SUCCEEDED, runtime_s, follow_ups)
        if request._tells:
            outcome.told = [told_text(short_repr(value, task.resultrepr_maxsize))]
        return outcome, SUCCESS

    def _failed(self, task: Any, request: Context, error: BaseException, runtime_s: float) -> Outcome:
        einfo = ExceptionInfo(error, format_traceback(error), internal=task is None)
        try:
            store = wants_result(self.app, task, request, FAILURE)
            follow_ups = self._follow_ups.failure(request, error, einfo.traceback, store=store)
        finally:
            told_failure(task, request, error, einfo)
        if task is not None:
            told_return(task, request, FAILURE, error, einfo)
        reason = failure_text(error) if task is not None and dies_of_failure(self.app, task) else ""
        outcome = Outcome(FAILED, runtime_s, follow_ups, reason)
        if request._tells:
            outcome.told = [told_text(short_repr(error)), told_text(einfo.traceback)]
        return outcome

    def _rejected(self, task: Any, request: Context, reject: Reject, runtime_s: float) -> Outcome:
        logger.info("Task %s[%s] rejected: %s", request.task, request.id, short_repr(reject.reason))
        late = self.app.conf.task_acks_late if task.acks_late is None else task.acks_late
        # What is acked early does not come again, whatever it asks for.
        follow_ups = () if reject.requeue and late else self._left_out(request, reject)
        return Outcome(
            REJECTED, runtime_s, follow_ups, reason=f"rejected by the task: {reject.reason}",
            requeue=bool(reject.requeue),
        )  # fmt: skip

    def _left_out(self, request: Context, error: BaseException) -> tuple[Next, ...]:
        """Tell the chords that wait for a task which has ended without a result. Who hands his place in a chord to
        another task takes it from the request."""
        if not request.chord and not request.chain:
            return ()
        return self._follow_ups.failed_parts(request, error, None)

    def _unreadable(
        self, name: str, task_id: str, headers: Any, reply_to: str | None, correlation_id: str | None, error: Exception
    ) -> Outcome:
        request = Context(id=task_id, task=name, reply_to=reply_to, correlation_id=correlation_id)
        request.group, request.group_index = headers.get("group"), headers.get("group_index")
        follow_ups: tuple[Next, ...] = ()
        try:
            follow_ups = self._follow_ups.failure(request, error, None)
        except AmqptasksError as trouble:
            # The message goes to the dead letters all the same.
            logger.error("The failure of task %.64r cannot be told: %s", task_id, trouble)
        follow_ups += self._follow_ups.unreadable_part(request, error)
        return Outcome(UNREADABLE, 0.0, follow_ups, reason=f"{type(error).__name__}: {error}")

    def _unstored(self, request: Context, error: AmqptasksError) -> Outcome:
        logger.error("Task %s[%s] has ended, and its result is not stored: %s", request.task, request.id, error)
        return Outcome(UNSTORED, 0.0, self._left_out(request, error), reason=str(error))

    def report_state(self, task: Any, task_id: str, state: str, meta: Any, **fields: Any) -> None:
        """Send a state that is not the last. Called by the task, through ``update_state``."""
        emits, running = emitting.get(), context.current()
        if emits is None or running is None:
            # From a thread that the task started: there is no reply queue to send it to, but a store may take it.
            if self.app.backend.persistent:
                self.app.backend.store(ResultRecord.now(task_id, state, meta))
            return
        request = running.request
        if not wants_result(self.app, task, request, state):
            return
        record = self._follow_ups.record(request, state, meta)
        if task_id != record.task_id:
            record = replace(record, task_id=task_id)
        for follow_up in self._passing(request, record):
            emits[1](encode_frame([MESSAGE, emits[0], follow_up.to_plain()]))

    def report_event(self, type: str, fields: Mapping[str, Any]) -> bool:
        """Send an event of a running task's own through the worker; False where no task of it runs."""
        emits = emitting.get()
        if emits is None:
            return False
        content_type, _encoding, body = dumps(fields, self.app.conf.event_serializer)
        emits[1](encode_frame([MESSAGE, emits[0], Told(type, content_type, body).to_plain()]))
        return True

    def _passing(self, request: Context, record: ResultRecord) -> tuple[Next, ...]:
        """Tell of a state that is not the last: store it, or return its messages."""
        try:
            return self._follow_ups.answer(request, record)
        except BackendStoreError as error:
            # Nothing hangs on it: the next state, or the result, says more.
            logger.warning("A state of task %s[%s] is not stored: %s", request.task, record.task_id, error)
            return ()


def _call(task: Any, request: Context) -> Any:
    hooks = task.hooks
    if hooks is not None and hooks.before_start is not None:
        hooks.before_start(request.id, request.args, request.kwargs)
    value = (task if task.has_own_call else task.run)(*request.args, **request.kwargs)
    return run_coroutine(value, keep_loop=True) if task.is_async else value


def with_ids(callbacks: Sequence[Any], children: Sequence[Any], is_chained: bool) -> list[Any]:
    """Give callbacks the ids that they had when they were called before, as far as the result's children tell."""
    end = len(children) - is_chained
    before = children[max(0, end - len(callbacks)) : end]
    if len(before) != len(callbacks):
        return list(callbacks)
    return [_with_id(callback, child) for callback, child in zip(callbacks, before, strict=True)]


def _with_id(callback: Any, child: Any) -> Any:
    try:
        task_id = child[0][0]
    except (TypeError, LookupError):
        return callback
    if not isinstance(task_id, str) or not isinstance(callback, Mapping) or callback.get("subtask_type"):
        return callback
    return {**callback, "options": {**(callback.get("options") or {}), "task_id": task_id}}


def describe(frame: list[Any], body: TaskBody | None, hostname: str, due: str) -> Context:
    """Make the request of a frame; without its body, where that is None.

    Args:
        due: The exchange by which delayed messages come.
    """
    (_number, name, task_id, headers, _body, content_type, content_encoding, reply_to, correlation_id, priority,
     delivery_mode, exchange, routing_key, redelivered, queue, *tells) = frame  # fmt: skip
    if exchange == due:
        # It has waited in the delay ladder, which is nobody's business.
        exchange, routing_key = "", queue
    request = make_request(headers, body)
    request.__dict__.update(
        id=task_id, task=name, reply_to=reply_to, correlation_id=correlation_id, hostname=hostname,
        delivery_info={"exchange": exchange, "routing_key": routing_key, "priority": priority, "redelivered":
        redelivered},
        properties={
            "correlation_id": correlation_id, "reply_to": reply_to, "delivery_mode": delivery_mode,
            "priority": priority, "content_type": content_type, "content_encoding": content_encoding,
            "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        }, _queue=queue or routing_key, _attempts=[],
    )  # fmt: skip
    if tells:
        request._tells = True
    return request


def make_request(headers: Mapping[str, Any], body: TaskBody | None) -> Context:
    """Make the request of a message: its fields, and what the user put among its headers."""
    request = Context()
    fields = request.__dict__
    # As Celery sends it where there are no limits, so that a task may index it.
    fields["timelimit"] = [None, None]
    own: dict[str, Any] | None = None
    for key, value in headers.items():
        if key in FIELD_HEADERS:
            if value is not None:
                fields[key] = value
        elif key != "compression" and not key.startswith("x-"):
            own = own or {}
            own[key] = value
            if not key.startswith("_") and not hasattr(Context, key):
                # As in Celery, it is a field too; it must not take the place of one that has a meaning.
                fields[key] = value
    fields["headers"] = own
    fields["called_directly"] = False
    if body is not None:
        fields["args"] = body.args
        fields["kwargs"] = body.kwargs
        fields["callbacks"] = body.callbacks
        fields["errbacks"] = body.errbacks
        fields["chain"] = body.chain
        fields["chord"] = body.chord
    return request


def told_text(text: str) -> str:
    """Return text that every serializer can carry."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
