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
from collections.abc import Callable
from urllib.parse import urlsplit

from amqptasks import chord
from tests.chaos.beats import beats_killed
from tests.chaos.cluster import leader_killed, majority_lost
from tests.chaos.leaks import reconnects
from tests.chaos.packets import Packets
from tests.chaos.scene import (
    PATIENCE_S,
    Scene,
    Sender,
    Verdict,
    ends,
    longest_pause_after,
    next_end_after,
    reach,
    settle,
)
from tests.proxy import Proxy
from tests.support import PrivateBroker, eventually

#: The heartbeat of the rows that fail links, seconds. Two of them is how long a dead link goes unnoticed at most.
HEARTBEAT_S = 2


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
        return verdict


def _link(
    scene: Scene, lasting_s: float, fail: Callable[[], None], heal: Callable[[], None], url: str | None = None,
    *, is_old_ones_only: bool = False,
) -> Verdict:  # fmt: skip
    """A link that fails under worker and producer alike, and heals."""
    with scene.shop() as shop:
        url = url or scene.broker.url
        shop.app.conf.broker_url = url
        shop.app.conf.broker_heartbeat = HEARTBEAT_S
        worker = shop.start(
            "-c", "2", level="WARNING",
            env={"AMQPTASKS_BROKER_URL": url, "AMQPTASKS_BROKER_HEARTBEAT": str(HEARTBEAT_S)},
        )  # fmt: skip
        sender = Sender(shop.tasks.late, scene.count(1000, 200), 5, 0.01)
        reach(shop, sender, 20)
        failed = time.time()
        fail()
        threading.Event().wait(lasting_s)
        heal()
        healed = time.time()
        recovered_s = next_end_after(shop, sender, healed, 60)
        # A message whose confirm was lost is sent again, under the same id: one for each cut.
        verdict = settle(shop, sender, allowed=1)
        if is_old_ones_only:
            recovered_s, sends_again_s = longest_pause_after(shop, failed), sender.longest_pause_after(failed)
        else:
            sends_again_s = sender.next_confirm_after(healed)
        verdict.recovered_s, verdict.sends_again_s = recovered_s, sends_again_s
        scene.judge(verdict, "the longest send", sender.longest_s, float(shop.app.conf.broker_publish_timeout) + 1)
        scene.judge(verdict, "until the worker was back", recovered_s, 2 * HEARTBEAT_S + 1)
        scene.judge(verdict, "until the sender was back", sends_again_s, 2 * HEARTBEAT_S + 1)
        if worker.process.poll() is not None:
            verdict.faults.append("the worker ended")
        return verdict


def _proxied(scene: Scene, fault: str, lasting_s: float, *, is_old_ones_only: bool = True) -> Verdict:
    with Proxy(scene.broker.url) as proxy:
        return _link(
            scene, lasting_s, getattr(proxy, fault), proxy.heal, proxy.url, is_old_ones_only=is_old_ones_only
        )  # fmt: skip


def link_cut(scene: Scene) -> Verdict:
    """P2, W4: every connection is reset."""
    return _proxied(scene, "cut", 0.0)


def link_stalled(scene: Scene) -> Verdict:
    """P4, W6: nothing passes for a while, and nothing says so."""
    return _proxied(scene, "stall", max(3.0, 20.0 * scene.scale), is_old_ones_only=False)


def link_ghosted(scene: Scene) -> Verdict:
    """P4, W6: the old connections are dead and never say so; new ones work."""
    return _proxied(scene, "ghost", max(2 * HEARTBEAT_S + 1.0, 20.0 * scene.scale))


def link_one_way(scene: Scene) -> Verdict:
    """W6: what is sent arrives, and no answer comes back."""
    return _proxied(scene, "one_way", max(3.0, 20.0 * scene.scale))


def packets_lost(scene: Scene) -> Verdict:
    """P4, W6: every packet is lost for a while, in the kernel: TCP sends them again, ever more rarely."""
    return _packets(scene, 100)


def packets_lost_in_part(scene: Scene) -> Verdict:
    """P4, W6: a third of all packets is lost for a while."""
    return _packets(scene, 33)


def _packets(scene: Scene, percent: int) -> Verdict:
    with Packets(urlsplit(scene.broker.url).port or 5672) as packets:
        return _link(scene, max(3.0, 20.0 * scene.scale), lambda: packets.lose(percent), packets.heal)


def broker_frozen(scene: Scene) -> Verdict:
    """B3: the broker's process is stopped for longer than two heartbeats, and goes on as if nothing had been."""
    return _link(scene, max(2 * HEARTBEAT_S + 1.0, 20.0 * scene.scale), scene.broker.freeze, scene.broker.thaw)


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
            f"{early} early, late p50 {statistics.median(late) * 1e3:.0f} ms, p99 "
            f"{late[int(len(late) * 0.99)] * 1e3:.0f} ms, {used} delay queues, sent {rate:.0f}/s, "
            f"{count - len(due)} of 1 h wait on"
        )
        if early:
            verdict.faults.append(f"{early} began early")
        if used > 200:
            verdict.faults.append(f"{used} delay queues")
        return verdict


def chords_counted(scene: Scene) -> Verdict:
    """R3: chords of 20 parts, while a child is killed every 0.3 s."""
    with scene.shop() as shop:
        worker = shop.start("-c", "2", level="WARNING")
        count, kills, stopped = scene.count(200, 40), 0, threading.Event()

        def kill() -> None:
            nonlocal kills
            while not stopped.wait(0.3):
                children = worker.children()
                if children:
                    os.kill(random.choice(children), signal.SIGKILL)
                    kills += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            for number in range(count):
                chord([shop.tasks.part.s(number, index) for index in range(20)], shop.tasks.gather.s(number))()
            eventually(lambda: len(ends(shop)) >= count, PATIENCE_S)
        finally:
            stopped.set()
            killer.join()
        prefix = f"{shop.queue}.chord."
        # A collector is deleted after its body is sent, perhaps by who comes after one that was killed.
        eventually(lambda: not _chords_left(scene.broker, prefix), PATIENCE_S)
        found = ends(shop)
        verdict = Verdict(count, 0, count - len(found), sum(len(each) - 1 for each in found.values()), kills)
        verdict.faults += [line for line in shop.ledger() if line.startswith("wrong")]
        verdict.notes.append(f"{kills} kills")
        return verdict


def _chords_left(broker: PrivateBroker, prefix: str) -> list[str]:
    queues = broker.ctl("list_queues", "name").splitlines()
    return [name for name in queues if name.startswith(prefix) and ".join." not in name]


ROWS: dict[str, Callable[[Scene], Verdict]] = {
    "children-killed": children_killed,
    "one-task-kills": one_task_kills,
    "chords-counted": chords_counted,
    "worker-killed": worker_killed,
    "connections-closed": connections_closed,
    "broker-restarted": broker_restarted,
    "broker-killed": broker_killed,
    "link-cut": link_cut,
    "link-stalled": link_stalled,
    "link-ghosted": link_ghosted,
    "link-one-way": link_one_way,
    "packets-lost": packets_lost,
    "packets-lost-in-part": packets_lost_in_part,
    "broker-frozen": broker_frozen,
    "reconnects": reconnects,
    "leader-killed": leader_killed,
    "majority-lost": majority_lost,
    "delays-kept": delays_kept,
    "beats-killed": beats_killed,
}

#: Rows that take too long for the tests, at any measure.
LONG = {"leader-killed", "majority-lost"}
#: Rows that need what not every machine has, and what says why they cannot be run on this one.
NEEDS: dict[str, Callable[[], str]] = {"packets-lost": Packets.missing, "packets-lost-in-part": Packets.missing}
