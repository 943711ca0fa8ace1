"""The command lines of Celery and of amqptasks, beside each other on the same broker.

A program is started once and runs many command lines, each as if it had been started for it: what a start costs is more
than what a command does. Run as a module this is that program.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support import ROOT

APPS = {"celery": "tests.interop.tasks:celery_app", "amqptasks": "tests.interop.tasks:our_app"}
#: How long a worker may take to answer, seconds. With a destination a command ends when it has.
PATIENCE_S = 20


@dataclass(frozen=True)
class Said:
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str


class Program:
    """The program of one kind, with an app of that kind that knows the tasks of `tests.interop.tasks`."""

    def __init__(self, kind: str, environment: Mapping[str, str]) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | environment | {"NO_COLOR": "1"},
        )  # fmt: skip

    def __call__(self, *arguments: str, code: int | None = 0) -> Said:
        """Run a command line; it must end with this code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(["-A", APPS[self.kind], *arguments]) + "\n")
        self._process.stdin.flush()
        said = Said(**json.loads(self._process.stdout.readline()))
        assert code is None or said.code == code, f"{self.kind} {arguments} ended with {said.code}: {said}"
        return said

    def ask(self, node: str, *arguments: str, code: int = 0) -> Any:
        """Run ``inspect`` or ``control`` for one worker, and return its answer."""
        said = self(*arguments, "-d", node, "-t", str(PATIENCE_S), "--json", code=code)
        replies = json.loads(said.out)
        return replies[node] if isinstance(replies, dict) else replies[0][node]

    def close(self) -> None:
        """End it."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(20)


def run(kind: str, arguments: list[str]) -> int:
    """Run one command line in this process."""
    if kind == "amqptasks":
        from amqptasks.cli.main import run

        return run(arguments)
    from celery.bin.celery import celery

    try:
        celery.main(arguments, prog_name="celery", auto_envvar_prefix="CELERY")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def main() -> None:
    """Run a command line for each line of standard input, and answer with a line of JSON."""
    answers = sys.stdout
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        # Ours writes its errors to the standard error that the process was started with.
        sys.__stderr__ = err  # type: ignore[misc]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(sys.argv[1], json.loads(line))
        answers.write(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
