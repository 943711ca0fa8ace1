"""What all stores have in common that are asked for results again and again: how long to try, and how long to wait.

A `StoreBackend` opens a `Store`, does everything in it with the retries that the settings ask for, polls it for whoever
waits, and has expired results deleted now and then. What is done in the store, once and without trying again, is all
that a new one has to say.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar

from amqptasks.exceptions import (
    BackendError,
    BackendGetMetaError,
    BackendStoreError,
    ContentError,
    EncodeError,
    ImproperlyConfigured,
)
from amqptasks.results.backend import OnRecord, ResultBackend, Unavailable, timed_out
from amqptasks.results.record import ResultRecord
from amqptasks.results.retries import StoreRetries, persist
from amqptasks.wire.reprs import printable

__all__ = ["Store", "StoreBackend"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The first pause between two looks at a result that is waited for, and the longest. Seconds.
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.5
#: A wait without a timeout goes on for this long while the store cannot be reached, seconds.
PATIENCE_S: Final = 30.0
#: Expired results are deleted about this often by each process that stores, at most so many at once.
CLEANUP_EVERY_S: Final = 3600.0
CLEANUP_ROWS: Final = 1000


class Store(ABC):
    """One store, and each thing that is done in it: once, without trying again. Safe from any thread.

    Errors are those of its library; what `StoreBackend.may_pass` says of them decides whether it is called again.
    """

    def set_up(self) -> Any:  # noqa: B027 - most have nothing to do
        """Make whatever results are kept in, unless it is there."""

    @abstractmethod
    def store(self, record: ResultRecord) -> None:
        """Keep a record, unless what is there says more (`record.supersedes`)."""

    @abstractmethod
    def select(self, ids: Sequence[str], *, only_final: bool = False) -> list[ResultRecord]:
        """Return the records of these tasks; of those that are not known, none."""

    @abstractmethod
    def delete(self, task_id: str) -> None:
        """Drop what is known of a task."""

    @abstractmethod
    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep a group's plain tuple, instead of any that was kept before."""

    @abstractmethod
    def select_group(self, group_id: str) -> Any:
        """Return a group's plain tuple, or None."""

    @abstractmethod
    def delete_group(self, group_id: str) -> None:
        """Drop a group."""

    def delete_expired(self, most: int) -> int:
        """Drop up to about so many results that have expired; return how many. Fewer than asked for: no more are."""
        del most
        return 0

    def look_again(self) -> None:  # noqa: B027 - most have nothing to do
        """Forget what is known of the store: a failed operation is about to be tried again."""

    def dispose(self) -> None:  # noqa: B027 - most have nothing to do
        """Close the connections: those in use as soon as they are not."""


_backends: weakref.WeakSet[StoreBackend] = weakref.WeakSet()
#: Stores of the process this one was forked from: closing their connections here would end them there.
_inherited: list[Any] = []


class StoreBackend(ResultBackend):
    """A result backend over a `Store`. Safe from any thread; a forked child opens a store of its own.

    Attributes:
        cleans_up: Whether processes that store delete what has expired now and then. False where the store does.
    """

    compresses = True
    cleans_up = True

    def __init__(self, retries: StoreRetries | None = None) -> None:
        self._retries = retries or StoreRetries()
        self._reset()
        _backends.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._opened: Store | None = None
        self._closing = threading.Event()
        self._cleanup_due = time.monotonic() + random.uniform(0.1, 1.0) * CLEANUP_EVERY_S

    def _forget_after_fork(self) -> None:
        if self._opened is not None:
            _inherited.append(self._opened)
        was_closed = self._closing.is_set()
        self._reset()
        if was_closed:
            self._closing.set()

    # -- what a store says of itself

    @abstractmethod
    def open(self) -> Store:
        """Make the store. Called once, with the first use, and again after a fork; need not connect.

        Raises:
            ImproperlyConfigured: That can never work.
        """

    @abstractmethod
    def as_uri(self) -> str:
        """Name the store for logs and errors, without passwords."""

    @abstractmethod
    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether trying again may help after an error of the store's; ``retry`` says how often that was done."""

    def is_refused(self, error: BaseException) -> bool:
        """Whether an error says that the store takes no such value, now or ever."""
        del error
        return False

    def reason(self, error: BaseException) -> str:
        """Say why in one line, without the values."""
        return printable(" ".join(str(error).split()) or type(error).__name__, 300)

    # -- the worker's side

    def prepare(self) -> None:
        """Make what results are kept in."""
        self._write("get ready for results", lambda store: store.set_up(), brief=True)

    def store(self, record: ResultRecord) -> None:
        """Keep a record, trying again as the settings say; a state that is not final is soon given up."""
        what = f"store the result of task {printable(record.task_id, 64)}"
        self._write(what, lambda store: store.store(record), brief=not record.is_final)
        if self.cleans_up and record.is_final and time.monotonic() >= self._cleanup_due:
            self._clean_a_little()

    def _clean_a_little(self) -> None:
        self._cleanup_due = time.monotonic() + random.uniform(0.5, 1.5) * CLEANUP_EVERY_S
        try:
            deleted = self._store().delete_expired(CLEANUP_ROWS)
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
            BackendStoreError: The store could not be written.
        """
        total = 0
        while True:
            deleted = self._write(
                "delete expired results", lambda store: store.delete_expired(CLEANUP_ROWS), brief=True
            )  # fmt: skip
            total += deleted
            if deleted < CLEANUP_ROWS:
                return total

    # -- the caller's side

    def fetch(self, task_id: str) -> ResultRecord | None:
        """Return the newest record of a task, or None."""
        what = f"read the result of task {printable(task_id, 64)}"
        found = self._read(what, lambda store: store.select([task_id]))
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
            lambda: self._read(what, lambda store: store.select(ids, only_final=True)) or None, timeout_s
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
            trouble: Unavailable | None = None
            try:
                found = look()
                if found is not None:
                    return found
                patient_until = None
            except Unavailable as error:
                # A store that restarts is back within the time that somebody is willing to wait.
                trouble, patient_until = error, patient_until or time.monotonic() + PATIENCE_S
            limit = patient_until if deadline is None else deadline
            left_s = None if limit is None else limit - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise trouble or timed_out()
            self._closing.wait(pause_s if left_s is None else min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)

    def forget(self, task_id: str) -> None:
        """Delete what is known of a task."""
        what = f"forget the result of task {printable(task_id, 64)}"
        self._write(what, lambda store: store.delete(task_id), brief=True)

    # -- groups

    def save_group(self, group_id: str, plain: Any) -> None:
        """Keep the plain tuple of a group's results."""
        what = f"save the group {printable(group_id, 64)}"
        self._write(what, lambda store: store.save_group(group_id, plain), brief=True)

    def fetch_group(self, group_id: str) -> Any:
        """Return what was kept of a group, or None."""
        return self._read(f"read the group {printable(group_id, 64)}", lambda store: store.select_group(group_id))

    def delete_group(self, group_id: str) -> None:
        """Delete what was kept of a group."""
        what = f"delete the group {printable(group_id, 64)}"
        self._write(what, lambda store: store.delete_group(group_id), brief=True)

    # -- life

    def close(self) -> None:
        """Close the connections and wake who waits. A closed backend stays closed: the app makes another."""
        with self._lock:
            self._closing.set()
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.dispose()

    def _store(self) -> Store:
        with self._lock:
            if self._closing.is_set():
                raise BackendGetMetaError(f"the result backend {self.as_uri()} was closed")
            if self._opened is None:
                self._opened = self.open()
            return self._opened

    # -- trouble

    def _write(self, what: str, operation: Callable[[Store], T], *, brief: bool) -> T:
        try:
            return self._persist(what, operation, self._retries.brief() if brief else self._retries, logging.WARNING)
        except (EncodeError, BackendStoreError, ImproperlyConfigured):
            raise
        except Exception as error:
            # A value that does not fit fails its task, which its caller then learns.
            kind = EncodeError if self.is_refused(error) else BackendStoreError
            raise kind(f"cannot {what} in {self.as_uri()}: {self.reason(error)}") from error

    def _read(self, what: str, operation: Callable[[Store], T]) -> T:
        try:
            # Who reads learns of it, and looks many times: the log need not fill with that.
            return self._persist(what, operation, self._retries.brief(), logging.DEBUG)
        except (BackendGetMetaError, ImproperlyConfigured):
            raise
        except Exception as error:
            kind = Unavailable if self._is_transient(error, 0) else BackendGetMetaError
            raise kind(f"cannot {what} in {self.as_uri()}: {self.reason(error)}") from error

    def _is_transient(self, error: Exception, retry: int) -> bool:
        if isinstance(error, (ContentError, BackendError, ImproperlyConfigured)):
            return False
        return self.may_pass(error, retry)

    def _persist(self, what: str, operation: Callable[[Store], T], retries: StoreRetries, level: int) -> T:
        def on_retry(error: Exception, wait_s: float) -> None:
            uri, why = self.as_uri(), self.reason(error)
            logger.log(level, "Cannot %s in %s: %s; trying again in %.2f s", what, uri, why, wait_s)
            if self._opened is not None:
                self._opened.look_again()

        return persist(lambda: operation(self._store()), retries, self._is_transient, on_retry, self._closing.wait)


def _after_fork() -> None:
    for backend in list(_backends):
        backend._forget_after_fork()


os.register_at_fork(after_in_child=_after_fork)
