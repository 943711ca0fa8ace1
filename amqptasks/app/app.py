"""App: the composition root. It holds the settings and the tasks, and makes the parts that work for them.

Nothing is read or opened before it is needed: settings at their first use, the connection at the first send. Apps are
independent of each other; `current_app` exists for users only.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone, tzinfo
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from amqptasks.app import current
from amqptasks.app.async_calls import AsyncSending
from amqptasks.app.configuring import Source, Suggestion, assignments, from_variable, make_conf
from amqptasks.app.definitions import TaskHome, script_name
from amqptasks.app.periodic import PeriodicTasks
from amqptasks.app.task import Task
from amqptasks.app.watching import Watching
from amqptasks.canvas.signature import Signature, signature
from amqptasks.clock import LamportClock
from amqptasks.entities import Queue
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results import handles, sets
from amqptasks.results.backend import ResultBackend
from amqptasks.results.record import ResultRecord
from amqptasks.settings import Conf
from amqptasks.signals import Signal
from amqptasks.wire.serializers import Limits

if TYPE_CHECKING:
    from amqptasks.app.chords import HeaderBlock
    from amqptasks.app.control import Control

    # At run time these come in when they are first used: a program that only defines tasks should not pay for pika.
    from amqptasks.app.gathering import Bulk
    from amqptasks.app.log import Logging
    from amqptasks.app.sender import Sender
    from amqptasks.broker.loop import LoopThread
    from amqptasks.broker.parameters import Endpoint
    from amqptasks.broker.publisher import Publisher
    from amqptasks.results.handles import GroupResult

P = ParamSpec("P")
R = TypeVar("R")


class App(TaskHome, AsyncSending, Watching, PeriodicTasks):
    """A task application: settings, tasks, and the connections that serve them. Safe from any thread, and after a fork.

    Args:
        main: Name of the main module, used where a task's own module is ``__main__``.
        broker: RabbitMQ's URL, or several (a list, or separated by ``;``) to fail over between.
        backend: Where results go: ``rpc://`` to the caller, ``db+…://`` into a database, or nowhere.
        include: Modules with tasks, imported by workers.
        task_cls: The class that ``@app.task`` builds on, or its dotted name.
        autofinalize: Complete the tasks at the first look at them, rather than only when told.
        strict_typing: Check the arguments of calls before they are sent.
        config_source: A settings module or object, as for `config_from_object`.
        **settings: Settings by name.
    """

    def __init__(
        self,
        main: str | None = None,
        broker: str | Iterable[str] | None = None,
        backend: str | None = None,
        include: Iterable[str] = (),
        *,
        config_source: Any = None,
        namespace: str | None = None,
        task_cls: type[Task[..., Any]] | str | None = None,
        set_as_current: bool = True,
        autofinalize: bool = True,
        strict_typing: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(task_cls=task_cls, autofinalize=autofinalize, strict_typing=strict_typing)
        self.main = main
        self.include = tuple(include)
        self.on_configure = Signal("on_configure")
        self.on_after_configure = Signal("on_after_configure")
        #: Options of click that this app adds to the commands: under "preload" to all, else by the command's name.
        self.user_options: defaultdict[str, set[Any]] = defaultdict(set)
        self._namespace = namespace
        self._config_source = None if config_source is None else Source(config_source)
        self._suggested: list[Suggestion] = []
        self._given = dict(settings)
        if broker is not None:
            self._given["broker_url"] = broker if isinstance(broker, str) else list(broker)
        if backend is not None:
            self._given["result_backend"] = backend
        self._conf: Conf | None = None
        #: The backend, the publisher and their thread, once they are needed.
        self._parts: dict[str, Any] = {}
        #: Orders the commands and events of this process.
        self.clock = LamportClock()
        # In a worker's child the executor puts itself here, to carry states to the parent.
        self.state_reporter: Callable[..., None] | None = None
        self._sender: Sender | None = None
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
            conf = make_conf(self._config_source, self._namespace, self._suggested, self._given, os.environ)
            self._conf = conf
        self.on_after_configure.send(self, source=conf)
        return conf

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from a module, its dotted name, or any object with attributes; read at first use.

        Args:
            silent: A module that cannot be found is no error.
            force: Read it now.
            namespace: Settings are upper-case names that begin with this and an underscore.

        Raises:
            ImproperlyConfigured: Now with `force` or once settings have been read, else at the first use: there is no
                such module, or it holds what is no setting.
        """
        self._configure_from(Source(obj, silent), force, namespace)

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> bool:
        """Take settings from the module that an environment variable names, as `config_from_object` does.

        Args:
            silent: A variable that is not set, or names no module, is no error.
            force: Read it now.

        Returns:
            Whether the variable names a module.
        """
        source = from_variable(variable_name, os.environ, silent)
        if source is not None:
            self._configure_from(source, force)
        return source is not None

    def config_from_cmdline(self, argv: Iterable[str], namespace: str = "worker") -> None:
        """Take settings from arguments such as ``worker.prefetch_multiplier=1``; they win over all other sources.

        Args:
            argv: Each is ``SETTING=VALUE``, the value written as in an environment variable.
            namespace: What a name that begins with a dot is short for: ``.pool=solo`` sets ``worker_pool``.
        """
        self.conf.override(assignments(argv, namespace))

    def add_defaults(self, values: Suggestion) -> None:
        """Replace defaults; every other source overrides them. A function is called when settings are first needed."""
        with self._lock:
            conf = self._conf
            if conf is None:
                self._suggested.append(values)
        if conf is not None:
            conf.add_defaults(values() if callable(values) else values)

    def _configure_from(self, source: Source, force: bool, namespace: str | None = None) -> None:
        with self._lock:
            if namespace is not None:
                self._namespace = namespace
            self._config_source, conf = source, self._conf
        if conf is not None:
            source.load_into(conf, self._namespace)
        elif force:
            self._configure()

    @property
    def timezone(self) -> tzinfo | None:
        """The zone in which moments without one are meant; None for UTC."""
        name = self.conf.timezone
        if not name or isinstance(name, tzinfo):
            return name or None
        if name == "UTC":  # Needs no database of zones, which a slim container may lack.
            return timezone.utc
        from zoneinfo import ZoneInfo

        return ZoneInfo(name)

    def now(self) -> datetime:
        """Return the present moment, in the app's zone."""
        return datetime.now(self.timezone or timezone.utc)

    def setup_security(
        self, allowed_serializers: Iterable[str] | None = None, key: str | None = None,
        key_password: str | bytes | None = None, cert: str | None = None, store: str | None = None,
        digest: str | None = None, serializer: str = "json",
    ) -> None:  # fmt: skip
        """Sign every message and read signed ones only: makes the serializer ``auth`` known, in this whole process.

        Needs the package cryptography, ``task_serializer="auth"`` and ``accept_content=["auth"]``. What is not given
        comes from the settings ``security_…``.

        Args:
            allowed_serializers: Signed bodies may be in these forms too, beside ``serializer``.
            key, key_password, cert: Files of the private key and its certificate, PEM, and the key's password.
            store: Directory or glob of the certificates that are trusted.
            digest: What is signed of a body: ``sha256`` and its kin.
            serializer: How the signed bodies are written.

        Raises:
            ImproperlyConfigured: The package, a setting, a key or a certificate is missing or of no use.
        """
        from amqptasks.app.security import setup_security

        setup_security(
            self.conf, self.limits, allowed_serializers, key, key_password, cert, store, digest, serializer
        )  # fmt: skip

    # -- sending

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        **options: Any,
    ) -> handles.AsyncResult:
        """Send a call by the task's name; it need not be known here. Options as in `Task.apply_async`."""
        if task_id is not None:
            options["task_id"] = task_id
        return self.sender.send(name, args, kwargs, options)

    @property
    def is_eager(self) -> bool:
        """Whether calls run at once, in the caller: ``task_always_eager``."""
        return bool(self.conf.task_always_eager)

    @property
    def sender(self) -> Sender:
        """The one door out, through which every task message is made and sent."""
        sender = self._sender
        return sender if sender is not None else self._make_sender()

    def _make_sender(self) -> Sender:
        from amqptasks.app.sender import Sender

        with self._lock:
            if self._sender is None:
                self._sender = Sender(self)
            return self._sender

    def bulk(self) -> Bulk:
        """Open a block whose sends share their round trips: ``with app.bulk(): …``.

        At its end every message is confirmed. Handles returned inside are good once the block has ended.

        Raises:
            BulkError: At the end of the block; it names every task that was not confirmed.
        """
        return self.sender.bulk()

    def begin_chord(
        self, header: GroupResult, parts: Sequence[Any], body: Any, root_id: str | None, expires_s: float | None,
        polling: Mapping[str, Any],
    ) -> HeaderBlock:  # fmt: skip
        """Open a block that sends the header of a chord; see `ChordStart` and `StoredStart`. What a chord's
        ``apply_async`` does."""
        if self.conf.chord_join == "store":
            from amqptasks.app.stored_chords import StoredStart

            return StoredStart(self.sender, self.backend, header, parts, body, polling)
        from amqptasks.app.chords import ChordStart

        return ChordStart(self.sender, header, parts, body, root_id, expires_s)

    def signature(self, *args: Any, **options: Any) -> Signature:
        """Make a signature of a task, its name, or a dict, bound to this app."""
        options.setdefault("app", self)
        made: Signature = signature(*args, **options)
        return made

    def report_state(self, task: Any, task_id: str | None, state: str, meta: Any, **fields: Any) -> None:
        """Tell a state of a task. Without a result store, only the worker that runs it can.

        Raises:
            ImproperlyConfigured: No task is running here and results are not stored, or it has no id.
        """
        if self.state_reporter is not None and task_id:
            self.state_reporter(task, task_id, state, meta, **fields)
        elif task_id and self.backend.persistent:
            self.backend.store(ResultRecord.now(task_id, state, meta))
        else:
            raise ImproperlyConfigured(
                f"update_state() of task {task.name!r} was called outside a worker; no task is running here"
            )

    # -- results

    @cached_property
    def AsyncResult(self) -> type[handles.AsyncResult]:
        """The class of this app's results: ``app.AsyncResult(id)`` is the handle of a task's result."""
        bound: type[handles.AsyncResult] = handles.bound_to(self, handles.AsyncResult)
        return bound

    @cached_property
    def GroupResult(self) -> type[handles.GroupResult]:
        """The class of this app's results of groups: ``app.GroupResult.restore(id)``."""
        bound: type[handles.GroupResult] = handles.bound_to(self, handles.GroupResult)
        return bound

    @cached_property
    def ResultSet(self) -> type[sets.ResultSet]:
        """The class of this app's sets of results."""
        bound: type[sets.ResultSet] = handles.bound_to(self, sets.ResultSet)
        return bound

    @property
    def backend(self) -> ResultBackend:
        """The result backend."""
        backend: ResultBackend = self._parts.get("backend") or self._part("backend", self._make_backend)
        return backend

    def _make_backend(self) -> ResultBackend:
        from amqptasks.results.registry import make_backend

        return make_backend(self.conf.result_backend, self)

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            part = self._parts.get(name)
            # The lock does not keep a signal handler out that interrupts the making: then its part is the one.
            return self._parts.setdefault(name, make()) if part is None else part

    @property
    def control(self) -> Control:
        """Orders to the workers, such as ``app.control.revoke(task_id)``."""
        control: Control = self._parts.get("control") or self._part("control", self._make_control)
        return control

    def _make_control(self) -> Control:
        from amqptasks.app.control import Control

        return Control(self)

    @property
    def log(self) -> Logging:
        """Logging as workers have it, such as ``app.log.setup("INFO")``."""
        log: Logging = self._parts.get("log") or self._part("log", self._make_log)
        return log

    def _make_log(self) -> Logging:
        from amqptasks.app.log import Logging

        return Logging(self)

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

    def endpoints(self, purpose: str, *, reads: bool = False) -> tuple[Endpoint, ...]:
        """Return the brokers to connect to, for a connection that says what it is for.

        Args:
            reads: It consumes tasks (`broker_read_url`). All else, results included, goes over `broker_write_url`.

        Raises:
            ImproperlyConfigured: A URL cannot be used.
        """
        from amqptasks.app.brokers import brokers_of

        name = f"amqptasks {purpose} {self.main or script_name()} {os.getpid()}@{socket.gethostname()}"
        return brokers_of(self.conf, name, reads=reads)

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
        current.choose(self)

    set_default = set_current

    @staticmethod
    def uuid() -> str:
        """Make a new task id."""
        return str(uuid.uuid4())
