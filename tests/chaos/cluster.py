"""Rows about a cluster of three nodes. Each starts one of its own, for half a minute: the tests leave them out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.chaos.scene import SOURCE, Scene, Sender, Verdict, ends, longest_pause_after, next_end_after, reach, settle
from tests.running import Workshop
from tests.support import Cluster, PrivateBroker, WorkerProcess, eventually


@contextmanager
def _stage(scene: Scene) -> Iterator[tuple[Cluster, Workshop, WorkerProcess]]:
    scene.directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(scene.directory / "nodes")
    try:
        cluster.start()
        with Workshop(scene.directory, cluster.nodes[0].url, SOURCE) as shop:
            shop.app.conf.broker_url = cluster.urls
            worker = shop.start("-c", "2", level="WARNING", env={"AMQPTASKS_BROKER_URL": cluster.urls})
            try:
                yield cluster, shop, worker
            finally:
                # The shop's end takes them all.
                for node in cluster.nodes:
                    node.start()
    finally:
        cluster.delete()


def _leader(cluster: Cluster, queue: str) -> PrivateBroker:
    """The node that leads a quorum queue."""

    def look() -> PrivateBroker:
        found = dict(line.split("\t") for line in cluster.nodes[0].ctl("list_queues", "name", "leader").splitlines())
        ports = [each.url.rpartition(":")[2].partition("/")[0] for each in cluster.nodes]
        leads = [each for each, port in zip(cluster.nodes, ports, strict=True) if port in found.get(queue, "")]
        assert leads, f"{queue} has no leader: {found}"
        return leads[0]

    return eventually(look, 30)


def _is_whole(cluster: Cluster, queue: str) -> None:
    """Wait until all three nodes have the queue."""

    def look() -> None:
        found = dict(line.split("\t") for line in cluster.nodes[0].ctl("list_queues", "name", "online").splitlines())
        assert found.get(queue, "").count("@") == 3, found

    eventually(look, 60)


def leader_killed(scene: Scene) -> Verdict:
    """B4: kill -9 of the node that leads the quorum queue, of three nodes, twice."""
    with _stage(scene) as (cluster, shop, worker):
        sender = Sender(shop.tasks.late, scene.count(3000, 1500), 5, 0.01)
        worst, sends_again_s = 0.0, 0.0
        for _ in range(2):
            reach(shop, sender, len(ends(shop)) + 50)
            _is_whole(cluster, shop.queue)
            leader = _leader(cluster, shop.queue)
            killed = time.time()
            leader.kill()
            next_end_after(shop, sender, time.time() + 1, 90)
            worst = max(worst, longest_pause_after(shop, killed))
            sends_again_s = max(sends_again_s, sender.longest_pause_after(killed))
            leader.start()
        # What ran when the leader went may run again, and what was not confirmed yet is sent again.
        verdict = settle(shop, sender, allowed=2 * (2 + 1))
        verdict.recovered_s, verdict.sends_again_s = worst, sends_again_s
        return _judge(scene, verdict, worker, 5.0)


def majority_lost(scene: Scene) -> Verdict:
    """B5: two of three nodes killed for a while, then started again."""
    with _stage(scene) as (cluster, shop, worker):
        sender = Sender(shop.tasks.late, scene.count(1000, 500), 5, 0.01)
        reach(shop, sender, 50)
        _is_whole(cluster, shop.queue)
        gone = cluster.nodes[:2]
        for node in gone:
            node.kill()
        threading.Event().wait(max(5.0, 20.0 * scene.scale))
        with ThreadPoolExecutor() as threads:
            list(threads.map(PrivateBroker.start, gone))
        back = time.time()
        recovered_s = next_end_after(shop, sender, back, 90)
        verdict = settle(shop, sender, allowed=2 + 1)
        verdict.recovered_s, verdict.sends_again_s = recovered_s, sender.next_confirm_after(back)
        return _judge(scene, verdict, worker, 10.0)


def _judge(scene: Scene, verdict: Verdict, worker: WorkerProcess, promised_s: float) -> Verdict:
    scene.judge(verdict, "the longest send", verdict.longest_s or 0.0, 10.0 + 1)
    scene.judge(verdict, "until the worker was back", verdict.recovered_s or 0.0, promised_s)
    scene.judge(verdict, "until the sender was back", verdict.sends_again_s or 0.0, promised_s)
    if worker.process.poll() is not None:
        verdict.faults.append("the worker ended")
    return verdict
