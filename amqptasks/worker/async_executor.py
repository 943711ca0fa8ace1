"""Runs ``async def`` tasks on an event loop that many of them share. The steps are those of `Executor`.

Everything here runs on that loop, except what would keep it from the other tasks: where results are stored rather than
sent, a thread waits for the store.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import copy_context
from typing import Any

from amqptasks.app import context
from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.app.coroutines import Run
from amqptasks.logs import TASK_LOGGER, bind_task
from amqptasks.results.context import denied_join_result
from amqptasks.worker.daemon_threads import DaemonThreads
from amqptasks.worker.executor import Emit, Executor, emitting
from amqptasks.worker.outcome import Outcome

logger = logging.getLogger(TASK_LOGGER + ".trace")

#: Threads that wait for the result store.
STORING_THREADS = 4


class AsyncExecutor(Executor):
    """Runs the plain tasks of an app in threads, and its coroutines on the running loop."""

    def __init__(self, app: App, hostname: str) -> None:
        super().__init__(app, hostname)
        is_sent = app.backend.in_message
        self._storing = None if is_sent else DaemonThreads(STORING_THREADS, "asyncio-storing")
        # One thread: the states of a task are stored in their order.
        self._reporting = None if is_sent else DaemonThreads(1, "asyncio-reporting")

    def is_async(self, frame: list[Any]) -> bool:
        """Whether the task of a frame is an ``async def`` function."""
        task = self.app.tasks.get(frame[1])
        return task is not None and task.is_async

    async def run_async(self, frame: list[Any], emit: Emit, run: Run) -> Outcome:
        """Run the task that a frame describes, in an asyncio task of its own. Raises nothing that the task raised."""
        request = self.read(frame)
        if type(request) is Outcome:
            return request
        assert isinstance(request, Context)
        # The context is this asyncio task's own: nothing need be put back for another.
        emitting.set((frame[0], emit))
        try:
            task = self.app.tasks[frame[1]]
            if self._skips_done and frame[13]:
                done = await asyncio.get_running_loop().run_in_executor(
                    self._storing, copy_context().run, self.done_before, task, request
                )
                if done is not None:
                    return done
            return await self._trace_async(task, request, run)
        except Exception as error:
            return self.broken(request, error)

    async def _trace_async(self, task: Any, request: Context, run: Run) -> Outcome:
        context.push(task, request, is_entering=task.has_own_call)
        bind_task(request.task, request.id)
        hooks, value = task.hooks, None
        error: BaseException | None = None
        self.told_start(task, request)
        started = time.perf_counter()
        try:
            with denied_join_result():
                if hooks is not None and hooks.before_start is not None:
                    hooks.before_start(request.id, request.args, request.kwargs)
                value = (task if task.has_own_call else task.run)(*request.args, **request.kwargs)
                if asyncio.iscoroutine(value):
                    value = await run.drive(value)
        except GeneratorExit:
            # The loop is gone.
            raise
        except BaseException as raised:
            if run.is_given_up:
                # Its end was told already.
                raise
            error = raised
        runtime_s = time.perf_counter() - started
        if self._storing is None:
            return self.ended(task, request, value, error, runtime_s)
        return await asyncio.get_running_loop().run_in_executor(
            self._storing, copy_context().run, self.ended, task, request, value, error, runtime_s
        )

    def report_state(self, task: Any, task_id: str, state: str, meta: Any, **fields: Any) -> None:
        """Send a state that is not the last; in a coroutine it is stored a little later."""
        if self._reporting is None or asyncio._get_running_loop() is None:
            super().report_state(task, task_id, state, meta, **fields)
            return
        self._reporting.submit(copy_context().run, self._report_later, task, task_id, state, meta, fields)

    def _report_later(self, task: Any, task_id: str, state: str, meta: Any, fields: dict[str, Any]) -> None:
        try:
            super().report_state(task, task_id, state, meta, **fields)
        except Exception:
            # The task has gone on meanwhile.
            logger.exception("A state of task %s[%s] is not stored", task.name, task_id)
