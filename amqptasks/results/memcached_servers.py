"""The servers of memcached: clients of them, and each thing that is done there, once and without trying again.

Everything of pymemcache is here, and imported with the first use. Errors are its own; `may_pass` and `is_refused` judge
them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

from pymemcache.client.base import Client, normalize_server_spec
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import (
    MemcacheError,
    MemcacheIllegalInputError,
    MemcacheServerError,
    MemcacheUnexpectedCloseError,
)

from amqptasks.exceptions import ContentError, ImproperlyConfigured
from amqptasks.results.keyvalue import Keys, dump_group, dump_record, load_group, load_record
from amqptasks.results.memcached_chords import Counter, name_of, size_of
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.wire.reprs import printable

__all__ = ["Servers", "is_refused", "may_pass", "shown"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Longer than that is read as a moment: seconds since 1970.
LONGEST_RELATIVE_S: Final = 30 * 24 * 60 * 60
#: Keys that one question names at most.
KEYS_PER_QUESTION: Final = 200
#: Of the notes that parts of chords have been counted.
NOTE_PREFIX: Final = "amqptasks-chord-part-"
_DEFAULTS: Final[Mapping[str, Any]] = {"connect_timeout": 5.0, "timeout": 5.0}
_TOO_LARGE: Final = "too large"


class Servers(Store):
    """Several servers, each with a part of the keys, as Celery divides them. Connects when first asked something.

    A key stays with its server while that is away: elsewhere nobody would find it when it is back.

    Args:
        places: Hosts with ports, or paths of sockets.
        options: Of pymemcache's clients.
        expires_s: How long to keep results, and what counts the parts of a chord.
        uri: Names them for errors.

    Raises:
        ImproperlyConfigured: A place or an option cannot be used.
    """

    def __init__(
        self, places: Sequence[str], options: Mapping[str, Any], keys: Keys, payloads: Payloads,
        expires_s: tuple[float | None, float | None], uri: str,
    ) -> None:  # fmt: skip
        self._keys = keys
        self._payloads = payloads
        self._expires_s, self._chord_expires_s = expires_s
        self._servers: dict[str, _Server] = {}
        given = {**_DEFAULTS, **options, "default_noreply": False}
        try:
            for place in places:
                spec = normalize_server_spec(place)
                # The names that pymemcache gives them in Celery: they decide which server has which key.
                name = spec if isinstance(spec, str) else "{}:{}".format(*spec)
                self._servers[name] = _Server(spec, given)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"the result backend {uri} or cache_backend_options cannot be used: {printable(str(error), 300)}"
            ) from error
        self._nodes = RendezvousHash(list(self._servers))

    def _on(self, key: str, operation: Callable[[Any], T]) -> T:
        """Do something on the server that has a key."""
        return self._servers[self._nodes.get_node(key)].do(operation)

    def dispose(self) -> None:
        """Close the connections."""
        for server in self._servers.values():
            server.close()

    def set_up(self) -> None:
        """See whether all servers are there."""
        for server in self._servers.values():
            server.do(lambda client: client.version())

    # -- results

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless the one that is there says more."""
        key, value = self._keys.task(record.task_id), dump_record(record, self._payloads)
        while not self._on(key, lambda client: client.add(key, value, expire=self._expires(), noreply=False)):
            known, token = self._look(key)
            if known is None:
                # Gone between the two: it has expired, or was forgotten.
                continue
            if not supersedes(record, self._readable(key, known)) or self._replace(key, value, token):
                return

    def _look(self, key: str) -> tuple[bytes | None, bytes | None]:
        """Return the value of a key, and a token for its replacement."""
        return self._on(key, lambda client: cast("tuple[bytes | None, bytes | None]", client.gets(key)))

    def _replace(self, key: str, value: bytes, token: bytes | None) -> bool:
        """Replace a value unless another has come since it was looked at."""
        return bool(self._on(key, lambda client: client.cas(key, value, token, self._expires(), noreply=False)))

    def _expires(self) -> int:
        return _moment(self._expires_s)

    def _readable(self, key: str, value: bytes) -> ResultRecord | None:
        try:
            return load_record(value, self._payloads)
        except ContentError as error:
            why = printable(str(error), 300)
            logger.warning("What is kept under %s cannot be read and is overwritten: %s", printable(key, 300), why)
            return None

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks."""
        of_server: dict[str, list[str]] = {}
        for task_id in ids:
            key = self._keys.task(task_id)
            of_server.setdefault(self._nodes.get_node(key), []).append(key)
        records: list[ResultRecord] = []
        for name, keys in of_server.items():
            for start in range(0, len(keys), KEYS_PER_QUESTION):
                some = keys[start : start + KEYS_PER_QUESTION]
                found = self._servers[name].do(partial(_values, keys=some))
                records += [load_record(value, self._payloads) for value in found.values()]
        return [record for record in records if record.is_final] if only_final else records

    def delete(self, task_id: str) -> None:
        """Drop the key of a task."""
        self._delete(self._keys.task(task_id))

    def _delete(self, key: str) -> None:
        self._on(key, lambda client: client.delete(key, noreply=False))

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple."""
        key, value = self._keys.group(group_id), dump_group(plain, self._payloads)
        self._on(key, lambda client: client.set(key, value, expire=self._expires(), noreply=False))

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        key = self._keys.group(group_id)
        value = self._on(key, lambda client: client.get(key))
        return None if value is None else load_group(value, self._payloads)

    def delete_group(self, group_id: str) -> None:
        """Drop a group."""
        self._delete(self._keys.group(group_id))

    # -- chords of Celery's kind

    def begin_chord(self, group_id: str, plain: Any, is_again: bool) -> None:
        """Set the counter of a chord to 0, unless it may be running already, and keep its header's results."""
        key, group_key = self._keys.chord(group_id), self._keys.group(group_id)
        value = dump_group(plain, self._payloads)
        expires, kept = _moment(self._chord_expires_s), _moment(self._chord_kept_s())
        self._on(group_key, lambda client: client.set(group_key, value, expire=kept, noreply=False))
        if is_again:
            self._on(key, lambda client: client.add(key, b"0", expire=expires, noreply=False))
        else:
            self._on(key, lambda client: client.set(key, b"0", expire=expires, noreply=False))

    def _chord_kept_s(self) -> float | None:
        """As Celery does: what the last part needs stays as long as the longer of the two."""
        return max(self._expires_s, self._chord_expires_s) if self._expires_s and self._chord_expires_s else None

    def count_part(self, group_id: str, task_id: str, index: int | None, size: int | None) -> bool:
        """Count a part of a chord, whose result is stored; returns whether it was the last."""
        counter = Counter(
            self._on, self._keys.chord(group_id), f"{self._keys.prefix}{NOTE_PREFIX}", _moment(self._chord_expires_s)
        )
        number = counter.count(name_of(group_id, task_id, index))
        if number is None:
            logger.error(
                "memcached has no counter of chord %s any more: task %s is not counted, and the body is not called",
                printable(group_id, 64), printable(task_id, 64),
            )  # fmt: skip
            return False
        kept_s = self._chord_kept_s()
        for key in (self._keys.group(group_id), self._keys.task(task_id)):
            self._on(key, partial(_touch, key=key, expires=_moment(kept_s)))
        if size is None:
            size = size_of(self.select_group(group_id))
            if size is None:
                logger.error("memcached does not know the size of chord %s any more", printable(group_id, 64))
        return number == size


class _Server:
    """One server, and connections to it: as many as there are threads that ask it something at once."""

    def __init__(self, place: Any, options: Mapping[str, Any]) -> None:
        self._place = place
        self._options = options
        self._lock = threading.Lock()
        # Made and not connected: an option that no client takes is found now.
        self._idle: list[Any] = [Client(place, **options)]
        self._is_closed = False

    def do(self, operation: Callable[[Any], T]) -> T:
        """Do it, and once more if the connection was one that the server has ended long ago."""
        try:
            return self._do(operation)
        except (MemcacheUnexpectedCloseError, ConnectionResetError, BrokenPipeError):
            # All that were kept are of that time.
            self._drop()
            return self._do(operation)

    def _do(self, operation: Callable[[Any], T]) -> T:
        with self._lock:
            client = self._idle.pop() if self._idle else Client(self._place, **self._options)
        try:
            result = operation(client)
        except BaseException:
            # Its answer may still come, and must not be taken for that of the next question.
            client.close()
            raise
        with self._lock:
            if not self._is_closed:
                self._idle.append(client)
                return result
        client.close()
        return result

    def _drop(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def close(self) -> None:
        """Close the connections: those in use as soon as they are not."""
        self._is_closed = True
        self._drop()


def _moment(seconds: float | None) -> int:
    """Return how long memcached is to keep something, as it takes it."""
    if not seconds:
        return 0
    whole_s = max(1, math.ceil(seconds))
    return whole_s if whole_s <= LONGEST_RELATIVE_S else int(time.time()) + whole_s


def _touch(client: Any, key: str, expires: int) -> None:
    client.touch(key, expires, noreply=False)


def _values(client: Any, keys: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = client.get_many(keys)
    return found


def may_pass(error: Exception) -> bool:
    """Whether trying again may help: a server is away, or has no room now."""
    if is_refused(error):
        return False
    return isinstance(error, (OSError, MemcacheServerError))


def is_refused(error: BaseException) -> bool:
    """Whether memcached takes no such key, or no value of that size, now or ever."""
    if isinstance(error, MemcacheIllegalInputError):
        return True
    return isinstance(error, MemcacheError) and _TOO_LARGE in shown(error)


def shown(error: BaseException) -> str:
    """Say what an error says; pymemcache leaves what the server said as bytes."""
    said = error.args[0] if isinstance(error, MemcacheError) and error.args else str(error)
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    if _TOO_LARGE in text:
        return f"{text}: larger than memcached takes (its option -I); result_compression may help"
    return text or type(error).__name__
