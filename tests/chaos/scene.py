"""What the rows of the chaos table share: a project of numbered tasks, who sends them, the ledger, and the verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from amqptasks.exceptions import MaybeSent, OperationalError
from tests.running import Workshop
from tests.support import PrivateBroker, eventually

SOURCE = """
    import time

    app.conf.task_queue_prefix = QUEUE
    app.conf.task_ignore_result = True

    @app.task(acks_late=True)
    def late(number, milliseconds):
        note(f"begin {number}")
        time.sleep(milliseconds / 1000)
        note(f"end {number} {time.time():.6f}")

    @app.task
    def early(number, milliseconds):
        note(f"begin {number}")
        time.sleep(milliseconds / 1000)
        note(f"end {number} {time.time():.6f}")

    @app.task(acks_late=True)
    def part(number, index):
        return [number, index]

    @app.task(acks_late=True)
    def gather(values, number):
        right = values == [[number, index] for index in range(len(values))]
        note(f"end {number} {time.time():.6f}" if right else f"wrong {number} {values}")

    @app.task(acks_late=True)
    def killer():
        os.kill(os.getpid(), signal.SIGKILL)
"""
#: How long a row waits for the last task, seconds.
PATIENCE_S = 120.0


@dataclass
class Verdict:
    """What a row found.

    Attributes:
        sent: Tasks whose send was confirmed.
        unsure: Tasks whose sender was told that they may have been sent.
        lost: Confirmed ones that never ended.
        twice: Runs that ended beyond the first of each task.
        allowed: How many of those the promise allows.
        recovered_s: From the mending of a fault to the next task's end, the worst. Where new connections work from
            the first, the longest time without one.
        sends_again_s: The same of confirmed sends.
        longest_s: The longest call of a send, whatever its end.
        notes: What else is to be told.
        faults: What broke the promise besides lost tasks and second runs.
    """

    sent: int = 0
    unsure: int = 0
    lost: int = 0
    twice: int = 0
    allowed: int = 0
    recovered_s: float | None = None
    sends_again_s: float | None = None
    longest_s: float | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether the promise was kept."""
        return not self.lost and self.twice <= self.allowed and not self.faults


@dataclass
class Scene:
    """What a row works with. ``scale`` 1.0 is the full measure."""

    directory: Path
    broker: PrivateBroker
    scale: float

    def count(self, full: int, least: int = 20) -> int:
        """Scale a number of tasks or faults."""
        return max(min(least, full), int(full * self.scale))

    def judge(self, verdict: Verdict, what: str, seconds: float, promised_s: float) -> None:
        """Compare a time with what is promised. Only at full measure is it a fault to be late: the small rows run among
        other tests, on machines that are busy. What is far beyond it always is: that would not have ended."""
        if seconds > (promised_s if self.scale >= 1 else promised_s * 3 + 10):
            verdict.faults.append(f"{what}: {seconds:.1f} s, promised are {promised_s:g} s")

    @contextmanager
    def shop(self, source: str = SOURCE) -> Iterator[Workshop]:
        """Open a project with a queue of its own."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with Workshop(self.directory, self.broker.url, source) as made:
            yield made


class Sender:
    """Sends numbered tasks from a thread of its own, for as long as the faults go on.

    Attributes:
        longest_s: The longest call so far, whatever its end.
    """

    def __init__(self, task: Any, count: int, milliseconds: float, pause_s: float = 0.0) -> None:
        self.confirmed: set[int] = set()
        self.unsure: set[int] = set()
        self.longest_s = 0.0
        self._confirmed_at: list[float] = []
        self._task, self._count, self._milliseconds, self._pause_s = task, count, milliseconds, pause_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in range(self._count):
            while not self._send(number):
                # Surely not sent: once more, as a user would.
                pass
            if self._pause_s:
                threading.Event().wait(self._pause_s)

    def _send(self, number: int) -> bool:
        started = time.monotonic()
        try:
            self._task.apply_async((number, self._milliseconds), task_id=f"{self._task.name}-{number}")
        except MaybeSent:
            self.unsure.add(number)
        except OperationalError:
            return False
        else:
            self.confirmed.add(number)
            self._confirmed_at.append(time.time())
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - started)
        return True

    @property
    def is_done(self) -> bool:
        """Whether all are sent."""
        return not self._thread.is_alive()

    def next_confirm_after(self, moment: float) -> float:
        """Seconds from this moment to the next confirmed send; 0 if there was none because all were sent."""
        return next((at - moment for at in list(self._confirmed_at) if at > moment), 0.0)

    def longest_pause_after(self, moment: float) -> float:
        """The longest time without a confirmed send from this moment on, seconds."""
        return _longest_pause(self._confirmed_at, moment)

    def join(self) -> None:
        """Wait until all are sent."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the sender did not end"


def ends(shop: Workshop) -> dict[int, list[float]]:
    """When each task ended, from the ledger."""
    found: dict[int, list[float]] = {}
    for line in shop.ledger():
        kind, number, *rest = line.split()
        if kind == "end":
            found.setdefault(int(number), []).append(float(rest[0]))
    return found


def settle(shop: Workshop, sender: Sender, allowed: int = 0) -> Verdict:
    """Wait until everything confirmed has ended, or patience has, and count."""
    sender.join()
    deadline = time.monotonic() + PATIENCE_S
    while sender.confirmed - ends(shop).keys() and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    found = ends(shop)
    return Verdict(
        len(sender.confirmed), len(sender.unsure), len(sender.confirmed - found.keys()),
        sum(len(each) - 1 for each in found.values()), allowed, longest_s=sender.longest_s,
    )  # fmt: skip


def next_end_after(shop: Workshop, sender: Sender, moment: float, within_s: float = 60.0) -> float:
    """Wait for a task to end after this moment; seconds in between, or 0 if all were done by then."""

    def look() -> tuple[float]:
        found = ends(shop)
        later = [each for times in found.values() for each in times if each > moment]
        if not later and sender.is_done and not sender.confirmed - found.keys():
            return (0.0,)
        assert later, "no task has ended since"
        return (min(later) - moment,)

    return eventually(look, within_s)[0]


def longest_pause_after(shop: Workshop, moment: float) -> float:
    """The longest time without a task's end from this moment on, seconds."""
    return _longest_pause([each for times in ends(shop).values() for each in times], moment)


def _longest_pause(moments: Iterable[float], since: float) -> float:
    later = [since, *sorted(each for each in moments if each > since)]
    return max((after - before for before, after in pairwise(later)), default=0.0)


def reach(shop: Workshop, sender: Sender, count: int) -> None:
    """Wait until so many tasks have ended, or all there are."""

    def look() -> bool:
        found = ends(shop)
        return len(found) >= count or (sender.is_done and not sender.confirmed - found.keys())

    eventually(look, 60)
