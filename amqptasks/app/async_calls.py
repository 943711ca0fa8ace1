"""Sending from asyncio programs: ``await task.adelay(…)``, and ``async with app.abulk()``.

The message is made and handed over at once; the coroutine then waits for the broker's confirm, which wakes it. Only
what goes wrong takes a thread, and is dealt with there as for everybody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec

from amqptasks.app.gathering import Bulk, current_bulk, current_collector
from amqptasks.exceptions import NotSent
from amqptasks.results.awaiting import Signal
from amqptasks.results.handles import AsyncResult

if TYPE_CHECKING:
    # At run time it comes in with the first send.
    from amqptasks.broker.publisher import Publisher, Sending

P = ParamSpec("P")

#: How often a full buffer is looked at, seconds.
LOOK_S = 0.005


class AsyncBulk:
    """The sends of an ``async with app.abulk():`` block, confirmed together at its end."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._bulk: Bulk | None = None
        self._token: Any = None

    async def __aenter__(self) -> Bulk:
        outer = current_bulk.get()
        if outer is not None and not outer.is_ended:
            return outer
        self._bulk = self._app.sender.bulk()
        self._token = current_bulk.set(self._bulk)
        return self._bulk

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bulk = self._bulk
        if bulk is not None:
            current_bulk.reset(self._token)
            failures = await _failures(self._app, bulk)
            if error is None:
                bulk.throw(failures)


class AsyncCalls(Generic[P]):
    """What tasks offer asyncio programs."""

    app: Any
    name: str

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
        """Send a call to a worker from an asyncio program; returns when the broker holds it. See `Task.delay`."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Any = None, kwargs: Mapping[str, Any] | None = None, task_id: str | None = None, **options: Any
    ) -> AsyncResult:  # fmt: skip
        """Send a call with options from an asyncio program; returns when the broker holds it. See `Task.apply_async`.

        Cancelled while it waits for the broker, it may or may not have been sent.
        """
        task: Any = self
        result: AsyncResult = await _send(self.app, lambda: task.apply_async(args, kwargs, task_id, **options), options)
        return result


class AsyncSending:
    """What apps offer asyncio programs."""

    def abulk(self) -> AsyncBulk:
        """Open a block whose sends share their round trips: ``async with app.abulk(): …``. It may use ``delay`` too,
        and anything else that sends, such as a chain.

        Raises:
            BulkError: At the end of the block; it names every task that was not confirmed.
        """
        return AsyncBulk(self)

    async def asend_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
        """Send a call by the task's name, as ``send_task``, from an asyncio program."""
        app: Any = self
        result: AsyncResult = await _send(app, lambda: app.send_task(name, args, kwargs, **options), options)
        return result

    async def asend(self, send: Callable[[], Any], options: Mapping[str, Any]) -> Any:
        """Call what sends, and wait for the confirms of all that it has sent; returns what it returned.

        Raises:
            BulkError: More than one message was sent, and not all of them were confirmed.
        """
        return await _send(self, send, options)


async def _send(app: Any, send: Callable[[], Any], options: Mapping[str, Any]) -> Any:
    outer = current_bulk.get()
    if current_collector.get() is not None:
        return send()
    if app.is_eager:
        import asyncio

        # The task is run now, and takes its time.
        return await asyncio.to_thread(send)
    await _room(app, options)
    if outer is not None and not outer.is_ended:
        return send()
    bulk: Bulk = app.sender.bulk()
    token = current_bulk.set(bulk)
    try:
        result = send()
    finally:
        current_bulk.reset(token)
    try:
        failures = await _failures(app, bulk)
    except BaseException:
        # Cancelled: nobody gets to know the ids.
        for leaf in () if result is None else result.leaves():
            app.backend.unexpect(leaf.id)
        raise
    if len(bulk.sendings) > 1:
        bulk.throw(failures)
    for failure in failures.values():
        raise failure
    return result


async def _room(app: Any, options: Mapping[str, Any]) -> None:
    """Wait until the publisher can take a message without making this thread wait."""
    publisher: Publisher = app.publisher
    if not publisher.is_full:
        return
    import asyncio

    timeout_s = float(options.get("timeout") or app.conf.broker_publish_timeout)
    deadline = time.monotonic() + timeout_s
    while publisher.is_full:
        if time.monotonic() > deadline:
            raise NotSent(
                f"{app.conf.broker_publish_buffer} messages are waiting for the broker already "
                f"(broker_publish_buffer), none was confirmed within {timeout_s:g} s"
            )
        await asyncio.sleep(LOOK_S)


async def _failures(app: Any, bulk: Bulk) -> dict[str, BaseException]:
    """Wait for the confirms of a block that has ended; returns the errors by task id."""
    bulk.is_ended = True
    sendings = bulk.sendings
    if not sendings or not app.conf.broker_publish_confirm:
        return {}
    deadline = time.monotonic() + max(each.policy.timeout_s for each in sendings)
    signal = Signal()
    for each in sendings:
        if not each.is_done and not await _done(each, signal, deadline):
            break
    if all(each.is_done and each.error is None for each in sendings):
        # Only to note that each was waited for.
        return bulk.finish(deadline)
    import asyncio

    return await asyncio.to_thread(bulk.finish, deadline)


async def _done(sending: Sending, signal: Signal, deadline: float) -> bool:
    """Wait until a message is confirmed, or refused; False when there was no time left."""
    in_time = True
    sending.watch(signal.set)
    try:
        # What set the signal may have been the message before.
        while in_time and not sending.is_done:
            in_time = await signal.wait(deadline - time.monotonic())
        return in_time
    finally:
        sending.watch(None)
