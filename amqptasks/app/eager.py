"""Running a task here and now, as if by a worker: `Task.apply`, and every call under ``task_always_eager``.

No broker takes part. The order of events is a worker's; but handlers may raise, for it is the caller's own program
that they stop.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

from amqptasks import signals
from amqptasks.app import context
from amqptasks.app.context import Context
from amqptasks.app.coroutines import run_coroutine
from amqptasks.app.handlers import ExceptionInfo, told_failure, told_retry, told_return, told_success
from amqptasks.canvas.parts import as_list
from amqptasks.canvas.signature import Signature, maybe_signature
from amqptasks.exceptions import EncodeError, Ignore, OperationalError, Reject, Retry
from amqptasks.logs import TASK_LOGGER, bind_task
from amqptasks.results.context import denied_join_result
from amqptasks.results.eager import EagerResult
from amqptasks.results.record import ResultRecord
from amqptasks.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS
from amqptasks.wire.failures import format_traceback, to_plain
from amqptasks.wire.reprs import short_repr, shortener
from amqptasks.wire.serializers import by_name, dumps, explain_unencodable, loads

logger = logging.getLogger(TASK_LOGGER + ".trace")


def call_eagerly(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> EagerResult:
    """Do what a send would lead to: the arguments go through the serializer, the task runs, nobody waits inside it.

    Raises:
        EncodeError: An argument cannot be serialized.
    """
    app = task.app
    name = options.get("serializer") or task.serializer or app.conf.task_serializer
    try:
        content_type, encoding, body = dumps((args or (), kwargs or {}), name)
    except EncodeError as error:
        raise EncodeError(explain_unencodable(args or (), kwargs or {}, name) or str(error)) from error
    args, kwargs = loads(body, content_type, encoding, frozenset({by_name(name).content_type}), app.limits())
    with denied_join_result():
        return run_here(task, args, kwargs, options)


def run_here(
    task: Any, args: Any, kwargs: Any, options: Mapping[str, Any], *, retries: int = 0, throw: bool | None = None,
    logfile: str | None = None, loglevel: int | None = None,
) -> EagerResult:  # fmt: skip
    """Run a task in this thread and return how it ended.

    Args:
        options: Those of `Task.apply_async`; the ones about where and when mean nothing here.
        throw: Raise what the task raises; as ``task_eager_propagates`` says without.
    """
    app = task.app
    args = args if isinstance(args, (list, tuple)) else tuple(args or ())
    request = _make_request(task, args, kwargs or {}, options)
    request.update(retries=retries or 0, logfile=logfile, loglevel=loglevel or 0)
    run = _EagerRun(app, task, request, bool(app.conf.task_eager_propagates if throw is None else throw))
    return run.run()


def _make_request(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Context:
    task_id = options.get("task_id") or str(uuid.uuid4())
    running = context.current()
    parent = None if running is None else running.request
    limits = [options.get(key) if options.get(key) is not None else getattr(task, key) for key in _LIMITS]
    ignore = options.get("ignore_result")
    stamped = as_list(options.get("stamped_headers")) or None
    show = shortener(task.app.conf.task_repr_maxlevels)
    return Context(
        id=task_id, task=task.name, args=args, kwargs=kwargs, is_eager=True, called_directly=False,
        parent_id=options.get("parent_id") or (parent.id if parent is not None else None),
        root_id=options.get("root_id") or (parent is not None and parent.root_id) or task_id,
        group=options.get("group_id"), group_index=options.get("group_index"), shadow=options.get("shadow"),
        callbacks=as_list(options.get("link")) or None, errbacks=as_list(options.get("link_error")) or None,
        headers=options.get("headers"), timelimit=limits, hostname=socket.gethostname(), stamped_headers=stamped,
        stamps={key: options.get(key) for key in stamped} if stamped else None,
        ignore_result=bool(_first(ignore, task.ignore_result, task.app.conf.task_ignore_result)),
        argsrepr=options.get("argsrepr") or show(tuple(args)),
        kwargsrepr=options.get("kwargsrepr") or show(kwargs),
        delivery_info={
            "is_eager": True, "exchange": options.get("exchange"), "routing_key": options.get("routing_key"),
            "priority": options.get("priority"),
        },
    )  # fmt: skip


_LIMITS = ("time_limit", "soft_time_limit")


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


class _EagerRun:
    """One run, from the request to the result."""

    def __init__(self, app: Any, task: Any, request: Context, throw: bool) -> None:
        self._app = app
        self._task = task
        self._request = request
        self._throw = throw
        # How it ended, known before the handlers are told, who may raise.
        self._state: Any = None
        self._value: Any = None
        self._traceback: str | None = None
        self._again: Signature | None = None

    def run(self) -> EagerResult:
        task, request = self._task, self._request
        args, kwargs = request.args, request.kwargs
        token = context.push(task, request, is_entering=task.has_own_call)
        unbind = bind_task(request.task, request.id)
        try:
            if signals.task_prerun:
                signals.task_prerun.send(task, task_id=request.id, task=task, args=args, kwargs=kwargs)
            self._run_and_tell()
        finally:
            if signals.task_postrun:
                signals.task_postrun.send(
                    task, task_id=request.id, task=task, args=args, kwargs=kwargs, retval=self._value,
                    state=self._state,
                )  # fmt: skip
            unbind()
            context.pop(token)
        if self._again is not None:
            # At once, whenever it was to be.
            result: EagerResult = self._again.apply(retries=request.retries + 1)
            return result
        return EagerResult(request.id or "", self._value, self._state, traceback=self._traceback, name=task.name)

    def _run_and_tell(self) -> None:
        task, request = self._task, self._request
        started = time.perf_counter()
        try:
            if task.hooks is not None and task.hooks.before_start is not None:
                task.hooks.before_start(request.id, request.args, request.kwargs)
            value = (task if task.has_own_call else task.run)(*request.args, **request.kwargs)
            if task.is_async:
                value = run_coroutine(value)
        except Retry as retry:
            self._retrying(retry)
            return
        except Ignore as ignored:
            logger.info("Task %s[%s] ignored", request.task, request.id)
            self._state, self._value = IGNORED, ignored
            return
        except Reject as rejected:
            logger.info("Task %s[%s] rejected: %s", request.task, request.id, short_repr(rejected.reason))
            self._state, self._value = REJECTED, rejected
            return
        except Exception as error:
            self._failed(error)
            return
        runtime_s = time.perf_counter() - started
        try:
            self._call_back(value)
            self._store(SUCCESS, value)
        except (EncodeError, OperationalError) as error:
            self._failed(error)
            return
        self._state, self._value = SUCCESS, value
        told_success(task, request, value, runtime_s, raises=True)
        told_return(task, request, SUCCESS, value, None, raises=True)

    def _retrying(self, retry: Retry) -> None:
        if self._throw:
            raise retry
        self._traceback = format_traceback(retry)
        plain = None if retry.exc is None else to_plain(retry.exc, self._app.conf.result_serializer)
        self._store(RETRY, plain, self._traceback)
        self._state, self._value, self._again = RETRY, retry, retry.sig
        told_retry(self._task, self._request, retry, ExceptionInfo(retry, self._traceback), raises=True)

    def _failed(self, error: Exception) -> None:
        if self._throw:
            raise error
        task, request = self._task, self._request
        self._traceback = format_traceback(error)
        einfo = ExceptionInfo(error, self._traceback)
        self._store(FAILURE, to_plain(error, self._app.conf.result_serializer), self._traceback)
        for errback in request.errbacks or ():
            call_errback(self._app, errback, request, error, self._traceback, self._inherited())
        self._state, self._value = FAILURE, error
        told_failure(task, request, error, einfo, raises=True)
        told_return(task, request, FAILURE, error, einfo, raises=True)

    def _call_back(self, value: Any) -> None:
        for callback in self._request.callbacks or ():
            maybe_signature(callback, app=self._app).apply_async((value,), **self._inherited())

    def _store(self, state: str, result: Any, traceback: str | None = None) -> None:
        task, request, conf = self._task, self._request, self._app.conf
        keep_errors = _first(task.store_errors_even_if_ignored, conf.task_store_errors_even_if_ignored)
        ignored = request.ignore_result and not (state in (FAILURE, RETRY) and keep_errors)
        wanted = _first(task.store_eager_result, conf.task_store_eager_result)
        if ignored or not wanted or self._app.backend.in_message:
            # A result that travels as a message has nobody to travel to: its caller holds it already.
            return
        extra: dict[str, Any] = {}
        if conf.result_extended:
            extra = {
                "name": request.task, "args": request.argsrepr, "kwargs": request.kwargsrepr,
                "worker": request.hostname, "retries": request.retries, "queue": None,
            }  # fmt: skip
        self._app.backend.store(
            ResultRecord.now(
                request.id or "", state, result, traceback=traceback, group_id=request.group,
                parent_id=request.parent_id, extra=extra,
            )
        )  # fmt: skip

    def _inherited(self) -> dict[str, Any]:
        return {"root_id": self._request.root_id, "parent_id": self._request.id}


def call_errback(
    app: Any, errback: Any, request: Context, error: BaseException, traceback: str | None, options: Mapping[str, Any]
) -> None:
    """Call an errback of a failed call: here, with the request itself, where it takes that (Celery's rule); else as a
    task, with the failed id."""
    signature = maybe_signature(errback, app=app)
    task = app.find_task(signature.task)
    held = ((), None) if signature.immutable else (signature.args, signature.kwargs)
    if task is not None and task.takes_failure(*held):
        try:
            signature(request, error, traceback)
        except Exception:
            logger.exception("The errback %s of task %s raised", short_repr(signature.task), request.id)
        return
    signature.apply_async((request.id,), **options)
