"""Several results as they come in, each looked at once it is there.

A backend that tells of news (`ResultBackend.subscribe`) costs one look for each result, however many are waited for;
others are asked for all of them at once, now and then.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
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
        self._added: queue.SimpleQueue[tuple[ResultBackend, str]] = queue.SimpleQueue()
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
        if end is None:
            self._added.put((backend, task_id))
            self._news.put(None)
            return
        self._told[task_id] = (backend, end)
        # It may have come before anybody was there to be told.
        self._news.put(task_id)

    def wake(self) -> None:
        """Make `take` return, with nothing if need be. From any thread."""
        self._news.put(None)

    def take(self, timeout_s: float | None) -> dict[str, Outcome]:
        """Wait until something is there, or `wake` was called, and return what is. Each task comes once.

        Raises:
            TimeoutError: Nothing has come in time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found, is_woken = self._hear(self._patience(deadline))
            self._look(found)
            if found or is_woken:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise timed_out()

    def _patience(self, deadline: float | None) -> float | None:
        """For how many seconds to listen."""
        ends = [each for each in (deadline, self._look_due if self._asked else None) if each is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _hear(self, timeout_s: float | None) -> tuple[dict[str, Outcome], bool]:
        is_woken = False
        ids: dict[str, None] = {}
        try:
            news = self._news.get(timeout=timeout_s)
            while True:
                if news is None:
                    is_woken = not self._take_added() or is_woken
                else:
                    ids[news] = None
                news = self._news.get_nowait()
        except queue.Empty:
            return self._look_at(ids), is_woken

    def _take_added(self) -> bool:
        """Take in what was added for asking; False if nothing was."""
        is_some = False
        while True:
            try:
                backend, task_id = self._added.get_nowait()
            except queue.Empty:
                return is_some
            is_some = True
            self._ask(backend, task_id)

    def _ask(self, backend: ResultBackend, task_id: str) -> None:
        self._asked.setdefault(id(backend), _Asked(backend)).ids[task_id] = None
        # Who has just been sent may be there soon.
        self._pause_s, self._look_due = FIRST_PAUSE_S, 0.0

    def _look_at(self, ids: Iterable[str]) -> dict[str, Outcome]:
        """Look at those of which there is news."""
        found: dict[str, Outcome] = {}
        backends: dict[int, tuple[ResultBackend, list[str]]] = {}
        for task_id in ids:
            told = self._told.get(task_id)
            if told is not None:
                backends.setdefault(id(told[0]), (told[0], []))[1].append(task_id)
        for backend, some in backends.values():
            try:
                found.update(_outcomes(backend, some))
            except Unavailable:
                # Who tells news may have none of what happens while it is away.
                for task_id in some:
                    self._told.pop(task_id)[1]()
                    self._ask(backend, task_id)
        for task_id in found:
            self._told.pop(task_id)[1]()
        return found

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
