"""What tests of beat share: a workshop that can start beats, and looks at what they have fired."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.running import Workshop
from tests.support import ROOT, WorkerProcess, eventually


class BeatShop(Workshop):
    """A workshop with beats. Its schedule has the name of its project."""

    beats: int = 0

    @property
    def token(self) -> str:
        """The queue of the token."""
        return f"amqptasks.beat.v1.{self.project.name}"

    def beat(self, *arguments: str, env: Mapping[str, str] | None = None) -> WorkerProcess:
        """Start a beat."""
        number = self.beats
        self.beats += 1
        command = [sys.executable, "-m", "amqptasks", "-A", self.project.name, "beat", "-l", "INFO", *arguments]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | dict(env or {})
        log = self.directory / f"beat{number}.log"
        process = WorkerProcess(command, directory=self.directory, log=log, env=environment)
        self.workers.append(process)
        return process

    def fired(self, entry: str = "second") -> list[str]:
        """Ids of what ran of an entry, in order."""
        return [line.split()[1] for line in self.ledger() if line.startswith(f"{entry} ")]

    def repeated(self, since: int, entry: str = "second") -> list[str]:
        """Ids that ran more than once among what has run of an entry after so many runs."""
        counted = Counter(self.fired(entry)[since:])
        return [task_id for task_id, count in counted.items() if count > 1]

    def fires(self, more: int = 1, entry: str = "second", within_s: float = 20.0) -> None:
        """Wait until so many more have run."""
        before = len(self.fired(entry))
        eventually(lambda: len(self.fired(entry)) >= before + more, within_s)

    def close(self) -> None:
        """Delete beat's queues too."""
        self.also_delete(self.token, f"{self.token}.orders")
        super().close()


def leads(beat: WorkerProcess, times: int = 1, within_s: float = 30.0) -> None:
    """Wait until a beat leads, for so many times in all."""

    def look() -> None:
        assert beat.log.count("beat: Leading the schedule") >= times, beat.log

    eventually(look, within_s)


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
