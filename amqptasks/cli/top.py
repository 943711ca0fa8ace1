"""What the screen of ``amqptasks events`` shows, and what its keys do. Pure: it knows no terminal.

Everything that is shown of an event goes through `fit`: it is one line, it has its width, and it steers nothing.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from amqptasks import states
from amqptasks._version import __version__
from amqptasks.events.state import State, Task
from amqptasks.wire.reprs import printable

__all__ = ["QUIT", "Span", "Top", "fit", "wrap"]

#: What a key asks of the screen besides drawing again.
QUIT: Final = "quit"
BEEP: Final = "beep"

HELP: Final = "j:down k:up i:info t:traceback r:result c:revoke q:quit"
LEFT: Final = 3
STATE_WIDTH: Final = 8
TIME_WIDTH: Final = 8
ID_WIDTH: Final = 36
MIN_WIDTH: Final = 15
#: Rows that are no tasks: above, and below.
ABOVE, BELOW = 4, 6
#: Lines of one page at most.
MAX_LINES: Final = 2000

_STYLES: Final = {
    states.SUCCESS: "good", states.FAILURE: "bad", states.RETRY: "bad", states.REVOKED: "revoked",
    states.STARTED: "running",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text at a place of the screen; ``style`` is one of plain, bold, dim, head, chosen, good, bad, revoked,
    running."""

    y: int
    x: int
    text: str
    style: str = "plain"


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: Any, width: int, *, pad: bool = False) -> str:
    """Return text that takes at most so many places of a terminal, or exactly so many."""
    # Of what is cut anyway not more is looked at than can be seen.
    shown: list[str] = []
    used = 0
    for each in printable(text, max(2, width * 2)):
        cells = _cells(each)
        if used + cells > width:
            if shown and width > 1:
                shown[-1] = "…"
            break
        shown.append(each)
        used += cells
    line = "".join(shown)
    return line + " " * (width - sum(map(_cells, line))) if pad else line


def wrap(text: Any, width: int) -> Iterator[str]:
    """Cut text into lines of a terminal; its own line ends stay."""
    for line in str(text).split("\n"):
        safe = printable(line, 100_000)
        if not safe:
            yield ""
        while safe:
            part = safe[: max(1, width)]
            while sum(map(_cells, part)) > width and len(part) > 1:
                part = part[:-1]
            yield part
            safe = safe[len(part) :]


@dataclass(slots=True)
class _Page:
    """Something to read in place of the tasks."""

    title: str
    text: str
    top: int = 0


class Top:
    """The screen's contents.

    Args:
        revoke: Revokes the task of an id; what it returns is shown.
    """

    def __init__(self, state: State, revoke: Callable[[str], str]) -> None:
        self.state = state
        self.chosen: str | None = None
        #: What is said at the bottom until the next key.
        self.message = ""
        self._revoke = revoke
        self._page: _Page | None = None
        self._asks: str | None = None
        self._rows = 10

    # -- keys

    def key(self, name: str) -> str | None:
        """Do what a key asks for; returns `QUIT`, `BEEP` or None."""
        self.message = ""
        name = name.lower() if len(name) == 1 else name
        if self._asks is not None:
            task_id, self._asks = self._asks, None
            self.message = self._revoke(task_id) if name == "y" else "Nothing was revoked"
            return None
        if self._page is not None:
            return self._key_of_page(name)
        if name in ("j", "KEY_DOWN", "k", "KEY_UP"):
            self._move(1 if name in ("j", "KEY_DOWN") else -1)
            return None
        if name == "q":
            return QUIT
        if name in ("i", "t", "r", "c", "\n", "KEY_ENTER"):
            task = self.state.tasks.get(self.chosen) if self.chosen else None
            return BEEP if task is None else self._of_task(name, task)
        return None

    def _of_task(self, name: str, task: Task) -> str | None:
        if name == "c":
            self._asks = str(task.uuid)
            self.message = f"Revoke {task.name}[{task.uuid}]? y: yes, any other key: no"
        elif name == "t":
            if task.state not in states.EXCEPTION_STATES or not task.traceback:
                return BEEP
            self._page = _Page(f"Task Exception Traceback for {task.uuid}", str(task.traceback))
        elif name == "r":
            self._page = _Page(f"Task Result for {task.uuid}", str(task.result or task.exception or ""))
        else:
            info = {"name": task.name, "args": task.args, "kwargs": task.kwargs, **task.info(extra=["state"])}
            lines = (f"{key}: {value}" for key, value in info.items() if value is not None)
            self._page = _Page(f"Task details for {task.uuid}", "\n".join(lines))
        return None

    def _key_of_page(self, name: str) -> str | None:
        page = self._page
        assert page is not None
        step = {"j": 1, "KEY_DOWN": 1, "k": -1, "KEY_UP": -1, " ": 10, "KEY_NPAGE": 10, "KEY_PPAGE": -10}.get(name)
        if step is None:
            self._page = None
        else:
            page.top = max(0, page.top + step)
        return None

    def _move(self, step: int) -> None:
        tasks = [uuid for uuid, _task in self._tasks(self._rows)]
        if not tasks:
            return
        place = tasks.index(self.chosen) + step if self.chosen in tasks else 0
        self.chosen = tasks[place % len(tasks)]

    def _tasks(self, count: int) -> list[tuple[str, Task]]:
        return list(islice(self.state.tasks_by_time(), max(0, count)))

    # -- what is shown

    def spans(self, width: int, height: int) -> list[Span]:
        """Return what is on a screen of this size, piece by piece; none of them is beyond its edges."""
        made = self._of_page(width, height) if self._page is not None else self._of_tasks(width, height)
        return [
            Span(each.y, each.x, fit(each.text, width - each.x - 1), each.style)
            for each in made if 0 <= each.y < height and each.x < width - 1
        ]  # fmt: skip

    def _of_page(self, width: int, height: int) -> Iterator[Span]:
        page = self._page
        assert page is not None
        lines = list(islice(wrap(page.text, max(1, width - LEFT - 2)), MAX_LINES))
        room = max(1, height - 6)
        page.top = max(0, min(page.top, len(lines) - room))
        yield Span(1, LEFT, page.title, "head")
        for number, line in enumerate(lines[page.top : page.top + room]):
            yield Span(3 + number, LEFT, line)
        more = f" ({page.top + room} of {len(lines)} lines, j and k scroll)" if len(lines) > room else ""
        yield Span(height - 1, 0, f"Press any key to continue...{more}", "bold")

    def _of_tasks(self, width: int, height: int) -> Iterator[Span]:
        has_footer = height >= ABOVE + BELOW + 2
        rows = height - ABOVE - (BELOW if has_footer else 0)
        self._rows = max(1, rows)
        yield Span(1, LEFT, f"amqptasks events v{__version__}", "dim")
        widths = self._widths(width)
        yield Span(3, LEFT, _row(("UUID", "WORKER", "TASK", "TIME", "STATE"), widths), "head")
        for number, (uuid, task) in enumerate(self._tasks(rows)):
            y = ABOVE + number
            worker = "*NONE*" if task.worker is None else task.worker.hostname
            line = _row((uuid, worker, task.name or "*NONE*", _clock(task.timestamp), task.state), widths)
            if uuid == self.chosen:
                yield Span(y, LEFT, line, "chosen")
                continue
            yield Span(y, LEFT, line)
            style = _STYLES.get(task.state)
            if style is not None:
                yield Span(y, LEFT + sum(widths[:4]) + 4, fit(task.state, widths[4]), style)
        if has_footer:
            yield from self._footer(width, height)

    def _footer(self, width: int, height: int) -> Iterator[Span]:
        yield Span(height - 6, LEFT, "-" * max(0, width - 2 * LEFT), "dim")
        if self.message:
            yield Span(height - 5, LEFT, self.message, "bold")
        else:
            chosen = self.state.tasks.get(self.chosen) if self.chosen else None
            told = "No task selected" if chosen is None else _short(chosen)
            yield Span(height - 5, LEFT, f"Selected: {told}" if chosen is not None else told)
        workers = sorted(str(worker.hostname) for worker in self.state.alive_workers())
        alive = ", ".join(workers[:100])
        yield Span(height - 4, LEFT, f"Workers online: {alive}" if workers else "No workers discovered.")
        told = f"events: {self.state.event_count} tasks: {self.state.task_count}"
        yield Span(height - 3, LEFT, f"Info: {told} workers: {len(workers)}/{len(self.state.workers)}")
        yield Span(height - 2, LEFT, f"Keys: {HELP}", "dim")

    @staticmethod
    def _widths(width: int) -> tuple[int, int, int, int, int]:
        free = max(9, width - 2 * LEFT - TIME_WIDTH - STATE_WIDTH - 4)
        uuid = min(ID_WIDTH, max(3, free - 2 * MIN_WIDTH))
        rest = free - uuid
        return uuid, rest // 2, rest - rest // 2, TIME_WIDTH, STATE_WIDTH


def _row(cells: tuple[Any, ...], widths: tuple[int, ...]) -> str:
    return " ".join(fit(cell, width, pad=True) for cell, width in zip(cells, widths, strict=True))


def _clock(moment: Any) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(moment))
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"


def _short(task: Task) -> str:
    info = task.info()
    if isinstance(info.get("runtime"), (int, float)):
        info["runtime"] = f"{info['runtime']:.2f}"
    if "result" in info:
        info["result"] = fit(info["result"], 16)
    return " ".join(f"{key}={fit(value, 200)}" for key, value in info.items())
