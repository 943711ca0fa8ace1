"""Beats under faults: leaders that are killed one after another, and what became of every second."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import timedelta

from amqptasks.beat.entries import firing_id
from amqptasks.beat.state import from_us
from amqptasks.beat.store import StateFile
from tests.beats import BeatShop, leads
from tests.chaos.scene import PATIENCE_S, Scene, Verdict
from tests.support import WorkerProcess, eventually

SOURCE = """
    import time

    app.conf.task_ignore_result = True

    @app.task(bind=True)
    def tick(self, entry):
        note(f"{entry} {self.request.id} {time.time():.6f}")

    app.conf.beat_schedule = {
        "second": {"task": tick.name, "schedule": 1.0, "args": ["second"], "missed": "all"},
        "latest": {"task": tick.name, "schedule": 1.0, "args": ["latest"]},
        # So many that what is remembered is written in pieces.
        **{f"idle {number}": {"task": tick.name, "schedule": 86400.0} for number in range(200)},
    }
"""


def beats_killed(scene: Scene) -> Verdict:
    """S1: kill -9 of the beat that leads, every 5 s for a minute, while two others stand by."""
    every_s = 5.0 if scene.scale >= 1 else 1.0
    kills = scene.count(12, 2)
    scene.directory.mkdir(parents=True, exist_ok=True)
    with BeatShop(scene.directory, scene.broker.url, SOURCE) as shop:
        shop.start("-c", "1", level="INFO")
        beats = [shop.beat()]
        leads(beats[0], within_s=PATIENCE_S)
        beats += [shop.beat(), shop.beat()]
        for each in beats[1:]:
            each.wait_for("Standing by", PATIENCE_S)
        takeovers = []
        for _ in range(kills):
            threading.Event().wait(every_s)
            takeovers.append(_kill_leader(shop, beats))
        shop.fires(2, within_s=PATIENCE_S)
        for each in beats:
            each.wait_for("Standing by|Leading the schedule", PATIENCE_S)
            each.stop()
        verdict = _judge(shop, kills)
        shop.workers[0].stop()
        verdict.recovered_s = max(takeovers)
        scene.judge(verdict, "takeover", verdict.recovered_s, 5.0)
        return verdict


def _kill_leader(shop: BeatShop, beats: list[WorkerProcess]) -> float:
    """Kill who leads, put another in its place, and wait until one leads; returns how long nobody did, seconds."""
    leader = next(each for each in beats if "Leading the schedule" in each.log)
    beats.remove(leader)
    others = list(beats)
    leader.kill()
    killed = time.monotonic()
    eventually(lambda: any("Leading the schedule" in each.log for each in others), PATIENCE_S)
    took_s = time.monotonic() - killed
    beats.append(shop.beat())
    return took_s


def _judge(shop: BeatShop, kills: int) -> Verdict:
    file = StateFile(str(shop.directory / "amqptasks-schedule"), shop.project.name)
    state = file.load()
    file.close()
    assert state is not None
    verdict = Verdict()
    for name in ("second", "latest"):
        anchor = from_us(state.entries[name].anchor)
        due = {
            firing_id(shop.project.name, name, each): each
            for each in (anchor - timedelta(seconds=n) for n in range(600))
        }
        last = firing_id(shop.project.name, name, anchor)
        eventually(lambda name=name, last=last: last in shop.fired(name), PATIENCE_S)  # type: ignore[misc]
        runs = [(line.split()[1], float(line.split()[2])) for line in shop.ledger() if line.startswith(f"{name} ")]
        unknown = [task_id for task_id, _at in runs if task_id not in due]
        if unknown:
            verdict.faults.append(f"{len(unknown)} runs of {name} at no due time")
        runs = [(task_id, at) for task_id, at in runs if task_id in due]
        first = min(due[task_id] for task_id, _at in runs)
        wanted = {task_id for task_id, each in due.items() if each >= first}
        counted = Counter(task_id for task_id, _at in runs)
        lost = len(wanted - counted.keys())
        late = sorted(at - due[task_id].timestamp() for task_id, at in runs)
        early = [each for each in late if each < 0]
        if early:
            verdict.faults.append(f"{len(early)} runs of {name} were early")
        if name == "second":
            verdict.sent, verdict.lost = len(wanted), lost
        elif lost > kills:
            verdict.faults.append(f"{lost} seconds of {name} are missing after {kills} kills")
        verdict.twice += sum(counted.values()) - len(counted)
        behind = sum(each > 0.5 for each in late)
        verdict.notes.append(
            f"{name}: {lost} left out, {behind} more than 0.5 s late, median {late[len(late) // 2]:.3f} s"
        )
    repeated = shop.workers[0].log.count("was sent twice by beat")
    verdict.notes.append(f"{repeated} sent twice and run once")
    if repeated > 2 * kills:
        verdict.faults.append(
            f"{repeated} tasks were sent twice, more than one of each entry for each of {kills} kills"
        )
    return verdict
