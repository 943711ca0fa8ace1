"""A real terminal for programs that draw: what they write goes through an emulator, and the test looks at its
screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyte

from tests.command import environment


def _take_terminal() -> None:
    # Then ^C reaches the program as it does at home, whatever the tests themselves were told to ignore.
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class DrawnTerminal:
    """A command in a terminal: ``with DrawnTerminal(directory, "events") as terminal: terminal.shows("UUID")``."""

    def __init__(
        self, directory: Path, *arguments: str, columns: int = 100, lines: int = 24, env: dict[str, str] | None = None
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._set_size(columns, lines)
        self.before = self.modes()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "amqptasks", *arguments],
            cwd=directory, env=environment({"TERM": "linux", "LANG": "C.UTF-8"} | (env or {})), stdin=self._theirs,
            stdout=self._theirs, stderr=self._theirs, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip

    def __enter__(self) -> DrawnTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)
        os.close(self._theirs)

    def modes(self) -> Any:
        """How the terminal treats keys: what a program must put back."""
        return termios.tcgetattr(self._theirs)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Make the window another size."""
        self._set_size(columns, lines)
        self._screen.resize(lines, columns)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    @property
    def display(self) -> list[str]:
        """The lines of the screen."""
        return list(self._screen.display)

    def shows(self, *texts: str, within_s: float = 20.0) -> None:
        """Wait until all of these are on the screen."""
        self.until(lambda: all(any(text in line for line in self.display) for text in texts), within_s, texts)

    def until(self, done: Callable[[], bool], within_s: float = 20.0, what: object = "it") -> None:
        """Take in what the program writes, until something is so."""
        deadline = time.monotonic() + within_s
        while not done():
            shown = "\n".join(self.display)
            assert time.monotonic() < deadline, f"{what} not seen in {within_s} s, but:\n{shown}"
            self.take_in(0.1)

    def take_in(self, wait_s: float) -> None:
        """Take in what the program has written."""
        if select.select([self._ours], [], [], wait_s)[0]:
            part = os.read(self._ours, 65536)
            self.raw += part
            self._stream.feed(part)

    def row_of(self, text: str) -> int:
        """In which line a text is; -1: in none."""
        return next((number for number, line in enumerate(self.display) if text in line), -1)

    def is_reversed(self, row: int) -> bool:
        """Whether a line is shown as chosen."""
        return any(cell.reverse for cell in self._screen.buffer[row].values())

    def end(self, within_s: float = 20.0) -> int:
        """Wait for the program's end; returns its exit code."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it has not ended; on the screen:\n" + "\n".join(self.display)
            self.take_in(0.05)
        self.take_in(0.0)
        return self.process.returncode
