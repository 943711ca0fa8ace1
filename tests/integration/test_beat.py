"""Beat as it is run: real processes, one schedule, and what becomes of it when one dies, freezes, or cannot connect."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from amqptasks.beat.entries import firing_id
from amqptasks.beat.state import State, from_us
from amqptasks.beat.store import StateFile
from tests.beats import BeatShop, children, leads
from tests.proxy import Proxy
from tests.support import ROOT, eventually

pytestmark = pytest.mark.broker

SOURCE = """
    from amqptasks import signals
    import time

    app.conf.task_ignore_result = True
    app.conf.broker_heartbeat = 2

    @app.task(bind=True)
    def tick(self, entry):
        note(f"{entry} {self.request.id} {time.time():.3f}")

    app.conf.beat_schedule = {
        "second": {"task": tick.name, "schedule": 0.5, "args": ["second"], "missed": "all"},
    }

    if os.environ.get("OTHER_ENTRIES"):
        app.add_periodic_task(3600, tick.s("other"))

    @signals.beat_init.connect
    def begun(sender, **_):
        note("beat_init")

    @signals.beat_embedded_init.connect
    def begun_embedded(sender, **_):
        note("beat_embedded_init")
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[BeatShop]:
    """A shop with a worker that runs all through."""
    with BeatShop(tmp_path_factory.mktemp("beat"), broker_url, SOURCE) as made:
        made.start("-c", "1", level="INFO")
        yield made


@pytest.fixture(autouse=True)
def beats_stopped(shop: BeatShop) -> Iterator[None]:
    """Every test begins without a beat."""
    yield
    for each in shop.workers[1:]:
        if each.process.poll() is None:
            each.stop()


def due_ids(shop: BeatShop, anchor: datetime, count: int) -> list[str]:
    return [
        firing_id(shop.project.name, "second", anchor + timedelta(seconds=0.5 * number))
        for number in range(1, count + 1)
    ]


def remembered(shop: BeatShop) -> State:
    """What a beat that was stopped has written down."""
    file = StateFile(str(shop.directory / "amqptasks-schedule"), shop.project.name)
    state = file.load()
    file.close()
    assert state is not None
    return state


def test_it_sends_while_another_stands_by_and_takes_over_when_that_dies(shop: BeatShop) -> None:
    # Given two beats, told to answer pings
    since = len(shop.fired())
    first = shop.beat("--enable-remote-control", "-n", f"first@{shop.queue}")
    leads(first)
    second = shop.beat("--enable-remote-control", "-n", shop.queue)
    second.wait_for(rf"Standing by: beat@\S+ \(process {first.pid}\) leads")
    shop.fires(3)
    assert "beat_schedule_name" not in second.log
    repeated = shop.workers[0].log.count("was sent twice by beat")

    # Then both answer those, and nothing else
    names = {f"first@{shop.queue}", f"celerybeat@{shop.queue}"}

    def ask() -> None:
        answers = {name for answer in shop.app.control.ping(timeout=0.5) for name in answer}
        assert {name for name in answers if name.endswith(shop.queue)} == names

    eventually(ask, 20.0)
    assert not shop.app.control.broadcast("stats", reply=True, timeout=0.2, destination=sorted(names))

    # When the one that leads is killed
    first.kill()

    # Then the other goes on where that one was: no time is left out, none comes twice
    leads(second)
    shop.fires(3)
    before = len(shop.fired())
    second.stop()
    entry = remembered(shop).entries["second"]
    fired = shop.fired()
    assert len(fired) >= before and not shop.repeated(since)
    anchor = from_us(entry.anchor) - timedelta(seconds=0.5 * entry.count)
    assert set(fired[-3:]) <= set(due_ids(shop, anchor, entry.count))
    # And it did not have to send again what the first had noted
    assert shop.workers[0].log.count("was sent twice by beat") <= repeated + 1
    assert "beat: Starting..." in second.log and "Scheduler: Sending due task second" in second.log


def test_a_leader_that_was_frozen_sends_nothing_more(shop: BeatShop) -> None:
    # Given a leader and one that stands by
    since = len(shop.fired())
    first = shop.beat()
    leads(first)
    second = shop.beat()
    second.wait_for("Standing by")
    shop.fires(1)

    # When the leader freezes, until the broker notices
    os.kill(first.pid, signal.SIGSTOP)
    try:
        leads(second)
        shop.fires(2)
    finally:
        os.kill(first.pid, signal.SIGCONT)

    # Then it stands by when it comes to, and every time still came once
    first.wait_for("Leading no more|Lost the connection")
    first.wait_for(rf"Standing by: beat@\S+ \(process {second.pid}\) leads")
    shop.fires(2)
    assert not shop.repeated(since)


def test_a_token_that_is_no_token_or_lost_is_made_anew(shop: BeatShop) -> None:
    # Given garbage in the queue of the token, and a leader
    since = len(shop.fired())
    first = shop.beat()
    leads(first)
    token = shop.token
    for body in (b"\xff\x00", b'{"v":1,"kind":"base","entries":{"second":[1]}}', b"[" * 10_000):
        shop.publish(body, {"x": "y"}, queue=token)

    # When it is found / Then it goes to the dead letters with the reason, and beat goes on
    shop.also_delete(f"{token}.dead")
    reasons = []
    for _ in range(3):
        found = eventually(lambda: shop.take(f"{token}.dead") or False)
        assert not isinstance(found, bool) and found is not None
        reasons.append((found.headers["x-amqptasks-reason"], found.headers["x"]))
    assert reasons == [("no-record", "y")] * 3
    shop.fires(1)

    # Given that it is stopped, which writes its file, and that the broker loses the token
    first.stop()
    shop.admin.delete(shop.token)
    fired = len(shop.fired())

    # When another begins with the file / Then it goes on with the next number
    second = shop.beat()
    leads(second)
    shop.fires(1)
    second.stop()
    assert len(shop.fired()) > fired and not shop.repeated(since)
    # And one whose file is broken begins too, and says so; so does one that finds garbage where nobody leads
    (shop.directory / "broken").write_bytes(b"no database")
    shop.publish(b"garbage", None, queue=token)
    third = shop.beat("-s", "broken")
    leads(third)
    assert re.search(r"cannot read the file \S+broken: .*Moved it aside", third.log)
    shop.fires(1)


def test_the_leader_carries_out_orders(shop: BeatShop) -> None:
    # Given a leader, and a beat of another app by the same name, which says so
    leads(shop.beat())
    other = shop.beat(env={"OTHER_ENTRIES": "1"})
    other.wait_for(f"another app's .{shop.project.name} is the name that they share; see beat_schedule_name")
    other.stop()
    orders = shop.token + ".orders"
    answers = f"{shop.queue}.answers"
    shop.also_delete(answers)
    channel = shop._pika()
    channel.queue_declare(answers)

    def ask(body: bytes) -> Any:
        shop.publish(body, None, queue=orders, reply_to=answers, correlation_id="7")
        found = eventually(lambda: shop.take(answers) or False)
        assert not isinstance(found, bool) and found is not None and found.properties.correlation_id == "7"
        return json.loads(found.body)

    # When it is ordered something / Then it answers, whether it can do that or not
    eventually(lambda: shop.admin.exists(orders))
    assert ask(b'{"v":1,"command":"ping"}') == {"v": 1, "ok": {"entries": 1}}
    assert "does not know" in ask(b'{"v":1,"command":"nonsense"}')["error"]
    # And what is no order is thrown away
    shop.publish(b"\xff", None, queue=orders)
    assert ask(b'{"v":1,"command":"ping"}')["ok"]
    shop.fires(1)


def test_a_worker_does_not_run_again_what_beat_has_sent_twice(shop: BeatShop) -> None:
    # Given a task as beat sends it
    headers = {"lang": "py", "task": f"{shop.project.name}.tick", "id": "beat-7", "celery_beat_task": True}
    body = json.dumps([["twice"], {}, None]).encode()
    text = {"content_type": "application/json", "content_encoding": "utf-8", "correlation_id": "beat-7"}

    # When it comes twice, and then once more for a reason
    for more in ({"message_id": "beat-7"}, {"message_id": "beat-7"}, {"message_id": "another"}):
        shop.publish(body, headers, **text, **more)
    shop.publish(body, {**headers, "x-amqptasks-deaths": 1}, **text, message_id="beat-7")

    # Then the second is left out, and the others are run
    eventually(lambda: len(shop.fired("twice")) == 3)
    shop.workers[0].wait_for(r"\[beat-7\] was sent twice by beat; not run again")
    assert len(shop.fired("twice")) == 3


def test_a_worker_can_have_beat_beside_it(shop: BeatShop) -> None:
    # Given a worker with beat
    worker = shop.start("-c", "1", "-B", "-s", "embedded-schedule")
    worker.wait_for("beat: Leading the schedule")
    shop.fires(1)
    assert "beat_embedded_init" in shop.ledger()
    found = re.search(r"INFO/Beat\] beat: Starting", worker.log)
    assert found is not None

    # When beat's process dies / Then it is started again
    keeper = next(pid for pid in worker.children() if children(pid))
    os.kill(children(keeper)[0], signal.SIGKILL)
    worker.wait_for("beat: its process ended with -9; starting it again")
    shop.fires(1)

    # And when the worker is killed, beat ends too
    beat = eventually(lambda: children(keeper) or False)
    os.kill(worker.pid, signal.SIGKILL)
    worker.expected_exits = None
    assert isinstance(beat, list)
    eventually(lambda: not any(alive(pid) for pid in (keeper, *beat)))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_it_starts_without_a_broker_and_says_so(tmp_path: Path, broker_url: str) -> None:
    # Given a port where nothing listens yet
    with Proxy(broker_url) as proxy, BeatShop(tmp_path, broker_url, SOURCE) as shop:
        proxy.refuse()
        beat = shop.beat(env={"AMQPTASKS_BROKER_URL": proxy.url})
        beat.wait_for("beat: cannot connect to .*Trying again")

        # When the broker can be reached / Then it begins
        proxy.heal()
        leads(beat)
        eventually(lambda: shop.waiting() >= 1)
        # And it begins again after its connection was lost
        proxy.cut()
        beat.wait_for("Leading no more")
        leads(beat, 2)
        before = shop.waiting()
        eventually(lambda: shop.waiting() > before)


def test_a_scheduler_of_ones_own_that_fails_does_not_end_beat(tmp_path: Path, broker_url: str) -> None:
    # Given a scheduler whose table cannot be read at first, and whose tick fails now and then after it has sent
    source = (
        SOURCE
        + """
    from amqptasks.beat import PersistentScheduler

    class Moody(PersistentScheduler):
        restored = ticks = 0

        def restore(self, state):
            self.restored += 1
            if self.restored == 1:
                raise OSError("the database is away")
            super().restore(state)

        def tick(self):
            self.ticks += 1
            wait = super().tick()
            if self.ticks % 3 == 0:
                raise OSError("and again")
            return wait
    """
    )
    with BeatShop(tmp_path, broker_url, source) as shop:
        # When it leads / Then it leaves that to another, or tries again, and sends all that is due
        beat = shop.beat("-S", f"{shop.project.name}:Moody")
        beat.wait_for("beat: cannot lead; leaving that to another")
        beat.wait_for("beat: a tick failed; trying again")
        eventually(lambda: shop.waiting() >= 4)
        sent = [shop.take(shop.queue) for _ in range(4)]
        assert len({found.headers["id"] for found in sent if found is not None}) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-interval", "often"], "expected a number of seconds above 0, got: 'often'"),
        (["-S", "nowhere:Nothing"], "cannot find 'nowhere:Nothing'"),
        (["-f", "/nowhere/log"], "cannot write the log file"),
    ],
)
def test_mistakes_are_told_on_one_line(shop: BeatShop, arguments: list[str], words: str) -> None:
    # Given a command line with a mistake / When it is run / Then one line says what, and the exit code is 2
    command = [sys.executable, "-m", "amqptasks", "-A", shop.project.name, "beat", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=shop.directory, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
