"""A broker that goes away under a worker, or is not there when it starts: nothing is lost, nothing runs twice here."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.exceptions import TimeoutError, WorkerLostError
from tests.proxy import Proxy
from tests.running import Gate, Workshop
from tests.support import PrivateBroker, WorkerProcess, eventually

pytestmark = pytest.mark.broker

#: What a wait may take beyond its time. The promise is 1 s; the rest is for a machine with other things to do.
GRACE_S = 5.0

SOURCE = """
    @app.task
    def add(x, y=0):
        note(f"add {x}")
        return x + y

    @app.task
    def early(name, text):
        note(f"begun {text}")
        gate(name)
        note(f"done {text}")
        return text

    @app.task(acks_late=True)
    def late(name, text):
        note(f"begun {text}")
        gate(name)
        note(f"done {text}")
        return text
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project for one test, which starts its own workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


@pytest.fixture
def proxy(broker_url: str) -> Iterator[Proxy]:
    """What stands between the worker of a test and the broker; the test itself has its own way there."""
    with Proxy(broker_url) as made:
        yield made


def start(shop: Workshop, proxy: Proxy, *arguments: str, ready: bool = True, **settings: str) -> WorkerProcess:
    """Start a worker that reaches its broker through the proxy."""
    env = {"AMQPTASKS_BROKER_URL": proxy.url} | {f"AMQPTASKS_{key.upper()}": value for key, value in settings.items()}
    return shop.start(*arguments, env=env, ready=ready)


def get(result: Any) -> Any:
    return result.get(timeout=20)


def back_again(worker: WorkerProcess, times: int = 1) -> None:
    """Wait until the worker has connected again, this many times in all."""
    said(worker, "Lost the consuming connection", times)
    said(worker, "Connected to ", times + 1)


def said(worker: WorkerProcess, pattern: str, times: int) -> None:
    """Wait until the log matches this many times."""
    eventually(lambda: len(re.findall(pattern, worker.log)) >= times, 20)


def running(shop: Workshop, *tasks: Any) -> tuple[Gate, list[Any]]:
    """Send tasks that stop at a gate, and wait until all of them have begun."""
    gate = shop.gate()
    results = [task.delay(gate.name, f"{task.__name__} {number}") for number, task in enumerate(tasks)]
    eventually(lambda: sum(line.startswith("begun") for line in shop.ledger()) == len(tasks), 20)
    return gate, results


# -- connections that end under running tasks


def test_running_tasks_outlive_connections_that_the_broker_closes(
    shop: Workshop, rabbitmqctl: Callable[..., str]
) -> None:
    # Given a late-ack and an early-ack task that run, and others that wait in the worker
    worker = shop.start("-c", "2")
    gate, results = running(shop, shop.tasks.late, shop.tasks.early)
    waiting = [shop.tasks.add.delay(number) for number in range(5)]
    shop.is_waiting(0)
    # When the broker closes every connection
    rabbitmqctl("close_all_connections", "a test")
    back_again(worker)
    # Then the tasks that ran are not run again, and all results arrive
    gate.open()
    assert [get(each) for each in results] == ["late 0", "early 1"]
    assert [get(each) for each in waiting] == list(range(5))
    shop.is_waiting(0)
    assert set(Counter(shop.ledger()).values()) == {1}
    # And the log told each loss once for each of the two connections
    for connection in ("consuming", "publishing"):
        assert worker.log.count(f"Lost the {connection} connection: closed by the broker: 320") == 1
    assert "Traceback" not in worker.log
    # And nothing is left unacked: stopping gives nothing back
    assert worker.stop() == 0
    shop.is_waiting(0)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_running_tasks_outlive_a_cut_connection(shop: Workshop, proxy: Proxy, pool: str) -> None:
    worker = start(shop, proxy, "-P", pool, "-c", "2")
    gate, results = running(shop, shop.tasks.late, shop.tasks.late)
    waiting = [shop.tasks.add.delay(number) for number in range(5)]
    shop.is_waiting(0)
    for times in range(1, 4):
        proxy.cut()
        back_again(worker, times)
    gate.open()
    assert sorted(get(each) for each in results) == ["late 0", "late 1"]
    assert [get(each) for each in waiting] == list(range(5))
    assert set(Counter(shop.ledger()).values()) == {1}
    assert worker.stop() == 0
    shop.is_waiting(0)


def test_a_task_that_ends_while_the_broker_is_away_is_told_and_not_run_again(shop: Workshop, proxy: Proxy) -> None:
    # Given tasks that run when the broker goes away
    worker = start(shop, proxy, "-c", "2")
    gate, results = running(shop, shop.tasks.late, shop.tasks.early)
    proxy.refuse()
    worker.wait_for("Lost the consuming connection")
    worker.wait_for("Lost the publishing connection")
    # When they end meanwhile / Then their results come as soon as it is back, and no message is run again
    gate.open()
    eventually(lambda: sum(line.startswith("done") for line in shop.ledger()) == 2, 20)
    assert not any(each.ready() for each in results)
    proxy.heal()
    assert [get(each) for each in results] == ["late 0", "early 1"]
    shop.is_waiting(0)
    assert get(shop.tasks.add.delay(1, 1)) == 2
    assert set(Counter(shop.ledger()).values()) == {1}
    assert worker.stop() == 0
    shop.is_waiting(0)


def test_a_child_that_dies_while_the_broker_is_away_is_made_good(shop: Workshop, proxy: Proxy) -> None:
    # Given a late-ack and an early-ack task whose children are killed during an outage
    worker = start(shop, proxy, "-c", "2")
    gate, results = running(shop, shop.tasks.late, shop.tasks.early)
    children = worker.children()
    proxy.refuse()
    worker.wait_for("Lost the consuming connection")
    for child in children:
        os.kill(child, signal.SIGKILL)
    said(worker, r"ended \(signal 9 \(SIGKILL\)\); starting another", 2)
    # When the broker is back / Then one runs again, and the other is told as lost
    proxy.heal()
    shop.noted("begun late 0", times=2)
    gate.open()
    assert get(results[0]) == "late 0"
    with pytest.raises(WorkerLostError):
        get(results[1])
    assert shop.ledger().count("begun early 1") == 1
    assert worker.stop() == 0
    shop.is_waiting(0)


def test_a_dead_link_is_noticed_by_its_heartbeat(shop: Workshop, proxy: Proxy) -> None:
    # Given a worker with a heartbeat of a second / When its links go dead without a word, and new ones would work
    worker = start(shop, proxy, "-c", "1", broker_heartbeat="1")
    gate, results = running(shop, shop.tasks.late)
    proxy.ghost()
    # Then it connects again by itself, and what ran goes on
    worker.wait_for("Lost the consuming connection: .*the broker has said nothing for 2 s, two heartbeats")
    back_again(worker)
    gate.open()
    assert get(results[0]) == "late 0"
    assert get(shop.tasks.add.delay(20, 22)) == 42
    proxy.heal()
    assert worker.stop() == 0


@pytest.mark.parametrize("fault", ["ghost", "stall"])
def test_a_wait_for_a_result_over_a_dead_link_ends_in_time(shop: Workshop, proxy: Proxy, fault: str) -> None:
    # Given a caller that waits for the result of a task which runs / When its link goes dead without a word
    shop.start("-c", "1")
    shop.app.conf.broker_url = proxy.url
    shop.app.conf.broker_heartbeat = 1
    gate, (result,) = running(shop, shop.tasks.late)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.2)
    getattr(proxy, fault)()
    # Then its wait ends when its time is over, and the next one too
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out"):
            result.get(timeout=1)
        assert time.monotonic() - started < 1 + GRACE_S
    # And the result, which is sent meanwhile, comes once there is a link again
    gate.open()
    shop.noted("done late 0")
    proxy.heal()
    assert get(result) == "late 0"


def test_a_worker_can_be_stopped_during_an_outage(shop: Workshop, proxy: Proxy) -> None:
    worker = start(shop, proxy, "-c", "1")
    proxy.refuse()
    worker.wait_for("Lost the consuming connection")
    assert worker.stop() == 0


# -- the broker away at the start


def test_a_worker_that_finds_no_broker_says_so_and_waits_for_it(shop: Workshop, proxy: Proxy) -> None:
    # Given a task that waits / When a worker starts whose broker cannot be reached
    result = shop.tasks.add.delay(1, 1)
    proxy.refuse()
    worker = start(shop, proxy, "-c", "1", ready=False, broker_connection_retry_interval_max="0.2")
    wanted = r"worker consumer: cannot connect to (amqp://\S+): .*\. Trying again in \d\.\d\d seconds\.\.\.\n"
    said(worker, wanted, 3)
    # Then it says so in one line an attempt, without its password
    assert "ready." not in worker.log and "Traceback" not in worker.log
    assert "guest:guest" not in worker.log
    lines = [line for line in worker.log.splitlines() if line.startswith("[2")]
    assert all("cannot connect to" in line for line in lines), worker.log
    # And when the broker comes, it works
    proxy.heal()
    worker.wait_ready()
    assert get(result) == 2


# -- the broker itself


def test_a_worker_outlives_a_restart_of_its_broker(own_broker: PrivateBroker, tmp_path: Path) -> None:
    # Given a worker that runs a task, and tasks that wait in the broker
    with Workshop(tmp_path, own_broker.url, SOURCE) as shop:
        worker = shop.start(
            "-c", "1", "--prefetch-multiplier", "1", "--", "broker_connection_retry_interval_max=0.5"
        )  # fmt: skip
        gate, results = running(shop, shop.tasks.late)
        results += [shop.tasks.add.delay(number) for number in range(3)]
        # When the broker is restarted
        own_broker.stop()
        worker.wait_for("Lost the consuming connection")
        own_broker.start()
        back_again(worker)
        # Then what runs goes on, what waited is run, and every result arrives
        gate.open()
        assert [each.get(timeout=40) for each in results] == ["late 0", 0, 1, 2]
        assert set(Counter(shop.ledger()).values()) == {1}
        assert worker.stop() == 0


def test_a_queue_that_is_deleted_under_a_worker_is_declared_again(shop: Workshop) -> None:
    worker = shop.start("-c", "1")
    assert get(shop.tasks.add.delay(1, 1)) == 2
    shop.admin.delete(shop.queue)
    worker.wait_for(re.escape(f"cancelled consuming from queue {shop.queue!r}"))
    eventually(lambda: (shop.admin.counts(shop.queue) or (0, 0))[1] == 1, 20)
    assert get(shop.tasks.add.delay(2, 2)) == 4


def test_a_task_that_is_longer_than_the_brokers_patience_is_told_and_runs_once(
    own_broker: PrivateBroker, tmp_path: Path
) -> None:
    # Given a broker that waits a second for an acknowledgement, and looks often
    own_broker.ctl(
        "eval",
        "application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 200).",
    )
    with Workshop(tmp_path, own_broker.url, SOURCE) as shop:
        worker = shop.start("-c", "1", "--prefetch-multiplier", "4")
        # When a late-ack task takes longer, with others behind it
        gate, results = running(shop, shop.tasks.late)
        results += [shop.tasks.add.delay(number) for number in range(3)]
        # Then the worker says what happened and what to do, and consumes again
        if shop.admin.version < (4, 3):
            said(
                worker, r"a task ran longer than its delivery timeout \(.*\)\. Raise consumer_timeout on the broker", 2
            )
        else:
            said(worker, r"broker cancelled consuming .* longer than the queue's delivery timeout", 1)
        # And the task, delivered again meanwhile, goes on and runs once, and so does what waited behind it
        gate.open()
        assert [each.get(timeout=40) for each in results] == ["late 0", 0, 1, 2]
        assert set(Counter(shop.ledger()).values()) == {1}
        assert worker.stop() == 0
