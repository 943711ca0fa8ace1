"""What a caller holds of a task that was sent: `AsyncResult`, sets and groups of them, and `EagerResult`.

A handle is an id and the backend to ask; it lives below tasks and the app, and sees of the app only the `ResultApp`
protocol. Handles may be used from any thread, pickled, and asked as often as one likes.
"""

from __future__ import annotations

import time
import types
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, ClassVar, NoReturn, Protocol

from amqptasks.exceptions import DecodeError, TaskRevokedError
from amqptasks.exceptions import TimeoutError as ResultTimeout
from amqptasks.results.awaiting import AwaitedResult
from amqptasks.results.backend import ResultBackend
from amqptasks.results.context import assert_will_not_block, default_app
from amqptasks.results.record import ResultRecord
from amqptasks.results.sets import (
    LOOK_ASIDE_S,
    MIN_SLICE_S,
    Callback,
    Look,
    OnMessage,
    ResultBase,
    ResultSet,
    required_id,
)
from amqptasks.states import EXCEPTION_STATES as _EXCEPTION_STATES
from amqptasks.states import FAILURE, PENDING, READY_STATES, REVOKED, SUCCESS
from amqptasks.states import PROPAGATE_STATES as _PROPAGATE_STATES
from amqptasks.wire.failures import from_plain

__all__ = ["AsyncResult", "EagerResult", "GroupResult", "ResultApp", "ResultBase", "ResultSet", "result_from_tuple"]


class ResultApp(Protocol):
    """What handles need of an app."""

    @property
    def backend(self) -> ResultBackend:
        """Where its results are."""


def _value_of(record: ResultRecord) -> Any:
    # Rebuilt each time: an exception raised twice, or in two threads, would gather tracebacks that are not its own.
    if record.is_exception:
        return from_plain(record.result, record.traceback)
    return record.result


def _extended(key: str, doc: str) -> property:
    def read(self: AsyncResult) -> Any:
        return self._record().extra.get(key)

    return property(read, doc=f"{doc} None unless results are extended (``result_extended``).")


class AsyncResult(AwaitedResult, ResultBase):
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
        value = _value_of(record)
        if propagate and record.status in _PROPAGATE_STATES:
            self.throw(value)
        if callback is not None:
            callback(self.id, value)
        return value

    maybe_reraise = maybe_throw

    def throw(self, exc: BaseException) -> NoReturn:
        """Raise `exc`."""
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
    def state(self) -> str:
        """Where the task stands: a name of `amqptasks.states`, or a custom one. An unknown id is PENDING."""
        return self._record().status

    @property
    def status(self) -> str:
        """Another name of `state`."""
        return self._record().status

    @property
    def result(self) -> Any:
        """The return value, the exception of a failed task, or the meta of a custom state; None while unknown."""
        return _value_of(self._record())

    @property
    def info(self) -> Any:
        """Another name of `result`."""
        return _value_of(self._record())

    @property
    def traceback(self) -> str | None:
        """The worker's traceback of a failed task, as text."""
        return self._record().traceback

    @property
    def children(self) -> list[ResultBase] | None:
        """The results of the tasks this one started, once it is finished."""
        record = self._record()
        if record.children is None or not record.is_final:
            return None
        return [result_from_tuple(child, self.app, self._backend) for child in record.children]

    def ready(self) -> bool:
        """Whether the task is finished, well or not."""
        return self._record().is_final

    def successful(self) -> bool:
        """Whether the task finished well."""
        return self._record().status == SUCCESS

    def failed(self) -> bool:
        """Whether the task failed."""
        return self._record().status == FAILURE

    def exists(self) -> bool:
        """Whether anything is known of the task. PENDING alone does not tell."""
        return self._final is not None or self.backend.fetch(self.id) is not None

    @property
    def date_done(self) -> datetime | None:
        """When the task was finished."""
        text = self._record().date_done
        try:
            # Python 3.10 does not read the Z that other writers use for UTC.
            return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
        except ValueError:
            return None

    name = _extended("name", "The task's name.")
    args = _extended("args", "The arguments the task ran with.")
    kwargs = _extended("kwargs", "The keyword arguments the task ran with.")
    worker = _extended("worker", "The worker that ran the task.")
    retries = _extended("retries", "How often the task was retried.")
    queue = _extended("queue", "The queue the task came from.")

    @property
    def supports_native_join(self) -> bool:
        """Whether sets of such results are joined without polling. Always true."""
        return True

    @property
    def task_id(self) -> str:
        """Another name of `id`."""
        return self.id

    # -- the tree

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[ResultBase, Any]]:
        """Walk like `iterdeps`, as (result, value); `kwargs` go to each `get`."""
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def get_leaf(self) -> Any:
        """Return the value of the last task that `iterdeps` comes to."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    # -- the rest

    def _forget(self) -> None:
        self._final = None
        self.backend.forget(self.id)

    def leaves(self) -> Iterator[AsyncResult]:
        """Yield itself."""
        yield self

    def _meta(self) -> dict[str, Any]:
        record = self._record()
        return {**record.to_plain(), "result": _value_of(record)}

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
        return AsyncResult, (self.id, None, None, None, self.parent)


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

    def save(self, backend: ResultBackend | None = None) -> None:
        """Keep the group in a backend that stores results, so that any process can `restore` it."""
        (backend or self.backend).save_group(required_id("a group", self.id), self.as_tuple())

    def delete(self, backend: ResultBackend | None = None) -> None:
        """Drop what `save` kept."""
        (backend or self.backend).delete_group(required_id("a group", self.id))

    @classmethod
    def restore(cls, id: str, backend: ResultBackend | None = None, app: Any = None) -> GroupResult | None:
        """Return the group that was saved under an id; None when none was."""
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
        return GroupResult, (self.id, self.results, self.parent)


class EagerResult(AsyncResult):
    """The result of a task that ran at once, in this process. It is always ready and asks no backend."""

    def __init__(
        self, id: str, ret_value: Any, state: str, traceback: str | None = None, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(id)
        self._value = ret_value
        self._final = ResultRecord.now(id, state, traceback=traceback, extra={"name": name} if name else {})

    def _record(self) -> ResultRecord:
        assert self._final is not None
        return self._final

    def get(  # type: ignore[override]  # the rest of AsyncResult.get's options mean nothing here
        self, timeout: float | None = None, propagate: bool = True, **options: Any,
    ) -> Any:  # fmt: skip
        """Return what the task returned, or raise what it raised; with ``propagate=False`` return it.

        Raises:
            RuntimeError: Called inside a task, and ``disable_sync_subtasks`` is not false.
        """
        if options.get("disable_sync_subtasks", True):
            assert_will_not_block()
        if self.state not in READY_STATES:
            return None
        return self.maybe_throw(propagate, options.get("callback"))

    wait = get  # type: ignore[assignment]

    async def aget(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Return what the task returned, or raise what it raised, as `get`."""
        return self.get(timeout, propagate, **options)

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the task's exception if it failed; return its value otherwise."""
        if propagate and self.state in _PROPAGATE_STATES:
            self.throw(self._value if isinstance(self._value, BaseException) else Exception(self._value))
        if callback is not None:
            callback(self.id, self._value)
        return self._value

    maybe_reraise = maybe_throw

    @property
    def result(self) -> Any:
        """What the task returned or raised."""
        return self._value

    info = result

    def ready(self) -> bool:
        """Return True: it has run."""
        return True

    def exists(self) -> bool:
        """Return True: it has run."""
        return True

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Mark it as revoked: what the task returned is replaced by a TaskRevokedError."""
        del args, kwargs
        self._value = TaskRevokedError("revoked")
        self._final = ResultRecord.now(self.id, REVOKED)

    def _forget(self) -> None:
        """Do nothing: nothing was kept."""

    def _meta(self) -> dict[str, Any]:
        return {**self._record().to_plain(), "result": self._value}

    def __copy__(self) -> EagerResult:
        make, arguments = self.__reduce__()
        copy: EagerResult = make(*arguments)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return EagerResult, (self.id, self._value, self.state, self.traceback, self.name)


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
