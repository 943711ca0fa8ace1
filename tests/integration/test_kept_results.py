"""``persist_result``: RabbitMQ alone keeps the last states of a task, for any process to read. On one real worker."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import ResultUnreachable, TimeoutError
from amqptasks.results.handles import AsyncResult
from tests.running import Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

SOURCE = """
    app.conf.update(task_queue_prefix=PREFIX, result_expires=60)

    @app.task(persist_result=True, track_started=True)
    def kept(name, fails=False):
        gate(name)
        if fails:
            raise ValueError("no")
        return name

    @app.task(persist_result=True, bind=True)
    def chatty(self, states):
        for number in range(states):
            self.update_state(state="PROGRESS", meta={"done": number})
        return states

    @app.task
    def plain():
        return 1
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    prefix = f"kept-{uuid.uuid4().hex[:8]}"
    with Workshop(tmp_path_factory.mktemp("kept"), broker_url, SOURCE.replace("PREFIX", repr(prefix))) as shop:
        shop.start("-c", "2")
        yield shop


@pytest.fixture
def elsewhere(shop: Workshop) -> Iterator[Callable[..., App]]:
    """Make an app that has sent nothing, as another process has it. It knows no tasks, so a setting says they keep."""
    made: list[App] = []

    def make(**settings: Any) -> App:
        conf = {"task_queue_prefix": shop.app.conf.task_queue_prefix, "task_persist_result": True, **settings}
        made.append(App("elsewhere", broker=shop.broker_url, backend="rpc://", set_as_current=False, **conf))
        return made[-1]

    yield make
    for app in made:
        app.close()


def queue_of(shop: Workshop, result: AsyncResult) -> str:
    name = f"{shop.app.conf.task_queue_prefix}.result.{result.id}"
    shop.also_delete(name)
    return name


def test_a_kept_result_can_be_read_by_any_process_and_as_often_as_wanted(shop: Workshop, elsewhere: Any) -> None:
    # Given a task that keeps its result, sent from here
    gate = shop.gate()
    sent = shop.tasks.kept.delay(gate.name)
    queue = queue_of(shop, sent)
    # When another process asks before it begins, while it runs, and waits for its end
    others = [elsewhere().AsyncResult(sent.id) for _ in range(2)]
    with pytest.raises(TimeoutError):
        others[0].get(timeout=0.05)
    gate.reached()
    eventually(lambda: others[0].state == "STARTED")
    with pytest.raises(TimeoutError):
        others[0].get(timeout=0.05)
    values: list[Any] = []
    waiters = [threading.Thread(target=lambda each=each: values.append(each.get(timeout=20))) for each in others]
    for waiter in waiters:
        waiter.start()
    gate.open()
    for waiter in waiters:
        waiter.join(20)
    # Then all of them get it, and so does who sent it, over its reply queue as always
    assert values == [gate.name] * 2
    assert sent.get(timeout=20) == gate.name
    assert AsyncResult(sent.id, app=elsewhere()).get(timeout=20) == gate.name
    assert AsyncResult(sent.id, app=elsewhere()).successful()
    # And it stays until it is forgotten
    assert shop.admin.exists(queue)
    elsewhere().AsyncResult(sent.id).forget()
    assert not shop.admin.exists(queue)
    assert elsewhere().AsyncResult(sent.id).state == "PENDING"
    with pytest.raises(ResultUnreachable, match="kept, or it has expired"):
        elsewhere().AsyncResult(sent.id).get(timeout=20)


def test_a_kept_failure_is_raised_wherever_it_is_read(shop: Workshop, elsewhere: Any) -> None:
    gate = shop.gate()
    gate.open()
    sent = shop.tasks.kept.delay(gate.name, fails=True)
    queue_of(shop, sent)
    with pytest.raises(ValueError, match="no"):
        elsewhere().AsyncResult(sent.id).get(timeout=20)


def test_only_the_last_states_are_kept(shop: Workshop, elsewhere: Any) -> None:
    sent = shop.tasks.chatty.delay(30)
    queue = queue_of(shop, sent)
    seen: list[Any] = []
    assert elsewhere().AsyncResult(sent.id).get(timeout=20, on_message=lambda plain: seen.append(plain["status"])) == 30
    assert seen[-1] == "SUCCESS"
    # The broker drops what is too many a moment later.
    eventually(lambda: shop.waiting(queue) <= 8, 20.0)


def test_readers_do_not_hide_a_result_from_each_other(shop: Workshop, elsewhere: Any) -> None:
    # Given a kept result
    sent = shop.tasks.chatty.delay(0)
    queue_of(shop, sent)
    assert sent.get(timeout=20) == 0
    # When several look at it at the same time, again and again / Then none of them ever finds nothing
    apps = [elsewhere() for _ in range(3)]
    seen: list[str] = []
    start = threading.Barrier(len(apps))

    def look(app: App) -> None:
        start.wait(20)
        for _ in range(15):
            seen.append(app.AsyncResult(sent.id).state)

    readers = [threading.Thread(target=look, args=(app,)) for app in apps]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert set(seen) == {"SUCCESS"} and len(seen) == 45


def test_a_late_report_of_a_second_run_does_not_undo_a_success(shop: Workshop, elsewhere: Any) -> None:
    # Given a kept success
    sent = shop.tasks.chatty.delay(0)
    queue = queue_of(shop, sent)
    assert sent.get(timeout=20) == 0
    eventually(lambda: shop.waiting(queue) == 1)
    # When what another run of the same task says comes in after it, and things that nobody can read
    body = b'{"task_id": "%s", "status": "%s", "result": "late", "traceback": null, "children": []}'
    for status in (b"STARTED", b"FAILURE", b"SUCCESS"):
        message = body % (sent.id.encode(), status)
        shop.publish(message, None, queue=queue, content_type="application/json", content_encoding="utf-8")
    shop.publish(b"\x80\x04garbage", None, queue=queue, content_type="application/x-python-serialize")
    # Then the first answer stands
    assert elsewhere().AsyncResult(sent.id).get(timeout=20) == 0


def test_what_is_not_kept_is_out_of_reach_and_costs_no_queue(shop: Workshop, elsewhere: Any) -> None:
    sent = shop.tasks.plain.delay()
    assert sent.get(timeout=20) == 1
    assert not shop.admin.exists(queue_of(shop, sent))
    assert elsewhere().AsyncResult(sent.id).state == "PENDING"
    with pytest.raises(ResultUnreachable):
        elsewhere().AsyncResult(sent.id).get(timeout=20)
    # And where no task keeps results the broker is not even asked
    lonely = App("lonely", broker="amqp://127.0.0.1:1//", backend="rpc://", set_as_current=False)
    assert lonely.AsyncResult(sent.id).state == "PENDING"
    with pytest.raises(ResultUnreachable, match="persist_result=True"):
        lonely.AsyncResult(sent.id).get(timeout=20)


def test_a_queue_that_was_made_with_another_lifetime_is_used_as_it_is(shop: Workshop, elsewhere: Any) -> None:
    # Given a caller whose result_expires is another than the worker's
    app = elsewhere(result_expires=600, task_default_queue=shop.queue)
    sent = app.send_task(f"{shop.project.name}.chatty", (3,))
    queue_of(shop, sent)
    # When the worker keeps the states / Then they are there all the same
    assert elsewhere().AsyncResult(sent.id).get(timeout=20) == 3


def test_a_kept_result_goes_when_it_has_expired(shop: Workshop, elsewhere: Any) -> None:
    app = elsewhere(result_expires=1, task_default_queue=shop.queue)
    sent = app.send_task(f"{shop.project.name}.chatty", (0,))
    queue = queue_of(shop, sent)
    assert sent.get(timeout=20) == 0
    # Looking at a queue in any way renews its lease: so it is looked at more seldom than it lasts
    eventually(lambda: not shop.admin.exists(queue), every_s=1.5)
