"""What a worker knows of revoked tasks: bounded by number and by age."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from amqptasks.wire.revocation import Revocation, stamp_values


class RevokedTasks:
    """The revoked ids and stamps. Belongs to the loop's thread.

    Args:
        max_count: Ids and stamps kept; the oldest go first.
        expires_s: Revocations older than this no longer count, seconds.
    """

    def __init__(self, max_count: int, expires_s: float) -> None:
        self._max_count = max_count
        self._expires_s = expires_s
        # Revoked until when, seconds since 1970; oldest first.
        self._ids: OrderedDict[str, float] = OrderedDict()
        self._stamps: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether anything is revoked: looking up costs nothing where nothing is."""
        return bool(self._ids or self._stamps)

    def __len__(self) -> int:
        return len(self._ids) + len(self._stamps)

    @property
    def ids(self) -> list[str]:
        """The revoked ids, oldest first."""
        self._forget_old(self._ids)
        return list(self._ids)

    def add(self, revocation: Revocation) -> bool:
        """Take a revocation in; False if it is too old to count."""
        # A clock that is ahead elsewhere must not make a revocation live for ever here.
        until = min(revocation.at, time.time()) + self._expires_s
        if until <= time.time():
            return False
        for task_id in revocation.ids:
            self._put(self._ids, task_id, until)
        for name, values in revocation.stamps.items():
            for value in values:
                self._put(self._stamps, (name, value), until)
        return True

    def _put(self, table: OrderedDict[Any, float], key: Any, until: float) -> None:
        table[key] = until
        table.move_to_end(key)
        while len(table) > self._max_count:
            table.popitem(last=False)

    @staticmethod
    def _forget_old(table: OrderedDict[Any, float]) -> None:
        now = time.time()
        while table and next(iter(table.values())) <= now:
            table.popitem(last=False)

    def covers(self, task_id: str, headers: Mapping[str, Any]) -> bool:
        """Whether a task is revoked, by its id or by a stamp."""
        until = self._ids.get(task_id)
        if until is not None:
            if until > time.time():
                return True
            del self._ids[task_id]
        return bool(self._stamps) and any(
            self._stamps.get(stamp, 0.0) > time.time() for stamp in stamps_of(headers)
        )  # fmt: skip


def names(revocation: Revocation, task_id: str, headers: Mapping[str, Any]) -> bool:
    """Whether a revocation is about a task."""
    return task_id in revocation.ids or any(
        value in revocation.stamps.get(name, ()) for name, value in stamps_of(headers)
    )


def stamps_of(headers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the stamps of a message, as pairs of name and value."""
    stamps = headers.get("stamps")
    if not isinstance(stamps, Mapping):
        return []
    return [(str(name), value) for name, each in stamps.items() for value in stamp_values(each)]
