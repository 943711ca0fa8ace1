"""A row of its own: connections lost so often that whatever a reconnect leaves behind shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.scene import SOURCE, Scene, Verdict
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import ROOT, WorkerProcess, eventually

LOOKING = """
    import gc, json, tracemalloc
    from amqptasks import signals

    @app.task(acks_late=True, ignore_result=False)
    def answer(number):
        note(f"end {number}")
        return number

    def look():
        gc.collect()
        return {
            "objects": len(gc.get_objects()), "traced": tracemalloc.get_traced_memory()[0],
            "descriptors": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
        }

    def show(number, frame):
        (HERE / "look.new").write_text(json.dumps(look()))
        os.rename(HERE / "look.new", HERE / "look")

    @signals.worker_init.connect(weak=False)
    def be_looked_at(**_kwargs):
        tracemalloc.start()
        signal.signal(signal.SIGUSR2, show)
"""
#: Sends a task for each line it reads, and waits for its result. Told to look, it says what it has.
PRODUCER = """
import json, sys, tracemalloc
import {module} as project

tracemalloc.start()
for line in sys.stdin:
    if line == "look\\n":
        print(json.dumps(project.look()), flush=True)
    else:
        print(project.answer.delay(int(line)).get(timeout=60), flush=True)
"""
#: What a program may have more of in the end, however many connections were lost; nothing of what is not named here.
#: Mostly timers that were cancelled and are not due yet. A connection that is kept is 70 objects and 11 kB.
LEEWAY = {"objects": 1500, "traced": 300_000, "pss_kib": 3000}


class Producer:
    """A program that sends tasks through the proxy, and waits for each."""

    def __init__(self, shop: Workshop, env: dict[str, str]) -> None:
        path = shop.directory / "producer.py"
        path.write_text(PRODUCER.format(module=shop.project.name))
        with (shop.directory / "producer.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(path)], cwd=shop.directory, env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    def ask(self, line: str) -> str:
        """Send a line, and return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def look(self) -> dict[str, Any]:
        """What it has."""
        return json.loads(self.ask("look")) | {"pss_kib": _pss_kib(self._process.pid)}

    def end(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=20)


def _pss_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def _look_at(shop: Workshop, worker: WorkerProcess) -> dict[str, Any]:
    path = shop.directory / "look"
    path.unlink(missing_ok=True)
    worker.signal(signal.SIGUSR2)
    found: dict[str, Any] = json.loads(eventually(lambda: path.exists() and path.read_text(), 20) or "")
    return found | {"pss_kib": _pss_kib(worker.pid)}


def _at_the_broker(scene: Scene) -> dict[str, int]:
    def count(each: str, column: str) -> int:
        return len(scene.broker.ctl(f"list_{each}", column).splitlines())

    channels: list[int] = []

    def is_steady() -> bool:
        channels.append(count("channels", "pid"))
        return channels[-2:] == channels[-1:] * 2

    # Who has just connected opens one channel after the other.
    eventually(is_steady, 20)
    listings = {"connections": "pid", "consumers": "queue_name", "queues": "name"}
    return {each: count(each, column) for each, column in listings.items()} | {"channels": channels[-1]}


@contextmanager
def _stage(scene: Scene) -> Iterator[tuple[Workshop, Proxy, WorkerProcess, Producer]]:
    with Proxy(scene.broker.url) as proxy, scene.shop(SOURCE + LOOKING) as shop:
        # What is remembered of past tasks grows up to a bound: a low one here.
        env = {"AMQPTASKS_BROKER_URL": proxy.url, "AMQPTASKS_RESULT_CACHE_MAX": "10"}
        worker = shop.start("-c", "1", level="ERROR", env=env)
        producer = Producer(shop, env)
        try:
            yield shop, proxy, worker, producer
        finally:
            producer.end()


def reconnects(scene: Scene) -> Verdict:
    """W13: a thousand reconnects of worker and producer: nothing grows."""
    cuts, warming = scene.count(1000), scene.count(100, 10)
    with _stage(scene) as (shop, proxy, worker, producer):

        def look() -> dict[str, dict[str, Any]]:
            return {"worker": _look_at(shop, worker), "producer": producer.look(), "broker": _at_the_broker(scene)}

        answered, before = 0, {}
        for turn in range(warming + cuts):
            answered += producer.ask(str(turn)) == str(turn)
            if turn == warming:
                before = {
                    "worker": _look_at(shop, worker),
                    "producer": producer.look(),
                    "broker": _at_the_broker(scene),
                }
            _lose(proxy, turn)
        answered += producer.ask("-1") == "-1"
        after = look()
        verdict = Verdict(answered, 0, warming + cuts + 1 - answered, 0, 0)
        for who, had in before.items():
            _compare(verdict, who, had, after[who])
        return verdict


def _lose(proxy: Proxy, turn: int) -> None:
    """End all connections, now in this way and now in that."""
    if turn % 10 == 9:
        proxy.refuse()
        proxy.heal()
    elif turn % 2:
        proxy.fin()
    else:
        proxy.cut()


def _compare(verdict: Verdict, who: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    grown = {each: after[each] - before[each] for each in before}
    verdict.notes.append(f"{who}: " + ", ".join(f"{each} {count:+}" for each, count in grown.items()))
    for each, count in grown.items():
        allowed = LEEWAY.get(each, 0)
        if count > allowed:
            verdict.faults.append(f"{who}: {count} more {each}, allowed are {allowed}")
