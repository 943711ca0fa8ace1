"""`shared_task`, `current_app` and `current_task`: stand-ins that find the real thing at each access.

A library that does not know the app of the program it is used in defines its tasks with `shared_task`: every app gets
a task of its own, and the name in the library stands for that of the current app.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, cast, overload

from amqptasks.app import context, current
from amqptasks.app.task import Task
from amqptasks.exceptions import AmqptasksError

if TYPE_CHECKING:
    from amqptasks.app.app import App

P = ParamSpec("P")
R = TypeVar("R")


class Proxy:
    """Stands for an object that is looked up anew at each access; everything done to it is done to that object."""

    __slots__ = ("__dict__", "__weakref__", "_find")

    def __init__(self, find: Callable[[], Any], **shown: Any) -> None:
        object.__setattr__(self, "_find", find)
        # What documentation tools ask of a function must not need an app.
        self.__dict__.update(shown)

    def _get_current_object(self) -> Any:
        """Return the object itself."""
        return self._find()

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._kind(Proxy)

    def _kind(self, otherwise: type) -> Any:
        # isinstance() asks, of any object that it is given, and is not to fail for lack of an app.
        try:
            return type(self._find())
        except AmqptasksError:
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._find(), name)

    def __dir__(self) -> list[str]:
        return dir(self._find())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object."""
        return self._find()(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._find())

    def __str__(self) -> str:
        return str(self._find())

    def __bool__(self) -> bool:
        return bool(self._find())

    def __eq__(self, other: object) -> bool:
        if type(other) is Proxy:
            other = other._find()
        return bool(self._find() == other)

    def __hash__(self) -> int:
        return hash(self._find())

    def __reduce__(self) -> Any:
        return self._find().__reduce__()


class SharedTask(Proxy):
    """Stands for the current app's task of a shared function. Called as a function, it needs no app."""

    __slots__ = ("_orphan",)

    def __init__(self, find: Callable[[], Any], orphan: Callable[[], Any], **shown: Any) -> None:
        super().__init__(find, **shown)
        object.__setattr__(self, "_orphan", orphan)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._kind(Task)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now."""
        task = self._find() if current.current_app_or_none() is not None else self._orphan()
        return task(*args, **kwargs)


@overload
def shared_task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], **options: Any) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...
@overload
def shared_task(*, bind: Literal[False] = ..., **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def shared_task(*args: Any, **options: Any) -> Any:
    """Make a function a task of every app, those to come included; options are those of ``@app.task``.

    What it returns stands for the current app's task: looked up at each access, so a program may make or change its
    app after the function is defined.
    """
    if len(args) > 1 or (args and not callable(args[0])):
        raise TypeError(f"@shared_task takes one function, or options by name, got: {args!r:.80}")

    def make(function: Callable[..., Any]) -> Any:
        if type(function) is SharedTask:
            raise TypeError("@shared_task was applied twice to one function; remove one of the two")

        def maker(app: Any) -> Any:
            return app.define_task(function, **options)

        def find() -> Any:
            app = current.require_app(f"the shared task {function.__module__}.{function.__qualname__}")
            name = options.get("name") or app.gen_task_name(function.__name__, function.__module__)
            # Where the app is not finalized, it has not taken it over yet.
            return app.find_task(name) or maker(app)

        current.share(maker)
        shown = {
            "__doc__": function.__doc__, "__module__": function.__module__, "__name__": function.__name__,
            "__qualname__": function.__qualname__, "__wrapped__": function,
        }  # fmt: skip
        return SharedTask(find, lambda: _orphaned(function, options), **shown)

    return make(args[0]) if args else make


def _orphaned(function: Callable[..., Any], options: dict[str, Any]) -> Task[..., Any]:
    """Make the task of a function that is called before there is an app, as in a library's own tests."""
    kind = options.get("base") or Task
    return cast(
        "Task[..., Any]",
        kind.from_function(
            None, function, options.get("name") or f"{function.__module__}.{function.__qualname__}",
            bind=bool(options.get("bind")), attributes={},
        ),
    )  # fmt: skip


def _running_task() -> Any:
    running = context.current()
    return None if running is None else running.task


#: The app made or chosen last. ImproperlyConfigured at each use while there is none.
current_app: App = cast("App", Proxy(lambda: current.require_app("current_app")))
#: The task that is running in this thread or coroutine; false, and equal to None, outside tasks.
current_task: Task[..., Any] = cast("Task[..., Any]", Proxy(_running_task))
