"""Names and their tasks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from amqptasks.exceptions import AlreadyRegistered, NotRegistered


class TaskRegistry(dict[str, Any]):
    """Maps task names to tasks. A missing name raises `NotRegistered`, which names the nearest one."""

    def __missing__(self, name: str) -> Any:
        raise NotRegistered(unknown_task(name, self))

    def register(self, task: Any) -> Any:
        """Add a task under its name; returns it.

        Raises:
            AlreadyRegistered: Another function has that name.
        """
        known = self.get(task.name)
        if known is not None and known is not task:
            raise AlreadyRegistered(
                f"two functions claim the task name {task.name!r}: {_where(known)} and "
                f"{_where(task)}; give one of them name=…"
            )
        self[task.name] = task
        return task

    def unregister(self, name: Any) -> None:
        """Remove a task, by itself or by name.

        Raises:
            NotRegistered: There is none.
        """
        key = getattr(name, "name", name)
        if key not in self:
            raise NotRegistered(unknown_task(key, self))
        del self[key]


def _where(task: Any) -> str:
    function = getattr(task, "__wrapped__", None) or task.run
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


def unknown_task(name: str, known: Iterable[str]) -> str:
    """Say that no task has this name, with the nearest that there is."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"no task named {str(name)!r:.200} is registered{hint}; import its module, for example by the 'imports' setting"
    )
