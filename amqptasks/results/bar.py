"""A bar that shows how many tasks of several are finished: on a terminal it moves, elsewhere it is a few lines."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, Final

from amqptasks.states import PROPAGATE_STATES

__all__ = ["Bar", "shown"]

#: A bar on a terminal is drawn this often at most. Seconds.
REDRAW_S: Final = 0.1
#: Where there is no terminal, this many lines are written at most.
LINES: Final = 10
WIDTH: Final = 40
_NARROWEST: Final = 5


class Bar:
    """Shows how far something is. A context manager. Not for several threads at once.

    On a terminal it writes ``[########........] 12/24 tasks, 1 failed, 0:05 left`` over and over, ten times a second at
    most; elsewhere, as in a log, a line at each tenth of the way. A file that cannot be written is not written any
    more, and that is all: the work is worth more than its bar.

    Args:
        total: How many there are.
        label: What is counted.
        file: Where to show it; standard error unless given.
    """

    def __init__(self, total: int, label: str = "tasks", *, file: IO[str] | None = None) -> None:
        self.total = max(0, total)
        self.label = label
        self.done = 0
        self.failed = 0
        self._file = sys.stderr if file is None else file
        self._is_terminal = _is_terminal(self._file)
        self._begun_s = time.monotonic()
        self._drawn_s = -REDRAW_S
        self._drawn_text = ""
        self._tenths = 0
        self._is_closed = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, done: int = 1, failed: int = 0) -> None:
        """Count some that are finished; `failed` of them did not end well."""
        self.done += done
        self.failed += failed
        if self._is_terminal:
            if time.monotonic() - self._drawn_s >= REDRAW_S:
                self._draw()
        else:
            tenths = LINES * self.done // self.total if self.total else LINES
            if tenths > self._tenths:
                self._tenths = tenths
                self._write(f"{self._counts()}\n")

    def close(self) -> None:
        """Draw it as it is now, and end its line. More than once is once."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_terminal:
            self._draw()
            self._write("\n")

    def _counts(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done}/{self.total} {self.label}{failed}"

    def _draw(self) -> None:
        self._drawn_s = time.monotonic()
        text = f"{self._counts()}, {self._time()}"
        room = shutil.get_terminal_size().columns - len(text) - 4
        width = min(WIDTH, room)
        if width >= _NARROWEST:
            filled = width * min(self.done, self.total) // self.total if self.total else width
            text = f"[{'#' * filled}{'.' * (width - filled)}] {text}"
        # What was there before may have been longer.
        padding = " " * max(0, len(self._drawn_text) - len(text))
        self._drawn_text = text
        self._write(f"\r{text}{padding}")

    def _time(self) -> str:
        elapsed_s = self._drawn_s - self._begun_s
        if self.done >= self.total:
            return f"{_clock(elapsed_s)} in all"
        if not self.done:
            return "just begun"
        return f"{_clock(elapsed_s * (self.total - self.done) / self.done)} left"

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text)
            self._file.flush()
        except (OSError, ValueError):
            # Closed, or nobody reads any more. Nothing can be said about it, for this was where to say it.
            self._file = None


def shown(several: Any, label: str, timeout_s: float | None, file: IO[str] | None) -> Iterator[Any]:
    """Pass on the handles of a `ResultSet` as their tasks finish, and show how many have."""
    finished = several.as_completed(timeout_s)
    total = len({leaf.id for leaf in several.leaves() if not leaf.ignored})

    def pass_on() -> Iterator[Any]:
        with Bar(total, label, file=file) as bar:
            for leaf in finished:
                bar.advance(failed=leaf.state in PROPAGATE_STATES)
                yield leaf

    return pass_on()


def _is_terminal(file: IO[str] | None) -> bool:
    try:
        return file is not None and file.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
