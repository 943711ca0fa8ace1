"""What is known about one task at one moment: the body of a result message, and what every result store keeps.

Only plain data lives here. Exceptions stay ``{exc_type, exc_message, exc_module}`` maps; `results/handles.py` rebuilds
them when a caller asks. Workers make records, backends carry them, handles read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from amqptasks.exceptions import DecodeError
from amqptasks.states import EXCEPTION_STATES, PENDING, READY_STATES, SUCCESS

__all__ = ["ResultRecord", "supersedes"]

#: A record of a task of which nothing is known names this state.
UNKNOWN = PENDING

# The keys every record carries, in Celery's order, and the two it carries only when they say something.
_ALWAYS = ("task_id", "status", "result", "traceback", "children", "date_done")
_OPTIONAL = ("group_id", "parent_id")
#: Where an answer that travels names the tasks whose answers will come to the same caller: callbacks, the chain's next.
FOLLOWERS = "follow_ups"
_OWN = frozenset(_ALWAYS + _OPTIONAL)


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """One state of one task, as plain data.

    Attributes:
        result: The return value; for FAILURE, RETRY and REVOKED an ``{exc_type, exc_message, exc_module}`` map; for any
            other state its meta, such as ``{"pid": …, "hostname": …}``.
        traceback: The worker's traceback as text.
        children: Tasks this one started, each ``[[id, parent], children or None]``; None when not kept.
        date_done: When a final state was reached, ISO 8601 with its zone; None before.
        extra: What ``result_extended`` adds (name, args, kwargs, worker, retries, queue), and stamps.
    """

    task_id: str
    status: str
    result: Any = None
    traceback: str | None = None
    children: list[Any] | None = field(default_factory=list)
    date_done: str | None = None
    group_id: str | None = None
    parent_id: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls, task_id: str, status: str, result: Any = None, **fields: Any) -> ResultRecord:
        """Make a record of something that has just happened: a final state is dated, no other is."""
        if status in READY_STATES:
            fields.setdefault("date_done", datetime.now(timezone.utc).isoformat())
        return cls(task_id, status, result, **fields)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will be heard of the task."""
        return self.status in READY_STATES

    @property
    def is_exception(self) -> bool:
        """Whether `result` describes an exception."""
        return self.status in EXCEPTION_STATES

    def to_plain(self) -> dict[str, Any]:
        """Return the map that travels: Celery's result message, key for key."""
        plain = {
            "task_id": self.task_id,
            "status": self.status,
            "result": self.result,
            "traceback": self.traceback,
            "children": self.children,
            "date_done": self.date_done,
        }
        if self.group_id:
            plain["group_id"] = self.group_id
        if self.parent_id:
            plain["parent_id"] = self.parent_id
        if self.extra:
            plain.update((key, value) for key, value in self.extra.items() if key not in _OWN)
        return plain

    @classmethod
    def from_plain(cls, data: Any) -> ResultRecord:
        """Read a decoded result message, whoever wrote it.

        A field that only informs and has the wrong type is dropped: the answer is worth more than its ornaments.

        Raises:
            DecodeError: It is no map, or does not say which task it is about, or in what state.
        """
        if not isinstance(data, Mapping):
            raise DecodeError(f"expected a result message to be a map, got: {type(data).__name__}")
        task_id = _required_text(data, "task_id")
        status = _required_text(data, "status")
        children = data.get("children")
        return cls(
            task_id=task_id,
            status=status,
            result=data.get("result"),
            traceback=_optional_text(data.get("traceback")),
            children=list(children) if isinstance(children, (list, tuple)) else None,
            date_done=_optional_date(data.get("date_done")),
            group_id=_optional_text(data.get("group_id")),
            parent_id=_optional_text(data.get("parent_id")),
            extra={key: value for key, value in data.items() if isinstance(key, str) and key not in _OWN},
        )


def supersedes(new: ResultRecord, known: ResultRecord | None) -> bool:
    """Whether `new` may replace what is known of its task.

    A final state is never undone by a late report of an earlier attempt, and SUCCESS is never overwritten, so that a
    duplicate delivery cannot change an answer somebody has read. A FAILURE may still become SUCCESS: a redelivered
    attempt of a task whose worker was believed dead can end well.
    """
    if known is None or not known.is_final:
        return True
    return new.is_final and known.status != SUCCESS


def _required_text(data: Mapping[Any, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise DecodeError(f"expected {key!r} of a result message to be a non-empty string, got: {value!r:.80}")
    return value


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _optional_date(value: Any) -> str | None:
    # kombu's typed JSON, and stores that keep real dates, hand back a datetime.
    if isinstance(value, datetime):
        return value.isoformat()
    return _optional_text(value)
