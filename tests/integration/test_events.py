"""Events: what workers tell of themselves and of their tasks, as a program hears it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from amqptasks.events import messages
from amqptasks.exceptions import OperationalError
from amqptasks.wire.message import Message, encode
from tests.running import Workshop
from tests.support import WorkerProcess
from tests.watching import Watcher

pytestmark = pytest.mark.broker

SOURCE = """
    import time
    from amqptasks.exceptions import Ignore, Reject
    from amqptasks.signals import heartbeat_sent

    # Nobody else's events are heard.
    app.conf.event_exchange = QUEUE + "-events"
    app.conf.task_queue_prefix = QUEUE

    @heartbeat_sent.connect
    def beats(**kwargs):
        note("beat")

    @app.task
    def add(x, y=0):
        return x + y

    @app.task
    def fail(text):
        raise ValueError(text)

    @app.task(bind=True, max_retries=1)
    def again(self):
        raise self.retry(exc=KeyError("not yet"), countdown=0)

    @app.task
    def ignored():
        raise Ignore()

    @app.task(acks_late=True)
    def refused():
        raise Reject("no", requeue=False)

    @app.task
    def refused_early():
        raise Reject("no", requeue=True)

    @app.task(time_limit=0.3)
    def slow():
        time.sleep(50)

    @app.task
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(acks_late=True, bind=True)
    def dies_once(self):
        if not (HERE / self.request.id).exists():
            (HERE / self.request.id).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    @app.task
    def waits(name):
        gate(name)

    @app.task(bind=True)
    def tells(self, percent):
        self.send_event("task-halfway", percent=percent)

    @app.task(send_events=False)
    def quiet():
        pass
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("events"), broker_url, SOURCE) as made:
        yield made
        made.delete_exchange(made.app.conf.event_exchange)


@pytest.fixture(scope="module")
def telling(shop: Workshop) -> WorkerProcess:
    """A worker that tells what becomes of its tasks."""
    return shop.start("-E", "-c", "2", "--heartbeat-interval", "0.5")


@pytest.fixture
def watcher(shop: Workshop, telling: WorkerProcess) -> Iterator[Watcher]:
    with Watcher(shop.app) as made:
        yield made


def node_of(worker: WorkerProcess) -> str:
    return worker.command[worker.command.index("-n") + 1]


# -- tasks


def test_a_task_is_told_from_beginning_to_end(shop: Workshop, watcher: Watcher, telling: WorkerProcess) -> None:
    # Given a worker with -E / When it runs a task
    before = time.time()
    task_id = shop.tasks.add.apply_async((2,), {"y": 3}, expires=600).id
    story = watcher.story(task_id, "task-succeeded")
    # Then it tells that the task was received, has started and has succeeded, in this order
    assert story == ["received", "started", "succeeded"]
    received, started, succeeded = watcher.of(task_id)
    # And who says so, and when
    for event in (received, started, succeeded):
        assert (event["hostname"], event["pid"]) == (node_of(telling), telling.pid)
        assert before <= event["timestamp"] <= event["local_received"] <= time.time()
        assert event["utcoffset"] == messages_offset()
    assert received["clock"] < started["clock"] < succeeded["clock"]
    # And what was called, and what came of it, as texts
    assert (received["name"], received["args"], received["kwargs"]) == (shop.tasks.add.name, "(2,)", "{'y': 3}")
    assert (received["root_id"], received["parent_id"], received["retries"]) == (task_id, None, 0)
    assert received["eta"] is None and received["expires"].startswith("20")
    assert succeeded["result"] == "5" and 0 < succeeded["runtime"] < 20


def messages_offset() -> float:
    return (time.altzone if time.localtime().tm_isdst else time.timezone) / 3600


@pytest.mark.parametrize(
    ("name", "story", "told"),
    [
        ("fail", ["received", "started", "failed"], {"exception": "ValueError('bad \\x1b[2J')"}),
        (
            "again", ["received", "started", "retried", "received", "started", "failed"],
            {"exception": "KeyError('not yet')"},
        ),
        ("refused", ["received", "started", "rejected"], {"requeue": False}),
        ("refused_early", ["received", "started", "rejected"], {"requeue": False}),
        ("slow", ["received", "started", "failed"], {"exception": "TimeLimitExceeded(0.3)"}),
        (
            "dies", ["received", "started", "failed"],
            {"exception": "WorkerLostError('Worker exited prematurely: signal 9 (SIGKILL).')"},
        ),
        (
            "dies_once", ["received", "started", "rejected", "received", "started", "succeeded"], {"result": "None"},
        ),
    ],
)  # fmt: skip
def test_every_end_of_a_task_is_told(
    shop: Workshop, watcher: Watcher, name: str, story: list[str], told: dict[str, Any]
) -> None:
    # Given a task that does not simply succeed / When it runs
    arguments = ("bad \x1b[2J",) if name == "fail" else ()
    task_id = getattr(shop.tasks, name).delay(*arguments).id
    # Then its events say how it has ended
    watcher.until(lambda: len(watcher.of(task_id)) >= len(story))
    assert [each["type"].removeprefix("task-") for each in watcher.of(task_id)] == story
    last = watcher.of(task_id)[-1]
    assert {key: last[key] for key in told} == told
    if "exception" in told:
        # And where an error came from
        assert told["exception"].partition("(")[0] in last["traceback"]


def test_a_task_that_is_not_known_has_failed(shop: Workshop, watcher: Watcher) -> None:
    # Given no task of this name / When it is called
    task_id = shop.app.send_task("nobody.knows").id
    # Then that is told as in Celery
    assert watcher.first("task-failed", task_id=task_id)["exception"] == "NotRegistered('nobody.knows')"


def test_what_does_not_run_is_told_as_revoked(shop: Workshop, watcher: Watcher) -> None:
    # Given one task that is too late, and one that runs
    late = shop.tasks.add.apply_async((1,), expires=-5).id
    gate = shop.gate()
    running = shop.tasks.waits.delay(gate.name)
    gate.reached()
    # When that is ended by a revocation
    shop.app.control.revoke(running.id, terminate=True)
    # Then both are told, each with its reason
    told = watcher.first("task-revoked", task_id=running.id)
    assert (told["terminated"], told["signum"], told["expired"]) == (True, 15, False)
    told = watcher.first("task-revoked", task_id=late)
    assert (told["terminated"], told["signum"], told["expired"]) == (False, None, True)
    assert [each["type"] for each in watcher.of(late)] == ["task-revoked"]


def test_a_task_tells_events_of_its_own(shop: Workshop, watcher: Watcher, telling: WorkerProcess) -> None:
    # Given a task that calls send_event / When it runs
    task_id = shop.tasks.tells.delay(50).id
    # Then its event comes between those of the worker, in the worker's name
    assert watcher.story(task_id, "task-succeeded") == ["received", "started", "halfway", "succeeded"]
    assert [each["type"] for each in watcher.events if each.get("uuid") == task_id][2] == "task-halfway"
    halfway = watcher.of(task_id)[2]
    assert (halfway["percent"], halfway["hostname"]) == (50, node_of(telling))


def test_what_is_to_be_quiet_is_quiet(shop: Workshop, watcher: Watcher) -> None:
    # Given a task with send_events=False, and one that ends as Ignore says / When they run, and then another
    quiet, ignored = shop.tasks.quiet.delay(), shop.tasks.ignored.delay()
    quiet.get(timeout=20)
    watcher.story(ignored.id, "task-started")
    watcher.story(shop.tasks.add.delay(1).id, "task-succeeded")
    # Then of the one nothing is told, and of the other no end, as in Celery
    assert watcher.of(quiet.id) == []
    assert [each["type"] for each in watcher.of(ignored.id)] == ["task-received", "task-started"]


def test_events_of_tasks_come_in_lists(shop: Workshop, watcher: Watcher) -> None:
    # Given many short tasks / When they run
    with shop.app.bulk():
        ids = {shop.tasks.add.delay(number).id for number in range(100)}
    watcher.until(lambda: {each.get("uuid") for each in watcher.events if each["type"] == "task-succeeded"} >= ids)
    # Then their 300 events come in a fraction of so many messages
    assert watcher.messages < 100


# -- workers


def test_a_worker_says_that_it_comes_lives_and_goes(shop: Workshop) -> None:
    # Given somebody who watches / When a worker starts and stops
    with Watcher(shop.app) as watcher:
        worker = shop.start("-c", "1", "--heartbeat-interval", "0.2", "-Q", f"{shop.queue}-other")
        shop.also_delete(f"{shop.queue}-other")
        node = node_of(worker)
        online = watcher.first("worker-online", hostname=node)
        heartbeat = watcher.first("worker-heartbeat", hostname=node)
        worker.stop()
        offline = watcher.first("worker-offline", hostname=node)
    # Then it has told each, with how it is, also without -E
    for event in (online, heartbeat, offline):
        assert (event["freq"], event["active"], event["processed"], event["pid"]) == (0.2, 0, 0, worker.pid)
        assert len(event["loadavg"]) == 3 and all(isinstance(each, float) for each in event["loadavg"])
        assert (event["sw_ident"], event["sw_sys"]) == ("py-amqptasks", os.uname().sysname)
    # And receivers of the signal have heard of each
    assert shop.ledger().count("beat") >= 3


def test_a_worker_counts_its_tasks(shop: Workshop, watcher: Watcher, telling: WorkerProcess) -> None:
    # Given a worker that runs a task
    gate = shop.gate()
    running = shop.tasks.waits.delay(gate.name)
    gate.reached()
    # When it says that it lives
    watcher.until(lambda: any(each.get("active") == 1 for each in watcher.events))
    busy = next(each for each in watcher.events if each.get("active") == 1)
    gate.open()
    running.get(timeout=20)
    # Then it says so again with one that is done, not one that runs
    watcher.until(
        lambda: any(each.get("active") == 0 and each["processed"] >= busy["processed"] for each in watcher.events)
    )


def test_a_worker_without_heartbeats_is_silent(shop: Workshop, watcher: Watcher) -> None:
    # Given a worker with --without-heartbeat and without -E / When it runs a task, and is stopped
    queue = f"{shop.queue}-silent-{uuid.uuid4().hex[:6]}"
    shop.also_delete(queue)
    worker = shop.start("--without-heartbeat", "--without-gossip", "--without-mingle", "-c", "1", "-Q", queue)
    assert shop.tasks.add.apply_async((1,), queue=queue).get(timeout=20) == 1
    told = shop.tasks.tells.apply_async((10,), queue=queue)
    told.get(timeout=20)
    worker.stop()
    # Then it has told nothing but what the task itself has told
    assert watcher.first("task-halfway", task_id=told.id)["percent"] == 10
    watcher.story(shop.tasks.add.delay(1).id, "task-succeeded")
    mine = {each["type"] for each in watcher.events if each["hostname"] == node_of(worker)}
    assert mine == {"task-halfway"}


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_events_are_told_from_every_pool(shop: Workshop, watcher: Watcher, pool: str) -> None:
    # Given a worker with another pool / When it runs tasks that succeed, fail and tell events of their own
    queue = f"{shop.queue}-{pool}"
    shop.also_delete(queue)
    shop.start("-E", "-P", pool, "-Q", queue)
    good, bad, own = (
        task.apply_async(args, queue=queue).id
        for task, args in ((shop.tasks.add, (1, 2)), (shop.tasks.fail, ("bad",)), (shop.tasks.tells, (10,)))
    )
    # Then all is told as it is from processes
    assert watcher.story(good, "task-succeeded") == ["received", "started", "succeeded"]
    assert watcher.of(good)[-1]["result"] == "3"
    assert watcher.story(bad, "task-failed") == ["received", "started", "failed"]
    assert "ValueError: bad" in watcher.of(bad)[-1]["traceback"]
    assert watcher.story(own, "task-succeeded") == ["received", "started", "halfway", "succeeded"]


# -- programs


def test_the_settings_say_where_and_how_events_are_published(shop: Workshop) -> None:
    # Given settings of a program / When it sends an event of its own
    app = shop.tasks.App("other", broker=shop.broker_url, set_as_current=False)
    app.conf.event_exchange = f"{shop.queue}-other-events"
    app.conf.event_serializer = "msgpack"
    task_id = str(uuid.uuid4())
    with Watcher(app) as watcher, Watcher(shop.app) as elsewhere:
        with app.events.default_dispatcher(hostname="me@here") as dispatcher:
            dispatcher.send("task-halfway", uuid=task_id, percent=50)
        # Then it comes there, in that form, in its own name, and nowhere else
        watcher.until(lambda: bool(watcher.connection.wait(0.1)))
        heard = watcher.connection._heard[0]
        assert (heard[0].content_type, heard[0].headers, heard[0].delivery_mode) == (
            "application/x-msgpack", {"hostname": "me@here"}, 1,
        )  # fmt: skip
        event = watcher.first("task-halfway", task_id=task_id)
        assert (event["percent"], event["hostname"], event["pid"]) == (50, "me@here", os.getpid())
        assert elsewhere.of(task_id) == []
    shop.delete_exchange(app.conf.event_exchange)
    app.close()


def test_a_task_that_is_called_here_tells_its_events_from_here(shop: Workshop, watcher: Watcher) -> None:
    # Given a task with an event of its own / When it is run without a worker
    task_id = shop.tasks.tells.apply((7,)).id
    # Then the event comes all the same
    assert watcher.first("task-halfway", task_id=task_id)["percent"] == 7


def test_a_receiver_stops_as_it_is_told(shop: Workshop, telling: WorkerProcess) -> None:
    # Given a worker that is asked for a heartbeat / When one message is captured
    heard: list[str] = []
    receiver = shop.app.events.Receiver(handlers={"*": lambda event: heard.append(event["type"])})
    receiver.capture(limit=1, timeout=20, wakeup=True)
    # Then it was that, and the program goes on
    assert heard == ["worker-heartbeat"]
    # And a capture of what nobody tells ends with its time
    with shop.app.connection() as connection:
        receiver = shop.app.events.Receiver(connection, routing_key="nobody.tells")
        with pytest.raises(TimeoutError, match="no event has come in 0.2 seconds"):
            receiver.capture(timeout=0.2)
        # And over the same connection there can be another
        receiver = shop.app.events.Receiver(connection, handlers={"*": lambda event: heard.append(event["type"])})
        for _ in receiver.itercapture(timeout=20):
            receiver.should_stop = True
    assert len(heard) >= 2


def test_what_is_no_event_is_passed_over(shop: Workshop, watcher: Watcher, caplog: pytest.LogCaptureFixture) -> None:
    # Given messages that are none, from whoever may publish
    exchange, need = shop.app.conf.event_exchange, messages.exchange_of(shop.app.conf.event_exchange)
    for body, content_type in (
        (b"\xff\x00", "application/json"), (b"[1, 2]", "application/json"), (b"{}", "application/json"),
        (b'{"type": []}', "application/json"), (b"cos\nsystem", "application/x-python-serialize"),
        (b"[" * 100_000, "application/json"),
    ):  # fmt: skip
        watcher.connection.tell(encode(Message(body, content_type), exchange, "task.sent"), (need,))
    # When an event comes after them
    shop.app.tell_event("task-last", {"uuid": "the-last"})
    watcher.first("task-last", task_id="the-last")
    # Then it is heard, and those were told of once
    assert watcher.receiver.unreadable == 4
    assert len([each for each in caplog.records if "was no event" in each.message and each.levelname == "WARNING"]) == 1


def test_a_lost_connection_is_told(shop: Workshop) -> None:
    # Given a receiver whose connection has gone / When it waits on
    with Watcher(shop.app) as watcher:
        watcher.connection._connected().drop("gone")
        # Then it says so
        with pytest.raises(OperationalError, match="was lost"):
            watcher.until(lambda: False)
        # And another one may be opened over it
        watcher.receiver.open(watcher.connection)
        shop.app.tell_event("task-again", {"uuid": "again"})
        assert watcher.first("task-again", task_id="again")


def test_a_program_tells_what_it_sends(shop: Workshop, watcher: Watcher) -> None:
    # Given task_send_sent_event / When calls are sent: at once, later, from within a task, and of a quiet task
    tasks, app = shop.tasks, shop.app
    app.conf.task_send_sent_event = True
    try:
        sent = tasks.add.apply_async((1,), {"y": 2}, countdown=0.2)
        quiet = tasks.quiet.delay()
        followed = tasks.add.apply_async((1,), link=tasks.add.s(1))
    finally:
        app.conf.task_send_sent_event = False
    # Then each is told, with where it goes; nothing can be said of the order of what several processes tell
    watcher.first("task-sent", task_id=sent.id)
    assert set(watcher.story(sent.id, "task-succeeded")) == {"sent", "received", "started", "succeeded"}
    event = watcher.first("task-sent", task_id=sent.id)
    assert (event["name"], event["args"], event["kwargs"]) == (tasks.add.name, "(1,)", "{'y': 2}")
    assert (event["queue"], event["exchange"], event["routing_key"]) == (shop.queue, "", shop.queue)
    assert (event["root_id"], event["parent_id"], event["retries"], event["expires"]) == (sent.id, None, 0, None)
    assert event["eta"].startswith("20") and event["hostname"] == f"gen{os.getpid()}@{socket.gethostname()}"
    # But not of the task that is quiet, nor of those that a worker sends without the setting
    watcher.story(followed.id, "task-succeeded")
    assert watcher.of(quiet.id) == []


def test_a_worker_tells_what_its_tasks_send(shop: Workshop, watcher: Watcher) -> None:
    # Given a worker with task_send_sent_event / When its task is followed by another
    queue = f"{shop.queue}-sends"
    shop.also_delete(queue)
    worker = shop.start("-c", "1", "-Q", queue, "--", "task_send_sent_event=yes")
    shop.tasks.add.apply_async((1,), link=shop.tasks.add.s(1).set(queue=queue), queue=queue)
    # Then it tells that, in its own name
    event = watcher.first("task-sent", hostname=node_of(worker))
    assert (event["args"], event["queue"]) == ("(1, 1)", queue)
