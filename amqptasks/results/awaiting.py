"""Waiting for results in asyncio programs: ``await result``, without a thread for each who waits.

Where answers come to this process, whoever takes them in wakes the waiting coroutine, on whichever event loop that is.
Other backends are asked from a few threads, now and then.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from amqptasks.exceptions import TimeoutError
from amqptasks.results.backend import ResultBackend, timed_out
from amqptasks.results.context import assert_will_not_block
from amqptasks.results.record import ResultRecord

if TYPE_CHECKING:
    import asyncio

__all__ = ["Awaited", "Signal", "await_all", "await_record"]

#: How often a backend that tells nobody is asked: at first, and at most. Seconds.
FIRST_LOOK_S = 0.01
LAST_LOOK_S = 0.5


class Signal:
    """Wakes one coroutine from any thread. Made on its event loop."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[bool] = self._loop.create_future()

    def set(self) -> None:
        """Wake it, from any thread. More than once is once."""
        with suppress(RuntimeError):
            # A closed loop has nobody left to wake.
            self._loop.call_soon_threadsafe(self._end, True)

    def _end(self, is_set: bool) -> None:
        if not self._future.done():
            self._future.set_result(is_set)

    async def wait(self, timeout_s: float | None) -> bool:
        """Wait until it is set, then make ready for the next time; False if that took too long."""
        timer = None if timeout_s is None else self._loop.call_later(max(0.0, timeout_s), self._end, False)
        try:
            is_set = await self._future
        finally:
            if timer is not None:
                timer.cancel()
        self._future = self._loop.create_future()
        return is_set


async def await_record(backend: ResultBackend, task_id: str, timeout_s: float | None) -> ResultRecord:
    """Wait until a task is finished and return its final record, as `ResultBackend.wait` does.

    Raises:
        TimeoutError, ResultUnreachable, BackendGetMetaError: As there.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    signal = Signal()
    unsubscribe = backend.subscribe(task_id, signal.set)
    if unsubscribe is None:
        return await _look_again_and_again(backend, task_id, deadline)
    try:
        while True:
            # Its answers come by themselves: this looks and returns.
            with suppress(TimeoutError):
                return backend.wait(task_id, 0)
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise timed_out()
            await signal.wait(left_s)
    finally:
        unsubscribe()


async def _look_again_and_again(backend: ResultBackend, task_id: str, deadline: float | None) -> ResultRecord:
    import asyncio

    pause_s = FIRST_LOOK_S
    while True:
        record = await asyncio.to_thread(backend.fetch, task_id)
        if record is not None and record.is_final:
            return record
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise timed_out()
        await asyncio.sleep(pause_s if left_s is None else min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, LAST_LOOK_S)


async def await_all(waits: Iterable[Awaitable[Any]]) -> list[Any]:
    """Await several at once. The first error ends them all; none is left behind."""
    import asyncio

    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Awaited:
    """What can be awaited: results and sets of them."""

    @abstractmethod
    async def aget(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Wait in an asyncio program, as ``get`` does in others."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.aget().__await__()


class AwaitedResult(Awaited):
    """The asyncio side of `AsyncResult`."""

    id: Any
    parent: Any
    backend: Any
    ignored: bool
    _final: ResultRecord | None
    maybe_throw: Callable[..., Any]
    _raise_parent_error: Callable[[], None]

    async def aget(
        self, timeout: float | None = None, propagate: bool = True, interval: float = LAST_LOOK_S,
        follow_parents: bool = True, callback: Callable[[str, Any], Any] | None = None,
        disable_sync_subtasks: bool = True, **options: Any,
    ) -> Any:  # fmt: skip
        """Wait in an asyncio program until the task is finished; ``await result`` is the same without arguments.

        Any number of coroutines may wait, on any event loops. One that is cancelled leaves nothing behind.

        Args:
            timeout: Seconds to wait at most; None waits for as long as it takes.
            propagate, follow_parents, callback, interval, disable_sync_subtasks: As in `get`.

        Raises:
            TimeoutError, ResultUnreachable, RuntimeError, Exception: As `get`.
        """
        if self.ignored:
            return None
        if disable_sync_subtasks:
            assert_will_not_block()
        if self._final is None:
            follows = follow_parents and propagate and self.parent is not None
            self._final = await self._await_final(timeout, interval if follows else None)
        return self.maybe_throw(propagate, callback)

    async def _await_final(self, timeout_s: float | None, interval_s: float | None) -> ResultRecord:
        import asyncio

        if interval_s is None:
            return await await_record(self.backend, self.id, timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        slice_s = max(interval_s, FIRST_LOOK_S)
        while True:
            await asyncio.to_thread(self._raise_parent_error)
            left_s = None if deadline is None else deadline - time.monotonic()
            try:
                return await await_record(self.backend, self.id, slice_s if left_s is None else min(slice_s, left_s))
            except TimeoutError:
                if left_s is not None and left_s <= slice_s:
                    raise


class AwaitedSet(Awaited):
    """The asyncio side of `ResultSet`."""

    results: list[Any]

    async def aget(
        self, timeout: float | None = None, propagate: bool = True,
        callback: Callable[[str, Any], Any] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Wait in an asyncio program for all members, and return their values in order.

        Args:
            timeout: Seconds to wait at most, for all of them together.
            propagate: If false, the exceptions of failed members stand in the list.
            callback: Called with (id, value) for each member, in order; the list returned is then empty.

        Raises:
            TimeoutError: Not all were finished in time.
            Exception: What the first member to fail raised.
        """
        values = await await_all(each.aget(timeout, propagate, **options) for each in self.results)
        if callback is None:
            return values
        for result, value in zip(self.results, values, strict=True):
            callback(result.id, value)
        return []
