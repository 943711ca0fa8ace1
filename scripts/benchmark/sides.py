"""The three systems under test: how each is told its broker, and how its worker starts.

Each has a module of the same interface, `tasks_<side>.py`, that worker and client import.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHILDREN = 2


@dataclass(frozen=True)
class Side:
    """One of the systems."""

    name: str
    title: str
    worker: tuple[str, ...]
    #: Tasks to drain: about three seconds' worth.
    drain: int

    @property
    def module(self) -> str:
        """The module of its tasks."""
        return f"tasks_{self.name}"


AMQPTASKS = Side(
    "amqptasks", "amqptasks",
    ("-m", "amqptasks", "-A", "tasks_amqptasks", "worker", "-c", str(CHILDREN), "-l", "ERROR"),
    60_000,
)  # fmt: skip
CELERY = Side(
    "celery", "Celery",
    # Without the chatter between workers, which would be counted as the tasks' cost.
    (
        "-m", "celery", "-A", "tasks_celery", "worker", "-c", str(CHILDREN), "-l", "ERROR",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ),
    15_000,
)  # fmt: skip
DRAMATIQ = Side(
    "dramatiq", "Dramatiq",
    ("-m", "dramatiq", "tasks_dramatiq", "--processes", str(CHILDREN), "--threads", "8"),
    30_000,
)  # fmt: skip
SIDES = {side.name: side for side in (AMQPTASKS, CELERY, DRAMATIQ)}


def environment(
    url: str, queue: str, *, confirm: bool = False, queue_type: str = "quorum", backend: str = "rpc://"
) -> dict[str, str]:
    """The environment of workers and clients: all run from byte code, as installed packages do."""
    # A checkout has none where Python is told to write none, and would be measured compiling itself.
    dropped = ("AMQPTASKS_", "CELERY_", "PYTHONDONTWRITEBYTECODE")
    ours = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return ours | {
        "BENCH_URL": url,
        "BENCH_QUEUE": queue,
        "BENCH_BACKEND": backend,
        "BENCH_CONFIRM": "1" if confirm else "",
        "BENCH_QUEUE_TYPE": queue_type,
        "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT), str(HERE.parent))),
        "PYTHONWARNINGS": "ignore",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
