"""Results in a database: ``db+`` and any URL of SQLAlchemy's, such as ``db+postgresql://host/name``.

The tables are Celery's, so that workers and callers of both can share a database, and a success is never overwritten.
Here is how long to try and to wait; what is done in the database is in `database_engine.py`, imported with the first
use, so that programs which only send tasks do not pay for SQLAlchemy.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from amqptasks.exceptions import BackendGetMetaError, BackendStoreError, EncodeError, ImproperlyConfigured
from amqptasks.results.backend import OnRecord, ResultBackend, timed_out
from amqptasks.results.payload import Payloads
from amqptasks.results.record import ResultRecord
from amqptasks.results.registry import BackendApp, resolve
from amqptasks.results.retries import StoreRetries, persist
from amqptasks.urls import mask_url
from amqptasks.wire.reprs import printable

if TYPE_CHECKING:
    from amqptasks.results.database_engine import Database

__all__ = ["DatabaseBackend", "from_app"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The first pause between two looks at a result that is waited for, and the longest. Seconds.
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.5
#: A wait without a timeout goes on for this long while the database cannot be reached, seconds.
PATIENCE_S: Final = 30.0
#: Expired rows are deleted about this often by each process that stores, at most so many at once.
CLEANUP_EVERY_S: Final = 3600.0
CLEANUP_ROWS: Final = 1000
_TABLES: Final = ("task", "group")


def from_app(url: str, app: BackendApp) -> DatabaseBackend:
    """Make the backend that the settings ask for; ``url`` is SQLAlchemy's, or empty for ``database_url``."""
    conf = app.conf
    url = url or str(conf.database_url or "").removeprefix("db+")
    if not url:
        raise ImproperlyConfigured("the result backend 'database' needs database_url, or write db+sqlite:///results.db")
    callback = conf.database_engine_callback
    options = {
        "engine_options": conf.database_engine_options or {},
        "engine_callback": resolve(callback, "database_engine_callback") if isinstance(callback, str) else callback,
        "short_lived": conf.database_short_lived_sessions,
        "names": _of_tables(conf, "database_table_names"),
        "schemas": _of_tables(conf, "database_table_schemas"),
        "create": conf.database_create_tables_at_setup,
        "expires_s": conf.result_expires,
    }
    return DatabaseBackend(url, options, Payloads.of(conf, app.limits()), StoreRetries.of(conf))


def _of_tables(conf: Any, setting: str) -> Mapping[str, str]:
    given: Mapping[str, str] = conf[setting] or {}
    for key, value in given.items():
        if key not in _TABLES or not isinstance(value, str) or not value:
            raise ImproperlyConfigured(
                f"expected {setting} to map 'task' and 'group' to names, got: {key!r}: {value!r}"
            )
    return given


class _Unavailable(BackendGetMetaError):
    """The database could not be read, and may be back soon."""


_backends: weakref.WeakSet[DatabaseBackend] = weakref.WeakSet()
#: Databases of the process this one was forked from: closing their connections here would end them there.
_inherited: list[Any] = []


class DatabaseBackend(ResultBackend):
    """A result store in two tables. Safe from any thread; a forked child opens connections of its own.

    Args:
        url: SQLAlchemy's.
        options: Fields of `database_engine.DatabaseOptions`.

    Raises:
        ImproperlyConfigured: The URL cannot be used, or SQLAlchemy is not installed.
    """

    compresses = True

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, payloads: Payloads | None = None,
        retries: StoreRetries | None = None,
    ) -> None:  # fmt: skip
        self._url = _checked(url)
        self._options = dict(options or {})
        self._payloads = payloads or Payloads()
        self._retries = retries or StoreRetries()
        self._reset()
        _backends.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._opened: Database | None = None
        self._closing = threading.Event()
        self._cleanup_due = time.monotonic() + random.uniform(0.1, 1.0) * CLEANUP_EVERY_S

    def _forget_after_fork(self) -> None:
        if self._opened is not None:
            _inherited.append(self._opened)
        was_closed = self._closing.is_set()
        self._reset()
        if was_closed:
            self._closing.set()

    # -- the worker's side

    def prepare(self) -> None:
        """Connect and create the tables, unless the settings leave that to the first result."""
        if self._options.get("create", True):
            self._write("create the tables for results", lambda database: database.set_up(), brief=True)

    def store(self, record: ResultRecord) -> None:
        """Keep a record, trying again as the settings say; a state that is not final is soon given up."""
        what = f"store the result of task {printable(record.task_id, 64)}"
        self._write(what, lambda database: database.store(record), brief=not record.is_final)
        if record.is_final and time.monotonic() >= self._cleanup_due:
            self._clean_a_little()

    def _clean_a_little(self) -> None:
        self._cleanup_due = time.monotonic() + random.uniform(0.5, 1.5) * CLEANUP_EVERY_S
        try:
            deleted = self._database().delete_expired(CLEANUP_ROWS)
        except Exception as error:
            # The result is stored; old ones are the next turn's.
            logger.warning("Cannot delete expired results in %s: %s", self.as_uri(), printable(str(error), 300))
            return
        if deleted >= CLEANUP_ROWS:
            # There is more: go on with the next result.
            self._cleanup_due = 0.0

    def cleanup(self) -> int:
        """Delete every result and group that has expired; return how many.

        Raises:
            BackendStoreError: The database could not be written.
        """
        total = 0
        while True:
            deleted = self._write(
                "delete expired results", lambda database: database.delete_expired(CLEANUP_ROWS), brief=True
            )
            total += deleted
            if deleted < CLEANUP_ROWS:
                return total

    # -- the caller's side

    def fetch(self, task_id: str) -> ResultRecord | None:
        """Return the newest record of a task, or None."""
        what = f"read the result of task {printable(task_id, 64)}"
        found = self._read(what, lambda database: database.select([task_id]))
        return found[0] if found else None

    def wait(self, task_id: str, timeout_s: float | None, on_record: OnRecord | None = None) -> ResultRecord:
        """Look at a task again and again, at growing intervals of up to half a second, until it is finished."""
        seen: ResultRecord | None = None

        def look() -> ResultRecord | None:
            nonlocal seen
            record = self.fetch(task_id)
            if record is None or record == seen:
                return None
            seen = record
            if on_record is not None:
                on_record(record)
            return record if record.is_final else None

        return self._poll(look, timeout_s)

    def wait_any(
        self, task_ids: Collection[str], timeout_s: float | None, on_record: OnRecord | None = None
    ) -> list[ResultRecord]:
        """Look at several tasks at once until at least one is finished."""
        ids = list(task_ids)
        if not ids:
            raise timed_out()
        what = f"read the results of {len(ids)} tasks"
        records = self._poll(
            lambda: self._read(what, lambda database: database.select(ids, only_final=True)) or None, timeout_s
        )
        if on_record is not None:
            for record in records:
                on_record(record)
        return records

    def _poll(self, look: Callable[[], T | None], timeout_s: float | None) -> T:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        patient_until: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            trouble: _Unavailable | None = None
            try:
                found = look()
                if found is not None:
                    return found
                patient_until = None
            except _Unavailable as error:
                # A database that restarts is back within the time that somebody is willing to wait.
                trouble, patient_until = error, patient_until or time.monotonic() + PATIENCE_S
            limit = patient_until if deadline is None else deadline
            left_s = None if limit is None else limit - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise trouble or timed_out()
            self._closing.wait(pause_s if left_s is None else min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def forget(self, task_id: str) -> None:
        """Delete the row of a task."""
        what = f"forget the result of task {printable(task_id, 64)}"
        self._write(what, lambda database: database.delete(task_id), brief=True)

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep the plain tuple of a group's results."""
        what = f"save the group {printable(group_id, 64)}"
        self._write(what, lambda database: database.save_group(group_id, plain), brief=True)

    def fetch_group(self, group_id: str) -> Any:
        """Return what was kept of a group, or None."""
        return self._read(f"read the group {printable(group_id, 64)}", lambda database: database.select_group(group_id))

    def delete_group(self, group_id: str) -> None:
        """Delete the row of a group."""
        what = f"delete the group {printable(group_id, 64)}"
        self._write(what, lambda database: database.delete_group(group_id), brief=True)

    # -- life

    def as_uri(self) -> str:
        """Return the URL without its password."""
        return mask_url(f"db+{self._url}")

    def close(self) -> None:
        """Close the connections and wake who waits. A closed backend stays closed: the app makes another."""
        with self._lock:
            self._closing.set()
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.dispose()

    def _database(self) -> Database:
        with self._lock:
            if self._closing.is_set():
                raise BackendGetMetaError(f"the result backend {self.as_uri()} was closed")
            if self._opened is None:
                from amqptasks.results.database_engine import Database, DatabaseOptions

                self._opened = Database(self._url, DatabaseOptions(**self._options), self._payloads)
            return self._opened

    # -- trouble

    def _write(self, what: str, operation: Callable[[Database], T], *, brief: bool) -> T:
        try:
            return self._persist(what, operation, self._retries.brief() if brief else self._retries, logging.WARNING)
        except (EncodeError, BackendStoreError, ImproperlyConfigured):
            raise
        except Exception as error:
            from amqptasks.results.database_engine import is_refused

            # A value that does not fit fails its task, which its caller then learns.
            kind = EncodeError if is_refused(error) else BackendStoreError
            raise kind(f"cannot {what} in {self.as_uri()}: {_reason(error)}") from error

    def _read(self, what: str, operation: Callable[[Database], T]) -> T:
        try:
            # Who reads learns of it, and looks many times: the log need not fill with that.
            return self._persist(what, operation, self._retries.brief(), logging.DEBUG)
        except (BackendGetMetaError, ImproperlyConfigured):
            raise
        except Exception as error:
            kind = _Unavailable if _may_pass(error, 0) else BackendGetMetaError
            raise kind(f"cannot {what} in {self.as_uri()}: {_reason(error)}") from error

    def _persist(self, what: str, operation: Callable[[Database], T], retries: StoreRetries, level: int) -> T:
        def on_retry(error: Exception, wait_s: float) -> None:
            uri, why = self.as_uri(), _reason(error)
            logger.log(level, "Cannot %s in %s: %s; trying again in %.2f s", what, uri, why, wait_s)
            if self._opened is not None:
                self._opened.look_again()

        return persist(lambda: operation(self._database()), retries, _may_pass, on_retry, self._closing.wait)


def _may_pass(error: Exception, retry: int) -> bool:
    from amqptasks.results.database_engine import may_pass

    return may_pass(error, retry)


def _reason(error: BaseException) -> str:
    from amqptasks.results.database_engine import reason

    return reason(error)


def _checked(url: str) -> str:
    if importlib.util.find_spec("sqlalchemy") is None:
        raise ImproperlyConfigured(
            f"the result backend {mask_url(f'db+{url}')} needs SQLAlchemy: pip install 'amqptasks[sqlalchemy]'"
        )
    scheme, found, rest = url.partition("://")
    if not found or not scheme:
        raise ImproperlyConfigured(
            f"expected an SQLAlchemy URL such as sqlite:///results.db or postgresql://host/name, got: {mask_url(url)!r}"
        )
    if scheme.partition("+")[0] == "sqlite" and rest.partition("?")[0] in ("", "/", "/:memory:"):
        raise ImproperlyConfigured(
            f"the result backend db+{url} is a database in memory, which no other process sees: name a file, as in "
            "db+sqlite:///results.db, or use memory://"
        )
    return url


def _after_fork() -> None:
    for backend in list(_backends):
        backend._forget_after_fork()


os.register_at_fork(after_in_child=_after_fork)
