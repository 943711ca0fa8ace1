"""Trying a task again: what `Task.retry` does, how long to wait, and ``autoretry_for``.

The next attempt is the same call once more: same id, same queue, one retry further. In a worker it is only made here;
the worker's parent publishes it, confirmed, before it acknowledges the attempt that has ended.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from amqptasks.app.context import Context
from amqptasks.canvas.signature import Signature
from amqptasks.exceptions import ImproperlyConfigured, Retry, TaskPredicate

#: ``retry_backoff_max``, where a task does not say it: ten minutes.
BACKOFF_MAX_S = 600.0
#: Beyond so many doublings the longest wait is reached whatever the factor.
_MAX_DOUBLINGS = 32
_BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ADDRESS = ("queue", "exchange", "routing_key")


def back_off(
    retries: int, factor: float, maximum: float, jitter: bool, draw: Callable[[float, float], float] = random.uniform
) -> float:
    """Return how long to wait for the next attempt, in seconds, to the millisecond.

    ``factor`` seconds, doubled with each retry there was, at most ``maximum``; with jitter any time up to that.
    """
    longest = max(0.0, min(maximum, factor * 2.0 ** min(retries, _MAX_DOUBLINGS)))
    return round(draw(0.0, longest) if jitter else longest, 3)


class Retries:
    """What a task's class says of trying again, and how it asks for that."""

    #: How often a call is tried again; None: for ever.
    max_retries: int | None = 3
    #: Seconds until the next attempt, where `retry` is not told.
    default_retry_delay: float = 180
    #: What ``max_retries`` is for retries by ``autoretry_for``, if it is another.
    override_max_retries: int | None = None
    #: Exceptions because of which it is tried again by itself, and those among them because of which it is not.
    autoretry_for: type[BaseException] | Sequence[type[BaseException]] = ()
    dont_autoretry_for: type[BaseException] | Sequence[type[BaseException]] = ()
    #: Arguments of `retry` then, such as ``{"max_retries": 5, "countdown": 2}``.
    retry_kwargs: Mapping[str, Any] | None = None
    #: Wait so many seconds then (True: one), doubled with each attempt, up to ``retry_backoff_max``; with
    #: ``retry_jitter`` any time up to that, so that many tasks do not come back at once.
    retry_backoff: bool | float = False
    retry_backoff_max: float = BACKOFF_MAX_S
    retry_jitter: bool = True

    def retry(
        self,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Any = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """End this attempt and have the call run once more, later: ``raise self.retry(exc=error, countdown=60)``.

        The next attempt has the same id, and goes to the same queue with all that the call came with. It is sent when
        this attempt has ended, and before that is acknowledged. Called as a function, there is no next attempt: ``exc``
        is raised, or `Retry`.

        Args:
            args, kwargs: Other arguments for it.
            exc: The error because of which; raised once there are no retries left.
            throw: False returns what otherwise is raised, and this attempt goes on to an end of its own.
            eta, countdown: When; ``default_retry_delay`` seconds from now without.
            max_retries: Instead of the task's own, this time.
            **options: As for `apply_async`.

        Raises:
            Retry: That is how the worker learns of it.
            MaxRetriesExceededError: There are no retries left, and no ``exc``.
        """
        return _retry(self, args, kwargs, exc, throw, eta, countdown, max_retries, options)

    def signature_from_request(
        self, request: Context | None = None, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
    ) -> Signature:
        """Make a signature that is the call this task is running for, once more, and to the same queue."""
        task: Any = self
        return call_again(task, task.request if request is None else request, args, kwargs, queue, **options)

    subtask_from_request = signature_from_request


# -- Task.retry


def _retry(
    task: Any, args: Any, kwargs: Any, exc: Any, throw: bool, eta: Any, countdown: float | None,
    max_retries: int | None, options: dict[str, Any],
) -> Retry:  # fmt: skip
    """Arrange the next attempt of the call that a task is running for; see `Task.retry`."""
    request: Context = task.request
    retries = request.retries + 1
    if max_retries is None:
        max_retries = task.max_retries
    else:
        # Holds for this whole run: `autoretry_for` may catch what is raised because of it.
        request._max_retries = max_retries
    if request.called_directly:
        # Nobody would run it again: the caller gets the error, and what led to it.
        _raise(exc or Retry("Task can be retried", None))
    if not eta and countdown is None:
        countdown = task.default_retry_delay
    args, kwargs = _next_arguments(task, request, args, kwargs)
    call = call_again(
        task, request, args, kwargs, **{**options, "countdown": countdown, "eta": eta, "retries": retries}
    )
    if max_retries is not None and retries > max_retries:
        if exc:
            _raise(exc)
        raise task.MaxRetriesExceededError(
            f"Can't retry {task.name}[{request.id}] args:{call.args} kwargs:{call.kwargs}",
            task_args=call.args, task_kwargs=call.kwargs,
        )  # fmt: skip
    asked = Retry(exc=exc, when=eta or countdown, is_eager=request.is_eager, sig=call)
    if not request.is_eager:
        _send(task, request, call)
    if throw:
        raise asked
    return asked


def _send(task: Any, request: Context, call: Signature) -> None:
    if request._attempts is None:
        # No worker is there to settle it: a request that a program has pushed.
        call.apply_async()
        return
    with task.app.sender.collecting(request.reply_to) as collected:
        call.apply_async()
    request._attempts.extend(collected)


def _raise(error: BaseException) -> NoReturn:
    cause = sys.exc_info()[1]
    if cause is error:
        # With the traceback it has.
        raise error
    raise error from cause


def call_again(
    task: Any, request: Context, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
) -> Signature:
    """Make the call that a request is for once more, with the same id and everything that follows it.

    It goes to the queue the request came from, whichever exchange that was through, unless ``queue`` or ``exchange``
    says otherwise: an attempt of one worker's is no business of the others that a topic or fanout reaches.
    """
    again: dict[str, Any] = request.as_execution_options()
    ignore_result = request.__dict__.get("ignore_result")
    if ignore_result is not None:
        again["ignore_result"] = ignore_result
    again["correlation_id"] = request.correlation_id
    again["priority"] = (request.delivery_info or {}).get("priority")
    again["delivery_mode"] = (request.properties or {}).get("delivery_mode")
    if queue:
        again["queue"] = queue
    elif not any(options.get(key) for key in _ADDRESS):
        # By name, and not through the exchange that the queue is bound to.
        again.update(_came_from(request))
    again.update(options)
    return Signature(
        task, request.args if args is None else args, request.kwargs if kwargs is None else kwargs,
        {key: value for key, value in again.items() if value is not None}, app=task.app,
    )  # fmt: skip


def _came_from(request: Context) -> dict[str, Any]:
    delivery = request.delivery_info or {}
    if request._queue:
        return {"queue": request._queue, "exchange_type": "direct"}
    exchange, routing_key = delivery.get("exchange"), delivery.get("routing_key")
    if exchange:
        return {"exchange": exchange, "routing_key": routing_key}
    return {"queue": routing_key, "exchange_type": "direct"} if routing_key else {}


def _next_arguments(task: Any, request: Context, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of the next attempt where only one kind of them is given anew: what is said by name takes
    the place of what was said by position, and the other way round."""
    is_args_alone = args is not None and kwargs is None and request.kwargs
    is_kwargs_alone = kwargs is not None and args is None and request.args
    if not is_args_alone and not is_kwargs_alone:
        return args, kwargs
    try:
        signature = inspect.signature(task.run)
    except (TypeError, ValueError):
        return args, kwargs
    if is_args_alone:
        placed = [each for each in signature.parameters.values() if each.kind in _BY_PLACE][: len(args)]
        taken = {each.name for each in placed if each.kind is _BY_NAME}
        return args, {name: value for name, value in request.kwargs.items() if name not in taken}
    try:
        bound = signature.bind_partial(*request.args)
    except TypeError:
        # The task's own check of its arguments says it better.
        return args, kwargs
    kwargs = dict(kwargs)
    for name in list(kwargs):
        if name in bound.arguments and signature.parameters[name].kind is _BY_NAME:
            bound.arguments[name] = kwargs.pop(name)
    return bound.args, {**bound.kwargs, **kwargs}


# -- autoretry_for


class AutoRetry:
    """What a task says of retrying by itself. Read once, when the task is bound.

    Raises:
        ImproperlyConfigured: One of its options is not what it must be.
    """

    def __init__(self, task: Any) -> None:
        self._task = task
        self.kinds = _kinds(task, "autoretry_for")
        self.never = _kinds(task, "dont_autoretry_for")
        self._options: Mapping[str, Any] = dict(task.retry_kwargs or {})
        backoff = task.retry_backoff
        self._factor = _seconds(task, "retry_backoff", 1.0 if backoff is True else backoff or 0.0)
        self._maximum = _seconds(task, "retry_backoff_max", task.retry_backoff_max)
        self._jitter = bool(task.retry_jitter)

    def again(self, error: BaseException) -> NoReturn:
        """Try again because of an error, or raise it if it is not one of those."""
        if isinstance(error, (TaskPredicate, *self.never)):
            # What a task raises to steer its worker is no failure.
            raise error
        task = self._task
        options = dict(self._options)
        if self._factor:
            options["countdown"] = back_off(task.request.retries, self._factor, self._maximum, self._jitter)
        own = task.request._max_retries
        limit = task.override_max_retries if own is None else own
        if limit is not None:
            options["max_retries"] = limit
        raise task.retry(exc=error, **options)


def retry_automatically(task: Any) -> None:
    """Let a task that has ``autoretry_for`` retry by itself: its ``run`` gets something around it."""
    auto = AutoRetry(task)
    if not auto.kinds:
        return
    own = task.run
    wrapped: Callable[..., Any]
    if inspect.iscoroutinefunction(own):

        @functools.wraps(own)
        async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
            try:
                return await own(*args, **kwargs)
            except auto.kinds as error:
                auto.again(error)

        wrapped = run_coroutine
    else:

        @functools.wraps(own)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return own(*args, **kwargs)
            except auto.kinds as error:
                auto.again(error)

        wrapped = run
    task.run = wrapped


def _kinds(task: Any, option: str) -> tuple[type[BaseException], ...]:
    given = getattr(task, option) or ()
    kinds = (given,) if isinstance(given, type) else tuple(given)
    for each in kinds:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ImproperlyConfigured(f"expected {option} of task {task.name!r} to list exceptions, got: {each!r:.80}")
    return kinds


def _seconds(task: Any, option: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise ImproperlyConfigured(f"expected {option} of task {task.name!r} to be seconds, got: {value!r:.80}")
    return seconds
