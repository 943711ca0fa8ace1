"""News of results from Redis: one connection and one thread for everybody in a process who waits.

What is waited for is followed by its key, as Celery does: Redis then sends each new value by itself. Every key is read
once after its news have begun, and again after each lost connection, so that nothing is missed and nobody polls.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from amqptasks.exceptions import BackendGetMetaError, ContentError
from amqptasks.results.backend import timed_out
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.results.waiting import Waiter, Watcher
from amqptasks.wire.reprs import printable

if TYPE_CHECKING:
    from amqptasks.results.redis_server import Feed, RedisStore

__all__ = ["News"]

logger = logging.getLogger(__name__)

#: A wait without a timeout goes on for this long while Redis cannot be reached, seconds.
PATIENCE_S: Final = 30.0
#: A connection on which nothing came for so long is asked for an answer, and given up without one. Seconds.
SILENCE_S: Final = 5.0
ANSWER_S: Final = 10.0
#: How often the thread looks up from its connection. Seconds.
TICK_S: Final = 2.5
#: What nobody waits for any more is followed for a while: it may be waited for again. Seconds, and how many.
LINGER_S: Final = 10.0
MAX_LINGERING: Final = 10_000
#: A thread with nothing to follow ends after so long, and with it the connection. Seconds.
IDLE_S: Final = 60.0
#: The first and the longest pause before connecting again, seconds. Somebody is waiting.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
#: How long closing waits for the thread.
JOIN_S: Final = 1.0


class _Slot:
    """What has come for one key."""

    __slots__ = ("error", "is_read", "left_at", "record", "waiters")

    def __init__(self) -> None:
        self.record: ResultRecord | None = None
        self.error: BackendGetMetaError | None = None
        self.is_read = False
        self.waiters: list[Waiter | Watcher] = []
        self.left_at = 0.0


class _Trouble:
    """Why no news come, and since when."""

    __slots__ = ("error", "since")

    def __init__(self, error: BackendGetMetaError, since: float) -> None:
        self.error = error
        self.since = since


class News:
    """What this process follows. Safe from any thread; useless after a fork, where `abandon` frees what it holds.

    Args:
        store: Returns the store, to read keys and to connect to.
        may_pass: Whether an error of the store's goes away by itself.
        explain: Makes what waiters are told of an error.
    """

    def __init__(
        self, store: Callable[[], RedisStore], may_pass: Callable[[Exception], bool],
        explain: Callable[[Exception], BackendGetMetaError],
    ) -> None:  # fmt: skip
        self._store = store
        self._may_pass = may_pass
        self._explain = explain
        self._lock = threading.Lock()
        self._slots: dict[bytes, _Slot] = {}
        self._wanted: list[bytes] = []
        self._unwanted: list[bytes] = []
        self._lingering = 0
        self._thread: threading.Thread | None = None
        self._trouble: _Trouble | None = None
        self._is_woken = False
        self._is_closed = False
        self._closing = threading.Event()
        self._ears, self._mouth = os.pipe()
        os.set_blocking(self._ears, False)
        os.set_blocking(self._mouth, False)
        self._is_well = False
        # Of the thread alone.
        self._asked_at: float | None = None
        self._heard_at = 0.0
        self._busy_at = 0.0

    # -- those who wait

    @contextmanager
    def following(self, keys: Collection[bytes], waiter: Waiter) -> Iterator[None]:
        """Have news of these keys go to a waiter. What is known already is among its news at once.

        Raises:
            BackendGetMetaError: It is closed.
        """
        self.follow(keys, waiter)
        try:
            yield
        finally:
            self.leave(keys, waiter)

    def follow(self, keys: Collection[bytes], waiter: Waiter | Watcher) -> None:
        """Begin to tell a waiter of these keys."""
        with self._lock:
            if self._is_closed:
                raise self._closed()
            for key in keys:
                slot = self._slots.get(key)
                if slot is None:
                    slot = self._slots[key] = _Slot()
                    self._wanted.append(key)
                elif not slot.waiters:
                    self._lingering -= 1
                slot.waiters.append(waiter)
                waiter.unread += not slot.is_read
                waiter.error = waiter.error or slot.error
                if slot.record is not None:
                    waiter.news.append(slot.record)
            self._start()
            self._wake_thread(only_if=bool(self._wanted))

    def leave(self, keys: Collection[bytes], waiter: Waiter | Watcher) -> None:
        """Tell it no more."""
        with self._lock:
            for key in keys:
                slot = self._slots.get(key)
                if slot is None or waiter not in slot.waiters:
                    continue
                slot.waiters.remove(waiter)
                if slot.waiters:
                    continue
                is_over = slot.error is not None or (slot.record is not None and slot.record.is_final)
                if is_over or self._lingering >= MAX_LINGERING:
                    self._drop(key)
                else:
                    slot.left_at = time.monotonic()
                    self._lingering += 1

    def _drop(self, key: bytes) -> None:
        del self._slots[key]
        # Told to Redis with whatever is next.
        self._unwanted.append(key)

    def pause(self, waiter: Waiter, deadline: float | None) -> None:
        """Sleep until there may be something new for a waiter.

        Raises:
            TimeoutError: The deadline, in monotonic seconds, is over.
            BackendGetMetaError: It waits in vain, or Redis could not be reached for too long.
        """
        if self._is_closed:
            raise self._closed()
        if waiter.error is not None:
            raise waiter.error
        trouble = self._trouble
        limit = trouble.since + PATIENCE_S if deadline is None and trouble is not None else deadline
        left_s = threading.TIMEOUT_MAX if limit is None else limit - time.monotonic()
        if left_s <= 0 or not waiter.wait(left_s):
            if waiter.news:
                return
            raise timed_out() if trouble is None else trouble.error

    def known(self, key: bytes) -> tuple[bool, ResultRecord | None]:
        """Return whether what came for a key is all there is to know without asking Redis, and the newest of it.

        For a coroutine's key that is always so: its event loop must not wait for Redis.

        Raises:
            BackendGetMetaError: It cannot be read, or Redis could not be reached for too long.
        """
        with self._lock:
            slot, trouble = self._slots.get(key), self._trouble
            if slot is None:
                return False, None
            if slot.error is not None:
                raise slot.error
            is_watched = any(isinstance(each, Watcher) for each in slot.waiters)
            if is_watched and slot.record is None and trouble and time.monotonic() >= trouble.since + PATIENCE_S:
                raise trouble.error
            return is_watched or (slot.is_read and trouble is None), slot.record

    @property
    def is_well(self) -> bool:
        """Whether Redis has just answered, or had nothing to answer."""
        return self._is_well and self._trouble is None and self._asked_at is None

    def forget(self, key: bytes) -> None:
        """Forget what came for a key: it was deleted."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                slot.record = None

    # -- life

    def close(self) -> None:
        """End the thread and wake who waits."""
        with self._lock:
            self._is_closed = True
            self._closing.set()
            self._wake_all()
            thread = self._thread
            if thread is None:
                self._close_pipe()
            else:
                self._wake_thread()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def abandon(self) -> None:
        """Free what a forked child has inherited. Its thread is not here."""
        self._close_pipe()

    def _close_pipe(self) -> None:
        for descriptor in (self._ears, self._mouth):
            if descriptor >= 0:
                os.close(descriptor)
        self._ears = self._mouth = -1

    def _closed(self) -> BackendGetMetaError:
        return BackendGetMetaError("the result backend was closed while a result was waited for")

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="amqptasks-redis-news", daemon=True)
            self._thread.start()

    def _wake_thread(self, *, only_if: bool = True) -> None:
        if only_if and not self._is_woken and self._mouth >= 0:
            self._is_woken = True
            os.write(self._mouth, b"!")

    def _wake_all(self) -> None:
        for slot in self._slots.values():
            for waiter in slot.waiters:
                waiter.wake()

    # -- the thread

    def _run(self) -> None:
        failures = 0
        while True:
            try:
                self._listen()
                return
            except Exception as error:
                failures = failures + 1 if self._trouble is not None else 0
                self._tell_of(error)
            limit_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures, 10))
            self._closing.wait(random.uniform(limit_s / 2, limit_s))

    def _tell_of(self, error: Exception) -> None:
        told = self._explain(error)
        passes = self._may_pass(error)
        logger.log(
            logging.DEBUG if passes else logging.WARNING, "No news of results: %s", printable(str(told), 500)
        )  # fmt: skip
        with self._lock:
            if not passes:
                for slot in self._slots.values():
                    self._fail(slot, told)
                return
            since = time.monotonic() if self._trouble is None else self._trouble.since
            self._trouble = _Trouble(told, since)
            self._wake_all()

    def _fail(self, slot: _Slot, error: BackendGetMetaError) -> None:
        slot.error = error
        for waiter in slot.waiters:
            waiter.error = error
            waiter.wake()

    def _listen(self) -> None:
        """Connect and take news in, until the end of the thread, whose place is then free for another."""
        if self._ends():
            return
        feed = self._store().feed()
        try:
            with self._lock:
                # News of what nobody waits for may have been missed: it is forgotten instead of read.
                self._drop_left(self._slots, time.monotonic() + LINGER_S)
                keys, self._wanted, self._unwanted = list(self._slots), [], []
            self._heard_at = self._busy_at = time.monotonic()
            self._asked_at = None
            self._follow(feed, keys)
            with selectors.DefaultSelector() as selector:
                selector.register(feed.socket, selectors.EVENT_READ)
                selector.register(self._ears, selectors.EVENT_READ)
                while True:
                    more = self._take_in(feed)
                    self._change(feed)
                    if self._ends():
                        return
                    selector.select(0 if more else TICK_S)
        finally:
            self._is_well = False
            feed.close()

    def _ends(self) -> bool:
        with self._lock:
            is_idle = not self._slots and time.monotonic() - self._busy_at > IDLE_S
            if not self._is_closed and not is_idle:
                return False
            self._thread = None
            if self._is_closed:
                self._close_pipe()
            return True

    def _follow(self, feed: Feed, keys: Sequence[bytes]) -> None:
        if keys:
            feed.follow(keys)
            self._asked()
        else:
            self._trouble = None

    def _asked(self) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def _change(self, feed: Feed) -> None:
        """Follow what is newly waited for, and no more what is not; see that the other side is alive."""
        now = time.monotonic()
        with self._lock:
            if self._is_woken:
                self._is_woken = False
                os.read(self._ears, 64)
            if self._lingering:
                self._drop_left(list(self._slots), now)
            wanted = [key for key in self._wanted if key in self._slots]
            unwanted = [key for key in self._unwanted if key not in self._slots]
            # Alone they can wait for company, but not for ever.
            if not wanted and len(unwanted) < MAX_LINGERING and now - self._busy_at < TICK_S:
                unwanted = []
            else:
                self._unwanted = []
            self._wanted = []
            if self._slots:
                self._busy_at = now
        if unwanted:
            feed.leave(unwanted)
            self._asked()
        if wanted:
            self._follow(feed, wanted)
        if self._asked_at is not None and now - self._asked_at > ANSWER_S:
            raise TimeoutError(f"no answer in {ANSWER_S:g} s")
        if self._slots and self._asked_at is None and now - self._heard_at > SILENCE_S:
            feed.ping()
            self._asked()

    def _drop_left(self, keys: Collection[bytes], now: float) -> None:
        for key in list(keys):
            slot = self._slots[key]
            if not slot.waiters and now - slot.left_at >= LINGER_S:
                self._lingering -= 1
                self._drop(key)

    def _take_in(self, feed: Feed) -> bool:
        """Take in what has come; returns whether there may be more."""
        answers = feed.answers()
        if not answers:
            return False
        self._asked_at, self._heard_at = None, time.monotonic()
        begun: list[bytes] = []
        for kind, key, value in answers:
            if kind == b"message":
                self._take(key, value)
            elif kind == b"subscribe":
                begun.append(key)
        if begun:
            values = self._store().values(begun)
            for key in begun:
                self._take(key, values.get(key), is_read=True)
            # It answers on both connections.
            self._trouble = None
            self._is_well = True
        return True

    def _take(self, key: bytes, value: bytes | None, *, is_read: bool = False) -> None:
        slot = self._slots.get(key)
        if slot is None:
            return
        record: ResultRecord | None = None
        try:
            record = None if value is None else self._store().record(value)
        except ContentError as error:
            with self._lock:
                self._fail(slot, self._explain(error))
        with self._lock:
            is_news = record is not None and record != slot.record and supersedes(record, slot.record)
            if is_news and record is not None:
                slot.record = record
            for waiter in slot.waiters:
                if is_read and not slot.is_read:
                    waiter.unread -= 1
                    if not waiter.unread:
                        waiter.wake()
                if is_news and record is not None and (record.is_final or waiter.every):
                    waiter.news.append(record)
                    waiter.wake()
            slot.is_read = slot.is_read or is_read
