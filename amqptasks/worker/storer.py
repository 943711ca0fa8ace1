"""Stores results for the worker's parent: the loop must not wait for a database.

Only what no child can speak for comes here, such as tasks that have expired or whose process has died.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from amqptasks.exceptions import AmqptasksError, ImproperlyConfigured
from amqptasks.results.backend import ResultBackend
from amqptasks.results.record import ResultRecord
from amqptasks.wire.serializers import Limits, accepted, by_name, dumps, loads
from amqptasks.worker.helper import Helper, MakePool
from amqptasks.worker.outcome import FAILED, REJECTED, SUCCEEDED, Outcome

logger = logging.getLogger(__name__)

#: Told on the loop, once: None, or why the record could not be stored.
Stored = Callable[["str | None"], None]
#: A record that has ended its place this often is given up.
MAX_LOSSES = 3
#: What was stored or not came from this same process: it is read without limits.
_NO_LIMITS = Limits(max_bytes=1 << 40, max_items=1 << 40, max_depth=10_000)


class _Job:
    """One thing to do there. A slot asks of it what it asks of a task: a number, and its frame."""

    def __init__(self, body: bytes | Sequence[str] | None, done: Callable[[Outcome], None]) -> None:
        self.body = body
        self.done = done
        self.number = 0
        self.losses = 0

    def to_frame(self, number: int) -> list[Any]:
        """Return the frame that gives it to the other side: a record, ids to look up, or nothing to get ready."""
        return [number, self.body]


class Storer(Helper):
    """Stores records one after another, in order. Belongs to the loop's thread.

    Args:
        backend: Called on the other side.
        serializer: How records travel there: a name of `amqptasks.wire.serializers` that can carry every result.
    """

    def __init__(self, backend: Callable[[], ResultBackend], serializer: str, make_pool: MakePool) -> None:
        super().__init__("stores results", make_pool, self._run, MAX_LOSSES)
        self._backend = backend
        self._serializer = serializer

    def store(self, record: ResultRecord, done: Stored) -> None:
        """Store a record and call ``done`` with the outcome."""

        def on_done(outcome: Outcome) -> None:
            if outcome.kind == SUCCEEDED:
                done(None)
                return
            logger.error("The result of task %.64r is not stored: %s", record.task_id, outcome.reason)
            done(outcome.reason)

        self.submit(_Job(dumps(record.to_plain(), self._serializer)[2], on_done))

    def look_up(self, ids: Sequence[str], done: Callable[[dict[str, str]], None]) -> None:
        """Call ``done`` with the states that the store has of tasks, by their ids; unknown ones are left out, and all
        of them where the store cannot be read."""

        def on_done(outcome: Outcome) -> None:
            if outcome.kind != SUCCEEDED:
                logger.warning("Results were not looked up: %s", outcome.reason)
            done(json.loads(outcome.reason) if outcome.kind == SUCCEEDED else {})

        self.submit(_Job(list(ids), on_done))

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

        self.submit(_Job(None, on_done))

    # -- the other side

    def _run(self, frame: list[Any], _emit: Callable[[bytes], None]) -> Outcome:
        body = frame[1]
        try:
            if body is None:
                self._backend().prepare()
            elif isinstance(body, list):
                fetch = self._backend().fetch
                records = ((task_id, fetch(task_id)) for task_id in body)
                return Outcome(
                    SUCCEEDED, reason=json.dumps({task_id: each.status for task_id, each in records if each})
                )
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
