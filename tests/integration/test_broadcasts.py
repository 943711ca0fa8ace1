"""Tasks for every worker, and tasks for one: broadcasts, and the queue that only one worker consumes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.entities import Broadcast
from amqptasks.exceptions import Unroutable
from amqptasks.utils.nodenames import worker_direct
from tests.command import Shell
from tests.running import Workshop
from tests.support import WorkerProcess, eventually

pytestmark = pytest.mark.broker

SOURCE = """
    from amqptasks import Broadcast, Queue

    app.conf.task_queues = [Queue(QUEUE), Broadcast(QUEUE + "-all"), Broadcast(QUEUE + "-few", queue=QUEUE + "-shared")]
    app.conf.task_routes = {"shop.reload": {"queue": QUEUE + "-all"}}
    app.conf.worker_direct = True
    app.conf.task_create_missing_queues = False

    @app.task(name="shop.reload", bind=True, ignore_result=True)
    def reload(self, text):
        note(f"{text} {self.request.hostname}")

    @app.task(name="shop.where", bind=True)
    def where(self):
        return [self.request.hostname, self.request.delivery_info["exchange"]]

    @app.task(name="shop.noted", bind=True, ignore_result=True)
    def noted(self, text):
        note(f"{text} {self.request.hostname}")

    @app.task(name="shop.calls")
    def calls(text):
        reload.delay(text)
"""


class Shop(Workshop):
    """Two workers that consume all queues, known by the names they gave themselves."""

    pair: tuple[WorkerProcess, ...]

    @property
    def names(self) -> list[str]:
        """The full names of the two."""
        return [each.wait_for(r"(w\d-\w+@test) ready").group(1) for each in self.pair]

    def command(self, *arguments: str, code: int = 0) -> str:
        """Run a command on the project and return what it said."""
        done = Shell(self.directory)("-A", self.project.name, *arguments, code=code)
        return done.stdout + done.stderr

    def heard(self, text: str) -> None:
        """Wait until each of the two has noted a text, once."""
        expected = sorted(f"{text} {name}" for name in self.names)
        eventually(lambda: sorted(line for line in self.ledger() if line.startswith(f"{text} ")) == expected, 20)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("broadcasts"), broker_url, SOURCE)
    with made:
        made.pair = (made.start("-c", "1"), made.start("-c", "1", "-P", "threads"))
        yield made
        made.also_delete(f"{made.queue}-shared", *(worker_direct(name).name for name in made.names))
        for each in made.pair:
            assert each.stop() == 0
        made.delete_exchange(f"{made.queue}-all")
        made.delete_exchange(f"{made.queue}-few")


def fresh() -> str:
    return uuid.uuid4().hex[:8]


def test_a_broadcast_by_its_route_runs_in_every_worker(shop: Shop) -> None:
    text = fresh()
    shop.tasks.reload.delay(text)
    shop.heard(text)


def test_a_broadcast_by_the_name_of_its_queue_runs_in_every_worker(shop: Shop) -> None:
    # Given a task with no route / When it is sent to the broadcast, by name and by exchange / Then both workers run it
    one, two = fresh(), fresh()
    shop.tasks.noted.apply_async((one,), queue=f"{shop.queue}-all")
    shop.heard(one)
    shop.tasks.noted.apply_async((two,), exchange=f"{shop.queue}-all")
    shop.heard(two)


def test_a_delayed_broadcast_waits_and_then_runs_in_every_worker(shop: Shop) -> None:
    text = fresh()
    shop.tasks.reload.apply_async((text,), countdown=0.5)
    shop.heard(text)


def test_a_task_can_send_a_broadcast_and_so_can_what_follows_it(shop: Shop) -> None:
    # Given a task that broadcasts, one whose callback is a broadcast, and one whose callback is a delayed one
    one, two, three = fresh(), fresh(), fresh()
    shop.tasks.calls.delay(one)
    shop.tasks.where.apply_async(link=shop.tasks.reload.si(two))
    shop.tasks.where.apply_async(link=shop.tasks.reload.si(three).set(countdown=0.3))
    for each in (one, two, three):
        shop.heard(each)


def test_whoever_sends_makes_no_queue(shop: Shop) -> None:
    # Given this process, which only sends / When it has sent / Then the queue of its own name is not there
    shop.tasks.reload.delay(fresh())
    own = shop.app.sender.routing.queue(f"{shop.queue}-all")
    assert isinstance(own, Broadcast)
    assert not shop.admin.exists(own.name)


def test_workers_that_name_the_same_queue_share_its_tasks(shop: Shop) -> None:
    texts = [fresh() for _ in range(4)]
    for text in texts:
        shop.tasks.noted.apply_async((text,), queue=f"{shop.queue}-few")
    # Then each runs once, in one of the two
    eventually(lambda: len([line for line in shop.ledger() if line.split()[0] in texts]) == len(texts), 20)


def test_a_broadcast_that_cannot_run_has_dead_letters_in_a_queue_that_stays(shop: Shop) -> None:
    # Given two workers without a task / When it is broadcast / Then each leaves a letter in one queue of a lasting name
    letters = f"{shop.queue}-all.dead"
    shop.also_delete(f"{shop.queue}-all")
    shop.app.send_task("shop.unknown", queue=f"{shop.queue}-all")
    shop.is_waiting(2, letters)


def test_a_broadcast_without_a_worker_is_told_and_a_delayed_one_holds_nobody_up(shop: Shop) -> None:
    name = f"{shop.queue}-lonely"
    with App(broker=shop.broker_url, set_as_current=False) as app:
        app.conf.task_queues = [Broadcast(name)]
        with pytest.raises(Unroutable, match=name):
            app.send_task("shop.reload", ("x",), queue=name)
        app.send_task("shop.reload", ("x",), queue=name, mandatory=False)
        app.conf.task_routes = {"shop.reload": {"queue": name, "mandatory": False}}
        app.send_task("shop.reload", ("x",))
        # And messages that leave the delay queues with nobody to hear them do not stop those that come after them.
        for _ in range(40):
            app.send_task("shop.reload", ("x",), queue=name, countdown=0.2)
        text = fresh()
        shop.tasks.noted.apply_async((text,), queue=shop.queue, countdown=0.2)
        try:
            eventually(lambda: any(line.startswith(text) for line in shop.ledger()), 20)
        finally:
            # Whatever is stuck for it is free then, and other tests with it.
            shop.delete_exchange(name)


def test_a_worker_can_be_sent_a_task_of_its_own(shop: Shop) -> None:
    for name in shop.names:
        # By the queue itself, and by its name, though missing queues are not made here
        for queue in (worker_direct(name), worker_direct(name).name):
            assert shop.tasks.where.apply_async(queue=queue).get(timeout=20) == [name, ""]
        # And by the exchange that Celery's routers name
        found = shop.tasks.where.apply_async(exchange="C.dq2", routing_key=name, mandatory=True).get(timeout=20)
        assert found == [name, "C.dq2"]
        assert shop.tasks.where.apply_async(queue=worker_direct(name), countdown=0.3).get(timeout=20)[0] == name


def test_a_worker_of_chosen_queues_has_its_own_too(shop: Shop) -> None:
    # Given a worker of one queue, chosen by the broadcast's name / Then it consumes that and its own, and no other
    worker = shop.start("-c", "1", "-P", "solo", "-Q", f"{shop.queue}-all")
    name = worker.wait_for(r"(w\d-\w+@test) ready").group(1)
    shop.also_delete(worker_direct(name).name)
    listed = worker.log.partition("[queues]")[2].partition("[tasks]")[0]
    assert [line.split()[1] for line in listed.splitlines() if line] == [f"{shop.queue}-all", f"{name}.dq2"]
    text = fresh()
    shop.tasks.reload.delay(text)
    shop.noted(f"{text} {name}")
    # And when it stops, nothing of its broadcast stays behind
    assert worker.stop() == 0


def test_the_commands_know_a_broadcast_by_its_name(shop: Shop) -> None:
    name = f"{shop.queue}-all"
    run = shop.command
    rows: list[dict[str, Any]] = json.loads(run("queues", "list", "--json"))
    assert {row["name"]: row["type"] for row in rows} == {
        shop.queue: "quorum", name: "broadcast", f"{shop.queue}-few": "broadcast",
    }  # fmt: skip
    assert f"declared {name} (broadcast)" in run("queues", "declare", name)
    assert f"{name} (fanout)" in run("queues", "show", name)
    assert "bcast." not in run("queues", "list")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-Q", "{queue}-al"], "did you mean '{queue}-all'"),
        (["-Q", "{queue}", "-X", "{queue}-few"], "-X: no queue '{queue}-few'"),
        (["-X", "{queue}-al"], "did you mean '{queue}-all'"),
        (["-X", "{queue},{queue}-all,{queue}-few"], "-X leaves no queue"),
    ],
)
def test_a_wrong_choice_of_queues_is_one_line(shop: Shop, options: list[str], said: str) -> None:
    given = [each.format(queue=shop.queue) for each in options]
    assert said.format(queue=shop.queue) in shop.command("worker", *given, code=2)


def test_queues_are_chosen_and_left_out_by_name_and_alias(shop: Shop) -> None:
    name = shop.queue
    worker = shop.start("-c", "1", "-P", "solo", "-Q", f"{name},{name}-all", "-X", f"{name}-all")
    node = worker.wait_for(r"(w\d-\w+@test) ready").group(1)
    shop.also_delete(worker_direct(node).name)
    listed = worker.log.partition("[queues]")[2].partition("[tasks]")[0]
    assert [line.split()[1] for line in listed.splitlines() if line] == [name, f"{node}.dq2"]
    assert worker.stop() == 0
