"""Which broker a connection goes to, and what it says there: reading and writing apart, several brokers, names,
heartbeats, alarms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika
import pytest

from amqptasks import App
from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import ROOT, PrivateBroker, WorkerProcess, eventually

GET_S = 20
NOWHERE = "amqp://nobody@127.0.0.1:1//"
SOURCE = """
@app.task
def echo(value):
    return value

@app.task
def held(name):
    gate(name)
    return name

@app.task(acks_late=True)
def held_late(name):
    gate(name)
    return name

@app.task(bind=True)
def second_time(self):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "the second time"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateBroker]:
    """A broker of this module's own: its alarms are nobody else's."""
    made = PrivateBroker(tempfile.mkdtemp(prefix="amqptasks-brokers-"))
    made.start()
    yield made
    made.delete()


@pytest.fixture
def gates(node: PrivateBroker) -> Iterator[Callable[[], Proxy]]:
    """Make ways to the broker that can be watched, and shut."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Proxy(node.url))


@pytest.fixture
def shop(tmp_path: Path, node: PrivateBroker) -> Iterator[Workshop]:
    with Workshop(tmp_path, node.url, SOURCE) as made:
        yield made


def environment(**settings: str) -> dict[str, str]:
    return {f"AMQPTASKS_{name.upper()}": value for name, value in settings.items()}


def connections(node: PrivateBroker) -> dict[str, dict[str, Any]]:
    """What the broker knows of our connections, by their names without the numbers of processes."""
    rows = json.loads(node.ctl("list_connections", "client_properties", "timeout", "pid", "--formatter", "json"))
    found = {}
    for row in rows:
        # A connection that is just being opened has not said anything yet.
        name = {each[0]: each[-1] for each in row["client_properties"]}.get("connection_name", "")
        found[name] = row
    return found


# -- reading and writing


def test_workers_consume_from_the_read_url_and_everything_else_goes_over_the_write_url(
    shop: Workshop, gates: Callable[[], Proxy]
) -> None:
    # Given a way for reading and a way for writing, and nothing where broker_url points
    reading, writing = gates(), gates()
    both = {
        "broker_url": "amqp://nobody@127.0.0.1:1//",
        "broker_read_url": reading.url,
        "broker_write_url": writing.url,
    }
    worker = shop.start("-c", "1", env=environment(**both))
    eventually(lambda: (reading.open, writing.open) == (1, 1))

    # When a program with the same settings calls a task, one that is tried again too
    shop.app.conf.update(both)
    assert shop.tasks.echo.delay("there and back").get(timeout=GET_S) == "there and back"
    assert shop.tasks.second_time.delay().get(timeout=GET_S) == "the second time"

    # Then it has both of its connections on the way for writing, and the worker has one on each
    assert (reading.open, writing.open) == (1, 3)
    assert (reading.accepted, writing.accepted) == (1, 3)

    # When the way for reading is shut, tasks can be sent still; they run when it opens
    reading.refuse()
    worker.wait_for("Lost the consuming connection")
    result = shop.tasks.echo.delay("later")
    # At least it: an acknowledgement may have been cut off.
    eventually(lambda: shop.waiting() >= 1)
    reading.heal()
    assert result.get(timeout=GET_S) == "later"

    # When the way for writing is shut, what the worker was given runs; its result comes when that opens
    gate = shop.gate()
    running = shop.tasks.held.delay(gate.name)
    gate.reached()
    writing.refuse()
    worker.wait_for("Lost the publishing connection")
    gate.open()
    assert not running.ready()
    writing.heal()
    assert running.get(timeout=GET_S) == gate.name


def test_results_travel_over_the_write_side_alone(
    shop: Workshop, node: PrivateBroker, unique: Callable[..., str]
) -> None:
    # Given two virtual hosts, of which programs write to the one and workers read from the other
    front, back = (f"{node.url.removesuffix('%2F')}{name}" for name in (unique("front"), unique("back")))
    for url in (front, back):
        vhost = url.rpartition("/")[2]
        node.ctl("add_vhost", vhost)
        node.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    sides = {"broker_read_url": back, "broker_write_url": front}
    worker = shop.start("-c", "1", env=environment(**sides))
    shop.app.conf.update(sides)

    # When a task is called, it waits in front, and the worker does not see it
    result = shop.tasks.echo.delay("bridged")
    ends = [pika.BlockingConnection(pika.URLParameters(url)) for url in (front, back)]
    here, there = (end.channel() for end in ends)
    method, properties, body = here.basic_get(shop.queue, auto_ack=True)
    assert method is not None

    # Then, once a bridge has moved it, it runs, and the answer comes to where the program looks
    there.basic_publish("", shop.queue, body, properties)
    assert result.get(timeout=GET_S) == "bridged"
    for end in ends:
        end.close()
    # The banner says both.
    worker.wait_for(f"transport:.*/{back.rpartition('/')[2]}, publishing to .*/{front.rpartition('/')[2]}")


def test_each_side_is_broker_url_where_it_is_not_set() -> None:
    with App("sides", broker="amqp://both//", set_as_current=False) as app:

        def hosts(*, reads: bool) -> list[str]:
            return [each.parameters.host for each in app.endpoints("test", reads=reads)]

        assert hosts(reads=True) == hosts(reads=False) == ["both"]
        app.conf.broker_read_url = "amqp://a//;amqp://b//"
        assert (hosts(reads=True), hosts(reads=False)) == (["a", "b"], ["both"])
        app.conf.broker_write_url = ["amqp://c//", "amqp://d//"]
        assert (hosts(reads=True), hosts(reads=False)) == (["a", "b"], ["c", "d"])


def test_a_commands_broker_is_the_one_for_both_sides(
    node: PrivateBroker, tmp_path: Path, unique: Callable[..., str]
) -> None:
    # Given settings that lead nowhere / When a command is given a broker
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment(broker_read_url=NOWHERE, broker_write_url=NOWHERE)
    command = [sys.executable, "-m", "amqptasks", "-b", node.url, "call", "never.run", "--queue", unique("queue")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30)

    # Then it goes there
    assert done.returncode == 0, done.stderr


# -- several brokers


def test_programs_and_workers_go_on_with_the_next_broker(shop: Workshop, gates: Callable[[], Proxy]) -> None:
    # Given a list of brokers, of which the first is away from the start
    first, second = gates(), gates()
    urls = f"{NOWHERE};{first.url};{second.url}"
    worker = shop.start("-c", "1", env=environment(broker_url=urls, broker_connection_retry_interval_max="0.2"))
    shop.app.conf.broker_url = urls
    assert shop.tasks.echo.delay(1).get(timeout=GET_S) == 1
    eventually(lambda: (first.open, second.open) == (4, 0))

    # When the one in use goes away, in the middle of a task
    gate = shop.gate()
    running = shop.tasks.held.delay(gate.name)
    gate.reached()
    first.refuse()
    worker.wait_for(rf"Connected to amqp://guest@127\.0\.0\.1:{second.url.split(':')[-1].split('/')[0]}")

    # Then everybody goes on with the next: what ran is answered, and what is sent now runs
    gate.open()
    assert running.get(timeout=GET_S) == gate.name
    assert shop.tasks.echo.delay(2).get(timeout=GET_S) == 2
    eventually(lambda: second.open == 4)


def test_a_strategy_of_ones_own_chooses_for_the_program_and_for_the_worker(
    shop: Workshop, gates: Callable[[], Proxy]
) -> None:
    # Given a function that takes the last first, and a list of two
    first, second = gates(), gates()
    (shop.directory / f"{shop.project.name}_ways.py").write_text(
        "def backwards(urls):\n    yield from reversed(urls)\n"
    )
    strategy = f"{shop.project.name}_ways:backwards"
    urls = f"{first.url};{second.url}"
    worker = shop.start("-c", "1", env=environment(broker_url=urls, broker_failover_strategy=strategy))
    shop.app.conf.update(broker_url=urls, broker_failover_strategy=strategy)

    # When a task is called / Then all connections are on the last
    assert shop.tasks.echo.delay(1).get(timeout=GET_S) == 1
    assert (first.accepted, second.accepted) == (0, 4)

    # And when that goes away, on the other
    second.refuse()
    worker.wait_for("Lost the publishing connection")
    assert shop.tasks.echo.delay(2).get(timeout=GET_S) == 2
    assert first.open == 4


# -- what a connection says of itself


def test_every_connection_says_who_it_is_and_what_for(shop: Workshop, node: PrivateBroker) -> None:
    # Given a worker and a program / When they work
    worker = shop.start("-c", "1")
    assert shop.tasks.echo.delay(1).get(timeout=GET_S) == 1
    node_name = worker.command[worker.command.index("-n") + 1]
    project, host = shop.project.name, os.uname().nodename

    # Then the broker's list of connections tells them apart
    def look() -> None:
        found = {name for name in connections(node) if name.startswith("amqptasks ")}
        assert found == {
            f"amqptasks worker consumer {node_name} {project} {worker.pid}@{host}",
            f"amqptasks worker publisher {node_name} {project} {worker.pid}@{host}",
            f"amqptasks publisher {project} {os.getpid()}@{host}",
            f"amqptasks results {project} {os.getpid()}@{host}",
        }

    eventually(look)


@pytest.mark.parametrize(
    ("setting", "query", "agreed"),
    [(7, "", 7), (7, "?heartbeat=5", 5), (0, "", 0), (None, "", 0), (20, "?heartbeat=0", 0)],
)
def test_heartbeats_are_those_of_the_setting_or_the_url(
    node: PrivateBroker, queue_name: str, setting: int | None, query: str, agreed: int
) -> None:
    with App("beating", broker=node.url + query, set_as_current=False, broker_heartbeat=setting) as app:
        app.send_task("never.run", queue=queue_name)

        def look() -> None:
            found = [row["timeout"] for name, row in connections(node).items() if " publisher beating " in name]
            assert found == [agreed]

        eventually(look)


# -- alarms


@pytest.fixture
def alarm(node: PrivateBroker) -> Iterator[Callable[[bool], None]]:
    """Switch the node's memory alarm on and off; off again at the end."""

    def switch(on: bool) -> None:
        node.ctl("set_vm_memory_high_watermark", "0.000001" if on else "0.8")

    yield switch
    switch(False)


def tasks_waiting(url: str, queue: str) -> int:
    with Admin(endpoints([url], heartbeat_s=0, connection_timeout_s=5.0, name="a test's look")) as admin:
        counts = admin.counts(queue)
        return counts[0] if counts else 0


def test_a_worker_runs_what_waits_during_an_alarm_and_answers_after_it(
    shop: Workshop, node: PrivateBroker, alarm: Callable[[bool], None]
) -> None:
    # Given a task that runs and others that wait behind it, when the broker runs out of memory
    worker = shop.start("-c", "1", "--prefetch-multiplier", "1")
    gate = shop.gate()
    running = shop.tasks.held.delay(gate.name)
    gate.reached()
    waiting = [shop.tasks.echo.delay(number) for number in range(5)]
    alarm(True)

    # When that one ends / Then its result is held back, which the worker tells, but what is there goes on running:
    # acknowledgements travel on the connection that does not publish
    gate.open()
    worker.wait_for("The broker amqp://guest@.* blocks publishing: .*memory")
    eventually(lambda: tasks_waiting(node.url, shop.queue) == 0)
    worker.wait_for(r"echo\[[0-9a-f-]+\] succeeded")
    assert not running.ready()

    # And when the alarm is over, every answer comes, over the connection that was blocked
    alarm(False)
    assert running.get(timeout=GET_S) == gate.name
    assert [result.get(timeout=GET_S) for result in waiting] == list(range(5))
    worker.wait_for("accepts messages again")
    assert "Lost the" not in worker.log


def test_a_worker_that_is_blocked_can_be_stopped(
    shop: Workshop, node: PrivateBroker, alarm: Callable[[bool], None]
) -> None:
    # Given a worker with a result that cannot leave
    worker: WorkerProcess = shop.start("-c", "1", env=environment(worker_shutdown_timeout="0.5"))
    gate = shop.gate()
    running = shop.tasks.held_late.delay(gate.name)
    gate.reached()
    alarm(True)
    gate.open()
    worker.wait_for("blocks publishing")

    # When it is told to stop / Then it does not wait for the alarm's end beyond its time, and the task is not lost
    worker.expected_exits = (1,)
    assert worker.stop() == 1
    assert not running.ready()
    shop.is_waiting(1)

    # When there is room again, another worker answers
    alarm(False)
    shop.start("-c", "1")
    assert running.get(timeout=GET_S) == gate.name
