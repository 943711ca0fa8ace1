"""The tasks of an app: made of functions and classes, found in modules, and bound when the settings are known.

`TaskHome` is the part of `App` that users define tasks with. Sending them and running them is the business of others.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from amqptasks import signals
from amqptasks.app import context, current
from amqptasks.app.annotations import annotate
from amqptasks.app.discovery import Packages, named_object, task_modules
from amqptasks.app.registry import TaskRegistry
from amqptasks.app.task import Task as TaskType
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.settings import Conf
from amqptasks.signals import Signal

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=TaskType[..., Any])


class TaskHome:
    """Holds the tasks of an app. Safe from any thread.

    Tasks are made at once, and bound later: when the app is finalized (the first look at `tasks`, a worker's start), or
    when they are first used. Only then are the settings read.
    """

    main: str | None
    include: tuple[str, ...]
    #: The class that ``@app.task`` makes tasks of.
    Task: type[TaskType[..., Any]] = TaskType

    def __init__(
        self, *, task_cls: type[TaskType[..., Any]] | str | None, autofinalize: bool, strict_typing: bool
    ) -> None:  # fmt: skip
        self.strict_typing = strict_typing
        self.on_after_finalize = Signal("on_after_finalize")
        self._lock = threading.RLock()
        self._tasks = TaskRegistry()
        self._task_cls = task_cls
        self._autofinalize = autofinalize
        self._discoveries: list[tuple[Packages, str | None]] = []
        self._finalized = False
        if isinstance(task_cls, type):
            self.Task = task_cls
        current.announce(self)

    @property
    def conf(self) -> Conf:
        """The settings."""
        raise NotImplementedError

    # -- looking

    @property
    def tasks(self) -> TaskRegistry:
        """The tasks by name. The first look finalizes the app."""
        if not self._finalized:
            self.finalize(auto=True)
        return self._tasks

    @property
    def is_finalized(self) -> bool:
        """Whether every task is there, and bound."""
        return self._finalized

    def find_task(self, name: str) -> Any:
        """Return a task by its name, ready to use, without finalizing the app; None if it is not known."""
        task = self._tasks.get(name)
        if task is not None and not task._is_bound:
            self.bind_task(task)
        return task

    @property
    def current_task(self) -> Any:
        """The task that is running in this thread or coroutine; None outside tasks."""
        running = context.current()
        return None if running is None else running.task

    @property
    def current_worker_task(self) -> Any:
        """The same, but not a task that was called as a function by a running one."""
        running = context.current()
        while running is not None and running.request.called_directly:
            running = running.below
        return None if running is None else running.task

    # -- making

    @overload
    def task(self, function: Callable[P, R], /) -> TaskType[P, R]: ...

    @overload
    def task(
        self, *, bind: Literal[True], **options: Any
    ) -> Callable[[Callable[Concatenate[Any, P], R]], TaskType[P, R]]: ...

    @overload
    def task(self, *, bind: Literal[False] = ..., **options: Any) -> Callable[[Callable[P, R]], TaskType[P, R]]: ...

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a function a task; used bare or with options, which are the attributes of `Task`, and:

        Args:
            name: Its name; module and function name without.
            bind: Pass the task itself as first argument.
            base: A `Task` subclass to build on.
            pydantic: Validate arguments that are annotated with a model, and dump a model that is returned; with
                ``pydantic_strict``, ``pydantic_context`` and ``pydantic_dump_kwargs``.
            filter: Called with the task; what it returns takes the task's place.
        """
        if len(args) > 1 or (args and not callable(args[0])):
            raise TypeError(f"@app.task takes one function, or options by name, got: {args!r:.80}")

        def make(function: Callable[..., Any]) -> Any:
            return self.define_task(function, **options)

        return make(args[0]) if args else make

    def define_task(
        self, function: Callable[..., Any], *, name: str | None = None, bind: bool = False,
        base: type[TaskType[..., Any]] | None = None, pydantic: bool = False, pydantic_strict: bool = False,
        pydantic_context: Mapping[str, Any] | None = None, pydantic_dump_kwargs: Mapping[str, Any] | None = None,
        shared: bool = False, lazy: bool = True, filter: Callable[[Any], Any] | None = None, **attributes: Any,
    ) -> Any:  # fmt: skip
        """Make the task of a function, as `task` does; the one there is if the function was registered before.

        Raises:
            AlreadyRegistered: Another function has its name.
            ImproperlyConfigured: It asks for what there is not.
        """
        del lazy  # Celery's: whether the task is made at once. Here it is, and costs little.
        options = {
            "name": name, "bind": bind, "base": base, "pydantic": pydantic, "pydantic_strict": pydantic_strict,
            "pydantic_context": pydantic_context, "pydantic_dump_kwargs": pydantic_dump_kwargs, **attributes,
        }  # fmt: skip
        if shared:
            current.share(lambda app: app.define_task(function, **options))
        name = name or self.gen_task_name(function.__name__, function.__module__)
        if "backend" in attributes:
            raise ImproperlyConfigured(
                f"task {name!r} asks for a result backend of its own, which is not supported: make it a task of an app "
                "with that backend"
            )
        task = dict.get(self._tasks, name)
        if task is None or not _same_place(task, function):
            run = function
            if pydantic:
                from amqptasks.app.models import Models

                models = Models(self, function, name, bind, pydantic_strict, pydantic_context, pydantic_dump_kwargs)
                run = models.wrapped()
                attributes["_dump_arguments"] = staticmethod(models.dump_arguments)
            task = (base or self._task_class()).from_function(self, run, name, bind=bind, attributes=attributes)
            self._add(task)
        # A module imported twice, as __main__ and by name, or reloaded, finds the task that there is.
        return task if filter is None else filter(task)

    def register_task(self, task: T | type[T], **options: Any) -> T:
        """Register an instance of a `Task` subclass, or the class, of which one is made; returns the instance."""
        made = task() if isinstance(task, type) else task
        if not isinstance(made, TaskType):
            raise TypeError(f"register_task() takes a Task subclass or an instance of one, got: {task!r:.80}")
        if not made.name:
            made.name = self.gen_task_name(type(made).__name__, type(made).__module__)
        for key, value in options.items():
            setattr(made, key, value)
        made.app = self
        if made.typing is None:
            made.typing = self.strict_typing
        made.learn_signature()
        self._add(made)
        return made

    def _add(self, task: Any) -> None:
        self._tasks.register(task)
        if self._finalized:
            self.bind_task(task)

    def bind_task(self, task: Any) -> None:
        """Do for a task what needs the settings: its annotations, and what its class does in ``on_bound``."""
        with self._lock:
            if task._is_bound:
                return
            annotate(task, self.conf.task_annotations)
            task.bind(self)
            task.get_ready()

    def _task_class(self) -> type[TaskType[..., Any]]:
        if isinstance(self._task_cls, str):
            self.Task = self._task_cls = named_object(self._task_cls, "task_cls")
        return self.Task

    def gen_task_name(self, name: str, module: str) -> str:
        """Name a task of a function: ``module.function``. Override it for another rule."""
        if module == "__main__":
            module = self.main or script_name()
        return f"{module}.{name}" if module else name

    # -- completing

    def finalize(self, auto: bool = False) -> None:
        """Take over the shared tasks and bind every task. Safe twice.

        Raises:
            RuntimeError: It is called of itself (``auto``), and the app was made with ``autofinalize=False``.
        """
        with self._lock:
            if self._finalized:
                return
            if auto and not self._autofinalize:
                raise RuntimeError(f"{self!r} was made with autofinalize=False and is not finalized: call finalize()")
            # Here: a program that only sends does without.
            from amqptasks.app.builtins import add_builtins

            add_builtins(self)
            self._finalized = True
            for maker in current.makers():
                maker(self)
            for task in list(self._tasks.values()):
                self.bind_task(task)
        self.on_after_finalize.send(self)

    def autodiscover_tasks(
        self, packages: Packages | None = None, related_name: str | None = "tasks", force: bool = False
    ) -> None:
        """Import the ``tasks`` module of each of these packages, when a worker (or a command) imports what it needs.

        Args:
            packages: Names, or a function that returns them. Without, Django's installed apps.
            related_name: Another name for those modules; None imports the packages themselves.
            force: Do it now.
        """
        wanted = _django_apps if packages is None else packages
        if force:
            task_modules(wanted, related_name)
        else:
            self._discoveries.append((wanted, related_name))

    def prepare(self) -> None:
        """Make ready what the modules with tasks need: in a Django project, Django. Safe twice."""
        if os.environ.get("DJANGO_SETTINGS_MODULE"):
            from amqptasks.app.django import prepare

            prepare(self)

    def import_modules(self) -> None:
        """Import the modules that hold tasks: the ``include`` argument, the ``imports`` and ``include`` settings, and
        what `autodiscover_tasks` was told to look for.

        Raises:
            ImproperlyConfigured: One of them is not there.
        """
        self.prepare()
        for _receiver, answer in signals.import_modules.send(self):
            if isinstance(answer, Exception):
                # Whoever imports tasks there must not start without them.
                raise answer
        for module in (*self.include, *(self.conf.imports or ()), *(self.conf.include or ())):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
                    raise ImproperlyConfigured(
                        f"cannot import {module!r} named in 'imports' or 'include': {error}"
                    ) from error
                raise
        for packages, related_name in self._discoveries:
            task_modules(packages, related_name)
        self.finalize()


def _django_apps() -> Iterable[str]:
    from amqptasks.app.django import installed_apps

    return installed_apps()


def script_name() -> str:
    """Return the name of the program's main file, without its extension."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(path))[0] if path else "__main__"


def _same_place(task: Any, function: Callable[..., Any]) -> bool:
    known = getattr(task, "__wrapped__", None)
    while known is not None and known is not function:
        code, other = getattr(known, "__code__", None), getattr(function, "__code__", None)
        if (
            code is not None and other is not None
            and (code.co_filename, code.co_firstlineno) == (other.co_filename, other.co_firstlineno)
        ):  # fmt: skip
            return True
        # Models put a wrapper around it.
        known = getattr(known, "__wrapped__", None)
    return known is not None
