"""``result.then(callback)``: calls that are made when a result is there, on a thread that is kept for them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from amqptasks.exceptions import AmqptasksError
from amqptasks.results.arrivals import Arrivals, Outcome
from amqptasks.results.record import ResultRecord
from amqptasks.states import PROPAGATE_STATES

__all__ = ["Promise", "call_when_finished"]

logger = logging.getLogger(__name__)

OnError = Callable[[BaseException], Any]


class Awaited(Protocol):
    """What calls can wait for: a result, or a set of them."""

    def leaves(self) -> Iterator[Any]:
        """Yield the single results it consists of."""


class Promise:
    """A call that is made once, when its argument is there, and the calls that follow it. Safe from any thread.

    Args:
        what: What the argument is, for the log.
    """

    def __init__(self, callback: Callable[[Any], Any], on_error: OnError | None, what: str) -> None:
        self._callback = callback
        self._on_error = on_error
        self._what = what
        self._lock = threading.Lock()
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._next: list[Promise] = []

    def then(self, callback: Callable[[Any], Any], on_error: OnError | None = None) -> Promise:
        """Call something with what this call returns, or `on_error` with what it raises."""
        after = Promise(callback, on_error, self._what)
        with self._lock:
            outcome = self._outcome
            if outcome is None:
                self._next.append(after)
        if outcome is not None:
            after.settle(*outcome)
        return after

    @property
    def is_done(self) -> bool:
        """Whether the call was made."""
        return self._outcome is not None

    def settle(self, value: Any, error: BaseException | None = None) -> None:
        """Make the call, and then those that follow."""
        outcome = self._call(value, error)
        with self._lock:
            self._outcome = outcome
            after, self._next = self._next, []
        for each in after:
            each.settle(*outcome)

    def _call(self, value: Any, error: BaseException | None) -> tuple[Any, BaseException | None]:
        if error is not None and self._on_error is None:
            # Whoever follows may want to know.
            return None, error
        try:
            if error is not None and self._on_error is not None:
                return self._on_error(error), None
            return self._callback(value), None
        except Exception as raised:
            call = self._callback if error is None else self._on_error
            logger.exception("%r raised, called because %s is finished", call, self._what)
            return None, raised


class _Waiting:
    """A result that calls wait for, and how many of its tasks are not finished."""

    __slots__ = ("left", "promise", "result", "unseen")

    def __init__(self, result: Awaited, promise: Promise) -> None:
        self.result = result
        self.promise = promise
        self.left = 0
        self.unseen: AmqptasksError | None = None

    def settle(self) -> None:
        if self.unseen is not None:
            if self.promise._on_error is None:
                logger.error("A callback of %r is not called: %s", self.result, self.unseen)
            self.promise.settle(None, self.unseen)
            return
        error = None if self.promise._on_error is None else _error_of(self.result)
        self.promise.settle(self.result, error)


def _error_of(result: Awaited) -> BaseException | None:
    for leaf in result.leaves():
        if leaf.state in PROPAGATE_STATES:
            error = leaf.result
            return error if isinstance(error, BaseException) else Exception(error)
    return None


class _Caller:
    """The thread that makes the calls, and what it waits for. One for each process; it begins with the first call."""

    def __init__(self) -> None:
        self._arrivals = Arrivals()
        self._lock = threading.Lock()
        self._waiting: dict[str, list[tuple[Any, _Waiting]]] = {}
        self._thread: threading.Thread | None = None

    def wait_for(self, waiting: _Waiting, leaves: list[Any]) -> None:
        """Settle `waiting` when all of these are finished."""
        waiting.left = len(leaves)
        done: list[str] = []
        try:
            for leaf in leaves:
                with self._lock:
                    known = self._waiting.get(leaf.id)
                    if known is None:
                        self._arrivals.add(leaf.backend, leaf.id)
                    self._waiting.setdefault(leaf.id, []).append((leaf, waiting))
                done.append(leaf.id)
        except BaseException:
            self._give_up(waiting, done)
            raise
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="amqptasks-callbacks", daemon=True)
                self._thread.start()

    def _give_up(self, waiting: _Waiting, ids: list[str]) -> None:
        with self._lock:
            for task_id in ids:
                self._waiting[task_id] = [each for each in self._waiting[task_id] if each[1] is not waiting]

    def _run(self) -> None:
        while True:
            try:
                arrived = self._arrivals.take(None)
            except Exception:
                # Whatever it is, the other results are waited for.
                logger.exception("Cannot look at the results that callbacks wait for")
                continue
            for task_id, outcome in arrived.items():
                self._arrived(task_id, outcome)

    def _arrived(self, task_id: str, outcome: Outcome) -> None:
        with self._lock:
            all_waiting = self._waiting.pop(task_id, [])
        for leaf, waiting in all_waiting:
            if isinstance(outcome, ResultRecord):
                leaf._final = outcome
            else:
                waiting.unseen = outcome
            waiting.left -= 1
            if waiting.left:
                continue
            try:
                waiting.settle()
            except BaseException:
                # SystemExit in a callback must not end the thread that others wait for.
                logger.exception("A callback of %r raised", waiting.result)


_caller = _Caller()


def _after_fork() -> None:
    # The thread stayed with the parent, and so did those who wait.
    global _caller
    _caller = _Caller()


os.register_at_fork(after_in_child=_after_fork)


def call_when_finished(result: Awaited, callback: Callable[[Any], Any], on_error: OnError | None) -> Promise:
    """Call `callback` with `result` once it is finished, or `on_error` with its error; see `ResultBase.then`."""
    promise = Promise(callback, on_error, repr(result))
    waiting = _Waiting(result, promise)
    leaves = [leaf for leaf in result.leaves() if leaf._final is None]
    if leaves:
        _caller.wait_for(waiting, leaves)
    else:
        waiting.settle()
    return promise
