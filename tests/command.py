"""The command line as tests use it: a real process in a directory of its own, whose end and output are looked at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path
from types import TracebackType

import pytest

from amqptasks.cli.main import run
from tests.support import ROOT

#: The width of the terminal that output must fit.
COLUMNS = 80


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a user who has set nothing but what is given."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AMQPTASKS_")}
    return clean | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": str(COLUMNS)} | (more or {})


def here(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """Run a command line in this process, which is ten times as fast; return what it said, and its errors."""
    capfd.readouterr()
    ended = run(["--no-color", *words])
    said = capfd.readouterr()
    assert ended == code, f"{words} ended with {ended}:\n{said.out}\n{said.err}"
    assert "Traceback" not in said.err, said.err
    return said.out, said.err


class Shell:
    """Runs the command in a directory, like a user there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, source: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")

    def __call__(
        self,
        *arguments: str,
        code: int = 0,
        answer: str = "",
        env: dict[str, str] | None = None,
        traceback: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "amqptasks", *arguments],
            cwd=self.directory, env=environment(env), input=answer, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert ("Traceback" in done.stderr) is traceback, done.stderr
        return done


class Terminal:
    """A command in a real terminal of 80 columns: what is typed, and what is on the screen."""

    def __init__(self, directory: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "amqptasks", *arguments],
            cwd=directory, env=environment({"TERM": "dumb"} | (env or {})), stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.screen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._ours, text.encode() + b"\n")

    def expect(self, pattern: str, within_s: float = 20.0) -> re.Match[str]:
        """Wait until what has appeared since the last match matches; fail with the screen otherwise."""
        deadline = time.monotonic() + within_s
        while True:
            found = re.search(pattern, self.screen)
            if found:
                self.screen = self.screen[found.end() :]
                return found
            if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"not seen in {within_s} s: {pattern!r}, but:\n{self.screen}")
            try:
                part = os.read(self._ours, 4096)
            except OSError:
                # How Linux says that the other end has closed its terminal.
                raise AssertionError(f"ended without {pattern!r}:\n{self.screen}") from None
            self.screen += part.decode(errors="replace").replace("\r\n", "\n")

    def close(self, within_s: float = 20.0) -> int:
        """Press ^D at a prompt of Python's and return the exit code."""
        # Earlier it would be lost: what it means changes when the shell takes the terminal over.
        self.expect(">>> $")
        os.write(self._ours, b"\x04")
        return self.process.wait(within_s)
