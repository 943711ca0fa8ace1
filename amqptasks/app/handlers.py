"""What is told of a run, to whom, in Celery's order: the handlers of the task's class, the signals, the log.

Shared by workers (`worker/executor.py`) and eager runs (`app/eager.py`). The outcome is settled before anyone is told:
what a handler raises is logged and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any

from amqptasks import signals
from amqptasks.exceptions import Retry
from amqptasks.logs import TASK_LOGGER
from amqptasks.wire.reprs import DEFAULT_LENGTH, printable, short_repr, shown_name

logger = logging.getLogger(TASK_LOGGER + ".trace")

Handler = Callable[..., Any]


class ExceptionInfo:
    """An exception on its way to handlers and signals. As text it is its traceback.

    Attributes:
        type, exception, tb: The three parts of `sys.exc_info`.
        traceback: The traceback as text.
    """

    __slots__ = ("exception", "internal", "traceback", "type")

    def __init__(self, exception: BaseException, traceback: str, internal: bool = False) -> None:
        self.type = type(exception)
        self.exception = exception
        self.traceback = traceback
        self.internal = internal

    @property
    def tb(self) -> TracebackType | None:
        """The traceback object."""
        return self.exception.__traceback__

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """What `sys.exc_info` returned."""
        return self.type, self.exception, self.tb

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.exception!r}>"


class Handlers:
    """The handlers that a task's class may define. They run where the task runs, after its outcome is settled.

    `before_start` alone comes before it, and belongs to the run: what it raises fails the task.
    """

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Do something before the task begins."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Do something with what the task returned."""

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: ExceptionInfo) -> None:
        """Do something about what the task raised."""

    def on_retry(self, exc: BaseException | None, task_id: str, args: Any, kwargs: Any, einfo: ExceptionInfo) -> None:
        """Do something when the task is to be run again."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: ExceptionInfo | None
    ) -> None:
        """Do something when the task has ended well or badly: ``status`` is SUCCESS or FAILURE."""


class Hooks:
    """The handlers that one task has of its own; None where it has not."""

    __slots__ = ("after_return", "before_start", "on_failure", "on_retry", "on_success")

    def __init__(self, task: Handlers) -> None:
        self.before_start = _own(task, "before_start")
        self.on_success = _own(task, "on_success")
        self.on_failure = _own(task, "on_failure")
        self.on_retry = _own(task, "on_retry")
        self.after_return = _own(task, "after_return")


def _own(task: Handlers, name: str) -> Handler | None:
    found = getattr(task, name)
    return None if getattr(found, "__func__", None) is getattr(Handlers, name) else found


def hooks_of(task: Handlers) -> Hooks | None:
    """Return a task's handlers; None for the many that have none, so that a run need not look at each."""
    hooks = Hooks(task)
    return hooks if any(getattr(hooks, name) is not None for name in Hooks.__slots__) else None


def told_success(task: Any, request: Any, value: Any, runtime_s: float, *, raises: bool = False) -> None:
    """Tell of a success: `on_success`, the signal, the log."""
    hooks = task.hooks
    if hooks is not None and hooks.on_success is not None:
        _call("on_success", hooks.on_success, request, raises, value, request.id, request.args, request.kwargs)
    if signals.task_success:
        signals.task_success.send(task, result=value, runtime=runtime_s)
    if logger.isEnabledFor(logging.INFO):
        logger.info(
            "Task %s[%s] succeeded in %.6fs: %s", shown_name(request.task, request.shadow), request.id, runtime_s,
            short_repr(value, task.resultrepr_maxsize),
        )  # fmt: skip


def told_failure(task: Any, request: Any, error: BaseException, einfo: ExceptionInfo, *, raises: bool = False) -> None:
    """Tell of a failure: `on_failure`, the signal, the log. ``task`` is None where nothing is known of it."""
    try:
        if task is not None:
            hooks = task.hooks
            if hooks is not None and hooks.on_failure is not None:
                _call(
                    "on_failure", hooks.on_failure, request, raises, error, request.id, request.args, request.kwargs,
                    einfo,
                )  # fmt: skip
            if signals.task_failure:
                signals.task_failure.send(
                    task, task_id=request.id, exception=error, args=request.args, kwargs=request.kwargs,
                    traceback=error.__traceback__, einfo=einfo,
                )  # fmt: skip
    finally:
        name = shown_name(request.task, request.shadow)
        shown = printable(short_repr(error), DEFAULT_LENGTH)
        if task is not None and is_expected(task, error):
            logger.info("Task %s[%s] raised expected: %s", name, request.id, shown)
        else:
            logger.error("Task %s[%s] raised unexpected: %s\n%s", name, request.id, shown, einfo)


def told_retry(task: Any, request: Any, retry: Retry, einfo: ExceptionInfo, *, raises: bool = False) -> None:
    """Tell that a task is to be run again: `on_retry`, the signal, the log."""
    hooks = task.hooks
    if hooks is not None and hooks.on_retry is not None:
        _call("on_retry", hooks.on_retry, request, raises, retry.exc, request.id, request.args, request.kwargs, einfo)
    if signals.task_retry:
        signals.task_retry.send(task, request=request, reason=retry, einfo=einfo)
    if logger.isEnabledFor(logging.INFO):
        shown = printable(str(retry), DEFAULT_LENGTH)
        logger.info("Task %s[%s] retry: %s", shown_name(request.task, request.shadow), request.id, shown)


def told_return(
    task: Any, request: Any, state: str, value: Any, einfo: ExceptionInfo | None, *, raises: bool = False
) -> None:
    """Tell that a task has ended: `after_return`. (Celery passes None for ``einfo``, whatever happened.)"""
    hooks = task.hooks
    if hooks is not None and hooks.after_return is not None:
        _call(
            "after_return", hooks.after_return, request, raises, state, value, request.id, request.args, request.kwargs,
            einfo,
        )  # fmt: skip


def is_expected(task: Any, error: BaseException) -> bool:
    """Whether a task says of an error that it may happen (`throws`)."""
    throws = task.throws
    return bool(throws) and isinstance(error, throws if isinstance(throws, type) else tuple(throws))


def _call(name: str, handler: Handler, request: Any, raises: bool, *args: Any) -> None:
    try:
        handler(*args)
    except BaseException as error:
        if raises:
            raise
        # SystemExit too: a handler is not to end the worker, nor to undo what the task did.
        task = shown_name(request.task, request.shadow)
        logger.exception("Task %s[%s] %s handler raised: %r", task, request.id, name, error)
