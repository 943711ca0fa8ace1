"""Stores results for the worker's parent: the loop must not wait for a database.

Nor must another thread: the parent forks, and a child forked beside a busy thread inherits its locks, and waits for
them for ever.

So this is a pool of one place that stores instead of running tasks, started when it is first needed. Only what no child
can speak for comes here, such as tasks that have expired or whose process has died.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from amqptasks.exceptions import AmqptasksError, ImproperlyConfigured
from amqptasks.results.backend import ResultBackend
from amqptasks.results.record import ResultRecord
from amqptasks.wire.serializers import Limits, accepted, by_name, dumps, loads
from amqptasks.worker.outcome import FAILED, REJECTED, SUCCEEDED, FollowUp, Outcome
from amqptasks.worker.pools.pool import RESPAWN_S, SCARCITY, Pool, PoolEvents, Run
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

#: Told on the loop, once: None, or why the record could not be stored.
Stored = Callable[["str | None"], None]
#: Makes the pool of one: of what to tell, and what to run.
MakePool = Callable[[PoolEvents, Run], Pool]

#: A record that has ended its place this often is given up.
MAX_LOSSES = 3
#: What was stored or not came from this same process: it is read without limits.
_NO_LIMITS = Limits(max_bytes=1 << 40, max_items=1 << 40, max_depth=10_000)


class _Job:
    """One thing to do there. A slot asks of it what it asks of a task: a number, and its frame."""

    def __init__(self, body: bytes | None, done: Callable[[Outcome], None]) -> None:
        self.body = body
        self.done = done
        self.number = 0
        self.losses = 0

    def to_frame(self, number: int) -> list[Any]:
        """Return the frame that gives it to the other side: no body asks to get ready."""
        return [number, self.body]


class Storer:
    """Stores records one after another, in order. Belongs to the loop's thread.

    Args:
        backend: Called on the other side.
        serializer: How records travel there: a name of `amqptasks.wire.serializers` that can carry every result.
    """

    def __init__(self, backend: Callable[[], ResultBackend], serializer: str, make_pool: MakePool) -> None:
        self._backend = backend
        self._serializer = serializer
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._is_starting = False
        self._jobs: deque[_Job] = deque()

    def store(self, record: ResultRecord, done: Stored) -> None:
        """Store a record and call ``done`` with the outcome."""

        def on_done(outcome: Outcome) -> None:
            if outcome.kind == SUCCEEDED:
                done(None)
                return
            logger.error("The result of task %.64r is not stored: %s", record.task_id, outcome.reason)
            done(outcome.reason)

        self._submit(_Job(dumps(record.to_plain(), self._serializer)[2], on_done))

    def prepare(self, misconfigured: Callable[[str], None]) -> None:
        """Let the backend get ready, if it has anything to get ready; ``misconfigured`` is told why it never will
        be."""
        backend = self._backend()
        if backend.in_message or type(backend).prepare is ResultBackend.prepare:
            return
        uri = backend.as_uri()

        def on_done(outcome: Outcome) -> None:
            if outcome.kind == REJECTED:
                misconfigured(outcome.reason)
            elif outcome.kind != SUCCEEDED:
                # It may come back before the first result; if not, storing that says so again.
                logger.error("The result backend %s is not ready: %s", uri, outcome.reason)

        self._submit(_Job(None, on_done))

    # -- the other side

    def _run(self, frame: list[Any], _emit: Callable[[bytes], None]) -> Outcome:
        body = frame[1]
        try:
            if body is None:
                self._backend().prepare()
            else:
                kind = by_name(self._serializer)
                accept = accepted((self._serializer,))
                plain = loads(body, kind.content_type, kind.content_encoding, accept, _NO_LIMITS)
                self._backend().store(ResultRecord.from_plain(plain))
        except ImproperlyConfigured as error:
            return Outcome(REJECTED, reason=str(error))
        except Exception as error:
            text = str(error) if isinstance(error, AmqptasksError) else f"{type(error).__name__}: {error}"
            return Outcome(FAILED, reason=text)
        return Outcome(SUCCEEDED)

    # -- the pool

    def _submit(self, job: _Job) -> None:
        self._jobs.append(job)
        if self._pool is None and not self._is_starting:
            self._start()
        self._next()

    def _start(self) -> None:
        events = PoolEvents(self._on_outcome, self._on_message, self._on_lost, self._next)
        pool = self._make_pool(events, self._run)
        try:
            pool.start()
        except SCARCITY as error:
            logger.error("Cannot start what stores results: %s; trying again in %g s", error, RESPAWN_S)
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

    def _on_message(self, _slot: Slot, _request: Request, _message: FollowUp) -> None:
        """Nothing sends any."""

    def _on_lost(self, _request: Request, begun: bool, how: str) -> None:
        job = self._jobs[0]
        job.losses += begun
        if job.losses < MAX_LOSSES:
            # Storing twice is storing once.
            self._next()
            return
        self._jobs.popleft()
        job.done(Outcome(FAILED, reason=f"storing it ended the process that did, {how}"))
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
        """End once what is being stored is."""
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
