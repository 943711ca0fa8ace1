"""Remote control: a worker is asked and ordered about while it works."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from amqptasks import App
from amqptasks.exceptions import DuplicateNodenameWarning, OperationalError, TaskRevokedError
from amqptasks.results.record import ResultRecord
from tests.running import Workshop
from tests.support import WorkerProcess, eventually, in_thread

pytestmark = pytest.mark.broker

SOURCE = """
    import time
    from amqptasks.exceptions import Reject
    from amqptasks.worker.control import control_command, inspect_command

    if os.environ.get("POOR"):
        app.conf.broker_url = os.environ["AMQPTASKS_BROKER_URL"]
    # Nobody else's workers answer, and nobody else's delays are told.
    app.conf.control_exchange = QUEUE + "-control"
    app.conf.task_queue_prefix = QUEUE
    app.conf.control_queue_ttl = 77
    app.conf.control_queue_expires = 33
    app.conf.worker_pool_restarts = True

    @app.task
    def add(x, y=0):
        return x + y

    @app.task(acks_late=True)
    def waits(name):
        gate(name)
        note(f"through {name} {os.getpid()}")

    @app.task
    def sleeps():
        time.sleep(60)

    @app.task(acks_late=True)
    def refused():
        raise Reject("no", requeue=False)

    @app.task(bind=True, max_retries=3)
    def again(self):
        raise self.retry(countdown=500)

    @control_command(args=[("n", int)], signature="[N=1]")
    def double(state, n=1, **kwargs):
        "Double a number."
        return {"ok": n * 2, "by": state.hostname}

    @inspect_command(name="broken")
    def breaks(state):
        raise LookupError("of the user's own")

    @inspect_command
    def odd(state):
        return {"a set": {1}, "an object": object(), "late": float("inf")}
"""


@contextmanager
def by_hand(url: str) -> Iterator[Any]:
    """A channel of any program's, on a connection of its own: some tests close those that are there."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def channel(broker_url: str) -> Iterator[Any]:
    with by_hand(broker_url) as made:
        yield made


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("control"), broker_url, SOURCE) as made:
        yield made
        made.open_gates()
        with by_hand(broker_url) as channel:
            for name in (f"{made.queue}-control.pidbox", f"reply.{made.queue}-control.pidbox"):
                channel.exchange_delete(name)
            for name in ("delayed", "revoked"):
                channel.queue_delete(f"{made.queue}.{name}.v1")


@pytest.fixture(scope="module")
def obeying(shop: Workshop) -> WorkerProcess:
    return shop.start("-c", "2")


def node_of(worker: WorkerProcess) -> str:
    return worker.command[worker.command.index("-n") + 1]


@pytest.fixture
def node(obeying: WorkerProcess) -> str:
    return node_of(obeying)


@pytest.fixture
def ask(shop: Workshop, node: str) -> Callable[..., Any]:
    """Ask the worker: ``ask("active")``."""
    return lambda method, *args, **kwargs: getattr(
        shop.app.control.inspect([node], timeout=20), method
    )(*args, **kwargs)[node]  # fmt: skip


@pytest.fixture
def order(shop: Workshop, node: str) -> Callable[..., Any]:
    """Give the worker an order, and return its answer: ``order("pool_grow", n=1)``."""

    def give(command: str, **arguments: Any) -> Any:
        replies = shop.app.control.broadcast(command, arguments, [node], reply=True, timeout=20)
        assert [list(each) for each in replies] == [[node]]
        return replies[0][node]

    return give


def ids(tasks: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in tasks]


# ---- asking


def test_who_is_there_answers(shop: Workshop, node: str) -> None:
    control = shop.app.control
    # When everybody is asked, the worker by name, by a pattern, and somebody else
    # Then the worker answers what is meant for it
    assert control.ping(limit=1, timeout=20) == [{node: {"ok": "pong"}}]
    assert control.ping([node], timeout=20) == [{node: {"ok": "pong"}}]
    assert control.inspect(node, timeout=20).ping() == {"ok": "pong"}
    assert control.inspect(pattern="w?-*@test", limit=1, timeout=20).ping() == {node: {"ok": "pong"}}
    assert control.inspect(pattern=r"w\d-.*", matcher="pcre", limit=1, timeout=20).ping() == {node: {"ok": "pong"}}
    assert control.inspect(["nobody@test"], timeout=0.2).ping() is None
    # And a pattern alone never stands for all
    assert control.ping(pattern="nobody*", timeout=0.2) == []


def test_answers_are_told_as_they_come_and_to_any_thread(shop: Workshop, node: str) -> None:
    told: list[dict[str, Any]] = []
    asking = [
        in_thread(lambda: shop.app.control.ping(limit=1, timeout=20, callback=told.append)) for _ in range(4)
    ]  # fmt: skip
    assert [each() for each in asking] == [[{node: {"ok": "pong"}}]] * 4
    assert told == [{node: {"ok": "pong"}}] * 4


def test_the_queue_of_commands_is_as_the_settings_say(
    obeying: WorkerProcess, node: str, rabbitmqctl: Callable[..., str]
) -> None:
    lines = rabbitmqctl("list_queues", "name", "durable", "exclusive", "auto_delete", "arguments").splitlines()
    own = [line for line in lines if line.startswith(f"{node}.")]
    commands = [line for line in own if "-control.pidbox." in line]
    # One queue for commands, whose name nobody else has; and one that claims the worker's name
    assert len(commands) == 1 and len(own) == 2, own
    assert '"x-message-ttl",77000' in commands[0] and '"x-expires",33000' in commands[0]
    assert commands[0].split("\t")[1:4] == ["false", "true", "true"]


def test_what_runs_and_what_waits_is_told(shop: Workshop, ask: Callable[..., Any], node: str) -> None:
    # Given two tasks that run, and one behind them
    gate = shop.gate()
    running = [shop.tasks.waits.delay(gate.name) for _ in range(2)]
    eventually(lambda: len(ask("active")) == 2)
    waiting = shop.tasks.add.delay(1, y=2)
    eventually(lambda: len(ask("reserved")) == 1)

    # When the worker is asked
    active, reserved = ask("active"), ask("reserved")
    found = ask("query_task", running[0].id, waiting.id, "nobody's")

    # Then it tells each, with what Celery tells
    assert set(ids(active)) == {each.id for each in running}
    assert active[0]["args"] == [gate.name] and active[0]["name"] == shop.tasks.waits.name
    assert active[0]["hostname"] == node and active[0]["acknowledged"] is False
    assert abs(active[0]["time_start"] - time.time()) < 60
    assert {each["worker_pid"] for each in active} == set(ask("stats")["pool"]["processes"])
    assert ids(reserved) == [waiting.id] and reserved[0]["kwargs"] == {"y": 2}
    assert reserved[0]["time_start"] is reserved[0]["worker_pid"] is None
    assert ask("active", safe=True)[0]["args"] == f"('{gate.name}',)"
    assert {task_id: state for task_id, (state, _info) in found.items()} == {
        running[0].id: "active", waiting.id: "reserved",
    }  # fmt: skip
    gate.open()
    assert waiting.get(timeout=20) == 3


def test_what_waits_in_the_broker_is_told(
    shop: Workshop, ask: Callable[..., Any], order: Callable[..., Any], node: str
) -> None:
    # Given calls for later: one by one, hundreds at once, a retry, one for a queue of somebody else's, a revoked one
    add, begun = shop.tasks.add, time.time()
    first = add.apply_async((1,), {"y": 2}, countdown=100)
    with shop.app.bulk():
        many = [add.apply_async((number,), countdown=400) for number in range(350)]
    retried = shop.tasks.again.delay()
    shop.also_delete(f"{shop.queue}-other")
    foreign = add.apply_async((1,), countdown=300, queue=f"{shop.queue}-other")
    revoked = add.apply_async((1,), countdown=300)
    order("revoke", task_id=revoked.id)

    # When the worker is asked what is scheduled
    def told() -> list[dict[str, Any]]:
        found = ask("scheduled")
        wanted = {first.id, retried.id, *(each.id for each in many)}
        assert wanted <= {each["request"]["id"] for each in found}, f"{len(found)} are told"
        return found  # type: ignore[no-any-return]

    found = eventually(told)

    # Then it tells those of its queues, soonest first, in Celery's form
    assert {foreign.id, revoked.id}.isdisjoint(each["request"]["id"] for each in found)
    assert found[0]["request"]["id"] == first.id
    assert found[0]["priority"] == 6
    assert abs(datetime.fromisoformat(found[0]["eta"]).timestamp() - begun - 100) < 60
    request = found[0]["request"]
    assert (request["name"], request["args"], request["kwargs"]) == (add.name, "(1,)", "{'y': 2}")
    assert request["delivery_info"]["routing_key"] == shop.queue and request["hostname"] == node
    # And it finds one by its id
    assert ask("query_task", first.id)[first.id][0] == "scheduled"


def test_what_is_due_is_scheduled_no_longer(shop: Workshop, ask: Callable[..., Any]) -> None:
    soon = shop.tasks.add.apply_async((1,), countdown=0.5)
    assert soon.get(timeout=20) == 1
    assert soon.id not in [each["request"]["id"] for each in ask("scheduled")]


def test_nothing_is_noted_of_delays_where_that_is_not_wanted(shop: Workshop, ask: Callable[..., Any]) -> None:
    # Given a program that notes nothing
    shop.app.conf.delay_index = False
    try:
        unnoted = shop.tasks.add.apply_async((1,), countdown=300)
    finally:
        shop.app.conf.reset("delay_index")
    # When another call was noted after it, and is told
    noted = shop.tasks.add.apply_async((1,), countdown=300)
    told = eventually(
        lambda: (
            [each["request"]["id"] for each in ask("scheduled") if each["request"]["id"] == noted.id]
            and [each["request"]["id"] for each in ask("scheduled")]
        )
    )
    # Then the first is not
    assert unnoted.id not in told


def test_a_task_that_has_ended_or_died_is_found(shop: Workshop, ask: Callable[..., Any]) -> None:
    ended, dead = shop.tasks.add.delay(1), shop.tasks.refused.delay()
    assert ended.get(timeout=20) == 1
    eventually(lambda: shop.waiting(f"{shop.queue}.dead") >= 1)
    found = ask("query_task", [ended.id, dead.id])
    assert found[ended.id][0] == "ready"
    assert found[dead.id][0] == "dead" and found[dead.id][1]["name"] == shop.tasks.refused.name
    # And what was looked at is still there
    eventually(lambda: shop.waiting(f"{shop.queue}.dead") >= 1)


def test_a_result_that_a_store_has_is_found(tmp_path: Path, broker_url: str) -> None:
    # Given a store with results of other workers, and a worker that shares it
    with Workshop(tmp_path, broker_url, SOURCE) as shop:
        url = f"db+sqlite:///{tmp_path}/results.sqlite3"
        store = App("other", backend=url, set_as_current=False).backend
        store.store(ResultRecord.now("long-ago", "SUCCESS", 1))
        store.store(ResultRecord.now("in-vain", "FAILURE", {"exc_type": "E", "exc_message": [], "exc_module": "m"}))
        node = f"keeps@{shop.queue}"
        shop.start("-c", "1", "-n", node, "--", f"result_backend={url}")

        # When it is asked for them, and for one that nobody knows / Then it finds those
        def look() -> Any:
            # The process that looks is started by the first question, which is not kept waiting for it.
            found = shop.app.control.inspect([node], timeout=20).query_task("long-ago", "in-vain", "never")[node]
            return {task_id: (what, info["state"]) for task_id, (what, info) in found.items()}

        found = eventually(look, 20.0)
        assert found == {"long-ago": ("ready", "SUCCESS"), "in-vain": ("ready", "FAILURE")}


def test_numbers_settings_and_queues_are_told(shop: Workshop, ask: Callable[..., Any], obeying: WorkerProcess) -> None:
    stats, conf = ask("stats"), ask("conf")
    assert stats["pid"] == obeying.pid and stats["pool"]["max-concurrency"] == 2
    assert sorted(stats["pool"]["processes"]) == sorted(obeying.children())[:2]
    assert stats["broker"]["transport"] == "amqp" and "password" not in stats["broker"]
    assert stats["prefetch_count"] > 0
    begun = stats["total"].get(shop.tasks.add.name, 0)
    shop.tasks.add.delay(1).get(timeout=20)
    assert ask("stats")["total"][shop.tasks.add.name] == begun + 1
    # No secret leaves the worker
    assert "guest:guest" not in json.dumps([stats, conf, ask("report")])
    assert conf["control_queue_ttl"] == 77 and "task_serializer" not in conf
    assert ask("conf", with_defaults=True)["task_serializer"] == "json"
    assert [each["name"] for each in ask("active_queues")] == [shop.queue]
    assert shop.tasks.again.name in ask("registered")
    # Attributes are told where they are plain data: a name from the wire runs nothing
    assert f"{shop.tasks.again.name} [max_retries=3]" in ask("registered", "max_retries", "__class__", "delay", "app")
    assert ask("memsample").endswith("MB") and "rss (end)" in ask("memdump")
    assert ask("clock")["clock"] > 0


def test_another_worker_that_says_hello_learns_what_is_revoked(
    shop: Workshop, ask: Callable[..., Any], node: str
) -> None:
    told = ask("hello", "somebody@else", ["an id of theirs"])
    assert set(told) == {"revoked", "clock"}
    assert "an id of theirs" in ask("revoked")
    assert ask("hello", node) is None


# ---- ordering about


def test_a_revoked_task_is_answered_for_and_does_not_run(
    shop: Workshop, ask: Callable[..., Any], node: str
) -> None:  # fmt: skip
    gate = shop.gate()
    running = [shop.tasks.waits.delay(gate.name) for _ in range(2)]
    eventually(lambda: len(ask("active")) == 2)
    waiting = shop.tasks.add.delay(1)
    # When one that waits is revoked, and one that runs is ended
    replies = shop.app.control.revoke(waiting.id, reply=True, limit=1, timeout=20)
    ended = shop.app.control.terminate(running[0].id, [node], signal="KILL", reply=True, timeout=20)
    # Then the worker says so in Celery's words, and that is what becomes of them
    assert replies == [{node: {"ok": f"tasks {{'{waiting.id}'}} flagged as revoked"}}]
    assert ended == [{node: {"ok": f"terminate: {running[0].id}"}}]
    for each in (waiting, running[0]):
        with pytest.raises(TaskRevokedError):
            each.get(timeout=20)
    assert waiting.id in ask("revoked")
    gate.open()
    running[1].get(timeout=20)


def test_a_command_of_celerys_form_ends_a_running_task(
    shop: Workshop, ask: Callable[..., Any], order: Callable[..., Any]
) -> None:
    # Given a task that runs
    running = shop.tasks.sleeps.delay()
    eventually(lambda: ids(ask("active")) == [running.id])
    # When the command comes alone, as a Celery program sends it
    answer = order("revoke", task_id=[running.id], terminate=True, signal="SIGKILL")
    # Then the task is ended
    assert answer == {"ok": f"terminate: {running.id}"}
    with pytest.raises(TaskRevokedError):
        running.get(timeout=20)
    assert order("revoke", task_id="nobody's", terminate=True) == {"ok": "terminate: tasks unknown"}


def test_limits_change_while_the_worker_runs(
    shop: Workshop, ask: Callable[..., Any], order: Callable[..., Any]
) -> None:
    add, sleeps = shop.tasks.add.name, shop.tasks.sleeps
    assert order("rate_limit", task_name=add, rate_limit="600/m") == {"ok": "new rate limit set successfully"}
    assert f"{add} [rate_limit=600/m]" in ask("registered")
    assert order("rate_limit", task_name=add, rate_limit=0) == {"ok": "rate limit disabled successfully"}
    assert order("rate_limit", task_name="nobody's", rate_limit=1) == {"error": "unknown task"}
    assert order("rate_limit", task_name=add, rate_limit="often")["error"].startswith("Invalid rate limit string: ")
    assert order("time_limit", task_name="nobody's", hard=1) == {"error": "unknown task"}
    # When a task gets a limit, its next run is held to it
    assert order("time_limit", task_name=sleeps.name, hard=0.2) == {"ok": "time limits set successfully"}
    assert sleeps.delay().get(timeout=20, propagate=False).__class__.__name__ == "TimeLimitExceeded"
    assert order("time_limit", task_name=sleeps.name) == {"ok": "time limits set successfully"}


def test_queues_come_and_go_while_the_worker_runs(
    shop: Workshop, ask: Callable[..., Any], order: Callable[..., Any]
) -> None:
    # Given a queue that the worker does not consume
    other, add = f"{shop.queue}-more", shop.tasks.add
    shop.also_delete(other)
    waiting = add.apply_async((1,), queue=other)
    # When it is told to
    assert order("add_consumer", queue=other) == {"ok": f"add consumer {other}"}
    # Then it does
    assert waiting.get(timeout=20) == 1
    assert [each["name"] for each in ask("active_queues")] == [shop.queue, other]
    # When it is told not to, with a task of the queue running
    gate = shop.gate()
    running = shop.tasks.waits.apply_async((gate.name,), queue=other)
    gate.reached()
    assert order("cancel_consumer", queue=other) == {"ok": f"no longer consuming from {other}"}
    left = add.apply_async((2,), queue=other)
    shop.is_waiting(1, other)
    # Then that task is still settled, and the next one stays
    gate.open()
    running.get(timeout=20)
    assert [each["name"] for each in ask("active_queues")] == [shop.queue]
    assert shop.waiting(other) == 1
    # And the queue may come back
    assert order("add_consumer", queue=other, exchange=None, exchange_type="direct", routing_key=None)["ok"]
    assert left.get(timeout=20) == 2
    assert order("cancel_consumer", queue=other)["ok"]
    assert order("cancel_consumer", queue="nobody's") == {"ok": "no longer consuming from nobody's"}
    assert "expected" in order("add_consumer", queue="x", colour="red")["error"]


def test_a_queue_that_cannot_be_consumed_is_left_alone(
    shop: Workshop, ask: Callable[..., Any], order: Callable[..., Any], broker_url: str
) -> None:
    # Given a queue of another type than the worker declares, such as a Celery worker makes
    other = f"{shop.queue}-foreign"
    shop.also_delete(other)
    with closing(pika.BlockingConnection(pika.URLParameters(broker_url))) as connection:
        connection.channel().queue_declare(other, durable=True)
    # When the worker is told to consume it, then it says why it does not, once, and goes on without
    for _time in range(2):
        assert f"queue {other!r} already exists" in order("add_consumer", queue=other)["error"]
        assert [each["name"] for each in ask("active_queues")] == [shop.queue]
    assert shop.workers[0].log.count(f"queue {other!r} already exists") == 2
    # And when the queue has gone, then it does
    shop.admin.delete(other)
    assert order("add_consumer", queue=other) == {"ok": f"add consumer {other}"}
    assert shop.tasks.add.apply_async((1,), queue=other).get(timeout=20) == 1
    assert order("cancel_consumer", queue=other)["ok"]


def test_the_pool_grows_shrinks_and_is_restarted(
    shop: Workshop, ask: Callable[..., Any], order: Callable[..., Any]
) -> None:
    def processes() -> set[int]:
        return set(ask("stats")["pool"]["processes"])

    before = processes()
    assert order("pool_grow", n=1) == {"ok": "pool will grow"}
    assert len(processes()) == 3
    assert order("pool_shrink", n=1) == {"ok": "pool will shrink"}
    assert len(processes()) == 2
    assert "error" in order("pool_shrink", n=2) and "error" in order("pool_grow", n="many")
    assert order("autoscale", max=4, min=1) == {"error": "ValueError('Autoscale not enabled')"}
    # When it is restarted while a task runs
    gate = shop.gate()
    running = shop.tasks.waits.delay(gate.name)
    gate.reached()
    (busy,) = {each["worker_pid"] for each in ask("active")}
    assert order("pool_restart") == {"ok": "reload started"}
    # Then the idle process is replaced at once, the busy one after its task, which is not disturbed
    eventually(lambda: len(processes()) == 2 and processes() & before <= {busy})
    assert shop.tasks.add.delay(1).get(timeout=20) == 1
    gate.open()
    running.get(timeout=20)
    shop.noted(f"through {gate.name} {busy}")
    eventually(lambda: len(processes()) == 2 and not processes() & before)
    assert "neither loaded nor named" in order("pool_restart", modules=["antigravity"])["error"]


def test_events_are_switched_on_and_off(order: Callable[..., Any]) -> None:
    assert order("enable_events") == {"ok": "task events enabled"}
    assert order("enable_events") == {"ok": "task events already enabled"}
    assert order("disable_events") == {"ok": "task events disabled"}
    assert order("disable_events") == {"ok": "task events already disabled"}
    assert order("heartbeat") is None and order("election", id="1", topic="t") is None


def test_commands_of_the_users_own_are_answered(ask: Callable[..., Any], order: Callable[..., Any], node: str) -> None:
    assert order("double", n=21) == {"ok": 42, "by": node}
    assert order("broken") == {"error": 'LookupError("of the user\'s own")'}
    odd = order("odd")
    assert odd["a set"] == [1] and odd["late"] == "inf" and odd["an object"].startswith("<object object")


def test_what_cannot_be_done_is_answered_with_an_error(order: Callable[..., Any], obeying: WorkerProcess) -> None:
    assert order("nonsense") == {"error": "KeyError('nonsense')"}
    assert "missing 1 required positional argument" in order("query_task")["error"]
    assert "expected the signal to be one of" in order("revoke", task_id="x", signal="HELLO")["error"]
    assert order("revoke", task_id=5) == {"error": "TypeError(\"'int' object is not iterable\")"}
    obeying.wait_for("No such control command: nonsense")


# ---- who sends anything


def test_what_is_no_command_is_passed_over(
    shop: Workshop, order: Callable[..., Any], obeying: WorkerProcess, channel: Any
) -> None:  # fmt: skip
    exchange = f"{shop.queue}-control.pidbox"
    good = json.dumps({"method": "ping", "reply_to": {"exchange": "made-up", "routing_key": "x"}, "ticket": "t"})
    for body, content_type, headers in [
        (b"\xff\xfe", "application/json", {}), (b"[]", "application/json", {}), (b"{}", "application/json", {}),
        (b"cos\nsystem\n(S'touch owned'\ntR.", "application/x-python-serialize", {}), (b"", None, None),
        (good.encode(), "application/json", {"clock": 10**17, "ticket": "t"}),
        (b'{"method": "shutdown", "pattern": "(a+)+$", "matcher": "pcre"}', "application/json", {}),
        (b'{"method": "__init__", "arguments": {"self": 1}}', "application/json", {}),
        (b"[" * 100_000, "application/json", {}),
    ]:  # fmt: skip
        properties = pika.BasicProperties(content_type=content_type, headers=headers)
        channel.basic_publish(exchange, "", body, properties)
    # Then the worker lives, and says what it passed over
    assert order("ping") == {"ok": "pong"}
    obeying.wait_for("Passed over a command that cannot be read")
    obeying.wait_for("No answer goes to exchange 'made-up'")
    obeying.wait_for("at most 3 repeats")
    assert not (shop.directory / "owned").exists()
    assert order("clock")["clock"] < 10**15


def test_a_flood_of_commands_keeps_no_task_waiting(
    shop: Workshop, order: Callable[..., Any], channel: Any
) -> None:  # fmt: skip
    body = json.dumps({"method": "stats", "arguments": {}}).encode()
    for _ in range(2000):
        channel.basic_publish(
            f"{shop.queue}-control.pidbox", "", body, pika.BasicProperties(content_type="application/json")
        )
    assert shop.tasks.add.delay(2).get(timeout=20) == 2
    assert order("ping") == {"ok": "pong"}


def test_a_lost_connection_costs_neither_the_name_nor_the_queues(
    shop: Workshop, obeying: WorkerProcess, order: Callable[..., Any], ask: Callable[..., Any],
    rabbitmqctl: Callable[..., str],
) -> None:  # fmt: skip
    # Given a worker that was told to consume another queue
    other = f"{shop.queue}-kept"
    shop.also_delete(other)
    order("add_consumer", queue=other)
    # When every connection is closed
    lost = obeying.log.count("Lost the consuming connection")
    rabbitmqctl("close_all_connections", "a test")
    # The one that later tests look at queues by went too: they open another.
    shop.admin.close()
    eventually(lambda: obeying.log.count("Lost the consuming connection") > lost)
    # Then the worker comes back by itself, answers, and consumes both
    eventually(lambda: shop.app.control.ping(limit=1, timeout=1) != [], 20)
    assert shop.tasks.add.apply_async((3,), queue=other).get(timeout=20) == 3
    assert [each["name"] for each in ask("active_queues")] == [shop.queue, other]
    order("cancel_consumer", queue=other)


# ---- names


def test_a_second_worker_of_a_name_is_refused(shop: Workshop, obeying: WorkerProcess, node: str) -> None:
    # When another worker is started under the name of one that lives
    second = shop.start("-n", node, "-P", "solo", ready=False, expected_exits=(1,))
    # Then it ends at once, says why, and has taken no task
    assert second.wait() == 1
    second.wait_for(f"a worker named '{node}' is at work already")
    assert "ready." not in second.log
    assert obeying.process.poll() is None


def test_a_ghost_of_a_name_is_passed_over_and_a_stopped_worker_leaves_it(shop: Workshop, channel: Any) -> None:
    # Given a connection that holds a name and answers nothing
    name = f"ghost-{uuid.uuid4().hex[:6]}@test"
    channel.queue_declare(f"{name}.{shop.queue}-control.pidbox", exclusive=True, auto_delete=True)
    # When a worker of the name starts
    worker = shop.start("-n", name, "-P", "solo")
    # Then it goes to work, and says so
    worker.wait_for("is still claimed by a connection that does not answer")
    assert shop.app.control.ping([name], timeout=20) == [{name: {"ok": "pong"}}]
    # And when it is told to stop, it answers and stops
    assert shop.app.control.shutdown([name], reply=True, timeout=20) == [{name: {"ok": "warm shutdown"}}]
    assert worker.wait() == 0


def test_a_worker_can_be_without_remote_control_or_with_a_queue_that_stays(
    shop: Workshop, rabbitmqctl: Callable[..., str]
) -> None:
    silent = shop.start("-P", "solo", env={"AMQPTASKS_WORKER_ENABLE_REMOTE_CONTROL": "false"})
    lasting = shop.start(
        "-P", "threads", "-c", "2",
        env={"AMQPTASKS_CONTROL_QUEUE_DURABLE": "true", "AMQPTASKS_CONTROL_QUEUE_EXCLUSIVE": "false"},
    )  # fmt: skip
    inspect = shop.app.control.inspect([node_of(lasting), node_of(silent)], timeout=1)
    assert inspect.ping() == {node_of(lasting): {"ok": "pong"}}
    assert inspect.stats()[node_of(lasting)]["pool"]["threads"] == 2
    lines = rabbitmqctl("list_queues", "name", "durable", "exclusive").splitlines()
    assert f"{node_of(lasting)}.{shop.queue}-control.pidbox.durable\ttrue\tfalse" in lines
    refused = shop.app.control.pool_restart(destination=[node_of(lasting)], reply=True, timeout=20)
    assert "only prefork can be restarted" in refused[0][node_of(lasting)]["error"]
    silent.stop()
    lasting.stop()


def test_a_user_without_the_rights_is_told_once_and_the_worker_works(
    shop: Workshop, rabbitmqctl: Callable[..., str]
) -> None:
    # Given a user who may do what tasks need, and no more
    user, own = f"user-{uuid.uuid4().hex[:8]}", f"^({shop.queue}(\\..*)?|amq\\.default)$"
    rabbitmqctl("add_user", user, "secret")
    try:
        rabbitmqctl("set_permissions", user, own, own, own)
        url = urlsplit(shop.broker_url)
        # When a worker logs in as that user
        worker = shop.start(
            "-P", "solo", "-Q", f"{shop.queue}.poor",
            env={"AMQPTASKS_BROKER_URL": f"amqp://{user}:secret@{url.hostname}:{url.port}{url.path}", "POOR": "1"},
        )  # fmt: skip
        # Then it says once what it cannot do, and works
        shop.also_delete(f"{shop.queue}.poor")
        assert shop.tasks.add.apply_async((4,), queue=f"{shop.queue}.poor").get(timeout=20) == 4
        assert worker.log.count("Remote commands cannot be answered") == 1
        assert "Cannot declare queue" not in worker.log
        worker.stop()
    finally:
        rabbitmqctl("delete_user", user)


# ---- many workers, and no broker


def answer_as(url: str, namespace: str, nodes: list[str], ready: threading.Event) -> None:
    """Answer one command in the name of many workers, over one connection."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.exchange_declare(f"{namespace}.pidbox", "fanout", durable=False)
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, f"{namespace}.pidbox")
    ready.set()
    for _method, _properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=20):
        request = json.loads(body)
        for node in nodes:
            channel.basic_publish(
                request["reply_to"]["exchange"], request["reply_to"]["routing_key"],
                json.dumps({node: {"ok": "pong", "much": "x" * 500}}).encode(),
                pika.BasicProperties(
                    content_type="application/json", content_encoding="utf-8",
                    headers={"ticket": request["ticket"], "clock": 5},
                ),
            )  # fmt: skip
        # What is no answer, or to another question, is passed over.
        reply_to = request["reply_to"]["exchange"], request["reply_to"]["routing_key"]
        channel.basic_publish(*reply_to, b"nonsense", pika.BasicProperties(content_type="application/json"))
        break
    connection.close()


@pytest.fixture
def fleet(broker_url: str) -> Iterator[Callable[[list[str]], App]]:
    """Make an app whose workers are all played: ``fleet(["w1@h", …])``."""
    made: list[Callable[[], None]] = []
    app = App("fleet", broker=broker_url, set_as_current=False)
    app.conf.control_exchange = f"fleet-{uuid.uuid4().hex[:8]}"

    def play(nodes: list[str]) -> App:
        ready = threading.Event()
        made.append(in_thread(lambda: answer_as(broker_url, app.conf.control_exchange, nodes, ready)))
        assert ready.wait(20)
        return app

    yield play
    for join in made:
        join()
    app.close()


def test_the_answers_of_200_workers_are_gathered(fleet: Callable[[list[str]], App]) -> None:
    nodes = [f"w{number}@host" for number in range(200)]
    answers = fleet(nodes).control.inspect(timeout=20, limit=200).ping()
    assert sorted(answers) == sorted(nodes) and all(each["ok"] == "pong" for each in answers.values())


def test_workers_of_one_name_are_warned_of(fleet: Callable[[list[str]], App]) -> None:
    app = fleet(["w@host", "w@host"])
    with pytest.warns(DuplicateNodenameWarning, match="w@host"):
        assert list(app.control.inspect(timeout=20, limit=2).ping()) == ["w@host"]


def test_an_order_that_no_worker_hears_is_no_error(broker_url: str) -> None:
    with App("alone", broker=broker_url, set_as_current=False) as app:
        app.conf.control_exchange = f"alone-{uuid.uuid4().hex[:8]}"
        assert app.control.shutdown() is None
        assert app.control.ping(timeout=0.1) == []


@pytest.mark.parametrize("reply", [True, False])
def test_without_a_broker_that_is_told_in_time(reply: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"amqp://guest:secret@127.0.0.1:{taken.getsockname()[1]}//"
        with App("cut off", broker=url, set_as_current=False) as app, warnings.catch_warnings():
            app.conf.broker_publish_timeout = 0.5
            with pytest.raises(OperationalError) as told:
                app.control.broadcast("ping", reply=reply)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"destination": "w@h"}, {"destination": []}, {"destination": [5]}, {"pattern": 5},
        {"pattern": "[", "matcher": "pcre"}, {"pattern": "x", "matcher": "sql"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_destination_is_an_error_and_reaches_nobody(wrong: dict[str, Any]) -> None:
    app = App("nowhere", broker="amqp://127.0.0.1:1//", set_as_current=False)
    with pytest.raises(ValueError, match="expected"):
        app.control.broadcast("shutdown", **wrong)
