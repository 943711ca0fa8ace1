"""What all kinds of calls are made of: ids, lists, and the six fields, checked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from amqptasks.exceptions import InvalidTaskError

__all__ = ["as_list", "begins_chord", "checked", "new_id", "shortened"]


def new_id() -> str:
    """Make the id of a task or a group."""
    return str(uuid.uuid4())


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, None as an empty one, and anything else as a list of one."""
    if value is None:
        return []
    if isinstance(value, list):
        return value
    return list(value) if isinstance(value, tuple) else [value]


def begins_chord(call: Mapping[str, Any]) -> bool:
    """Whether a chord begins when a call is made."""
    kind = call["subtask_type"]
    if kind == "chord":
        return True
    tasks = call["kwargs"].get("tasks") if kind in ("chain", "group") else None
    if not tasks:
        return False
    if kind == "chain":
        return begins_chord(tasks[0]) or (len(tasks) > 1 and tasks[0]["subtask_type"] == "group")
    return any(begins_chord(member) for member in tasks)


def shortened(task_name: str, text: str) -> str:
    """Drop a module's name from all but the first of the calls in `text`, so that a canvas reads well."""
    module = task_name.rpartition(".")[0] + "."
    head, found, tail = text.partition(module)
    return head + found + tail.replace(module, "") if found else text


_FIELD_TYPES: tuple[tuple[str, Any], ...] = (
    ("args", (list, tuple)), ("kwargs", dict), ("options", dict), ("subtask_type", (str, type(None))),
)  # fmt: skip


def checked(data: Any) -> dict[str, Any]:
    """Return a signature's six fields; InvalidTaskError if they are not of their kind. Wire data comes through here."""
    if not isinstance(data, Mapping):
        raise InvalidTaskError(f"expected a call to be a map, got: {data!r:.80}")
    if not isinstance(data.get("task"), str):
        raise InvalidTaskError(f"expected 'task' of a call to be the name of a task, got: {data.get('task')!r:.80}")
    fields = {
        **data, "args": data.get("args") or (), "kwargs": data.get("kwargs") or {},
        "options": data.get("options") or {}, "subtask_type": data.get("subtask_type"),
        "immutable": bool(data.get("immutable")),
    }  # fmt: skip
    for key, kind in _FIELD_TYPES:
        if not isinstance(got := fields[key], kind):
            raise InvalidTaskError(f"{key!r} of the call of {data['task']!r:.80} is of a wrong type: {got!r:.80}")
    for key in ("kwargs", "options"):
        if not all(isinstance(name, str) for name in fields[key]):
            raise InvalidTaskError(f"{key!r} of the call of {data['task']!r:.80} has a name that is no string")
    return fields
