"""App: the composition root. It holds the settings and the tasks, and makes the parts that work for them.

Nothing is read or opened before it is needed: settings at their first use, the connection at the first send. Apps are
independent of each other; `current_app` exists for users only.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import tzinfo
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from amqptasks.app.registry import TaskRegistry
from amqptasks.app.sender import Bulk, Sender
from amqptasks.app.task import Task as TaskType
from amqptasks.canvas.signature import Signature
from amqptasks.entities import Queue
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.backend import ResultBackend
from amqptasks.results.context import set_default_app
from amqptasks.results.handles import AsyncResult, GroupResult
from amqptasks.results.registry import make_backend
from amqptasks.settings import Conf, broker_urls
from amqptasks.signals import Signal
from amqptasks.wire.serializers import Limits

if TYPE_CHECKING:
    # At run time these come in with the first connection: a program that only defines tasks should not pay for pika.
    from amqptasks.broker.loop import LoopThread
    from amqptasks.broker.parameters import Endpoint
    from amqptasks.broker.publisher import Publisher

P = ParamSpec("P")
R = TypeVar("R")

_current: weakref.ReferenceType[App] | None = None


class App:
    """A task application: settings, tasks, and the connections that serve them. Safe from any thread, and after a fork.

    Args:
        main: Name of the main module, used where a task's own module is ``__main__``.
        broker: RabbitMQ's URL, or several (a list, or separated by ``;``) to fail over between.
        backend: Where results go: ``rpc://`` to the caller, ``db+…://`` into a database, or nowhere.
        include: Modules with tasks, imported by workers.
        config_source: A settings module or object, as for `config_from_object`.
        **settings: Settings by name.
    """

    #: The class that ``@app.task`` makes tasks of.
    Task: type[TaskType[..., Any]] = TaskType

    def __init__(
        self,
        main: str | None = None,
        broker: str | Iterable[str] | None = None,
        backend: str | None = None,
        include: Iterable[str] = (),
        *,
        config_source: Any = None,
        namespace: str | None = None,
        task_cls: type[TaskType[..., Any]] | None = None,
        set_as_current: bool = True,
        **settings: Any,
    ) -> None:
        self.main = main
        self.tasks = TaskRegistry()
        self.include = tuple(include)
        self.on_configure = Signal("on_configure")
        self.on_after_configure = Signal("on_after_configure")
        self.on_after_finalize = Signal("on_after_finalize")
        self._namespace = namespace
        self._config_source: Any = config_source
        self._given = dict(settings)
        if broker is not None:
            self._given["broker_url"] = broker if isinstance(broker, str) else list(broker)
        if backend is not None:
            self._given["result_backend"] = backend
        self._lock = threading.RLock()
        self._conf: Conf | None = None
        #: The backend, the publisher and their thread, once they are needed.
        self._parts: dict[str, Any] = {}
        self._finalized = False
        # In a worker's child the executor puts itself here, to carry states to the parent.
        self.state_reporter: Callable[..., None] | None = None
        self.sender = Sender(self)
        if task_cls is not None:
            self.Task = task_cls
        if set_as_current:
            self.set_current()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'} at {id(self):#x}>"

    def __enter__(self) -> App:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- configuration

    @property
    def conf(self) -> Conf:
        """The settings. The first access reads them."""
        conf = self._conf
        return conf if conf is not None else self._configure()

    def _configure(self) -> Conf:
        with self._lock:
            if self._conf is not None:
                return self._conf
            self.on_configure.send(self)
            conf = Conf(namespace=self._namespace)
            if self._config_source is not None:
                conf.load_object(self._config_source, namespace=self._namespace)
            conf.load_environment(os.environ)
            # An operator's environment beats what the program's text says, as with Celery.
            conf.update(
                {key: value for key, value in self._given.items() if f"AMQPTASKS_{key.upper()}" not in os.environ}
            )
            self._conf = conf
        self.on_after_configure.send(self, source=conf)
        return conf

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from a module, its dotted name, or any object with attributes; read at first use.

        Args:
            silent: A module that cannot be imported is no error.
            force: Read it now.
            namespace: Settings are upper-case names that begin with this and an underscore.
        """
        with self._lock:
            if namespace is not None:
                self._namespace = namespace
            if self._conf is None and not force and not silent:
                self._config_source = obj
                return
        self.conf.load_object(obj, namespace=self._namespace, silent=silent)

    @property
    def timezone(self) -> tzinfo | None:
        """The zone in which moments without one are meant; None for UTC."""
        name = self.conf.timezone
        if not name:
            return None
        from zoneinfo import ZoneInfo

        return name if isinstance(name, tzinfo) else ZoneInfo(name)

    # -- tasks

    @overload
    def task(self, function: Callable[P, R], /) -> TaskType[P, R]: ...

    @overload
    def task(self, **options: Any) -> Callable[[Callable[..., R]], TaskType[..., R]]: ...

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a function a task; used bare or with options (see `amqptasks.app.task.Task`).

        Args:
            name: Its name; module and function name without.
            bind: Pass the task itself as first argument.
            base: A `Task` subclass to build on.
        """
        if len(args) > 1 or (args and not callable(args[0])):
            raise TypeError(f"@app.task takes one function, or options by name, got: {args!r:.80}")

        def make(function: Callable[..., Any]) -> TaskType[..., Any]:
            return self._make_task(function, **options)

        return make(args[0]) if args else make

    def _make_task(
        self, function: Callable[..., Any], *, name: str | None = None, bind: bool = False,
        base: type[TaskType[..., Any]] | None = None, **attributes: Any,
    ) -> TaskType[..., Any]:  # fmt: skip
        name = name or self.gen_task_name(function.__name__, function.__module__)
        known = dict.get(self.tasks, name)
        if known is not None and _same_place(known, function):
            # A module imported twice, as __main__ and by name, or reloaded: the first stays.
            return known  # type: ignore[no-any-return]
        task = (base or self.Task).from_function(self, function, name, bind=bind, attributes=attributes)
        self.tasks.register(task)
        return task

    def register_task(self, task: TaskType[..., Any], **options: Any) -> TaskType[..., Any]:
        """Register an instance of a `Task` subclass; returns it."""
        if not task.name:
            task.name = self.gen_task_name(type(task).__name__, type(task).__module__)
        for key, value in options.items():
            setattr(task, key, value)
        type(task).app = self
        self.tasks.register(task)
        return task

    def gen_task_name(self, name: str, module: str) -> str:
        """Name a task of a function: ``module.function``. Override it for another rule."""
        if module == "__main__":
            module = self.main or _script_name()
        return f"{module}.{name}" if module else name

    def finalize(self) -> None:
        """Say that every task is there. Safe twice."""
        with self._lock:
            if self._finalized:
                return
            self._finalized = True
        self.on_after_finalize.send(self)

    def import_modules(self) -> None:
        """Import the modules that hold tasks: the ``include`` argument and the ``imports`` and ``include`` settings."""
        for module in (*self.include, *(self.conf.imports or ()), *(self.conf.include or ())):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
                    raise ImproperlyConfigured(
                        f"cannot import {module!r} named in 'imports' or 'include': {error}"
                    ) from error
                raise
        self.finalize()

    # -- sending

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Send a call by the task's name; it need not be known here. Options as in `Task.apply_async`."""
        if task_id is not None:
            options["task_id"] = task_id
        return self.sender.send(name, args, kwargs, options)

    def bulk(self) -> Bulk:
        """Open a block whose sends share their round trips: ``with app.bulk(): …``.

        At its end every message is confirmed. Handles returned inside are good once the block has ended.

        Raises:
            BulkError: At the end of the block; it names every task that was not confirmed.
        """
        return self.sender.bulk()

    def signature(self, *args: Any, **options: Any) -> Signature:
        """Make a signature bound to this app."""
        options.setdefault("app", self)
        return Signature(*args, **options)

    def report_state(self, task: Any, task_id: str | None, state: str, meta: Any, **fields: Any) -> None:
        """Publish a state of a running task. Only a worker can; elsewhere it is an error.

        Raises:
            ImproperlyConfigured: No task is running here, or it has no id.
        """
        if self.state_reporter is None or not task_id:
            raise ImproperlyConfigured(
                f"update_state() of task {task.name!r} was called outside a worker; no task is running here"
            )
        self.state_reporter(task, task_id, state, meta, **fields)

    # -- results

    def AsyncResult(self, id: str, **kwargs: Any) -> AsyncResult:
        """Return the handle of a task's result, by its id."""
        kwargs.setdefault("backend", self.backend)
        return AsyncResult(id, app=self, **kwargs)

    def GroupResult(self, id: str | None = None, results: Any = None, **kwargs: Any) -> GroupResult:
        """Return the handle of a group's results."""
        return GroupResult(id, results, app=self, **kwargs)

    @property
    def backend(self) -> ResultBackend:
        """The result backend."""
        backend: ResultBackend = self._parts.get("backend") or self._part(
            "backend", lambda: make_backend(self.conf.result_backend, self)
        )
        return backend

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            part = self._parts.get(name)
            # The lock does not keep a signal handler out that interrupts the making: then its part is the one.
            return self._parts.setdefault(name, make()) if part is None else part

    def limits(self) -> Limits:
        """The limits on what is decoded, from the settings."""
        conf = self.conf
        return Limits(
            max_bytes=conf.task_message_max_bytes,
            max_items=conf.task_message_max_items,
            max_depth=conf.task_message_max_depth,
        )

    # -- the broker

    @property
    def queues(self) -> dict[str, Queue]:
        """The declared queues by name; the default queue where none are declared."""
        return dict(self.sender.routing.queues)

    @property
    def thread(self) -> LoopThread:
        """The background thread of this app's connections, in processes that are not workers."""
        thread: LoopThread = self._parts.get("thread") or self._part("thread", self._make_thread)
        return thread

    @staticmethod
    def _make_thread() -> LoopThread:
        from amqptasks.broker.loop import LoopThread

        return LoopThread("amqptasks")

    @property
    def publisher(self) -> Publisher:
        """The process's publisher."""
        publisher: Publisher = self._parts.get("publisher") or self._part("publisher", self._make_publisher)
        return publisher

    def _make_publisher(self) -> Publisher:
        from amqptasks.broker.link import Backoff
        from amqptasks.broker.publisher import Publisher

        conf = self.conf
        return Publisher(
            self.thread,
            lambda: self.endpoints("publisher"),
            confirm=conf.broker_publish_confirm,
            buffer=conf.broker_publish_buffer,
            backoff=Backoff(max_s=min(1.0, conf.broker_connection_retry_interval_max)),
        )

    def endpoints(self, purpose: str) -> tuple[Endpoint, ...]:
        """Return the brokers to connect to, for a connection that says what it is for.

        Raises:
            ImproperlyConfigured: A URL cannot be used.
        """
        from amqptasks.broker.parameters import endpoints

        conf = self.conf
        return endpoints(
            broker_urls(conf),
            heartbeat_s=conf.broker_heartbeat,
            connection_timeout_s=conf.broker_connection_timeout,
            ssl=conf.broker_use_ssl,
            login_method=conf.broker_login_method,
            name=f"amqptasks {purpose} {self.main or _script_name()} {os.getpid()}@{socket.gethostname()}",
        )

    def close(self) -> None:
        """Close the connections of this process, after what was sent has left. Safe twice; a later call opens new
        ones."""
        with self._lock:
            parts, self._parts = self._parts, {}
        if "publisher" in parts:
            parts["publisher"].close()
        if "backend" in parts:
            parts["backend"].close()
        if "thread" in parts:
            parts["thread"].stop(1.0)

    def set_current(self) -> None:
        """Make this the app that `current_app` and handles without an app use."""
        global _current
        _current = weakref.ref(self)
        set_default_app(current_app_or_none)

    @staticmethod
    def uuid() -> str:
        """Make a new task id."""
        return str(uuid.uuid4())


def current_app_or_none() -> App | None:
    """Return the app made or chosen last, if it still lives."""
    return None if _current is None else _current()


def _script_name() -> str:
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(path))[0] if path else "__main__"


def _same_place(task: Any, function: Callable[..., Any]) -> bool:
    known = getattr(task, "__wrapped__", None)
    code, other = getattr(known, "__code__", None), getattr(function, "__code__", None)
    if code is None or other is None:
        return False
    return bool(code.co_filename == other.co_filename and code.co_firstlineno == other.co_firstlineno)
