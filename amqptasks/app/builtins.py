"""The tasks that every app has, under Celery's names: workers of both kinds run what the other's canvas sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amqptasks.app.coroutines import run_coroutine
from amqptasks.canvas import chord, chunks, group, maybe_signature

__all__ = ["PREFIX", "add_builtins"]

#: What their names begin with.
PREFIX = "celery."


def add_builtins(app: Any) -> None:
    """Register them with an app, but for those whose names its own tasks have."""
    for name, function, is_bound in (
        ("accumulate", _accumulate, False), ("map", _map, True), ("starmap", _starmap, True), ("chunks", _chunks, True),
        ("group", _group, True), ("chain", _chain, False), ("chord", _chord, True),
        ("backend_cleanup", _backend_cleanup, True),
    ):  # fmt: skip
        if not dict.__contains__(app._tasks, PREFIX + name):
            app.define_task(function, name=PREFIX + name, bind=is_bound)


def _accumulate(*args: Any, index: int | None = None, **_kwargs: Any) -> Any:
    """Return the arguments, or one of them: what a group that replaces a task ends in."""
    return args if index is None else args[index]


def _map(self: Any, task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Call a task with each item, here."""
    function = maybe_signature(task, app=self.app).type
    return [_value(function, function(item)) for item in it]


def _starmap(self: Any, task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Call a task with each item as its arguments, here."""
    function = maybe_signature(task, app=self.app).type
    return [_value(function, function(*item)) for item in it]


def _value(function: Any, value: Any) -> Any:
    return run_coroutine(value) if function.is_async else value


def _chunks(self: Any, task: Mapping[str, Any], it: Iterable[Any], n: int) -> Any:
    """Become the group of a task's calls over the items, so many in each."""
    return self.replace(chunks(maybe_signature(task, app=self.app), it, n, app=self.app).group())


def _group(self: Any, tasks: Iterable[Any], *_more: Any, partial_args: Any = (), **_kwargs: Any) -> Any:
    """Become a group. For programs that call it by its name."""
    return self.replace(group(list(tasks), app=self.app).clone(partial_args or ()))


def _chain(*_args: Any, **_kwargs: Any) -> Any:
    """Refuse, as Celery's: a chain travels with its first task."""
    raise NotImplementedError("chain is not a real task")


def _chord(self: Any, header: Any, body: Any, partial_args: Any = (), **_kwargs: Any) -> Any:
    """Become a chord. For programs that call it by its name."""
    calls = maybe_signature(header, app=self.app) if isinstance(header, Mapping) else list(header)
    return self.replace(chord(calls, maybe_signature(body, app=self.app), app=self.app).clone(partial_args or ()))


def _backend_cleanup(self: Any) -> None:
    """Delete results that have expired, where the store does not do so by itself."""
    self.app.backend.cleanup()
