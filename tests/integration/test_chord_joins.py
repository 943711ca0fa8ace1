"""Joining a chord: by any worker, in any pool, without results, whatever dies in between or stands in the collector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from amqptasks import chord
from amqptasks.broker.topology import DeclareQueue
from amqptasks.wire.chord import collector_name
from tests.running import Workshop
from tests.support import PrivateBroker, eventually

pytestmark = pytest.mark.broker

SOURCE = """
    from amqptasks.broker.collector import CollectorSession
    from amqptasks.worker import parts

    # Without a result backend: nobody but the broker knows what has ended.
    app = App(__name__, broker=BROKER)
    app.conf.task_default_queue = QUEUE
    app.conf.task_queue_prefix = PREFIX

    def die_once(step):
        \"\"\"End this process where a test has asked for it, the first time.\"\"\"
        try:
            (HERE / f"die-{step}").unlink()
        except FileNotFoundError:
            return
        note(f"died {step}")
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(owner, name, step):
        own = getattr(owner, name)

        def method(*args, **kwargs):
            die_once(f"before {step}")
            value = own(*args, **kwargs)
            die_once(f"after {step}")
            return value

        setattr(owner, name, method)

    dying(CollectorSession, "counts", "counting")
    dying(CollectorSession, "read", "reading")
    dying(CollectorSession, "publish", "sending")
    dying(CollectorSession, "delete", "deleting")
    dying(parts, "succeeded", "telling")

    @app.task(acks_late=True)
    def add(x, y):
        return x + y

    @app.task(acks_late=True)
    def collect(values, name):
        note(f"{name} {values}")

    @app.task(acks_late=True)
    def hold(name):
        gate(name)
        return name

    @app.task
    def told(request, error, traceback):
        note(f"told {type(error).__name__}: {error}")
"""


def source(prefix: str) -> str:
    return f"PREFIX = {prefix!r}\n" + "\n".join(line.removeprefix("    ") for line in SOURCE.splitlines())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("joins"), broker_url, source("chord-joins")) as made:
        made.start("-c", "2")
        yield made


def bodies(shop: Workshop, name: str) -> list[str]:
    return [line for line in shop.ledger() if line.startswith(f"{name} ")]


#: After these the body has been sent, and is sent again: the same task, once more.
AFTER_THE_BODY = ("after sending", "before deleting")


@pytest.mark.parametrize(
    "step", [f"{when} {step}" for step in ("telling", "counting", "reading", "sending", "deleting")
     for when in ("before", "after")],
)  # fmt: skip
def test_the_body_runs_wherever_a_process_is_killed(shop: Workshop, step: str) -> None:
    # Given a process that will be killed at one step
    name = step.replace(" ", "-")
    (Path(shop.directory) / f"die-{step}").touch()
    # When a chord is sent
    result = chord([shop.tasks.add.s(number, number) for number in range(5)], shop.tasks.collect.s(name))()
    # Then its body runs with the right list, and twice at most if it was sent before the kill
    expected = f"{name} [0, 2, 4, 6, 8]"
    eventually(lambda: expected in shop.ledger(), 30.0)
    shop.noted(f"died {step}")
    collector = collector_name(shop.app.conf.task_queue_prefix, result.parent.id)
    eventually(lambda: not shop.admin.exists(collector), 30.0)
    assert len(bodies(shop, name)) <= (2 if step in AFTER_THE_BODY else 1)
    assert set(bodies(shop, name)) == {expected}


def test_what_others_put_into_a_collector_does_no_harm(shop: Workshop) -> None:
    # Given a chord that is under way
    held, name = shop.gate(), "hostile"
    parts = [shop.tasks.hold.s(held.name), shop.tasks.add.s(1, 1)]
    result = chord(parts, shop.tasks.collect.s(name))()
    held.reached()
    collector = collector_name(shop.app.conf.task_queue_prefix, result.parent.id)
    # When somebody fills its collector with everything that it should not hold
    end = {"v": 1, "chord": collector, "index": 0, "task_id": "x", "result": "no"}
    for plain in (
        None, [], {"v": 1}, {**end, "chord": "another"}, {**end, "index": 99}, {**end, "index": -1},
        {**end, "v": 1, "size": 1, "body": 5, "group": "g", "until": 0},
        {"v": 1, "chord": collector, "size": 10**6, "body": {"task": "x"}, "group": "g", "until": 1},
    ):  # fmt: skip
        shop.publish(
            json.dumps(plain).encode(), {}, queue=collector, content_type="application/json", content_encoding="utf-8"
        )
    for content_type in ("application/json", "application/x-python-serialize", "no/such"):
        shop.publish(b"\x80\xff{", {}, queue=collector, content_type=content_type)
    shop.publish(b"", None, queue=collector)
    # Then the body runs all the same, once
    held.open()
    shop.noted(f"{name} ['{held.name}', 2]")


def test_calls_to_join_what_is_no_chord_end(shop: Workshop) -> None:
    # Given calls of the join, with arguments of every kind
    queue = f"{shop.app.conf.task_queue_prefix}.chord.join.v1"
    wrong = ([], [5], [shop.queue], ["no.chord.such"], [f"{queue}.dead"], ["a.chord.b", "sweep"], [1, 2, 3])
    for args in wrong:
        for sweep in (False, True):
            headers = {"id": f"wrong-{sweep}", "task": "amqptasks.join_chord"}
            shop.publish(
                json.dumps([args, {"sweep": sweep} if len(args) < 2 else {}, {}]).encode(), headers, queue=queue,
                content_type="application/json", content_encoding="utf-8",
            )  # fmt: skip
    # When a chord is sent / Then it is joined: none of them stands in the way
    chord([shop.tasks.add.s(1, 1)], shop.tasks.collect.s("behind"))()
    shop.noted("behind [2]")
    shop.is_waiting(0, queue)


def test_a_sweep_of_what_was_joined_costs_no_process(tmp_path: Path, broker_url: str) -> None:
    # Given a worker that has joined nothing yet
    with Workshop(tmp_path, broker_url, source("chord-sweeps")) as shop:
        worker = shop.start("-c", "1")
        children = worker.children()
        queue, known = "chord-sweeps.chord.join.v1", {"content_type": "application/json", "content_encoding": "utf-8"}
        # When it is to sweep chords that are over
        for number in range(5):
            body = json.dumps([[collector_name("chord-sweeps", f"over-{number}")], {"sweep": True}, {}])
            headers = {"id": f"over-{number}", "task": "amqptasks.join_chord"}
            shop.publish(body.encode(), headers, queue=queue, **known)
        shop.is_waiting(0, queue)
        worker.stop()
        # Then it has done so itself
        assert "join_chord" not in worker.log and "Joiner" not in worker.log
        assert len(children) == 1


def test_a_body_that_is_no_call_is_told_in_the_log(shop: Workshop) -> None:
    # Given a collector that is complete, and whose body is no call
    prefix = shop.app.conf.task_queue_prefix
    collector = collector_name(prefix, "no-call")
    shop.admin.declare([DeclareQueue(collector, arguments={"x-queue-type": "classic", "x-expires": 60_000})])
    known = {"content_type": "application/json", "content_encoding": "utf-8"}
    plan = {"v": 1, "chord": collector, "size": 1, "body": {"task": 5}, "group": "g", "until": 1e12}
    end = {"v": 1, "chord": collector, "index": 0, "task_id": "x", "result": 1}
    for plain in (plan, end):
        shop.publish(json.dumps(plain).encode(), {}, queue=collector, **known)
    # When somebody calls for the join
    headers = {"id": "no-call", "task": "amqptasks.join_chord"}
    shop.publish(json.dumps([[collector], {}, {}]).encode(), headers, queue=f"{prefix}.chord.join.v1", **known)
    # Then the log says so, and the collector is gone
    shop.workers[0].wait_for(f"The body of chord {collector} is no call")
    eventually(lambda: not shop.admin.exists(collector), 20.0)


def test_a_body_that_cannot_be_called_fails(shop: Workshop) -> None:
    # Given a body that does not take the list
    chord([shop.tasks.add.s(1, 1)], shop.tasks.add.s(1, 2, 3).on_error(shop.tasks.told.s()))()
    # When the header has ended / Then its error callback learns that
    eventually(lambda: any("told ChordError: the body cannot be called" in line for line in shop.ledger()), 20.0)


@pytest.mark.parametrize("pool", ["threads", "solo", "asyncio"])
def test_every_pool_joins(tmp_path: Path, broker_url: str, pool: str) -> None:
    # Given a worker with another pool
    with Workshop(tmp_path, broker_url, source("chords")) as shop:
        shop.start("-P", pool)
        add, collect = shop.tasks.add, shop.tasks.collect
        # When chords within chords are sent / Then their bodies run
        inner = chord([add.s(1, 1), add.s(2, 2)], add.si(5, 5))
        chord([inner, *(add.s(number, number) for number in range(20))], collect.s(pool))()
        shop.noted(f"{pool} {[10, *range(0, 40, 2)]}")


def test_no_body_waits_for_tasks_that_happen_to_run_where_it_is_joined(tmp_path: Path, broker_url: str) -> None:
    # Given two workers with queues of their own, one of which has a task that does not end
    with Workshop(tmp_path, broker_url, source("chords")) as shop:
        held, other = shop.gate(), f"{shop.queue}-other"
        shop.also_delete(other)
        busy = shop.start("-c", "1")
        shop.start("-c", "1", "-Q", other)
        shop.tasks.hold.delay(held.name)
        held.reached()
        # When chords are sent to the other, one after another / Then their bodies run, whoever joins them
        count = 0
        while "amqptasks.join_chord" not in busy.log:
            count += 1
            parts = [shop.tasks.add.s(count, number).set(queue=other) for number in range(3)]
            chord(parts, shop.tasks.collect.s(f"c{count}").set(queue=other))()
            shop.noted(f"c{count} {[count, count + 1, count + 2]}")
            assert count < 100
        held.open()


def test_any_apps_worker_on_the_vhost_joins(tmp_path: Path, broker_url: str) -> None:
    # Given two apps with workers of their own, which share nothing but the prefix of the queues
    (tmp_path / "other").mkdir()
    other = """
        app.conf.task_queue_prefix = "chord-apps"
        app.conf.task_default_queue_type = "classic"
        app.conf.task_create_missing_queues = False
        """
    with (
        Workshop(tmp_path, broker_url, source("chord-apps")) as shop,
        Workshop(tmp_path / "other", broker_url, other) as stranger,
    ):
        shop.start("-c", "1")
        worker = stranger.start("-c", "1")
        # When one sends many chords
        count = 0
        while "amqptasks.join_chord" not in worker.log:
            count += 1
            chord([shop.tasks.add.s(count, number) for number in range(3)], shop.tasks.collect.s(f"c{count}"))()
            shop.noted(f"c{count} {[count, count + 1, count + 2]}")
            assert count < 100
        # Then each body runs in the app that sent it, although the other has joined one
        worker.wait_for(r"Task amqptasks.join_chord\[\S+\] succeeded")
        assert len(shop.ledger()) == count


def test_a_chord_outlives_a_restart_of_the_broker(own_broker: PrivateBroker, tmp_path: Path) -> None:
    # Given a chord of which half has ended
    with Workshop(tmp_path, own_broker.url, source("chords")) as shop:
        held = shop.gate()
        shop.start("-c", "2")
        result = chord([shop.tasks.add.s(1, 1), shop.tasks.hold.s(held.name)], shop.tasks.collect.s("restart"))()
        collector = collector_name("chords", result.parent.id)
        held.reached()
        shop.is_waiting(2, collector)
        # When the broker is killed and started again, and the rest ends
        shop.admin.close()
        own_broker.kill()
        own_broker.start()
        held.open()
        # Then the body runs with the whole list
        shop.noted(f"restart [2, '{held.name}']", within_s=40.0)


def test_an_error_of_a_chord_without_results_reaches_the_callback(shop: Workshop) -> None:
    # Given a chord without results / When a part fails / Then the body's error callback learns of it
    chord([shop.tasks.add.s(1, "x")], shop.tasks.collect.s("never").on_error(shop.tasks.told.s()))()
    eventually(lambda: any("told ChordError: Dependency" in line and "TypeError" in line for line in shop.ledger()), 20)
    assert not bodies(shop, "never")
