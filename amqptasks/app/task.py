"""Task: a function that can be called here or sent to a worker.

``@app.task`` makes one instance per function; users may subclass `Task` to share behaviour. Sending is the app's
business (`app/sender.py`), running is the worker's; a task only knows its options and its function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

from amqptasks.app import context
from amqptasks.app.async_calls import AsyncCalls
from amqptasks.app.context import Context
from amqptasks.app.handlers import Handlers, Hooks, hooks_of
from amqptasks.app.replacing import Replacing
from amqptasks.app.retrying import Retries, retry_automatically
from amqptasks.canvas.signature import Signature
from amqptasks.exceptions import ImproperlyConfigured, MaxRetriesExceededError, OperationalError
from amqptasks.results.eager import EagerResult
from amqptasks.results.handles import AsyncResult

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

_is_async = inspect.iscoroutinefunction
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Task(Handlers, Retries, Replacing, AsyncCalls[P], Generic[P, R]):
    """A registered function and its options. One instance per process; what it keeps in attributes stays.

    The class attributes are the options of ``@app.task(...)``. None means "as the settings say". Subclass it for
    handlers (`Handlers`) and methods of your own, and pass the subclass as ``base=``, or register an instance.
    """

    MaxRetriesExceededError: ClassVar[type[MaxRetriesExceededError]] = MaxRetriesExceededError
    OperationalError: ClassVar[type[OperationalError]] = OperationalError

    name: str = ""
    app: Any = None
    #: Check the arguments of a call before it is sent; None: as ``App(strict_typing=…)`` says, which is yes.
    typing: bool | None = None
    #: Serializer of the arguments.
    serializer: str | None = None
    compression: str | None = None
    ignore_result: bool | None = None
    store_eager_result: bool | None = None
    store_errors_even_if_ignored: bool | None = None
    #: With ``rpc://``, keep the last state in a queue of its own, where any process can read it by its id.
    persist_result: bool | None = None
    track_started: bool | None = None
    acks_late: bool | None = None
    acks_on_failure: bool | None = None
    acks_on_failure_or_timeout: bool | None = None
    acks_on_timeout: bool | None = None
    reject_on_worker_lost: bool | None = None
    #: Its child died: then it is tried again as by `retry`, up to ``max_retries`` times, rather than come back at once.
    retry_on_worker_lost: bool | None = None
    #: Most crashes of a worker process that a late-ack message survives.
    crash_limit: int | None = None
    #: Once it has failed for good, its message is among the dead letters too.
    dead_letter_on_failure: bool | None = None
    priority: int | None = None
    expires: Any = None
    queue: str | None = None
    exchange: str | None = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: int | str | None = None
    #: Seconds that a run may take: at the first limit it is told, at the second it is killed.
    soft_time_limit: float | None = None
    time_limit: float | None = None
    #: Most runs in a time, such as ``"10/m"``, of each worker.
    rate_limit: Any = None
    #: Emit events of this task.
    send_events: bool = True
    #: Expected errors: they fail the task, and are logged without a traceback at INFO.
    throws: type[BaseException] | tuple[type[BaseException], ...] = ()
    #: Keep the results of the tasks that this one starts, as its children.
    trail: bool = True
    resultrepr_maxsize: int = 1024
    __wrapped__: Callable[..., Any] | None = None
    #: Whether the function gets the task as its first argument (``bind=True``).
    _takes_self = False
    _signature: inspect.Signature | None = None
    #: Least and most positional arguments of a call without keywords, where the function is that simple.
    _arity: tuple[int, int] | None = None
    #: Makes a call's arguments and options ready to send, where the task has something of its own to do there.
    _adjust: Callable[[Any, Any, dict[str, Any]], tuple[Any, Any, dict[str, Any]]] | None = None
    #: Turns models among the arguments into plain data (``pydantic=True``).
    _dump_arguments: Callable[[Any, Any], tuple[Any, Any]] | None = None
    _is_bound = False
    #: The handlers of its own, if any; known once it is bound.
    hooks: Hooks | None = None
    #: Whether its class defines ``__call__``: runs then go through that.
    has_own_call: bool = False
    #: Whether it is an ``async def`` function; known once it is bound.
    is_async: bool = False

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the work. ``@app.task`` puts the function here; a class-based task defines it.

        Raises:
            ImproperlyConfigured: A class-based task did not define it.
        """
        raise ImproperlyConfigured(f"task {self.name!r} has no run method: define run() in {type(self).__qualname__}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here and now, as a function."""
        if not self._is_bound and self.app is not None:
            before = type(self).__call__
            self.app.bind_task(self)
            if type(self).__call__ is not before:
                # An annotation has wrapped this method.
                return self(*args, **kwargs)
        running = context.current()
        is_entering = running is not None and running.is_entering and running.task is self
        if running is not None and is_entering:
            # From a __call__ of the task's own: this is the run itself, and its request stays.
            running.is_entering = False
            return self.run(*args, **kwargs)
        if self.is_async:
            return self._called(args, kwargs)  # type: ignore[return-value]
        token = context.push(self, Context(args=args, kwargs=kwargs, called_directly=True))
        try:
            return self.run(*args, **kwargs)
        finally:
            context.pop(token)

    async def _called(self, args: Any, kwargs: Any) -> Any:
        token = context.push(self, Context(args=args, kwargs=kwargs, called_directly=True))
        try:
            return await self.run(*args, **kwargs)  # type: ignore[misc]
        finally:
            context.pop(token)

    # -- its app

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Make it a task of this app. The app calls this once, when it is finalized or the task is first used."""
        cls.app = app
        cls.on_bound(app)
        return app

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Do something once the task's app, and with it the settings, are known."""

    def get_ready(self) -> None:
        """Look at what the class defines. The app calls this when the task is bound and annotated.

        Raises:
            ValueError: Its soft time limit is above its hard one.
        """
        hard, soft = self.time_limit, self.soft_time_limit
        if hard is not None and soft is not None and soft > hard:
            raise ValueError(f"soft_time_limit of task {self.name!r} must be at most time_limit, got: {soft} > {hard}")
        self.hooks = hooks_of(self)
        retry_automatically(self)
        self.has_own_call = type(self).__call__ is not Task.__call__
        self.is_async = _is_async(self.run) or (self.has_own_call and _is_async(type(self).__call__))
        named = getattr(self.shadow_name, "__func__", None) is not Task.shadow_name
        self._adjust = self._adjusted if named or self._dump_arguments is not None else None
        self._is_bound = True

    def _adjusted(self, args: Any, kwargs: Any, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        shadow = options.get("shadow") or self.shadow_name(args, kwargs, options)
        if shadow:
            options = {**options, "shadow": shadow}
        # Pickle carries models as they are.
        if self._dump_arguments is not None and (options.get("serializer") or self.serializer) != "pickle":
            args, kwargs = self._dump_arguments(args, kwargs)
        return args, kwargs, options

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
        if not self._is_bound:
            self.app.bind_task(self)
            return self.apply_async(args, kwargs, task_id, **options)
        if self.typing is not False:
            self._check(args or (), kwargs or {})
        if task_id is not None:
            options["task_id"] = task_id
        if self._adjust is not None:
            args, kwargs, options = self._adjust(args, kwargs, options)
        result: AsyncResult = self.app.sender.send(self.name, args, kwargs, options, self)
        return result

    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """`delay` once Django's running transaction is committed (at once outside of one), not at all if it is undone.

        Raises:
            ImproperlyConfigured: This is no Django project.
        """
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, args: Any = None, kwargs: Mapping[str, Any] | None = None, *more: Any, **options: Any
    ) -> None:
        """`apply_async` once Django's running transaction is committed. Arguments are checked at once.

        What the send raises comes out of the ``with transaction.atomic()`` block, and what was committed stays.
        """
        from amqptasks.app.django import on_commit

        if self.typing is not False:
            self._check(args or (), kwargs or {})
        on_commit(f"task {self.name!r}", lambda: self.apply_async(args, kwargs, *more, **options))

    def apply(
        self, args: Any = None, kwargs: Mapping[str, Any] | None = None, link: Any = None, link_error: Any = None,
        task_id: str | None = None, retries: int | None = None, throw: bool | None = None, logfile: str | None = None,
        loglevel: int | None = None, headers: Mapping[str, Any] | None = None, **options: Any,
    ) -> EagerResult:  # fmt: skip
        """Run it in this thread as a worker would, handlers and signals included, and return how it ended.

        Args:
            throw: Raise what it raises, rather than return a failed result; ``task_eager_propagates`` without.
            **options: As for `apply_async`; the ones that say where and when mean nothing here.
        """
        if not self._is_bound:
            self.app.bind_task(self)
            # An annotation may have wrapped this method.
            return self.apply(
                args, kwargs, link, link_error, task_id, retries, throw, logfile, loglevel, headers, **options
            )
        options.update(link=link, link_error=link_error, task_id=task_id, headers=headers)
        # Here: a program that only sends does not pay for it.
        from amqptasks.app.eager import run_here

        return run_here(
            self, args, kwargs, options, retries=retries or 0, throw=throw, logfile=logfile, loglevel=loglevel
        )

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

    def takes_failure(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
        """Whether, as an errback, it takes the failed request, the error and the traceback, not the failed id alone.

        Celery's rule: it does if the failure has more than one positional argument to fill, beside ``args`` and
        ``kwargs``, which the errback holds already. A bound task never does.
        """
        if self._takes_self or self._signature is None:
            return False
        free = -len(args)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                return True
            if parameter.kind not in _POSITIONAL or (kwargs and name in kwargs):
                break
            free += 1
        return free > 1

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

    def send_event(self, type_: str, retry: bool = True, retry_policy: Any = None, **fields: Any) -> None:
        """Send an event of your own about the call that is running, such as ``task-halfway``, for monitors to show.

        Args:
            type_: Its group and what has happened, with a dash between.
            retry, retry_policy: Accepted because Celery has them; nobody waits for an event.
            **fields: What it tells, as the setting ``event_serializer`` can carry.

        Raises:
            EncodeError: A field cannot be serialized.
        """
        request = self.request
        self.app.tell_event(type_, {"uuid": request.id, **fields}, request.hostname)

    def add_trail(self, result: Any) -> Any:
        """Count a result among the children of the call that is running; returns it."""
        if self.trail:
            self.request.children.append(result)
        return result

    def push_request(self, *args: Any, **fields: Any) -> None:
        """Make a request of these fields the current one, for instance to try a bound task's function in a test."""
        context.push(self, Context(*args, **fields))

    def pop_request(self) -> None:
        """Undo `push_request`."""
        context.pop_request(self)

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:
        """Return the handle of a task of this name, by its id."""
        result: AsyncResult = self.app.AsyncResult(task_id, **{"backend": self.app.backend, **kwargs})
        return result

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
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": getattr(function, "__qualname__", name),
            "__wrapped__": staticmethod(function),
            "_takes_self": bind,
            **attributes,
        }
        own.update(_calling_rules(function, bind))
        if cls.typing is None and app is not None:
            own.setdefault("typing", app.strict_typing)
        task: Task[..., Any] = type(function.__name__, (cls,), own)()
        task.__name__ = function.__name__  # type: ignore[attr-defined]
        return task

    def learn_signature(self) -> None:
        """Learn from `run` how it is called. For an instance of a class; a function's task knows."""
        if self._signature is None and type(self).__call__ is Task.__call__:
            self.__dict__.update(_calling_rules(self.run, False))


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
    if all(each.kind in _POSITIONAL for each in parameters):
        required = sum(each.default is inspect.Parameter.empty for each in parameters)
        arity = (required, len(parameters))
    return {"_signature": signature, "_arity": arity}


def _by_name(name: str) -> Any:
    from amqptasks.results.context import default_app

    return default_app(f"task {name!r}").tasks[name]
