"""Several results as one: `ResultSet`, and what single results share with it.

Nothing here knows how a single result is asked; `results/handles.py` does, and adds `GroupResult`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured, IncompleteStream, TimeoutError
from amqptasks.results.awaiting import Awaited, AwaitedSet
from amqptasks.results.backend import ResultBackend, timed_out
from amqptasks.results.context import assert_will_not_block, default_app

__all__ = ["LOOK_ASIDE_S", "ResultBase", "ResultSet"]

#: How often a wait looks aside, at parents and siblings that may have failed.
LOOK_ASIDE_S = 0.5
# The least of it: a slice of nothing would spin.
MIN_SLICE_S = 0.01

Look = Callable[[], Any]
Callback = Callable[[str, Any], Any]
OnMessage = Callable[[dict[str, Any]], Any]


class ResultBase(Awaited, ABC):
    """What single results and sets of them have in common."""

    id: str | None = None
    #: The result of the step before, for a step of a chain.
    parent: ResultBase | None = None

    @abstractmethod
    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait until it is finished, and return its value or raise its error."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it is finished, well or not."""

    @abstractmethod
    def successful(self) -> bool:
        """Whether it finished well."""

    @abstractmethod
    def failed(self) -> bool:
        """Whether it failed."""

    @abstractmethod
    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise its error if it is known to have failed."""

    @property
    @abstractmethod
    def children(self) -> list[Any] | None:
        """The results below it."""

    @property
    @abstractmethod
    def backend(self) -> ResultBackend:
        """The backend that is asked."""

    @abstractmethod
    def leaves(self) -> Iterator[Any]:
        """Yield the single results it consists of."""

    @abstractmethod
    def _tuple_below(self, parent: Any) -> tuple[Any, Any]:
        """Its plain form, below a parent's plain form."""

    def as_tuple(self) -> tuple[Any, Any]:
        """Return the plain form that `result_from_tuple` reads: ``((id, parent), children or None)``."""
        plain = None
        for node in reversed(list(self._ancestors())):
            plain = node._tuple_below(plain)
        return self._tuple_below(plain)

    def as_list(self) -> list[str]:
        """Return this id and those of the steps before it."""
        return [node.id for node in (self, *self._ancestors()) if node.id is not None]

    def forget(self) -> None:
        """Drop what is known of this, and of the steps before it in a chain."""
        for node in (self, *self._ancestors()):
            for leaf in node.leaves():
                leaf._forget()

    def revoke(
        self, connection: None = None, terminate: bool = False, signal: str | None = None, wait: bool = False,
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Keep the tasks from running; see `Control.revoke`. It returns when RabbitMQ has the order.

        Args:
            terminate: End those that run now.
            signal: With which signal, where the pool has processes; SIGTERM unless given.
            connection, wait, timeout: Accepted because Celery has them; without effect.
        """
        leaves = list(self.leaves())
        if leaves:
            app = getattr(leaves[0], "app", None) or default_app(f"the result of task {leaves[0].id}")
            app.control.revoke([each.id for each in leaves], terminate=terminate, signal=signal)

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[ResultBase | None, ResultBase]]:
        """Walk this and everything it started, as (parent, node), level by level.

        Raises:
            IncompleteStream: A node is not finished, and `intermediate` is false.
        """
        queue: deque[tuple[ResultBase | None, ResultBase]] = deque([(None, self)])
        while queue:
            parent, node = queue.popleft()
            yield parent, node
            if node.ready():
                queue.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream(f"the children of {node!r} are not known yet: it is not finished")

    def _ancestors(self) -> Iterator[ResultBase]:
        # A loop, not recursion: a chain may be longer than the stack is deep.
        node = self.parent
        while node is not None:
            yield node
            node = node.parent


class ResultSet(AwaitedSet, ResultBase):
    """A list of results that is waited for as one. Members may be groups.

    Args:
        app: Whose backend to ask; the members' unless given.
    """

    def __init__(self, results: Iterable[Any], app: Any = None, ready_barrier: Any = None, **kwargs: Any) -> None:
        del ready_barrier, kwargs
        self.results: list[Any] = results if isinstance(results, list) else list(results or ())
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

        The error of any member is raised when it is seen, at most `interval` seconds late, not when its turn comes.

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
        look = _seldom(self._looks(propagate, on_interval), interval) if propagate or on_interval else None
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
        pending: dict[str, Any] = {}
        for leaf in self.leaves():
            if leaf.ready():
                yield leaf.id, leaf._meta()
            else:
                pending[leaf.id] = leaf
        on_record = None if on_message is None else lambda record: on_message(record.to_plain())
        while pending:
            left_s = None if deadline is None else deadline - time.monotonic()
            slice_s = left_s if on_interval is None else max(interval, MIN_SLICE_S)
            try:
                # One backend for all: a group's tasks belong to one app.
                backend: ResultBackend = next(iter(pending.values())).backend
                records = backend.wait_any(
                    list(pending), slice_s if left_s is None or slice_s is None else min(slice_s, left_s), on_record
                )
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise timed_out() from None
                if on_interval is not None:
                    on_interval()
                continue
            for record in records:
                leaf = pending.pop(record.task_id)
                leaf._final = record
                yield leaf.id, leaf._meta()

    # -- the rest

    def leaves(self) -> Iterator[Any]:
        """Yield the single results it consists of, those of nested groups too."""
        for result in self.results:
            yield from result.leaves()

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
