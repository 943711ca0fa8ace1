"""Faults under load, each ending in a count: what was lost, what ran twice, how soon work went on.

A row sends numbered tasks, breaks something while they run, mends it, and reads the ledger that the tasks write. Real
RabbitMQ, real workers, real signals. ``scripts/chaos`` prints the table; ``tests/chaos`` runs the rows small.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amqptasks.exceptions import MaybeSent, OperationalError
from tests.proxy import Proxy
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
        recovered_s: From the mending of a fault to the next task's end, the worst.
    """

    sent: int = 0
    unsure: int = 0
    lost: int = 0
    twice: int = 0
    allowed: int = 0
    recovered_s: float | None = None
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

    @contextmanager
    def shop(self) -> Iterator[Workshop]:
        """Open a project with a queue of its own."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with Workshop(self.directory, self.broker.url, SOURCE) as made:
            yield made


class Sender:
    """Sends numbered tasks from a thread of its own, for as long as the faults go on."""

    def __init__(self, task: Any, count: int, milliseconds: float, pause_s: float = 0.0) -> None:
        self.confirmed: set[int] = set()
        self.unsure: set[int] = set()
        self.longest_s = 0.0
        self._task, self._count, self._milliseconds, self._pause_s = task, count, milliseconds, pause_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in range(self._count):
            started = time.monotonic()
            while True:
                try:
                    self._task.apply_async((number, self._milliseconds), task_id=f"{self._task.name}-{number}")
                    self.confirmed.add(number)
                except MaybeSent:
                    self.unsure.add(number)
                except OperationalError:
                    # Surely not sent: once more, as a user would.
                    continue
                break
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            if self._pause_s:
                threading.Event().wait(self._pause_s)

    @property
    def is_done(self) -> bool:
        """Whether all are sent."""
        return not self._thread.is_alive()

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
        sum(len(each) - 1 for each in found.values()), allowed,
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


def reach(shop: Workshop, sender: Sender, count: int) -> None:
    """Wait until so many tasks have ended, or all there are."""

    def look() -> bool:
        found = ends(shop)
        return len(found) >= count or (sender.is_done and not sender.confirmed - found.keys())

    eventually(look, 60)


# -- the rows


def children_killed(scene: Scene) -> Verdict:
    """W1: kill -9 of a child that runs a late-ack task, twelve times."""
    with scene.shop() as shop:
        worker = shop.start("-c", "2", level="WARNING")
        sender = Sender(shop.tasks.late, scene.count(3000, 300), 20)
        for turn in range(12):
            reach(shop, sender, (turn + 1) * scene.count(3000, 300) // 16)
            begun = [int(line.split()[1]) for line in shop.ledger() if line.startswith("begin")]
            while begun[-1] in ends(shop):
                begun = [int(line.split()[1]) for line in shop.ledger() if line.startswith("begin")]
            os.kill(random.choice(worker.children()), signal.SIGKILL)
        verdict = settle(shop, sender)
        begins = Counter(line for line in shop.ledger() if line.startswith("begin"))
        verdict.notes.append(f"{sum(begins.values()) - len(begins)} begun twice")
        return verdict


def one_task_kills(scene: Scene) -> Verdict:
    """W2: a task that kills its process every time, among a hundred good ones."""
    with scene.shop() as shop:
        shop.start("-c", "2", level="WARNING")
        shop.tasks.killer.delay()
        sender = Sender(shop.tasks.late, 100, 5)
        verdict = settle(shop, sender)
        letter = shop.dead_letter(within_s=60)
        verdict.notes.append(f"dead letter: {letter.headers.get('x-amqptasks-reason')}")
        if letter.headers.get("x-amqptasks-reason") != "too-many-crashes":
            verdict.faults.append("the killer was not given up for its crashes")
        return verdict


def worker_killed(scene: Scene) -> Verdict:
    """W3: kill -9 of a worker with all its processes, and another in its place, three times."""
    with scene.shop() as shop:
        sender = Sender(shop.tasks.late, scene.count(1500, 150), 20)
        for turn in range(3):
            worker = shop.start("-c", "2", level="WARNING", expected_exits=None)
            reach(shop, sender, (turn + 1) * scene.count(1500, 150) // 6)
            worker.kill_group()
        shop.start("-c", "2", level="WARNING")
        next_end_after(shop, sender, time.time())
        # Each kill may strike a task between its end and the word of it, in both children.
        return settle(shop, sender, allowed=3 * 2)


def connections_closed(scene: Scene) -> Verdict:
    """W4, P1: an operator closes all connections, ten times, while tasks are sent and run."""
    with scene.shop() as shop:
        shop.start("-c", "2", level="WARNING")
        sender = Sender(shop.tasks.late, scene.count(5000, 400), 2, 0.01 if scene.scale < 1 else 0.002)
        worst = 0.0
        for turn in range(scene.count(10, 3)):
            reach(shop, sender, turn * scene.count(5000, 400) // 12 + 10)
            scene.broker.ctl("close_all_connections", "chaos")
            worst = max(worst, next_end_after(shop, sender, time.time()))
        verdict = settle(shop, sender, allowed=scene.count(10, 3))
        verdict.recovered_s = worst
        verdict.notes.append(f"longest send {sender.longest_s:.2f} s")
        return verdict


def broker_restarted(scene: Scene) -> Verdict:
    """B1: an orderly restart of the broker in mid-run."""
    return _broker_gone(scene, scene.broker.stop)


def broker_killed(scene: Scene) -> Verdict:
    """B2: kill -9 of the broker in mid-run."""
    return _broker_gone(scene, scene.broker.kill, settled=True)


def _broker_gone(scene: Scene, end: Callable[[], None], *, settled: bool = False) -> Verdict:
    with scene.shop() as shop:
        shop.start("-c", "2", level="WARNING")
        if settled:
            # RabbitMQ 3.10 cannot use a quorum queue again that was made just before the kill: its registry of them is
            # written now and then, and at an orderly stop.
            scene.broker.stop()
            scene.broker.start()
        sender = Sender(shop.tasks.late, scene.count(2000, 300), 5, 0.01)
        reach(shop, sender, 20)
        end()
        scene.broker.start()
        recovered_s = next_end_after(shop, sender, time.time(), 90)
        # What was running when the acks could not be sent is known to the worker when it comes back.
        verdict = settle(shop, sender, allowed=1)
        verdict.recovered_s = recovered_s
        verdict.notes.append(f"longest send {sender.longest_s:.2f} s")
        return verdict


def _link(scene: Scene, fault: str, lasting_s: float) -> Verdict:
    """A link that fails under worker and producer alike, and heals."""
    with Proxy(scene.broker.url) as proxy, scene.shop() as shop:
        shop.app.conf.broker_url = proxy.url
        shop.app.conf.broker_heartbeat = 2
        worker = shop.start(
            "-c", "2", level="WARNING",
            env={"AMQPTASKS_BROKER_URL": proxy.url, "AMQPTASKS_BROKER_HEARTBEAT": "2"},
        )  # fmt: skip
        limit_s = float(shop.app.conf.broker_publish_timeout)
        sender = Sender(shop.tasks.late, scene.count(1000, 200), 5, 0.01)
        reach(shop, sender, 20)
        getattr(proxy, fault)()
        threading.Event().wait(lasting_s)
        proxy.heal()
        recovered_s = next_end_after(shop, sender, time.time(), 60)
        # A message whose confirm was lost is sent again, under the same id: one for each cut.
        verdict = settle(shop, sender, allowed=1)
        verdict.recovered_s = recovered_s
        verdict.notes.append(f"longest send {sender.longest_s:.2f} s")
        if sender.longest_s > limit_s * 4 + 1:
            verdict.faults.append(f"a send took {sender.longest_s:.1f} s")
        assert worker.process.poll() is None, "the worker ended"
        return verdict


def link_cut(scene: Scene) -> Verdict:
    """P2, W4: every connection is reset."""
    return _link(scene, "cut", 0.0)


def link_stalled(scene: Scene) -> Verdict:
    """P4, W6: nothing passes for a while, and nothing says so."""
    return _link(scene, "stall", max(3.0, 20.0 * scene.scale))


def link_ghosted(scene: Scene) -> Verdict:
    """P4, W6: the old connections are dead and never say so; new ones work."""
    return _link(scene, "ghost", max(3.0, 20.0 * scene.scale))


def link_one_way(scene: Scene) -> Verdict:
    """W6: what is sent arrives, and no answer comes back."""
    return _link(scene, "one_way", max(3.0, 20.0 * scene.scale))


def delays_kept(scene: Scene) -> Verdict:
    """W10: countdowns of 1 to 60 s with long ones among them, and the worker killed meanwhile."""
    with scene.shop() as shop:
        worker = shop.start("-c", "2", level="WARNING", expected_exits=None)
        count = scene.count(10_000, 300)
        rng, due, started = random.Random(7), {}, time.monotonic()
        longest_s = max(5.0, 60.0 * scene.scale)
        numbers = list(range(count))
        for start in range(0, count, 1000):
            with shop.app.bulk():
                for number in numbers[start : start + 1000]:
                    if number % 10 == 9:
                        shop.tasks.early.apply_async((number, 0), countdown=3600)
                        continue
                    delay_s = rng.uniform(1, longest_s)
                    # Read before the send: what is early by this clock is early by any.
                    due[number] = time.time() + delay_s
                    shop.tasks.early.apply_async((number, 0), countdown=delay_s)
        rate = count / (time.monotonic() - started)
        worker.kill_group()
        shop.start("-c", "2", level="WARNING")
        restarted = time.time()
        eventually(lambda: len(ends(shop)) >= len(due), longest_s + PATIENCE_S)
        found = ends(shop)
        late = sorted(times[0] - due[number] for number, times in found.items() if due[number] > restarted + 1)
        early = sum(times[0] < due.get(number, float("inf")) for number, times in found.items())
        queues = scene.broker.ctl("list_queues", "name").splitlines()
        used = sum(name.startswith(f"{shop.queue}.delay.") for name in queues)
        verdict = Verdict(count, 0, len(due) - len(found), sum(len(each) - 1 for each in found.values()), 2)
        verdict.notes.append(
            f"late p50 {statistics.median(late) * 1e3:.0f} ms, p99 {late[int(len(late) * 0.99)] * 1e3:.0f} ms, "
            f"{used} delay queues, sent {rate:.0f}/s"
        )
        if early:
            verdict.faults.append(f"{early} began early")
        if used > 200:
            verdict.faults.append(f"{used} delay queues")
        return verdict


ROWS: dict[str, Callable[[Scene], Verdict]] = {
    "children-killed": children_killed,
    "one-task-kills": one_task_kills,
    "worker-killed": worker_killed,
    "connections-closed": connections_closed,
    "broker-restarted": broker_restarted,
    "broker-killed": broker_killed,
    "link-cut": link_cut,
    "link-stalled": link_stalled,
    "link-ghosted": link_ghosted,
    "link-one-way": link_one_way,
    "delays-kept": delays_kept,
}
