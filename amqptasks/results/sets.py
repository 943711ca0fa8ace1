"""Several results as one: `ResultSet`.

Nothing here knows how a single result is asked; `results/handles.py` does, and adds `GroupResult`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from amqptasks.exceptions import AmqptasksError, ImproperlyConfigured, TimeoutError
from amqptasks.results.arrivals import Arrivals
from amqptasks.results.awaiting import AwaitedSet
from amqptasks.results.backend import ResultBackend, timed_out
from amqptasks.results.context import assert_will_not_block, default_app
from amqptasks.results.record import ResultRecord
from amqptasks.results.relations import Callback, Look, OnMessage, ResultBase

__all__ = ["LOOK_ASIDE_S", "MIN_SLICE_S", "ResultSet", "required_id"]

#: How often a wait looks aside, at parents and siblings that may have failed.
LOOK_ASIDE_S = 0.5
# The least of it: a slice of nothing would spin.
MIN_SLICE_S = 0.01


class ResultSet(AwaitedSet, ResultBase):
    """A list of results that is waited for as one. Members may be groups.

    Args:
        app: Whose backend to ask; the members' unless given.
    """

    results: list[Any]

    # That of sets made without one. `App` makes subclasses with itself here.
    _app: Any = None

    def __init__(self, results: Iterable[Any], app: Any = None, ready_barrier: Any = None, **kwargs: Any) -> None:
        del ready_barrier, kwargs
        self.results = results if isinstance(results, list) else list(results or ())
        if app is not None:
            self._app = app

    @property
    def app(self) -> Any:
        """The app it was made with, or its first member's."""
        if self._app is None and self.results:
            return self.results[0].app
        return self._app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def backend(self) -> ResultBackend:
        """The backend that is asked."""
        if self._app is None and self.results:
            member: ResultBase = self.results[0]
            return member.backend
        backend: ResultBackend = (default_app(repr(self)) if self._app is None else self._app).backend
        return backend

    # -- the list

    def add(self, result: Any) -> None:
        """Append a result, unless it is a member."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Remove a result, or the one of an id; KeyError if it is not a member."""
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Remove a result if it is a member."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Append those results that are not members."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Remove all members. The list itself stays the same."""
        self.results.clear()

    def index(self, result: Any) -> int:
        """Return the position of a result, or of the one of an id; ValueError if it is not a member."""
        return self.results.index(result)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    # -- looking

    def successful(self) -> bool:
        """Whether every member finished well."""
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Whether any member failed."""
        return any(result.failed() for result in self.results)

    def waiting(self) -> bool:
        """Whether any member is not finished."""
        return any(not result.ready() for result in self.results)

    def ready(self) -> bool:
        """Whether every member is finished."""
        return all(result.ready() for result in self.results)

    def completed_count(self) -> int:
        """How many members finished well."""
        return sum(result.successful() for result in self.results)

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the error of the first member that is known to have failed."""
        for result in self.results:
            result.maybe_throw(propagate=propagate, callback=callback)

    maybe_reraise = maybe_throw

    @property
    def children(self) -> list[Any]:
        """The members."""
        return self.results

    @property
    def supports_native_join(self) -> bool:
        """Whether it is joined without polling. Always true."""
        return True

    # -- waiting

    def get(
        self, timeout: float | None = None, propagate: bool = True, interval: float = LOOK_ASIDE_S,
        callback: Callback | None = None, no_ack: bool = True, on_message: OnMessage | None = None,
        disable_sync_subtasks: bool = True, on_interval: Look | None = None, **options: Any,
    ) -> list[Any]:  # fmt: skip
        """Wait for all members and return their values in order.

        The error of any member, and that of an earlier step of a chain, is raised when it is known or at most
        `interval` seconds later, not when its turn comes.

        Args:
            timeout: Seconds to wait at most, for all of them together.
            propagate: If false, the exceptions of failed members stand in the list.
            callback: Called with (id, value) for each member, in order; the list returned is then empty.
            on_message, on_interval, interval, disable_sync_subtasks: As in `AsyncResult.get`.

        Raises:
            TimeoutError: Not all were finished in time.
            RuntimeError: Called inside a task.
        """
        del no_ack, options
        if disable_sync_subtasks:
            assert_will_not_block()
        deadline = None if timeout is None else time.monotonic() + timeout
        look = None
        unfinished = next((leaf for leaf in self.leaves() if leaf._final is None and not leaf.ignored), None)
        if on_message is None and unfinished is not None and not unfinished.backend.in_message:
            # One question for all.
            for leaf in self._as_finished(deadline, interval, on_interval, follow_parents=propagate):
                if propagate:
                    leaf.maybe_throw()
        elif propagate or on_interval:
            # Answers come by themselves: waiting for one after another costs least.
            look = _seldom(self._looks(propagate, on_interval), interval)
        values = []
        for result in self.results:
            value = result.get(
                timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0), propagate=propagate,
                interval=interval, on_message=on_message, disable_sync_subtasks=disable_sync_subtasks, on_interval=look,
            )  # fmt: skip
            if callback is None:
                values.append(value)
            else:
                callback(result.id, value)
        return values

    join = get
    join_native = get

    def _looks(self, propagate: bool, on_interval: Look | None) -> Look:
        def look() -> None:
            if propagate:
                self.maybe_throw()
            if on_interval is not None:
                on_interval()

        return look

    def as_completed(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield the handle of each task when it is finished, those of nested groups too.

        Raises:
            TimeoutError: `timeout` seconds have passed and not all are finished.
            ResultUnreachable: This process can never see one of the results.
            RuntimeError: Called inside a task.
        """
        assert_will_not_block()
        return self._as_finished(None if timeout is None else time.monotonic() + timeout)

    def iter_native(
        self, timeout: float | None = None, interval: float = LOOK_ASIDE_S, no_ack: bool = True,
        on_message: OnMessage | None = None, on_interval: Look | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
        """Yield (id, plain map) of each task as it finishes, those of nested groups too.

        ``result`` in the map is the value, or the exception itself.

        Raises:
            TimeoutError: `timeout` seconds have passed and not all are finished.
        """
        del no_ack
        deadline = None if timeout is None else time.monotonic() + timeout
        for leaf in self._as_finished(deadline, interval, on_interval, on_message):
            yield leaf.id, leaf._meta()

    def _as_finished(
        self, deadline: float | None, interval_s: float = LOOK_ASIDE_S, on_interval: Look | None = None,
        on_message: OnMessage | None = None, follow_parents: bool = False,
    ) -> Iterator[Any]:  # fmt: skip
        """Yield each task's handle when it is finished; once for each id."""
        pending: dict[str, list[Any]] = {}
        for leaf in self.leaves():
            if leaf._final is not None:
                yield leaf
            elif not leaf.ignored:
                pending.setdefault(leaf.id, []).append(leaf)
        look = _aside(pending, on_interval, follow_parents)
        if look is not None:
            look, interval_s = _seldom(look, interval_s), max(interval_s, MIN_SLICE_S)
        with Arrivals() as arrivals:
            take = arrivals.take if on_message is None else _told_of(pending, on_message)
            for same in pending.values() if on_message is None else ():
                arrivals.add(same[0].backend, same[0].id)
            while pending:
                left_s = None if deadline is None else deadline - time.monotonic()
                try:
                    outcomes = take(
                        left_s if look is None else min(interval_s, interval_s if left_s is None else left_s)
                    )
                except TimeoutError:
                    if deadline is not None and time.monotonic() >= deadline:
                        raise timed_out() from None
                    outcomes = {}
                if look is not None:
                    look()
                for task_id, outcome in outcomes.items():
                    if isinstance(outcome, AmqptasksError):
                        raise outcome
                    same = pending.pop(task_id)
                    for leaf in same:
                        leaf._final = outcome
                    yield same[0]

    def progress(
        self, label: str = "tasks", *, timeout: float | None = None, propagate: bool = True,
        file: IO[str] | None = None,
    ) -> list[Any]:  # fmt: skip
        """Wait for all members as `get` does, and show on the way how many are finished.

        Args:
            label: What is counted.
            timeout, propagate: As for `get`.
            file: Where to show it; standard error unless given.

        Raises:
            TimeoutError, RuntimeError, Exception: As for `get`.
        """
        from amqptasks.results.bar import shown

        for leaf in shown(self, label, timeout, file):
            if propagate:
                leaf.maybe_throw()
        return self.get(propagate=propagate)

    # -- the rest

    def leaves(self) -> Iterator[Any]:
        """Yield the single results it consists of, those of nested groups too."""
        for result in self.results:
            yield from result.leaves()

    def _members(self) -> list[Any]:
        return self.results

    def _tuple_below(self, parent: Any) -> tuple[Any, Any]:
        return (self.id, parent), [result.as_tuple() for result in self.results]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultSet):
            return other.results == self.results
        return NotImplemented

    def __hash__(self) -> int:
        raise TypeError(f"unhashable type: {type(self).__name__!r}: it changes, as a list does")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(str(result.id) for result in self.results)}]>"


def required_id(kind: str, id_: Any) -> str:
    """Return the id of a `kind` of result, or raise ImproperlyConfigured when there is none."""
    if not isinstance(id_, str) or not id_:
        raise ImproperlyConfigured(f"expected the id of {kind} to be a non-empty string, got: {id_!r}")
    return id_


def _seldom(look: Look, interval_s: float) -> Look:
    """Call `look` at most once in an interval: every member of a set asks, and looking costs a look at all of them."""
    due = time.monotonic() + interval_s

    def maybe() -> None:
        nonlocal due
        if time.monotonic() >= due:
            look()
            due = time.monotonic() + interval_s

    return maybe


def _aside(pending: dict[str, list[Any]], on_interval: Look | None, follow_parents: bool) -> Look | None:
    """Return what to do now and then while waiting: raise what an earlier step raised, and call `on_interval`."""
    has_parents = follow_parents and any(leaf.parent is not None for same in pending.values() for leaf in same)
    if not has_parents:
        return on_interval

    def look() -> None:
        # The members of a group come after the same step: it is asked once.
        above = {id(leaf.parent): leaf for same in pending.values() for leaf in same if leaf.parent is not None}
        for leaf in above.values():
            leaf._raise_parent_error()
        if on_interval is not None:
            on_interval()

    return look


def _told_of(pending: dict[str, list[Any]], on_message: OnMessage) -> Callable[[float | None], dict[str, Any]]:
    """Return a wait for any of those pending that tells of every state."""

    last: dict[str, ResultRecord] = {}

    def tell(record: ResultRecord) -> None:
        # Each wait begins with what is known by then, which the one before may have told.
        if last.get(record.task_id) != record:
            last[record.task_id] = record
            on_message(record.to_plain())

    def take(timeout_s: float | None) -> dict[str, Any]:
        # One backend for all: a group's tasks belong to one app.
        backend: ResultBackend = next(iter(pending.values()))[0].backend
        records = backend.wait_any(list(pending), timeout_s, tell)
        return {record.task_id: record for record in records}

    return take
