"""Thousands of ``async def`` tasks at once, on one event loop in a thread of the worker; plain tasks in threads beside.

One slot holds all of them: a socket and shared memory for each would cost more than most such tasks do. `SharedSlot`
is its side on the worker's loop, `Host` the event loop's. Frames go over to the one, reports come back to the other,
each in batches. A task that waits and the one who wants it back both take its number out of `Host.unbegun`, in one
step of the interpreter: whoever gets it, has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from amqptasks.app.coroutines import Run as CoroutineRun
from amqptasks.app.coroutines import clear_up
from amqptasks.broker.loop import Loop
from amqptasks.wire.pipe import FrameReader, encode_frame
from amqptasks.worker.daemon_threads import DaemonThreads
from amqptasks.worker.outcome import Outcome, said_from_plain
from amqptasks.worker.pools.pool import Pool, PoolEvents, Run
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.pools.window import Abandoned, ThreadWindow
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

Emit = Callable[[bytes], None]
#: Runs the ``async def`` task of a frame; the third argument drives its coroutine.
RunAsync = Callable[[list[Any], Emit, CoroutineRun], Awaitable[Outcome]]
#: What comes back for a number: the outcome, a frame that the task sends, or why what ran it has failed.
Report = tuple[int, "Outcome | bytes | BaseException"]

#: Threads for what coroutines give to ``asyncio.to_thread``.
THREADS_OF_TASKS = 32
_MISSING = object()


class AsyncioPool(Pool):
    """One slot of ``size`` places.

    Attributes:
        run_async: Runs the tasks that `is_async` says yes to; all others go to `run`, in threads.
        threads: How many plain tasks run at once.
    """

    run_async: RunAsync | None = None
    threads = 32

    @staticmethod
    def is_async(frame: list[Any]) -> bool:
        """Whether the task of a frame is an ``async def`` function."""
        del frame
        return False

    def start(self) -> None:
        """Start the event loop."""
        self.slots.append(self.spawn(0))

    def spawn(self, index: int) -> Slot:
        """Start a thread with an event loop, and make its slot."""
        self._host = Host(self.size, self.threads, self._run, self.run_async, self.is_async)
        return SharedSlot(self.loop, self, self._host, f"AsyncioPoolWorker-{index + 1}", self.size)

    def on_lost(self, request: Request, how: str) -> None:
        """Report that what ran a task has failed: that task alone."""
        self._events.on_lost(request, True, how)

    def terminate(self, slot: Slot, request: Request, number: int) -> bool:
        """Cancel the task and give it up; there is no process to send a signal to."""
        return self.end(slot, request, 0.0)

    def stop(self) -> None:
        """Let the loop end once what runs on it has."""
        self._end(is_cold=False)

    def kill(self) -> None:
        """Cancel what runs. It cannot be made sure that it ends."""
        self._end(is_cold=True)

    def _end(self, *, is_cold: bool) -> None:
        self.is_stopping = True
        for slot in self.slots:
            slot.close()
        self.slots.clear()
        host = getattr(self, "_host", None)
        if host is not None:
            host.stop(is_cold=is_cold)

    @property
    def is_stopped(self) -> bool:
        """Whether the event loop has ended."""
        return not self._host.thread.is_alive()

    def describe(self) -> str:
        """Name the pool."""
        return "asyncio"


class AsyncRunner(Protocol):
    """What runs tasks for this pool."""

    def run(self, frame: list[Any], emit: Emit) -> Outcome:
        """Run a plain task."""

    async def run_async(self, frame: list[Any], emit: Emit, run: CoroutineRun) -> Outcome:
        """Run an ``async def`` task."""

    def is_async(self, frame: list[Any]) -> bool:
        """Say which of the two."""


def make_pool(loop: Loop, size: int, events: PoolEvents, runner: Any, threads: int) -> AsyncioPool:
    """Make the pool of a worker. ``runner`` is an `AsyncRunner`."""
    asked: AsyncRunner = runner
    pool = AsyncioPool(loop, size, events, asked.run)
    pool.run_async, pool.threads = asked.run_async, threads
    pool.is_async = asked.is_async  # type: ignore[method-assign]
    return pool


class SharedSlot(Slot):
    """The worker's side of many tasks that run at once. Belongs to the loop's thread.

    Attributes:
        places: How many of them run at once.
        assigned: What was sent and not reported, oldest first; the keys count.
    """

    is_shared = True

    def __init__(self, loop: Loop, owner: AsyncioPool, host: Host, name: str, places: int) -> None:
        # Nothing of the socket and the shared memory of other slots is needed.
        self.name = name
        self.pid = os.getpid()
        self.born = time.monotonic()
        self.places = places
        self.assigned: dict[Request, None] = {}  # type: ignore[assignment]  # long, and left from its middle
        self.is_retiring = False
        self._loop = loop
        self._pool = owner
        self._host = host
        self._number = 0
        self._by_number: dict[int, Request] = {}
        self._out: list[bytes] = []
        self._scheduled = False
        self._is_open = True
        host.start(loop, self._on_reports)

    def assign(self, request: Request) -> None:
        """Send a task; what is assigned in one turn of the loop leaves together."""
        self._number += 1
        number = request.number = self._number
        self.assigned[request] = None
        self._by_number[number] = request
        self._host.unbegun[number] = None
        self._out.append(encode_frame(request.to_frame(number)))
        if not self._scheduled:
            self._scheduled = True
            self._loop.at_turn_end(self._flush)

    def begun(self) -> tuple[int, float]:
        """Return the number of the task begun last, and when. Others before it may not have: see `has_begun`."""
        return self._host.last_begun

    def has_begun(self, request: Request) -> bool:
        """Whether a task that is assigned has begun."""
        return request.number not in self._host.unbegun

    def newly_begun(self) -> list[Request]:
        """Return what has begun since the last call, and not ended."""
        begun = self._host.begun
        found = [self._by_number.get(begun.popleft()) for _ in range(len(begun))]
        return [request for request in found if request is not None]

    def started(self, request: Request) -> float | None:
        """Return when a task began, on the machine's monotonic clock; None if it has not, or has ended."""
        return self._host.started.get(request.number)

    def take_back(self) -> list[Request]:
        """Return the tasks that have not begun, and make sure that they never will here."""
        unbegun = self._host.unbegun
        numbers = [number for number in list(unbegun) if unbegun.pop(number, _MISSING) is not _MISSING]
        return [self._remove(number) for number in sorted(numbers)]

    def interrupt(self, request: Request, error: BaseException) -> bool:
        """Raise an error that it may catch in a task that runs; a coroutine is cancelled with it. A plain task always
        gets `SoftTimeLimitExceeded`. False if it has ended, and for a plain task without a time limit."""
        return self._host.interrupt(request.number, error)

    def give_up(self, request: Request) -> bool:
        """Stop waiting for a task that runs: its place is free, whatever it still does is ignored. False if it has
        ended meanwhile."""
        if self._by_number.get(request.number) is not request:
            return False
        self._host.give_up(request.number)
        self._remove(request.number)
        return True

    def drain(self) -> None:
        """Take in what was reported."""
        self._on_reports()

    def abandon(self) -> list[Request]:
        """Return everything assigned, begun or not."""
        left = list(self.assigned)
        self.assigned.clear()
        self._by_number.clear()
        return left

    def close(self) -> None:
        """Send and take in nothing any more. Safe twice."""
        self._is_open = False

    def fileno(self) -> int:
        """There is no descriptor."""
        return -1

    def _remove(self, number: int) -> Request:
        request = self._by_number.pop(number)
        del self.assigned[request]
        return request

    def _flush(self) -> None:
        self._scheduled = False
        data = b"".join(self._out)
        self._out.clear()
        self._host.send(data)

    def _on_reports(self) -> None:
        """Take in what the event loop's thread has reported; it calls this on the worker's loop."""
        host = self._host
        host.is_asked = False
        reports = host.reports
        while reports and self._is_open:
            number, report = reports.popleft()
            request = self._by_number.get(number)
            if request is None:
                # Given up. Or from what a task has left behind, which speaks for nobody.
                continue
            if isinstance(report, bytes):
                for frame in FrameReader().feed(report):
                    self._pool.on_message(self, request, said_from_plain(frame[2]))
                continue
            self._remove(number)
            if isinstance(report, Outcome):
                self._pool.on_outcome(self, request, report)
            else:
                self._pool.on_lost(request, f"{type(report).__name__}: {report}")


class Host:
    """The event loop, in its thread, and the threads for plain tasks.

    Attributes:
        unbegun: Numbers that were sent and have not begun.
        begun: Numbers that have begun, oldest first, until somebody looks.
        last_begun: The last of them, and when.
        started: When it began, by number, while it runs.
        reports: What the worker's loop is to take in.
        is_asked: Whether it was asked to.
    """

    def __init__(
        self, places: int, threads: int, run: Run, run_async: RunAsync | None, is_async: Callable[[list[Any]], bool]
    ) -> None:
        self.unbegun: dict[int, None] = {}
        self.begun: deque[int] = deque()
        self.last_begun = (0, 0.0)
        self.started: dict[int, float] = {}
        self.reports: deque[Report] = deque()
        self.is_asked = False
        self._places = places
        self._run = run
        self._run_async = run_async
        self._is_async = is_async
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(DaemonThreads(THREADS_OF_TASKS, "asyncio-thread"))
        self._threads = DaemonThreads(min(threads, places), "AsyncioPoolThread")
        self._pending: deque[list[Any]] = deque()
        #: What fills the places, by number; the value is None for a plain task.
        self._running: dict[int, tuple[CoroutineRun, asyncio.Task[None]] | None] = {}
        #: Plain tasks that were given up and still hold their threads.
        self._lost: set[int] = set()
        #: Where plain tasks with a time limit may be interrupted, by number.
        self._windows: dict[int, ThreadWindow] = {}
        self._reader = FrameReader()
        self._is_stopping = False
        self._is_done = False
        # Tasks begin in an empty context: nothing of the worker's own shows in them.
        self._context = contextvars.Context()
        self.thread = threading.Thread(target=self._main, name="amqptasks-asyncio", daemon=True)

    # -- from the worker's loop

    def start(self, worker_loop: Loop, on_reports: Callable[[], None]) -> None:
        """Start the thread. ``on_reports`` is called on the worker's loop when there are some."""
        self._worker_loop = worker_loop
        self._on_reports = on_reports
        self.thread.start()

    def send(self, data: bytes) -> None:
        """Hand frames over."""
        self._call(self._take_in, data)

    def interrupt(self, number: int, error: BaseException) -> bool:
        """Interrupt what runs under a number, if it can be."""
        running = self._running.get(number)
        if running is None:
            window = self._windows.get(number)
            return window is not None and window.interrupt(number)
        running[0].interrupt(error)
        return True

    def give_up(self, number: int) -> None:
        """Free the place of a number, and cancel what fills it."""
        window = self._windows.get(number)
        if window is not None:
            window.abandon(number)
        self._call(self._give_up, number)

    def stop(self, *, is_cold: bool) -> None:
        """End once nothing runs any more; ``is_cold`` cancels it."""
        self._call(self._stop, is_cold)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):
            # Closed: then there is nothing left that it could do.
            self._loop.call_soon_threadsafe(function, *args, context=self._context)

    # -- on the event loop

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._is_done:
            try:
                self._loop.run_forever()
            except BaseException:
                # SystemExit in the background task of a task: all others go on.
                logger.exception("The event loop of the asyncio pool was interrupted and goes on")
        try:
            self._loop.run_until_complete(clear_up(self._loop))
        finally:
            self._threads.shutdown()
            self._loop.close()

    def _take_in(self, data: bytes) -> None:
        self._pending.extend(self._reader.feed(data))
        self._begin_more()

    def _begin_more(self) -> None:
        pending, running = self._pending, self._running
        while pending and len(running) < self._places:
            frame = pending.popleft()
            number = frame[0]
            if self._run_async is not None and self._is_async(frame):
                if self._begins(number):
                    run = CoroutineRun(self._loop)
                    # A copy of the empty one: this may be called at the end of another task, in its context.
                    task = self._context.copy().run(self._loop.create_task, self._run_one(self._run_async, frame, run))
                    running[number] = run, task
            elif number in self.unbegun:
                running[number] = None
                self._threads.submit(self._run_plain, frame)
        if self._is_stopping and not running and not pending:
            self._is_done = True
            self._loop.stop()

    def _begins(self, number: int) -> bool:
        if self.unbegun.pop(number, _MISSING) is _MISSING:
            return False
        now = time.monotonic()
        self.started[number] = now
        self.last_begun = number, now
        self.begun.append(number)
        return True

    async def _run_one(self, run_async: RunAsync, frame: list[Any], run: CoroutineRun) -> None:
        number = frame[0]
        try:
            report: Outcome | BaseException = await run_async(frame, self._emitter(number), run)
        except BaseException as error:
            if not run.is_given_up:
                logger.error("What runs coroutines has failed", exc_info=error)
            report = error
        self._ended(number, report)

    def _ended(self, number: int, report: Outcome | BaseException) -> None:
        if self._running.pop(number, _MISSING) is not _MISSING:
            self._report(number, report)
            self._begin_more()
        elif number in self._lost:
            self._lost.discard(number)
            self._threads.take_again()

    def _give_up(self, number: int) -> None:
        if number not in self._running:
            return
        self.started.pop(number, None)
        running = self._running.pop(number)
        if running is None:
            self._lost.add(number)
            self._threads.replace_one()
        else:
            run, task = running
            run.is_given_up = True
            task.cancel()
        self._begin_more()

    def _stop(self, is_cold: bool) -> None:
        self._is_stopping = True
        for number in list(self.unbegun):
            self.unbegun.pop(number, None)
        self._pending.clear()
        if is_cold:
            for number in list(self._running):
                self._give_up(number)
        self._begin_more()

    # -- in threads

    def _run_plain(self, frame: list[Any]) -> None:
        number = frame[0]
        report: Outcome | BaseException | None = None
        window = self._windows[number] = ThreadWindow(lambda: number)
        window.enter()
        try:
            if self._begins(number):
                report = self._run(frame, self._emitter(number))
        except Abandoned as error:
            report = error
        except BaseException as error:
            logger.error("%s failed", threading.current_thread().name, exc_info=error)
            report = error
        del self._windows[number]
        if report is None:
            self._call(self._free, number)
        else:
            self._call(self._ended, number, report)

    def _free(self, number: int) -> None:
        self._running.pop(number, None)
        self._begin_more()

    def _emitter(self, number: int) -> Emit:
        return lambda frame: self._report(number, frame)

    def _report(self, number: int, report: Outcome | bytes | BaseException) -> None:
        if not isinstance(report, bytes):
            self.started.pop(number, None)
        self.reports.append((number, report))
        if not self.is_asked:
            self.is_asked = True
            self._worker_loop.call_threadsafe(self._on_reports)
