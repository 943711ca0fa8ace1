"""Running ``async def`` functions where plain functions run, and ending them before their time.

A place that runs plain code (a child process, a thread, an eager call) runs a coroutine on an event loop of its own.
`Run` is one run of one coroutine on whatever loop: it can be interrupted from any thread and from a signal handler.

An interruption arrives as a cancellation which is the given error, too: libraries treat it as the cancellation that it
is, and the task may catch it under the error's name.
"""

from __future__ import annotations

import os
import threading
import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

#: How long a loop that is closed waits for what was left on it to be cancelled, seconds.
CLOSE_S = 5.0


class Run:
    """One run of a coroutine, from its loop's point of view. Make it on the loop's thread.

    Attributes:
        error: What it was interrupted with, if it was.
        is_given_up: Nobody waits for it any more.
    """

    __slots__ = ("_loop", "_pending", "_task", "error", "is_given_up")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._pending: BaseException | None = None
        self.error: BaseException | None = None
        self.is_given_up = False

    async def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run the coroutine in the present asyncio task, and return what it returns.

        Raises:
            BaseException: What it raises; what it was interrupted with, if it did not catch that.
        """
        import asyncio

        self._task = asyncio.current_task()
        if self._pending is not None:
            coroutine.close()
            raise self._take(asyncio.CancelledError())
        try:
            return await _driven(self, coroutine)
        except BaseException as raised:
            if self.error is None or not _is_cancellation(raised):
                raise
            # Not as the cancellation that it was inside: to everyone else the task has failed with this error.
            raise self.error.with_traceback(raised.__traceback__) from raised.__cause__
        finally:
            self._task = None

    def interrupt(self, error: BaseException) -> None:
        """Cancel it with an error, at its next (or present) await. From any thread."""
        import contextlib

        with contextlib.suppress(RuntimeError):
            # A loop that is closed has nothing left to interrupt.
            self._loop.call_soon_threadsafe(self.interrupt_here, error)

    def interrupt_here(self, error: BaseException) -> None:
        """`interrupt`, on the loop's own thread."""
        self._pending = error
        if self._task is not None:
            self._task.cancel()

    def _take(self, raised: BaseException) -> BaseException:
        """Return what to throw into the coroutine instead of what its task was woken with."""
        import asyncio

        error = self._pending
        if error is None or not isinstance(raised, asyncio.CancelledError):
            return raised
        self._pending, self.error = None, error
        uncancel = getattr(self._task, "uncancel", None)  # Python 3.11
        if uncancel is not None:
            uncancel()
        return _as_cancellation(error)


@types.coroutine
def _driven(run: Run, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    error: BaseException | None = None
    while True:
        try:
            awaited = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration as done:
            return done.value
        error = None
        try:
            yield awaited
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as raised:
            error = run._take(raised)


def _is_cancellation(raised: BaseException) -> bool:
    import asyncio

    # A task group wraps what its block raises, unless that is CancelledError itself.
    inside = getattr(raised, "exceptions", None)
    if isinstance(inside, tuple):
        return all(_is_cancellation(each) for each in inside)
    return isinstance(raised, asyncio.CancelledError)


_cancellations: dict[type[BaseException], type[BaseException]] = {}


def _as_cancellation(error: BaseException) -> BaseException:
    import asyncio

    kind = type(error)
    if issubclass(kind, asyncio.CancelledError):
        return error
    made = _cancellations.get(kind)
    if made is None:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        made = _cancellations[kind] = type(kind.__name__, (kind, asyncio.CancelledError), names)
    return made(*error.args)


# -- where plain code runs


class _Own(threading.local):
    """The loop of one thread."""

    loop: asyncio.AbstractEventLoop | None = None
    pid = 0


_own = _Own()
#: What runs on the loops of threads, by thread.
_runs: dict[int, Run] = {}


def run_coroutine(value: Any, *, keep_loop: bool = False) -> Any:
    """Run what an ``async def`` function returned, and wait for its end. Anything but a coroutine is returned as it is.

    Args:
        keep_loop: Use the loop that this thread has for it, made at the first use and kept until `close_loop`. Without,
            a loop of its own.
    """
    import asyncio

    if not asyncio.iscoroutine(value):
        return value
    if asyncio._get_running_loop() is not None:
        return _run_aside(value)
    loop = _kept_loop() if keep_loop else asyncio.new_event_loop()
    ident = threading.get_ident()
    run = Run(loop)
    before = _runs.get(ident)
    _runs[ident] = run
    try:
        return _run_on(loop, run, value)
    finally:
        if before is None:
            del _runs[ident]
        else:
            _runs[ident] = before
        if not keep_loop:
            _close(loop)


def _run_on(loop: asyncio.AbstractEventLoop, run: Run, coroutine: Coroutine[Any, Any, Any]) -> Any:
    task = loop.create_task(run.drive(coroutine))
    try:
        return loop.run_until_complete(task)
    except BaseException as error:
        if task.done():
            raise
        # A signal handler has raised while the loop waited: it is meant for the coroutine, which has the last word.
        run.interrupt_here(error)
        return loop.run_until_complete(task)


def _run_aside(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it in another thread: in this one a loop is running, which cannot run another."""
    outcome: list[Any] = []
    context = copy_context()

    def run() -> None:
        try:
            outcome.extend((True, context.run(run_coroutine, coroutine)))
        except BaseException as error:
            outcome.extend((False, error))

    thread = threading.Thread(target=run, name="amqptasks-coroutine", daemon=True)
    thread.start()
    thread.join()
    if outcome[0]:
        return outcome[1]
    raise outcome[1]


def interrupt(thread_id: int, error: BaseException) -> bool:
    """Interrupt the coroutine that runs on a thread's own loop; False if there is none.

    For limits: an exception raised in such a thread from outside would not be seen before the loop wakes by itself.
    From any thread, and from a signal handler.
    """
    run = _runs.get(thread_id)
    if run is None:
        return False
    run.interrupt(error)
    return True


def _kept_loop() -> asyncio.AbstractEventLoop:
    import asyncio

    # A forked child must not wait on its parent's loop.
    if _own.loop is None or _own.loop.is_closed() or _own.pid != os.getpid():
        _own.loop, _own.pid = asyncio.new_event_loop(), os.getpid()
    return _own.loop


def close_loop() -> None:
    """Close this thread's loop, if it has one, and cancel what tasks have left on it."""
    loop, _own.loop = _own.loop, None
    if loop is not None and _own.pid == os.getpid():
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_until_complete(clear_up(loop))
    finally:
        loop.close()


async def clear_up(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel everything else that is on a loop, and wait for that, for a while."""
    import asyncio

    left = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for each in left:
        each.cancel()
    if left:
        done, _ = await asyncio.wait(left, timeout=CLOSE_S)
        for each in done:
            if not each.cancelled() and each.exception() is not None:
                loop.call_exception_handler(
                    {"message": "a background task of a task failed", "exception": each.exception(), "task": each}
                )
    await loop.shutdown_asyncgens()
