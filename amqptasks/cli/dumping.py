"""Events as lines: Celery's form, for people, and JSON, for programs. A line never breaks and steers no terminal."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from amqptasks.cli.common import plain
from amqptasks.wire.reprs import printable

__all__ = ["Dumper", "as_json"]

#: Tasks whose names are remembered, to be shown with their later events, and the longest text that is shown.
MAX_TASKS: Final = 4096
MAX_TEXT: Final = 10_000

_HUMAN: Final = {"worker-offline": "shutdown", "worker-online": "started", "worker-heartbeat": "heartbeat"}


def as_json(event: Mapping[str, Any]) -> str:
    """Return an event as one line of JSON, in ASCII."""
    return json.dumps(event, default=plain, skipkeys=True)


class Dumper:
    """Writes events as ``celery events --dump`` does."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()

    def line(self, event: Mapping[str, Any]) -> str:
        """Return an event as one line."""
        left = dict(event)
        moment = _moment(left.pop("timestamp", None))
        kind = str(left.pop("type", "?")).lower()
        hostname = left.pop("hostname", "?")
        task = ""
        if kind.startswith("task-"):
            task = f" {self._task(kind, left)}"
        fields = ", ".join(f"{key}={left[key]}" for key in sorted(left, key=str))
        shown = _HUMAN.get(kind, kind.replace("-", " "))
        mark = ":" if fields or task else ""
        return printable(f"{hostname} [{moment}] {shown}{mark}{task} {fields}".rstrip(), MAX_TEXT)

    def _task(self, kind: str, fields: dict[str, Any]) -> str:
        uuid = str(fields.pop("uuid", "?"))
        if kind in ("task-received", "task-sent"):
            name, args, kwargs = (fields.pop(key, None) for key in ("name", "args", "kwargs"))
            self._names[uuid] = f"{name}({uuid}) args={args} kwargs={kwargs}"[:MAX_TEXT]
            self._names.move_to_end(uuid)
            if len(self._names) > MAX_TASKS:
                self._names.popitem(last=False)
        # Celery shows nothing of a task that it has not seen coming; its id says more than that.
        return self._names.get(uuid, uuid)


def _moment(value: Any) -> str:
    try:
        return str(datetime.fromtimestamp(value, timezone.utc))
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"
