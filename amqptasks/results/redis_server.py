"""The Redis server itself: connections to it, and each thing that is done in it, once and without trying again.

Everything of the library redis that `redis.py` and `redis_news.py` need is here, and imported with the first use. Keys
and values are Celery's. Errors are the library's; `may_pass` judges them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis
import redis.backoff
import redis.connection
import redis.retry
import redis.sentinel

from amqptasks.exceptions import ContentError, EncodeError, ImproperlyConfigured
from amqptasks.results.keyvalue import Keys, dump_group, dump_record, load_group, load_record
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.results.redis_chords import ChordTimes, add_part, begin_chord, count_part, read_parts
from amqptasks.results.redis_url import Target, read_url
from amqptasks.states import FAILURE
from amqptasks.urls import mask_url
from amqptasks.wire.reprs import printable

__all__ = ["Feed", "RedisOptions", "RedisStore", "may_pass"]

logger = logging.getLogger(__name__)

#: Redis takes no longer value.
MAX_VALUE_BYTES: Final = 512 * 1024 * 1024
#: Keys that one command names at most.
KEYS_PER_COMMAND: Final = 500
#: Answers that are taken in at once, before whoever reads them looks at anything else.
ANSWERS_AT_ONCE: Final = 1000

# Keeps and announces a value, unless the key holds another than the one that was looked at before: then that is the
# answer. So nothing that came meanwhile is overwritten unseen, whatever the values are written in.
_PUT: Final = b"""
local known = redis.call('GET', KEYS[1])
if known and known ~= ARGV[3] then
    return known
end
if ARGV[2] == '0' then
    redis.call('SET', KEYS[1], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return false
"""
_PUT_NAME: Final = hashlib.sha1(_PUT, usedforsecurity=False).hexdigest()

#: How errors begin, or go on, that go away by themselves: memory that is full, a disk, a replica, a server that starts.
_PASSING: Final = (
    "OOM ", "MISCONF ", "READONLY ", "LOADING ", "NOREPLICAS ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ", "BUSY ",
)  # fmt: skip
_PASSING_KINDS: Final = tuple(
    getattr(redis.exceptions, name)
    for name in ("ReadOnlyError", "TryAgainError", "ClusterDownError", "MasterDownError", "OutOfMemoryError")
    if hasattr(redis.exceptions, name)
)


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """What the Redis store takes from the settings.

    Attributes:
        defaults: Arguments of the library's connections, where the URL says nothing else.
        transport: ``result_backend_transport_options``.
        max_connections: Connections at once, besides the one that news come over; None for no limit.
        retry_on_timeout: Try a command that timed out once more.
        expires_s, failure_expires_s, chord_expires_s: How long results, failures, and parts of Celery's chords are
            kept; None or 0 for ever.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    transport: Mapping[str, Any] = field(default_factory=dict)
    max_connections: int | None = None
    retry_on_timeout: bool = False
    expires_s: float | None = 86_400.0
    failure_expires_s: float | None = 86_400.0
    chord_expires_s: float | None = 86_400.0


class RedisStore(Store):
    """One Redis. Connects when it is first asked something.

    Args:
        url: As in the settings, or empty.

    Raises:
        ImproperlyConfigured: The URL or the settings cannot be used.
    """

    def __init__(self, url: str, options: RedisOptions, keys: Keys, payloads: Payloads) -> None:
        self._options = options
        self._keys = keys
        self._payloads = payloads
        self._pool = _make_pool(url, options)
        self._turns = None if options.max_connections is None else threading.Semaphore(options.max_connections)
        self._turn_s = options.defaults.get("socket_timeout")
        self._is_disposed = False

    # -- one command

    def command(self, *parts: Any) -> Any:
        """Have the server do something and return its answer."""
        try:
            return self._command(parts)
        except redis.TimeoutError:
            if not self._options.retry_on_timeout:
                raise
            return self._command(parts)

    def peek(self, key: bytes, within_s: float) -> bytes | None:
        """Return what a key holds, if the server says so within this time."""
        return cast("bytes | None", self._command(("GET", key), within_s))

    def _command(self, parts: Sequence[Any], within_s: float | None = None) -> Any:
        with self._connection() as connection:
            try:
                connection.send_packed_command(connection.pack_command(*parts))
                if within_s is not None and not connection.can_read(timeout=within_s):
                    raise redis.TimeoutError(f"no answer in {within_s:.3g} s")
                return connection.read_response()
            except redis.ResponseError:
                raise
            except BaseException:
                # Its answer may still come, and must not be taken for that of the next command.
                connection.disconnect()
                raise

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        turns = self._turns
        if turns is not None and not turns.acquire(timeout=self._turn_s):
            raise redis.ConnectionError(f"all {self._options.max_connections} connections are in use")
        try:
            connection = self._pool.get_connection()
            try:
                yield connection
            finally:
                self._pool.release(connection)
                if self._is_disposed:
                    connection.disconnect()
        finally:
            if turns is not None:
                turns.release()

    def dispose(self) -> None:
        """Close the connections: those in use as soon as they are not."""
        self._is_disposed = True
        self._pool.disconnect(inuse_connections=False)

    def set_up(self) -> None:
        """See whether the server is there, and whether results may be kept in it."""
        self.command("SCRIPT", "LOAD", _PUT)

    # -- results

    def key(self, task_id: str) -> bytes:
        """Return the key of a task's result, which is the channel of its news too.

        Raises:
            UnicodeError: It can have none.
        """
        return self._keys.task(task_id).encode()

    def record(self, value: bytes) -> ResultRecord:
        """Read a value.

        Raises:
            DecodeError: It cannot be read.
        """
        return load_record(value, self._payloads)

    def values(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what these keys hold; those that hold nothing are left out."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), KEYS_PER_COMMAND):
            some = keys[start : start + KEYS_PER_COMMAND]
            answer = self.command("MGET", *some)
            found.update((key, value) for key, value in zip(some, answer, strict=True) if value is not None)
        return found

    def store(self, record: ResultRecord) -> None:
        """Keep and announce a record, unless the one that is there says more."""
        key, value = self.key(record.task_id), _checked(dump_record(record, self._payloads))
        options = self._options
        expires = _seconds(options.failure_expires_s if record.status == FAILURE else options.expires_s)
        known: bytes | None = self._put(key, value, expires, b"")
        # Each turn is one in which another process was quicker.
        while known is not None and supersedes(record, self._readable(key, known)):
            known = self._put(key, value, expires, known)

    def _put(self, key: bytes, value: bytes, expires: int, expected: bytes) -> bytes | None:
        return cast("bytes | None", self._run(_PUT, _PUT_NAME, [key], [value, expires, expected]))

    def _run(self, script: bytes, name: str, keys: list[bytes], arguments: list[Any]) -> Any:
        try:
            return self.command("EVALSHA", name, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            return self.command("EVAL", script, len(keys), *keys, *arguments)

    def _readable(self, key: bytes, value: bytes) -> ResultRecord | None:
        try:
            return self.record(value)
        except ContentError as error:
            logger.warning(
                "What is kept under %r cannot be read and is overwritten: %s", key, printable(str(error), 300)
            )
            return None

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks."""
        if len(ids) == 1:
            value = self.command("GET", self.key(ids[0]))
            records = [] if value is None else [self.record(value)]
        else:
            records = [self.record(value) for value in self.values([self.key(each) for each in ids]).values()]
        return [record for record in records if record.is_final] if only_final else records

    def delete(self, task_id: str) -> None:
        """Drop the key of a task."""
        self.command("DEL", self.key(task_id))

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple."""
        expires = _seconds(self._options.expires_s)
        value = _checked(dump_group(plain, self._payloads))
        self.command("SET", self._keys.group(group_id).encode(), value, *(("EX", expires) if expires else ()))

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        value = self.command("GET", self._keys.group(group_id).encode())
        return None if value is None else load_group(value, self._payloads)

    def delete_group(self, group_id: str) -> None:
        """Drop a group."""
        self.command("DEL", self._keys.group(group_id).encode())

    # -- chords of Celery's kind

    def begin_chord(self, group_id: str, size: int, plain: Any, is_again: bool) -> None:
        """Write how many parts there are, and the form of their results if that is not a plain list."""
        saved = None if plain is None else _checked(dump_group(plain, self._payloads))
        begin_chord(self.command, self._keys.group(group_id), size, saved, self._chord_times(), is_again=is_again)

    def add_to_chord(self, group_id: str, key: str) -> None:
        """Count one more part."""
        add_part(self._run, self._keys.group(group_id), key)

    def count_part(self, group_id: str, task_id: str, index: int | None, state: str, value: Any) -> bool:
        """Count a part of a chord; returns whether it was the last."""
        part = (task_id, index, state, value)
        return count_part(self._run, self._keys.group(group_id), part, self._payloads, self._chord_times())

    def parts(self, group_id: str) -> list[tuple[str, str, Any]]:
        """Return the id, the state and the result of each part that was counted."""
        return read_parts(self.command, self._keys.group(group_id), self._payloads, self._chord_times())

    def _chord_times(self) -> ChordTimes:
        options = self._options
        expires = _seconds(options.chord_expires_s)
        group = max(expires, _seconds(options.expires_s)) if expires and options.expires_s else 0
        return ChordTimes(expires, group, bool(options.transport.get("result_chord_ordered", True)))

    # -- news

    def feed(self) -> Feed:
        """Connect once more, for news."""
        return Feed(self._pool.make_connection())


class Feed:
    """A connection that news come over. Belongs to one thread, but for `close`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.connect()

    @property
    def socket(self) -> Any:
        """What becomes readable with news. Not with all: ask for `answers` before waiting for it."""
        return self._connection._sock

    def follow(self, keys: Sequence[bytes]) -> None:
        """Ask for the news of these keys. An answer ``(b"subscribe", key)`` says from when on they come."""
        self._send("SUBSCRIBE", keys)

    def leave(self, keys: Sequence[bytes]) -> None:
        """Ask for no more news of these keys."""
        self._send("UNSUBSCRIBE", keys)

    def ping(self) -> None:
        """Ask for any answer."""
        self._connection.send_command("PING", check_health=False)

    def _send(self, command: str, keys: Sequence[bytes]) -> None:
        for start in range(0, len(keys), KEYS_PER_COMMAND):
            self._connection.send_command(command, *keys[start : start + KEYS_PER_COMMAND], check_health=False)

    def answers(self) -> list[tuple[bytes, bytes, bytes]]:
        """Return what has come, without waiting: what it is, of which key, and the value of a ``b"message"``."""
        found: list[tuple[bytes, bytes, bytes]] = []
        while len(found) < ANSWERS_AT_ONCE and self._connection.can_read(timeout=0):
            answer = self._connection.read_response()
            is_news = isinstance(answer, list) and len(answer) == 3
            found.append((answer[0], answer[1], answer[2]) if is_news else (b"pong", b"", b""))
        return found

    def close(self) -> None:
        """Close it."""
        self._connection.disconnect()


def _make_pool(url: str, options: RedisOptions) -> Any:
    name = mask_url(url or "redis://")
    target = read_url(url, options.defaults, options.transport)
    arguments = {
        **target.arguments,
        # The old protocol, which every server speaks, and whose news are alike in every version of the library.
        "protocol": 2,
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        "retry_on_timeout": False,
    }
    try:
        pool = _pool_of(target, arguments)
        # Made here and not used: an argument that no connection takes is found now.
        pool.make_connection()
    except (TypeError, ValueError, redis.RedisError) as error:
        raise ImproperlyConfigured(
            f"the result backend {name} or its settings cannot be used: {printable(str(error), 300)}"
        ) from error
    return pool


def _pool_of(target: Target, arguments: dict[str, Any]) -> Any:
    # Never refused by the pool: those who may go to it at once are counted here.
    unlimited = 2**31
    if target.sentinels:
        # Not typed by the library.
        sentinel: Any = redis.sentinel.Sentinel
        made = sentinel(
            target.sentinels, min_other_sentinels=target.min_other_sentinels, sentinel_kwargs=target.sentinel_arguments,
            **arguments,
        )  # fmt: skip
        return made.master_for(target.master_name, max_connections=unlimited).connection_pool
    kinds: Mapping[str, Any] = {
        "tcp": redis.connection.Connection,
        "tls": redis.connection.SSLConnection,
        "unix": redis.connection.UnixDomainSocketConnection,
    }
    return redis.ConnectionPool(connection_class=kinds[target.kind], max_connections=unlimited, **arguments)


def _seconds(expires_s: float | None) -> int:
    # Redis knows whole seconds, and takes no zero.
    return max(1, math.ceil(expires_s)) if expires_s else 0


def _checked(value: bytes) -> bytes:
    if len(value) > MAX_VALUE_BYTES:
        raise EncodeError(f"the result has {len(value)} bytes, at most {MAX_VALUE_BYTES} fit into Redis")
    return value


def may_pass(error: Exception) -> bool:
    """Whether trying again may help: the server is away, starts, is full, or is none that may be written."""
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError, *_PASSING_KINDS)):
        return True
    return isinstance(error, redis.ResponseError) and any(each in f"{error} " for each in _PASSING)
