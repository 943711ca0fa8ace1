"""What a caller holds of a task that was sent: `AsyncResult`, and `GroupResult` for several.

A handle is an id and the backend to ask; it lives below tasks and the app, and sees of the app only the `ResultApp`
protocol. Handles may be used from any thread, pickled, and asked as often as one likes.
"""

from __future__ import annotations

import time
import types
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, NoReturn, Protocol

from amqptasks.exceptions import DecodeError
from amqptasks.exceptions import TimeoutError as ResultTimeout
from amqptasks.results.awaiting import AwaitedResult
from amqptasks.results.backend import ResultBackend
from amqptasks.results.context import assert_will_not_block, default_app
from amqptasks.results.known import KnownResult, value_of
from amqptasks.results.record import ResultRecord
from amqptasks.results.relations import Callback, Look, OnMessage, ResultBase, Tree
from amqptasks.results.sets import LOOK_ASIDE_S, MIN_SLICE_S, ResultSet, required_id
from amqptasks.states import EXCEPTION_STATES as _EXCEPTION_STATES
from amqptasks.states import PENDING
from amqptasks.states import PROPAGATE_STATES as _PROPAGATE_STATES

__all__ = ["AsyncResult", "GroupResult", "ResultApp", "bound_to", "result_from_tuple"]


class ResultApp(Protocol):
    """What handles need of an app."""

    @property
    def backend(self) -> ResultBackend:
        """Where its results are."""


class AsyncResult(AwaitedResult, KnownResult, Tree):
    """The result of one task, wherever it stands.

    Args:
        backend: Where to ask; the app's unless given.
        task_name: Ignored, as in Celery.
        parent: The result of the step before, in a chain.
    """

    #: The app of handles made without one. `App` makes a subclass of its own.
    app: Any = None
    TimeoutError: ClassVar[type[ResultTimeout]] = ResultTimeout
    #: Whether the task was sent with ``ignore_result``: then `get` returns None at once.
    ignored = False

    # The final record, once seen: it never changes any more.
    _final: ResultRecord | None = None
    _backend: ResultBackend | None = None

    id: str

    #: So that ``AsyncResult[int]`` can be written in annotations.
    __class_getitem__: ClassVar[Any] = classmethod(types.GenericAlias)

    def __init__(
        self, id: str, backend: ResultBackend | None = None, task_name: str | None = None,
        app: ResultApp | None = None, parent: ResultBase | None = None,
    ) -> None:  # fmt: skip
        if id is None:
            raise ValueError("AsyncResult requires the id of a task, got: None")
        self.id = id
        if backend is not None:
            self._backend = backend
        if app is not None:
            self.app = app
        if parent is not None:
            self.parent = parent

    @property
    def backend(self) -> ResultBackend:
        """The backend that is asked."""
        if self._backend is None:
            app = self.app
            self._backend = (default_app(f"the result of task {self.id}") if app is None else app).backend
        return self._backend

    # -- waiting

    def get(
        self, timeout: float | None = None, propagate: bool = True, interval: float = LOOK_ASIDE_S, no_ack: bool = True,
        follow_parents: bool = True, callback: Callback | None = None,
        on_message: OnMessage | None = None, on_interval: Look | None = None,
        disable_sync_subtasks: bool = True, EXCEPTION_STATES: Iterable[str] = _EXCEPTION_STATES,
        PROPAGATE_STATES: Iterable[str] = _PROPAGATE_STATES,
    ) -> Any:  # fmt: skip
        """Wait until the task is finished, and return what it returned or raise what it raised.

        Args:
            timeout: Seconds to wait at most; 0 only looks; None waits for as long as it takes.
            propagate: If false, the exception of a failed task is returned instead of raised.
            interval: Seconds between two looks at the parents, and between two calls of `on_interval`.
            follow_parents: Raise the error of an earlier step of the chain too, without waiting for this one.
            callback: Called with (id, value) when there is a value.
            on_message: Called with the plain map of each state that is seen meanwhile.
            disable_sync_subtasks: If false, waiting inside a task is allowed. It can deadlock a worker.
            no_ack, EXCEPTION_STATES, PROPAGATE_STATES: Accepted because Celery has them; without effect.

        Raises:
            TimeoutError: The task was not finished in time. It goes on.
            ResultUnreachable: This process can never see the result.
            RuntimeError: Called inside a task.
            Exception: What the task raised, with the worker's traceback as its cause.
        """
        if self.ignored:
            return None
        if disable_sync_subtasks:
            assert_will_not_block()
        aside = self._raise_parent_error if follow_parents and propagate and self.parent is not None else None
        if self._final is None:
            self._wait(timeout, interval, on_message, [each for each in (aside, on_interval) if each is not None])
        elif aside is not None:
            aside()
        return self.maybe_throw(propagate, callback)

    wait = get

    def _wait(
        self, timeout_s: float | None, interval_s: float, on_message: OnMessage | None,
        aside: list[Look],
    ) -> None:  # fmt: skip
        on_record = None if on_message is None else lambda record: on_message(record.to_plain())
        if not aside:
            self._final = self.backend.wait(self.id, timeout_s, on_record)
            return
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        slice_s = max(interval_s, MIN_SLICE_S)
        while True:
            for look in aside:
                look()
            left_s = None if deadline is None else deadline - time.monotonic()
            try:
                self._final = self.backend.wait(self.id, slice_s if left_s is None else min(slice_s, left_s), on_record)
                return
            except ResultTimeout:
                if left_s is not None and left_s <= slice_s:
                    raise

    def _raise_parent_error(self) -> None:
        for node in reversed(list(self._ancestors())):
            node.maybe_throw()

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the task's exception if it is known to have failed; return its result as it is now otherwise."""
        record = self._record()
        value = value_of(record)
        if propagate and record.status in _PROPAGATE_STATES:
            self.throw(value)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def throw(self, exc: BaseException, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `exc`. What else Celery's takes is without effect."""
        del args, kwargs
        raise exc

    # -- looking

    def _record(self) -> ResultRecord:
        if self._final is not None:
            return self._final
        record = self.backend.fetch(self.id)
        if record is None:
            return ResultRecord(self.id, PENDING, children=None)
        if record.is_final:
            self._final = record
        return record

    @property
    def children(self) -> list[ResultBase] | None:
        """The results of the tasks this one started, once it is finished."""
        record = self._record()
        if record.children is None or not record.is_final:
            return None
        return [result_from_tuple(child, self.app, self._backend) for child in record.children]

    def exists(self) -> bool:
        """Whether anything is known of the task. PENDING alone does not tell."""
        return self._final is not None or self.backend.fetch(self.id) is not None

    @property
    def supports_native_join(self) -> bool:
        """Whether sets of such results are joined without polling. Always true."""
        return True

    @property
    def task_id(self) -> str:
        """Another name of `id`."""
        return self.id

    @task_id.setter
    def task_id(self, id: str) -> None:
        self.id = id

    # -- the rest

    def _forget(self) -> None:
        self._final = None
        self.backend.forget(self.id)

    def leaves(self) -> Iterator[AsyncResult]:
        """Yield itself."""
        yield self

    def _meta(self) -> dict[str, Any]:
        record = self._record()
        return {**record.to_plain(), "result": value_of(record)}

    def _tuple_below(self, parent: Any) -> tuple[Any, Any]:
        return (self.id, parent), None

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return other.id == self.id
        if isinstance(other, str):
            return other == self.id
        return NotImplemented

    def __copy__(self) -> AsyncResult:
        return type(self)(self.id, self._backend, None, self.app, self.parent)

    def __reduce__(self) -> tuple[Any, ...]:
        # Backends hold connections and locks, so a copy from elsewhere asks the app it finds there.
        return _unbound(type(self)), (self.id, None, None, None, self.parent)


class GroupResult(ResultSet):
    """The results of a group, under the group's id.

    Args:
        id: The group's id.
        results: Its members, in order.
        parent: The result of the step before, in a chain.
    """

    def __init__(
        self, id: str | None = None, results: Iterable[Any] | None = None, parent: ResultBase | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(() if results is None else results, **kwargs)
        self.id = id
        self.parent = parent

    def save(self, backend: ResultBackend | None = None) -> GroupResult:
        """Keep the group in a backend that stores results, so that any process can `restore` it; return it.

        Raises:
            NoResultBackend: This backend keeps no groups.
            BackendStoreError: The store could not be written.
        """
        (backend or self.backend).save_group(required_id("a group", self.id), self.as_tuple())
        return self

    def delete(self, backend: ResultBackend | None = None) -> None:
        """Drop what `save` kept."""
        (backend or self.backend).delete_group(required_id("a group", self.id))

    @classmethod
    def restore(cls, id: str, backend: ResultBackend | None = None, app: Any = None) -> GroupResult | None:
        """Return the group that was saved under an id; None when none was.

        Raises:
            NoResultBackend: This backend keeps no groups.
            BackendGetMetaError: The store could not be read.
        """
        app = cls._app if app is None else app
        if backend is None:
            backend = (default_app(f"the group {id}") if app is None else app).backend
        plain = backend.fetch_group(id)
        if plain is None:
            return None
        group = result_from_tuple(plain, app, backend)
        if not isinstance(group, GroupResult):
            raise DecodeError(f"expected what was saved under {id!r} to be a group, got: {group!r}")
        return group

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return other.id == self.id and other.results == self.results and other.parent == self.parent
        if isinstance(other, str):
            return other == self.id
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(str(result.id) for result in self.results)}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unbound(type(self)), (self.id, self.results, self.parent)


def result_from_tuple(r: Any, app: Any = None, backend: ResultBackend | None = None) -> Any:
    """Make a handle of its plain form, ``[[id, parent], children or None]``, as it stands in a result's children.

    Raises:
        DecodeError: It is not of that form.
    """
    if isinstance(r, ResultBase):
        return r
    if not isinstance(r, (list, tuple)) or len(r) != 2 or not isinstance(r[1], (list, tuple, type(None))):
        raise DecodeError(f"expected a result as [[id, parent], children or null], got: {r!r:.80}")
    head, nodes = r
    id_, parent = head if isinstance(head, (list, tuple)) and len(head) == 2 else (head, None)
    if not isinstance(id_, str) or not id_:
        raise DecodeError(f"expected the id of a result to be a non-empty string, got: {id_!r:.80}")
    above = result_from_tuple(parent, app, backend) if parent else None
    if nodes is not None:
        return GroupResult(id_, [result_from_tuple(node, app, backend) for node in nodes], parent=above, app=app)
    return AsyncResult(id_, backend, app=app, parent=above)


def bound_to(app: Any, kind: type) -> Any:
    """Return a subclass of a kind of handle whose handles belong to an app, wherever none is given."""
    return type(kind.__name__, (kind,), {
        "app" if issubclass(kind, AsyncResult) else "_app": app, "__doc__": kind.__doc__,
        "__module__": kind.__module__, "_unbound": kind,
    })  # fmt: skip


def _unbound(kind: type) -> type:
    # A class that an app has made cannot be found by its name elsewhere.
    unbound: type = kind.__dict__.get("_unbound", kind)
    return unbound
