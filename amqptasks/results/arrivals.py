"""Several results as they come in, each looked at once it is there.

A backend that tells of news (`ResultBackend.subscribe`) costs one look for each result, however many are waited for;
others are asked for all of them at once, now and then.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from amqptasks.exceptions import AmqptasksError, TimeoutError
from amqptasks.results.backend import ResultBackend, Unavailable, timed_out
from amqptasks.results.record import ResultRecord

__all__ = ["Arrivals", "Outcome"]

#: The first pause between two looks at backends that tell of nothing, and the longest. Seconds.
FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.5
#: For so long a backend that cannot be read is asked again, seconds.
PATIENCE_S: Final = 30.0

#: The final record of a task, or why there will be none.
Outcome = ResultRecord | AmqptasksError


class _Asked:
    """The tasks of a backend that tells of nothing."""

    def __init__(self, backend: ResultBackend) -> None:
        self.backend = backend
        self.ids: dict[str, None] = {}
        self.patient_until: float | None = None


class Arrivals:
    """Tasks whose ends are awaited. `add` may be called from any thread, all else from one. A context manager."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._told: dict[str, tuple[ResultBackend, Callable[[], None]]] = {}
        self._added: queue.SimpleQueue[tuple[ResultBackend, str, bool]] = queue.SimpleQueue()
        self._asked: dict[int, _Asked] = {}
        self._pause_s = FIRST_PAUSE_S
        self._look_due = 0.0

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, backend: ResultBackend, task_id: str) -> None:
        """Await a task.

        Raises:
            ResultUnreachable: This process can never see its result.
        """
        end = backend.subscribe(task_id, lambda: self._news.put(task_id))
        if end is not None:
            self._told[task_id] = (backend, end)
        # It may have come before anybody was there to be told.
        self._added.put((backend, task_id, end is not None))
        self._news.put(None)

    def take(self, timeout_s: float | None) -> dict[str, Outcome]:
        """Wait until something is there, and return all that is. Each task comes once.

        Raises:
            TimeoutError: Nothing has come in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self._hear(self._patience(deadline))
            self._look(found)
            if found:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise timed_out()

    def _patience(self, deadline: float | None) -> float | None:
        """For how many seconds to listen."""
        ends = [each for each in (deadline, self._look_due if self._asked else None) if each is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _hear(self, timeout_s: float | None) -> dict[str, Outcome]:
        found: dict[str, Outcome] = {}
        try:
            news = self._news.get(timeout=timeout_s)
            while True:
                if news is None:
                    self._take_added(found)
                else:
                    told = self._told.get(news)
                    if told is not None:
                        self._look_at(told[0], [news], found)
                news = self._news.get_nowait()
        except queue.Empty:
            return found

    def _take_added(self, found: dict[str, Outcome]) -> None:
        """Look at what was added: at all of it at once, as it may be there already."""
        told: dict[int, tuple[ResultBackend, list[str]]] = {}
        while not self._added.empty():
            backend, task_id, is_told = self._added.get_nowait()
            if not is_told:
                self._ask(backend, task_id)
            elif task_id in self._told:
                told.setdefault(id(backend), (backend, []))[1].append(task_id)
        for backend, ids in told.values():
            self._look_at(backend, ids, found)

    def _ask(self, backend: ResultBackend, task_id: str) -> None:
        self._asked.setdefault(id(backend), _Asked(backend)).ids[task_id] = None
        # Who has just been sent may be there soon.
        self._pause_s, self._look_due = FIRST_PAUSE_S, 0.0

    def _look_at(self, backend: ResultBackend, ids: list[str], found: dict[str, Outcome]) -> None:
        """Look at some of those that are told of."""
        try:
            outcomes = _outcomes(backend, ids)
        except Unavailable:
            # Who tells of news may have none of what happens while it is away.
            for task_id in dict.fromkeys(ids):
                self._told.pop(task_id)[1]()
                self._ask(backend, task_id)
            return
        for task_id in outcomes:
            self._told.pop(task_id)[1]()
        found.update(outcomes)

    def _look(self, found: dict[str, Outcome]) -> None:
        """Ask the backends that tell of nothing, if it is time."""
        now = time.monotonic()
        if not self._asked or now < self._look_due:
            return
        for key, asked in list(self._asked.items()):
            outcomes: dict[str, Outcome] = {}
            try:
                outcomes = _outcomes(asked.backend, list(asked.ids))
                asked.patient_until = None
            except Unavailable as error:
                # A store that restarts is back within the time that somebody is willing to wait.
                asked.patient_until = asked.patient_until or now + PATIENCE_S
                if now >= asked.patient_until:
                    outcomes = dict.fromkeys(asked.ids, error)
            for task_id in outcomes:
                asked.ids.pop(task_id, None)
            if not asked.ids:
                del self._asked[key]
            found.update(outcomes)
        self._pause_s = FIRST_PAUSE_S if found else min(self._pause_s * 1.5, LONGEST_PAUSE_S)
        self._look_due = time.monotonic() + self._pause_s

    def close(self) -> None:
        """Await nothing any more."""
        for _, end in self._told.values():
            end()
        self._told.clear()
        self._asked.clear()


def _outcomes(backend: ResultBackend, ids: list[str]) -> dict[str, Outcome]:
    """Look at tasks without waiting, with one question if possible; Unavailable if the store is."""
    if len(ids) > 1:
        try:
            return {record.task_id: record for record in backend.wait_any(ids, 0)}
        except TimeoutError:
            return {}
        except Unavailable:
            raise
        except AmqptasksError:
            # It is about one of them; which one, each will tell.
            pass
    outcomes: dict[str, Outcome] = {}
    for task_id in ids:
        try:
            outcomes[task_id] = backend.wait(task_id, 0)
        except TimeoutError:
            continue
        except Unavailable:
            raise
        except AmqptasksError as error:
            outcomes[task_id] = error
    return outcomes
