"""A place beside the pool, for the worker's own work: what must not keep the loop waiting, nor wait for tasks.

Not a thread where tasks run in processes: the parent forks, and a child forked beside a busy thread inherits its locks,
and waits for them for ever. So it is a pool of one place, started when it is first needed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from amqptasks.worker.outcome import FAILED, FollowUp, Outcome, Told
from amqptasks.worker.pools.pool import RESPAWN_S, SCARCITY, Pool, PoolEvents, Run
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.request import Request

__all__ = ["Helper", "Job", "MakePool"]

logger = logging.getLogger(__name__)

#: Makes the pool of one: of what to tell, and what to run.
MakePool = Callable[[PoolEvents, Run], Pool]


class Job(Protocol):
    """One thing to do there. A slot asks of it what it asks of a task: a number, and its frame."""

    number: int
    losses: int

    def to_frame(self, number: int) -> list[Any]:
        """Return the frame that gives it to the other side."""

    def done(self, outcome: Outcome) -> None:
        """Learn how it ended."""


class Helper:
    """Does one job after another, in order. Belongs to the loop's thread.

    Args:
        purpose: What it does, for the log.
        run: Called on the other side with a job's frame.
        max_losses: A job that has ended its place this often is given up.
    """

    def __init__(self, purpose: str, make_pool: MakePool, run: Run, max_losses: int) -> None:
        self._purpose = purpose
        self._make_pool = make_pool
        self._run_there = run
        self._max_losses = max_losses
        self._pool: Pool | None = None
        self._is_starting = False
        self._jobs: deque[Job] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether a worker that stops should wait for it."""
        return False

    def submit(self, job: Job) -> None:
        """Do this after all that was submitted before."""
        self._jobs.append(job)
        if self._pool is None and not self._is_starting:
            self._start()
        self._next()

    def _start(self) -> None:
        events = PoolEvents(self._on_outcome, self._on_message, self._on_lost, self._next)
        pool = self._make_pool(events, self._run_there)
        try:
            pool.start()
        except SCARCITY as error:
            logger.error("Cannot start what %s: %s; trying again in %g s", self._purpose, error, RESPAWN_S)
            self._is_starting = True
            pool.loop.call_later(RESPAWN_S, self._start_again)
            return
        self._pool = pool

    def _start_again(self) -> None:
        self._is_starting = False
        if self._jobs:
            self._start()
            self._next()

    def _next(self) -> None:
        pool = self._pool
        if pool is None or not self._jobs or not pool.slots:
            return
        slot = pool.slots[0]
        if slot.is_open and not slot.assigned:
            slot.assign(cast(Request, self._jobs[0]))

    def _on_outcome(self, _slot: Slot, request: Request, outcome: Outcome) -> None:
        job = self._jobs.popleft()
        assert cast(Any, request) is job
        job.done(outcome)
        self._next()

    def _on_message(self, _slot: Slot, _request: Request, _message: FollowUp | Told) -> None:
        """Nothing sends any that matters."""

    def _on_lost(self, _request: Request, begun: bool, how: str) -> None:
        job = self._jobs[0]
        job.losses += begun
        if job.losses < self._max_losses:
            # What is done there may be done twice.
            self._next()
            return
        self._jobs.popleft()
        job.done(Outcome(FAILED, reason=f"it ended the process that did it, {how}"))
        self._next()

    # -- life

    @property
    def pool(self) -> Pool | None:
        """The pool, once it was needed."""
        return self._pool

    def reap(self) -> None:
        """Look whether the child has ended. Called when the process gets SIGCHLD."""
        reap = getattr(self._pool, "reap", None)
        if reap is not None:
            reap()

    def stop(self) -> None:
        """End once what is being done is."""
        if self._pool is not None:
            self._pool.stop()

    def kill(self) -> None:
        """End now."""
        if self._pool is not None:
            self._pool.kill()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing of it is left that could be ended."""
        return self._pool is None or not self._pool.can_kill or self._pool.is_stopped
