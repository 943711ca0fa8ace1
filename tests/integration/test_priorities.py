"""Which task goes first: priorities of queues, of tasks, and of what tasks send; and queues that do not outlast their
consumers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from amqptasks.app.app import App
from amqptasks.entities import Queue
from amqptasks.exceptions import TopologyConflict
from tests.running import Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

SOURCE = """
    from amqptasks import Queue

    app.conf.task_queue_max_priority = 9
    app.conf.task_inherit_parent_priority = True
    app.conf.task_default_priority = 1
    app.conf.task_queues = [
        Queue(QUEUE),
        Queue(QUEUE + "-quorum", queue_arguments={"x-queue-type": "quorum"}),
        Queue(QUEUE + "-brief", auto_delete=True),
    ]

    @app.task(bind=True)
    def tell(self, text):
        note(f"{text} {self.request.delivery_info['priority']}")
        return text

    @app.task(bind=True, priority=2)
    def tell_own(self, text):
        note(f"{text} {self.request.delivery_info['priority']}")

    @app.task
    def parent(text):
        tell.delay(text + "-child")
        tell_own.delay(text + "-own")
        tell.apply_async((text + "-said",), priority=9)
        app.send_task(tell.name, (text + "-named",))

    @app.task
    def hold(name):
        gate(name)

    @app.task
    def brief(text):
        note(text)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A worker of one process that fetches one message ahead, on a queue with priorities."""
    with Workshop(tmp_path_factory.mktemp("priorities"), broker_url, SOURCE) as made:
        made.also_delete(f"{made.queue}-quorum", f"{made.queue}-brief")
        made.start("-c", "1", "--prefetch-multiplier", "1", "-Q", f"{made.queue},{made.queue}-quorum")
        yield made


def fresh() -> str:
    return uuid.uuid4().hex[:8]


def test_the_task_of_the_highest_priority_goes_first(shop: Workshop) -> None:
    # Given a worker that is busy, and holds one more task already
    gate = shop.gate()
    first, low, high = fresh(), fresh(), fresh()
    shop.tasks.hold.delay(gate.name)
    gate.reached()
    shop.tasks.tell.delay(first)
    shop.is_waiting(0)
    # When tasks of several priorities wait / Then the highest is next, whenever it came
    for text, priority in ((low, 0), (high, 8)):
        shop.tasks.tell.apply_async((text,), priority=priority)
    shop.is_waiting(2)
    gate.open()
    shop.noted(f"{low} 0")
    mine = [line for line in shop.ledger() if line.split()[0] in (first, low, high)]
    assert mine == [f"{first} 1", f"{high} 8", f"{low} 0"]


def test_what_a_task_sends_has_its_priority_unless_it_has_its_own(shop: Workshop) -> None:
    text = fresh()
    shop.tasks.parent.apply_async((text,), priority=6)
    # The default of all tasks gives way to the parent's; that of the task, of the call does not
    for line in (f"{text}-child 6", f"{text}-own 2", f"{text}-said 9", f"{text}-named 6"):
        shop.noted(line)


def test_what_follows_a_task_has_its_priority_unless_it_has_its_own(shop: Workshop) -> None:
    text, tell = fresh(), shop.tasks.tell
    # Given a chain whose first element has a priority, one whose last has one too, and a callback
    (tell.si(f"{text}-1").set(priority=4) | tell.si(f"{text}-2") | tell.si(f"{text}-3").set(priority=7))()
    tell.apply_async((f"{text}-4",), priority=5, link=tell.si(f"{text}-5"))
    for line in (f"{text}-1 4", f"{text}-2 4", f"{text}-3 7", f"{text}-4 5", f"{text}-5 5"):
        shop.noted(line)


def test_a_program_that_is_no_task_sends_the_default(shop: Workshop) -> None:
    text = fresh()
    shop.tasks.tell.delay(text)
    shop.noted(f"{text} 1")


def test_a_queue_that_chose_its_type_keeps_it(shop: Workshop) -> None:
    # Given a quorum queue, which cannot have the argument / Then it works all the same
    text = fresh()
    shop.tasks.tell.apply_async((text,), queue=f"{shop.queue}-quorum", priority=3)
    shop.noted(f"{text} 3")
    # And the other queue has the argument: declared without, it is another
    with App(broker=shop.broker_url, set_as_current=False) as other:
        other.conf.task_queues = [Queue(shop.queue)]
        other.conf.task_default_queue_type = "classic"
        with pytest.raises(TopologyConflict, match="x-max-priority"):
            other.send_task("x", queue=shop.queue)


def test_a_queue_that_ends_with_its_last_consumer_loses_nothing_to_a_change_of_pace(shop: Workshop) -> None:
    # Given a worker that may fetch more while tasks are short, and a queue that is deleted when nobody consumes it
    worker = shop.start("-c", "1", "-Q", f"{shop.queue}-brief")
    texts = {fresh() for _ in range(300)}
    with shop.app.bulk():
        for text in texts:
            shop.tasks.brief.apply_async((text,), queue=f"{shop.queue}-brief")
    # Then every task runs
    eventually(lambda: texts <= set(shop.ledger()), 20)
    assert "cancelled consuming" not in worker.log
    assert worker.stop() == 0
