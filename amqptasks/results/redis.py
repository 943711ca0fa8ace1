"""Results in Redis: ``redis://``, ``rediss://``, ``redis+socket://`` and ``sentinel://``.

Keys, values and announcements are Celery's, so that workers and callers of both can share a Redis; a success is never
overwritten. Who waits is told by Redis (`redis_news.py`). What is done in the server is in `redis_server.py`, imported
with the first use, so that programs which only send tasks do not pay for it.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from amqptasks.exceptions import BackendGetMetaError, EncodeError, ImproperlyConfigured
from amqptasks.results.backend import OnRecord, timed_out
from amqptasks.results.keyvalue import Keys
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store, StoreBackend
from amqptasks.results.record import ResultRecord
from amqptasks.results.redis_news import News
from amqptasks.results.redis_url import checked_url
from amqptasks.results.registry import BackendApp
from amqptasks.results.retries import StoreRetries
from amqptasks.results.waiting import Waiter, Watcher
from amqptasks.urls import mask_url
from amqptasks.wire.reprs import printable

if TYPE_CHECKING:
    from amqptasks.results.redis_server import RedisStore

__all__ = ["RedisBackend", "from_app"]

logger = logging.getLogger(__name__)

#: How long Redis may take to answer at once, seconds.
GLANCE_S: Final = 1.0


def from_app(url: str, app: BackendApp) -> RedisBackend:
    """Make the backend that the settings ask for; ``url`` is Celery's, or empty for ``redis_host`` and its like."""
    conf = app.conf
    defaults = {
        "host": conf.redis_host or "localhost",
        "port": conf.redis_port or 6379,
        "db": conf.redis_db or 0,
        "username": conf.redis_username,
        "password": conf.redis_password,
        "socket_timeout": conf.redis_socket_timeout or None,
        "socket_connect_timeout": conf.redis_socket_connect_timeout or None,
        "socket_keepalive": conf.redis_socket_keepalive,
        "health_check_interval": conf.redis_backend_health_check_interval,
        "credential_provider": conf.redis_backend_credential_provider,
        "use_ssl": conf.redis_backend_use_ssl,
    }
    failure_expires = conf.result_failure_expires
    options = {
        "defaults": {key: value for key, value in defaults.items() if value is not None},
        "transport": conf.result_backend_transport_options or {},
        "max_connections": conf.redis_max_connections,
        "retry_on_timeout": conf.redis_retry_on_timeout,
        "expires_s": conf.result_expires,
        "chord_expires_s": conf.result_expires if conf.result_chord_expires is None else conf.result_chord_expires,
        "failure_expires_s": conf.result_expires if failure_expires is None else failure_expires,
    }
    return RedisBackend(url, options, Keys.of(conf), Payloads.of(conf, app.limits()), StoreRetries.of(conf))


class RedisBackend(StoreBackend):
    """A result store in Redis. Safe from any thread; a forked child opens connections of its own.

    Args:
        url: Celery's; empty for what the options say.
        options: Fields of `redis_server.RedisOptions`.

    Raises:
        ImproperlyConfigured: The URL cannot be used, or the library is not installed.
    """

    # Redis deletes what has expired.
    cleans_up = False
    expires_failures = True
    counts_chords = True

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, keys: Keys | None = None,
        payloads: Payloads | None = None, retries: StoreRetries | None = None,
    ) -> None:  # fmt: skip
        if importlib.util.find_spec("redis") is None:
            raise ImproperlyConfigured(
                f"the result backend {mask_url(url or 'redis://')} needs redis: pip install 'amqptasks[redis]'"
            )
        self._url = checked_url(url)
        self._options = dict(options or {})
        self._keys = keys or Keys()
        self._payloads = payloads or Payloads()
        self._news: News | None = None
        self._newest = ""
        super().__init__(retries)

    def _reset(self) -> None:
        super()._reset()
        if self._news is not None:
            self._news.abandon()
        self._news = None
        self._news_lock = threading.Lock()

    # -- what a store says of itself

    def open(self) -> Store:
        """Make the store, without connecting."""
        from amqptasks.results.redis_server import RedisOptions, RedisStore

        return RedisStore(self._url, RedisOptions(**self._options), self._keys, self._payloads)

    def as_uri(self) -> str:
        """Return the URL without its password."""
        url = mask_url(self._url or "redis://")
        return f"redis+{url}" if url.startswith(("socket:", "unix:")) else url

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether trying again may help."""
        from amqptasks.results.redis_server import may_pass

        del retry
        return may_pass(error)

    def is_refused(self, error: BaseException) -> bool:
        """Whether no key or value can be made of it."""
        return isinstance(error, UnicodeError)

    # -- chords of Celery's kind

    def begin_chord(self, group_id: str, size: int, plain: Any, *, is_nested: bool, is_again: bool) -> None:
        """Write what Celery's and our workers count by."""
        what = f"begin chord {printable(group_id, 64)}"
        saved = plain if is_nested else None
        self._write(
            what, lambda store: cast("RedisStore", store).begin_chord(group_id, size, saved, is_again), brief=False
        )

    def add_to_chord(self, group_id: str, key: str) -> None:
        """Count one more part."""
        what = f"add to chord {printable(group_id, 64)}"
        self._write(what, lambda store: cast("RedisStore", store).add_to_chord(group_id, key), brief=False)

    def count_part(
        self, group_id: str, task_id: str, index: int | None, state: str, value: Any, size: int | None = None
    ) -> bool:
        """Count the end of a part as Celery does, trying again as for results. Redis knows the size."""
        del size
        what = f"count task {printable(task_id, 64)} in its chord"

        def count(store: Store) -> bool:
            return cast("RedisStore", store).count_part(group_id, task_id, index, state, value)

        return self._write(what, count, brief=False)

    def counted_parts(self, group_id: str) -> list[tuple[str, str, Any]]:
        """Return the parts that were counted, by Celery's workers too."""
        what = f"read the parts of chord {printable(group_id, 64)}"
        return self._read(what, lambda store: cast("RedisStore", store).parts(group_id))

    # -- the caller's side

    def expect(self, task_id: str) -> None:
        """Note that it is being sent: it cannot be finished yet."""
        self._newest = task_id

    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None = None) -> ResultRecord:
        """Wait until Redis tells that a task is finished."""
        key = self._key(task_id)
        if timeout_s is not None and timeout_s <= 0:
            return self._look(task_id, key, on_record)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        news, waiter = self._listening(), Waiter(every=on_record is not None)
        if task_id != self._newest and on_record is None and news.is_well:
            # One question, instead of following what may be there already.
            record = self._glance(key, timeout_s)
            if record is not None:
                return record
        with news.following((key,), waiter):
            while True:
                while waiter.news:
                    record = waiter.news.popleft()
                    if on_record is not None:
                        on_record(record)
                    if record.is_final:
                        return record
                news.pause(waiter, deadline)

    def _glance(self, key: bytes, within_s: float | None) -> ResultRecord | None:
        """Return the record of a finished task if Redis says so at once; whatever is wrong, others will tell."""
        try:
            value = self._redis().peek(key, min(GLANCE_S, within_s or GLANCE_S))
            record = None if value is None else self._redis().record(value)
        except Exception as error:
            logger.debug("No answer from %s at once: %s", self.as_uri(), self.reason(error))
            return None
        return record if record is not None and record.is_final else None

    def _look(self, task_id: str, key: bytes, on_record: OnRecord | None) -> ResultRecord:
        is_known, record = (False, None) if self._news is None else self._news.known(key)
        if not is_known:
            record = self.fetch(task_id)
        if record is not None and on_record is not None:
            on_record(record)
        if record is None or not record.is_final:
            raise timed_out()
        return record

    def wait_any(
        self, task_ids: Collection[str], timeout_s: float | None, on_record: OnRecord | None = None
    ) -> list[ResultRecord]:
        """Wait until Redis tells that at least one of several tasks is finished."""
        keys = {self._key(task_id) for task_id in task_ids}
        if not keys:
            raise timed_out()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        news, waiter = self._listening(), Waiter(every=False)
        with news.following(keys, waiter):
            # All that are finished are wanted, so all must have been looked at; not longer than there is time.
            records = _final(waiter)
            while waiter.unread or not records:
                try:
                    news.pause(waiter, deadline)
                except (BackendGetMetaError, TimeoutError):
                    records.update(_final(waiter))
                    if not records:
                        raise
                    break
                records.update(_final(waiter))
        if on_record is not None:
            for record in records.values():
                on_record(record)
        return list(records.values())

    def subscribe(self, task_id: str, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Wake a coroutine when Redis tells that a task is finished."""
        keys, watcher = (self._key(task_id),), Watcher(wake)
        news = self._listening()
        news.follow(keys, watcher)
        return lambda: news.leave(keys, watcher)

    def forget(self, task_id: str) -> None:
        """Delete what is known of a task."""
        super().forget(task_id)
        if self._news is not None:
            self._news.forget(self._key(task_id))

    def _key(self, task_id: str) -> bytes:
        try:
            return self._keys.task(task_id).encode()
        except UnicodeError as error:
            raise EncodeError(f"Redis takes no such id of a task: {printable(task_id, 64)}") from error

    def _listening(self) -> News:
        news = self._news
        if news is None:
            # Also imports the library, and says if it cannot be used.
            self._store()
            with self._news_lock:
                news = self._news
                if news is None:
                    news = self._news = News(self._redis, lambda error: self.may_pass(error, 0), self._explain)
        return news

    def _redis(self) -> RedisStore:
        return cast("RedisStore", self._store())

    def _explain(self, error: Exception) -> BackendGetMetaError:
        return BackendGetMetaError(f"cannot read results in {self.as_uri()}: {self.reason(error)}")

    def close(self) -> None:
        """Close the connections and wake who waits. A closed backend stays closed: the app makes another."""
        super().close()
        with self._news_lock:
            news = self._news
        if news is not None:
            news.close()


def _final(waiter: Waiter) -> dict[str, ResultRecord]:
    """Take the final records from a waiter's news, by task."""
    found: dict[str, ResultRecord] = {}
    while waiter.news:
        record = waiter.news.popleft()
        if record.is_final:
            found[record.task_id] = record
    return found
