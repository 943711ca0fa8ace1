"""``task_annotations``: attributes and methods of tasks, changed by configuration.

Forms of the setting: a dict of task names (or ``"*"``) to dicts of attributes, an object with ``annotate(task)`` or
``annotate_any()``, the dotted name of one, or a list of these. An attribute named ``"@method"`` wraps that method: its
value takes the method and returns another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, MethodType
from typing import Any

from amqptasks.app.discovery import named_object
from amqptasks.exceptions import ImproperlyConfigured


def annotate(task: Any, setting: Any) -> None:
    """Change a task as the setting says: first what is for all tasks, then what is for this one.

    Of several objects in a list the first that has something to say is heard, once of each kind.

    Raises:
        ImproperlyConfigured: The setting is of another form, or wraps a method that the task does not have.
    """
    sources = tuple(_sources(setting))
    for found in (
        _first(source.annotate_any() for source in sources if hasattr(source, "annotate_any")),
        _first(source.annotate(task) for source in sources if hasattr(source, "annotate")),
    ):
        for name, value in (found or {}).items():
            if name.startswith("@"):
                _wrap(task, name[1:], value)
            else:
                setattr(task, name, MethodType(value, task) if isinstance(value, FunctionType) else value)


class _MapSource:
    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    def annotate(self, task: Any) -> Any:
        return self._names.get(task.name)

    def annotate_any(self) -> Any:
        return self._names.get("*")


def _sources(setting: Any) -> Iterable[Any]:
    if setting is None:
        return
    for each in setting if isinstance(setting, (list, tuple)) else (setting,):
        source = named_object(each, "task_annotations") if isinstance(each, str) else each
        if isinstance(source, type):
            source = source()
        if isinstance(source, Mapping):
            yield _MapSource(source)
        elif hasattr(source, "annotate") or hasattr(source, "annotate_any"):
            yield source
        else:
            raise ImproperlyConfigured(
                f"expected task_annotations to hold dicts, or objects with annotate() or annotate_any(), got: "
                f"{each!r:.80}"
            )


def _first(found: Iterable[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    return next((each for each in found if each), None)


def _wrap(task: Any, method: str, around: Callable[[Any], Any]) -> None:
    kind = type(task)
    before = getattr(kind, method, None)
    if not callable(before):
        raise ImproperlyConfigured(
            f"task_annotations wraps '@{method}' of task {task.name!r}, which has no such method"
        )
    wrapped = around(before)
    if method.startswith("__"):
        # Python looks for these on the class alone.
        setattr(kind, method, wrapped)
        return
    defined = next(each.__dict__[method] for each in kind.__mro__ if method in each.__dict__)
    # The function of a task that is not bound is called without the task, and so is what wraps it.
    is_method = not isinstance(defined, staticmethod) and isinstance(wrapped, FunctionType)
    setattr(task, method, MethodType(wrapped, task) if is_method else wrapped)
