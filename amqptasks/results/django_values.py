"""The values themselves, by Django's cache framework: each thing that is done in a cache, once and without trying
again.

A value is a plain map, which the cache writes as it likes. Caches know no conditions: who replaces a value holds a
lock, a key of its own, so that a success is never overwritten. Most results replace nothing, and need none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from django.conf import settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import ImproperlyConfigured as DjangoImproperlyConfigured

from amqptasks.exceptions import DecodeError, ImproperlyConfigured
from amqptasks.results.keyvalue import Keys
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store
from amqptasks.results.record import ResultRecord, supersedes
from amqptasks.wire.failures import to_plain

__all__ = ["Values", "is_refused"]

#: A lock whose holder has died goes by itself after so long, seconds.
LOCK_S: Final = 10
#: Pauses between two tries to get one, seconds.
_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.1

#: Memcached takes 250 characters; a project's own prefix, a version and the end of a lock's key come to these.
_KEY_LENGTH: Final = 200
_PLAIN_KEY: Final = re.compile(r"[!-~]+")

#: Caches whose connections a child must not take over from its parent.
_names: set[str] = set()
_inherited: list[Any] = []


class _LockedError(Exception):
    """Another process holds the lock of a key for too long."""


class Values(Store):
    """One cache. Safe from any thread.

    Raises:
        ImproperlyConfigured: This is no Django project, or it has no such cache.
    """

    def __init__(self, name: str, payloads: Payloads, keys: Keys, expires_s: float | None) -> None:
        self._name = name
        self._payloads = payloads
        self._keys = keys
        self._timeout_s = expires_s or None
        try:
            known = settings.CACHES
            self._cache()
        except InvalidCacheBackendError as error:
            raise ImproperlyConfigured(
                f"the result backend django-cache cannot use the cache {name!r} (cache_backend): {error}. Django's "
                f"settings have {', '.join(sorted(known)) or 'none'}"
            ) from error
        except DjangoImproperlyConfigured as error:
            raise ImproperlyConfigured(f"the result backend django-cache needs a Django project: {error}") from error

    def _cache(self) -> Any:
        # Each thread has its own.
        _names.add(self._name)
        return caches[self._name]

    @contextlib.contextmanager
    def _at(self) -> Iterator[Any]:
        """Give the cache; a database's connection that it opens for this is closed again, unless it is to be kept."""
        cache = self._cache()
        if not hasattr(cache, "cache_model_class"):
            yield cache
            return
        from django.db import connections

        before = {id(each.connection) for each in connections.all(initialized_only=True)}
        try:
            yield cache
        finally:
            for each in connections.all(initialized_only=True):
                if id(each.connection) not in before:
                    each.close_if_unusable_or_obsolete()

    def set_up(self) -> None:
        """See whether the cache is one that other processes see.

        Raises:
            ImproperlyConfigured: It is not.
        """
        cache = self._cache()
        if isinstance(cache, (LocMemCache, DummyCache)):
            raise ImproperlyConfigured(
                f"the result backend django-cache cannot use the cache {self._name!r}: no other process sees a "
                f"{type(cache).__name__}. Name another by cache_backend"
            )

    # -- results

    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless the one that is there says more."""
        key = self._key(self._keys.task, record.task_id)
        value = self._plain(record.to_plain())
        with self._at() as cache:
            if cache.add(key, value, self._timeout_s):
                return
            with self._locked(cache, key):
                if supersedes(record, _known(cache, key)):
                    cache.set(key, value, self._timeout_s)

    def _plain(self, value: Any) -> Any:
        """Return a value as whoever reads it will see it.

        Raises:
            EncodeError: It cannot be serialized, as it would have to be anywhere else.
        """
        return self._payloads.loads(self._payloads.dumps(value))

    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks; of those that are not known, none."""
        with self._at() as cache:
            values = cache.get_many([self._key(self._keys.task, task_id) for task_id in ids])
        records = [_record(value) for value in values.values()]
        return [record for record in records if record is not None and (record.is_final or not only_final)]

    def delete(self, task_id: str) -> None:
        """Drop the value of a task."""
        with self._at() as cache:
            cache.delete(self._key(self._keys.task, task_id))

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple, instead of any that was kept before."""
        value = self._plain({"result": plain})
        with self._at() as cache:
            cache.set(self._key(self._keys.group, group_id), value, self._timeout_s)

    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""
        with self._at() as cache:
            value = cache.get(self._key(self._keys.group, group_id))
        return value.get("result") if isinstance(value, Mapping) else None

    def delete_group(self, group_id: str) -> None:
        """Drop a group."""
        with self._at() as cache:
            cache.delete(self._key(self._keys.group, group_id))

    @staticmethod
    def _key(name: Callable[[str], str], each: str) -> str:
        """Return the key of an id: Celery's, unless memcached would not take it, whatever cache this is."""
        key = name(each)
        if len(key) <= _KEY_LENGTH and _PLAIN_KEY.fullmatch(key):
            return key
        return name("=" + hashlib.sha256(each.encode("utf-8", "surrogatepass")).hexdigest())

    # -- locks

    @contextlib.contextmanager
    def _locked(self, cache: Any, key: str) -> Iterator[None]:
        lock, pause_s = f"{key}.lock", _FIRST_PAUSE_S
        deadline = time.monotonic() + 2 * LOCK_S
        while not cache.add(lock, os.getpid(), LOCK_S):
            if time.monotonic() > deadline:
                raise _LockedError(f"the key {lock!r} of the cache {self._name!r} cannot be had")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        try:
            yield
        finally:
            cache.delete(lock)


def _known(cache: Any, key: str) -> ResultRecord | None:
    try:
        return _record(cache.get(key))
    except DecodeError:
        # It says nothing to anybody: the new one may have its place.
        return None


def _record(value: Any) -> ResultRecord | None:
    """Read a value, whoever wrote it.

    Raises:
        DecodeError: It cannot be read.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and isinstance(value.get("result"), BaseException):
        # So django-celery-results keeps failures.
        value = {**value, "result": to_plain(value["result"])}
    if isinstance(value, Mapping) and isinstance(value.get("children"), (list, tuple)):
        value = {**value, "children": _lists(value["children"])}
    return ResultRecord.from_plain(value)


def _lists(value: Any) -> Any:
    return [_lists(each) for each in value] if isinstance(value, (list, tuple)) else value


def is_refused(error: BaseException) -> bool:
    """Whether the cache takes no such key or value, now or ever."""
    if isinstance(error, (TypeError, ValueError, AttributeError, pickle.PicklingError)):
        return True
    return "too large" in str(error).lower()


def _forget() -> None:
    _inherited.extend(caches.all(initialized_only=True))
    for name in _names:
        with contextlib.suppress(AttributeError):
            del caches[name]


os.register_at_fork(after_in_child=_forget)
