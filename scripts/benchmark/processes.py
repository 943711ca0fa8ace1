"""What processes cost: CPU time and memory of a whole tree, read from /proc."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and all its descendants that are alive."""
    found, ahead = [], [pid]
    while ahead:
        each = ahead.pop()
        found.append(each)
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                ahead += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # the thread ended while we looked
    return found


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the tree has used, user and system, dead children included."""
    total = 0
    for each in tree(pid):
        try:
            # The second field is the program's name and may hold spaces and brackets.
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS_PER_S


def pss_bytes(pid: int) -> int:
    """Memory of the tree; what processes share is counted once."""
    total = 0
    for each in tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it ended while we looked
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


class Running:
    """A program that runs while the block does; its whole process group ends with the block."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._command, self._env, self._log = list(command), dict(env), log

    def __enter__(self) -> Running:
        with self._log.open("w") as output:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass  # it gets no second chance: the group is killed below
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all gone already
        self._process.wait()

    def check(self) -> None:
        """Raise, with its output, if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"{' '.join(self._command)} ended with {self._process.returncode}:\n{self.output()}")

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")
