"""Stores results for the worker's parent, on a thread of its own: the loop must not wait for a database.

Only what no child can speak for comes here, such as tasks that have expired or whose process has died.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from amqptasks.broker.loop import Loop
from amqptasks.exceptions import AmqptasksError, ImproperlyConfigured
from amqptasks.results.backend import ResultBackend
from amqptasks.results.record import ResultRecord

logger = logging.getLogger(__name__)

#: Told on the loop, once: None, or why the record could not be stored.
Stored = Callable[["str | None"], None]


class Storer:
    """A queue of records and the one thread that stores them, in order. `store` belongs to the loop's thread.

    Args:
        backend: Called on the thread.
    """

    def __init__(self, loop: Loop, backend: Callable[[], ResultBackend]) -> None:
        self._loop = loop
        self._backend = backend
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def store(self, record: ResultRecord, done: Stored) -> None:
        """Store a record and call ``done`` with the outcome."""

        def job() -> None:
            failure: str | None = None
            try:
                self._backend().store(record)
            except Exception as error:
                failure = str(error) if isinstance(error, AmqptasksError) else f"{type(error).__name__}: {error}"
                logger.error("The result of task %.64r is not stored: %s", record.task_id, failure)
            self._loop.call_threadsafe(lambda: done(failure))

        self._submit(job)

    def prepare(self, misconfigured: Callable[[str], None]) -> None:
        """Let the backend get ready, unless it has nothing to get ready; ``misconfigured`` is told why it never will
        be."""
        backend = self._backend()
        if backend.in_message or type(backend).prepare is ResultBackend.prepare:
            return

        def job() -> None:
            try:
                backend.prepare()
            except ImproperlyConfigured as error:
                text = str(error)
                self._loop.call_threadsafe(lambda: misconfigured(text))
            except Exception as error:
                # It may come back before the first result; if not, storing that says so again.
                logger.error("The result backend %s is not ready: %s", backend.as_uri(), error)

        self._submit(job)

    def _submit(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)
        if self._thread is None:
            # A daemon: a database that never comes back must not keep a stopping worker.
            self._thread = threading.Thread(target=self._run, name="amqptasks-storer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._jobs.get()()
