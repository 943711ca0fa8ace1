"""Counting the parts of Celery's chords in memcached, in Celery 5.7's counter, so that workers of both kinds share one.

memcached changes one key at a time. So that a part is counted once, whoever runs it again and whenever it was ended,
each has a note of its own: first the version of the counter that it is about to replace, then what it has made of it.
The counter carries the name of the part that has replaced it last, until a worker of Celery's counts on, which keeps
the number alone; whoever finds a name there notes for that part that it is counted before he counts his own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Counter", "name_of", "size_of"]


_COUNTED: Final = b"counted "
_TRYING: Final = b"trying "


def name_of(group_id: str, task_id: str, index: int | None) -> str:
    """Return the name of a part: short, and fit for a key, whatever the ids are."""
    return hashlib.sha256(f"{group_id}\0{task_id}\0{index}".encode("utf-8", "replace")).hexdigest()[:32]


def size_of(plain: Any) -> int | None:
    """Return how many parts a saved group has, or None if that cannot be said."""
    try:
        children = plain[1]
    except (TypeError, LookupError):
        return None
    return len(children) if isinstance(children, (list, tuple)) else None


@dataclass(frozen=True, slots=True)
class Counter:
    """The counter of one chord.

    Attributes:
        on: Does something on the server that has a key.
        key: Celery's, which its client has set to 0.
        note_prefix: Of the keys of notes.
        expires: Seconds to keep it all, or a moment, as memcached takes them; 0 for ever.
    """

    on: Callable[[str, Callable[[Any], Any]], Any]
    key: str
    note_prefix: str
    expires: int

    def count(self, part: str) -> int | None:
        """Count a part, unless it is; return which one it is. None: it is not, and there is no counter any more."""
        note_key = self.note_prefix + part
        while True:
            note, note_version = self._look(note_key)
            if note is not None and note.startswith(_COUNTED):
                return int(note[len(_COUNTED) :])
            value, version = self._look(self.key)
            if value is None:
                return None
            number, name = _parsed(value)
            if name:
                # Before its trace is overwritten.
                self._put(self.note_prefix + name, _COUNTED + str(number).encode())
            if name == part:
                return number
            trying = _TRYING + (version or b"")
            # A note of another version: another counted first. Had this part counted then, its name would be gone only
            # if a worker of Celery's has counted since.
            if note != trying and not self._take(note_key, trying, note_version):
                continue
            mine = f"{number + 1} {part}".encode()
            if self._replace(self.key, mine, version):
                self._put(note_key, _COUNTED + str(number + 1).encode())
                return number + 1

    def _look(self, key: str) -> tuple[bytes | None, bytes | None]:
        found: tuple[bytes | None, bytes | None] = self.on(key, lambda client: client.gets(key))
        return found

    def _put(self, key: str, value: bytes) -> None:
        self.on(key, lambda client: client.set(key, value, expire=self.expires, noreply=False))

    def _replace(self, key: str, value: bytes, version: bytes | None) -> bool:
        return bool(self.on(key, lambda client: client.cas(key, value, version, self.expires, noreply=False)))

    def _take(self, key: str, value: bytes, version: bytes | None) -> bool:
        if version is not None:
            return self._replace(key, value, version)
        return bool(self.on(key, lambda client: client.add(key, value, expire=self.expires, noreply=False)))


def _parsed(value: bytes) -> tuple[int, str]:
    """Return the number of a counter, and the name of the part that has made it, or nothing."""
    number, _, name = value.partition(b" ")
    return int(number), name.strip().decode("ascii", "replace")
