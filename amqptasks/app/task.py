"""Task: a function that can be called here or sent to a worker.

``@app.task`` makes one instance per function; users may subclass `Task` to share behaviour. Sending is the app's
business (`app/sender.py`), running is the worker's; a task only knows its options and its function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

from amqptasks.app import context
from amqptasks.app.context import Context
from amqptasks.canvas.signature import Signature
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.handles import AsyncResult

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Task(Generic[P, R]):
    """A registered function and its options. One instance per process; what it keeps in attributes stays.

    The class attributes are the options of ``@app.task(...)``. None means "as the settings say".
    """

    name: str = ""
    app: ClassVar[Any] = None
    typing: bool | None = None
    #: Serializer of the arguments.
    serializer: str | None = None
    compression: str | None = None
    ignore_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    track_started: bool | None = None
    acks_late: bool | None = None
    acks_on_failure: bool | None = None
    acks_on_failure_or_timeout: bool | None = None
    acks_on_timeout: bool | None = None
    reject_on_worker_lost: bool | None = None
    #: Most crashes of a worker process that a late-ack message survives.
    crash_limit: int | None = None
    priority: int | None = None
    expires: Any = None
    queue: str | None = None
    exchange: str | None = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: int | str | None = None
    #: Expected errors: they fail the task, and are logged without a traceback at INFO.
    throws: tuple[type[BaseException], ...] = ()
    #: Keep the results of the tasks that this one starts, as its children.
    trail: bool = True
    resultrepr_maxsize: int = 1024
    #: Whether the function gets the task as its first argument.
    bind: bool = False

    __wrapped__: Callable[..., Any] | None = None
    _signature: inspect.Signature | None = None
    #: Least and most positional arguments of a call without keywords, where the function is that simple.
    _arity: tuple[int, int] | None = None
    #: As an errback it takes the failed request, the error and the traceback, rather than the failed id alone.
    takes_failure: bool = False

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the work. ``@app.task`` puts the function here; a class-based task defines it.

        Raises:
            ImproperlyConfigured: A class-based task did not define it.
        """
        raise ImproperlyConfigured(f"task {self.name!r} has no run method: define run() in {type(self).__qualname__}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here and now, as a function."""
        token = context.push(self, Context(args=args, kwargs=kwargs, called_directly=True))
        try:
            return self.run(*args, **kwargs)
        finally:
            context.pop(token)

    # -- sending

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
        """Send a call to a worker; returns when the broker holds it. ``apply_async`` takes options too.

        Raises:
            TypeError: The function cannot be called with these arguments.
            NotSent, MaybeSent: See `apply_async`.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Send a call to a worker with options; returns when the broker holds it.

        Args:
            countdown: Run at the earliest this many seconds from now.
            eta: Run at the earliest at this moment (aware datetime, or ISO 8601 text).
            expires: Do not run later than this: seconds from now, or a moment.
            queue, exchange, routing_key, priority: Where to, instead of where the routes say.
            link, link_error: Signatures to call with the result, or with the failed id.
            ignore_result, serializer, headers, time_limit, soft_time_limit, shadow: Of this call only.
            retry, retry_policy, timeout: How long to try to send. ``timeout`` is in seconds,
            ``broker_publish_timeout`` without.

        Raises:
            TypeError: The function cannot be called with these arguments, or an option is unknown.
            EncodeError: An argument cannot be serialized; it is named.
            NotSent: The broker surely does not hold the task: unroutable, refused, unreachable.
            MaybeSent: It left and was not confirmed in time; sending it again with the same ``task_id`` is safe.
            TopologyConflict: Its queue exists with other arguments.
        """
        if self.typing is not False:
            self._check(args or (), kwargs or {})
        if task_id is not None:
            options["task_id"] = task_id
        result: AsyncResult = self.app.sender.send(self.name, args, kwargs, options, self)
        return result

    def _check(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        arity = self._arity
        if arity is not None and not kwargs:
            if arity[0] <= len(args) <= arity[1]:
                return
        elif self._signature is None:
            return
        assert self._signature is not None
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}() {error}; its signature is {self.name}{self._signature}") from None

    # -- signatures

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """Make a signature of a call: ``add.s(2, 2)``. The arguments may be incomplete."""
        return self.signature(args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """Make an immutable signature: a parent's result is not passed to it."""
        return self.signature(args, kwargs, immutable=True)

    def signature(self, args: Any = None, *more: Any, **options: Any) -> Signature:
        """Make a signature with options: ``add.signature((2, 2), countdown=10)``."""
        options.setdefault("app", self.app)
        return Signature(self, args, *more, **options)

    subtask = signature

    # -- while it runs

    @property
    def request(self) -> Context:
        """The call this task is running for; an empty one outside."""
        return context.request_of(self) or Context()

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **fields: Any
    ) -> None:
        """Tell who watches the result how far the task is: a state name of your own, and plain data about it.

        Raises:
            EncodeError: The data cannot be serialized.
        """
        self.app.report_state(self, task_id or self.request.id, state or "PROGRESS", meta, **fields)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:
        """Return the handle of a task of this name, by its id."""
        return AsyncResult(task_id, backend=self.app.backend, task_name=self.name, app=self.app, **kwargs)

    @property
    def backend(self) -> Any:
        """The app's result backend."""
        return self.app.backend

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str | None:
        """Name one call differently in logs and events; override it. None keeps the task's name."""

    def __repr__(self) -> str:
        return f"<@task: {self.name} of {self.app.main if self.app is not None else '?'} at {id(self):#x}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_by_name, (self.name,))

    @classmethod
    def from_function(
        cls, app: Any, function: Callable[..., Any], name: str, *, bind: bool, attributes: Mapping[str, Any]
    ) -> Task[..., Any]:
        """Make the task of a function: a subclass of this one with the options as attributes, and its one instance."""
        own: dict[str, Any] = {
            "app": app,
            "name": name,
            "run": function if bind else staticmethod(function),
            "bind": bind,
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": getattr(function, "__qualname__", name),
            "__wrapped__": staticmethod(function),
            **attributes,
        }
        own.update(_calling_rules(function, bind))
        task: Task[..., Any] = type(function.__name__, (cls,), own)()
        task.__name__ = function.__name__  # type: ignore[attr-defined]
        return task


def _calling_rules(function: Callable[..., Any], bind: bool) -> dict[str, Any]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some C functions do not tell: their arguments are checked by the call itself.
        return {"_signature": None, "_arity": None}
    parameters = list(signature.parameters.values())
    if bind and parameters and parameters[0].kind in _POSITIONAL:
        parameters = parameters[1:]
    signature = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    arity = None
    positional = sum(each.kind in _POSITIONAL for each in parameters)
    takes_failure = positional > 1 or any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    if all(each.kind in _POSITIONAL for each in parameters):
        required = sum(each.default is inspect.Parameter.empty for each in parameters)
        arity = (required, len(parameters))
    return {"_signature": signature, "_arity": arity, "takes_failure": takes_failure}


def _by_name(name: str) -> Any:
    from amqptasks.results.context import default_app

    return default_app(f"task {name!r}").tasks[name]
