"""Rate limits in a real worker: what is too early waits in the broker and keeps nobody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import Project, WorkerProcess, eventually

pytestmark = pytest.mark.broker

SOURCE = """
    from amqptasks import App

    app = App(broker=BROKER, backend="rpc://")
    app.conf.task_default_queue = QUEUE
    app.conf.task_queue_prefix = QUEUE

    @app.task(rate_limit="1/h")
    def seldom():
        return "seldom"

    @app.task
    def free(number):
        return number
"""


def test_tasks_over_their_rate_wait_in_the_broker_and_others_run(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], rabbitmqctl: Callable[..., str]
) -> None:
    # Given a worker that may hold two deliveries at once
    code = project(SOURCE)
    worker(code, "-c", "1", "--prefetch-multiplier", "2")

    # When more calls of a task come than its rate allows, and then others
    with code.app.bulk():
        limited = [code.seldom.delay() for _ in range(6)]
        others = [code.free.delay(number) for number in range(20)]

    # Then the others run as if nothing were
    assert [each.get(timeout=20) for each in others] == list(range(20))

    # And one of the limited ones has begun, and the other five wait in the delay queues
    assert eventually(lambda: sum(each.ready() for each in limited) == 1)

    def parked() -> bool:
        lines = rabbitmqctl("list_queues", "name", "messages").splitlines()
        counts = [line.split("\t") for line in lines if line.startswith(f"{code.queue}.delay.")]
        return sum(int(count) for _name, count in counts) == 5

    eventually(parked, within_s=20)
    assert sum(each.ready() for each in limited) == 1


def test_a_worker_told_to_ignore_rates_runs_everything(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess]
) -> None:
    # Given a worker with worker_disable_rate_limits
    code = project(SOURCE + "\n    app.conf.worker_disable_rate_limits = True\n")
    worker(code, "-c", "1")

    # When more calls come than the rate allows, Then all run
    limited = [code.seldom.delay() for _ in range(6)]
    assert [each.get(timeout=20) for each in limited] == ["seldom"] * 6


def test_the_default_rate_holds_for_tasks_without_one(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess]
) -> None:
    # Given a default of one an hour
    code = project(SOURCE + '\n    app.conf.task_default_rate_limit = "1/h"\n')
    running = worker(code, "-c", "1")

    # When a task without a rate is called twice, Then one call runs, and the other does not
    results = [code.free.delay(number) for number in range(2)]
    eventually(lambda: sum(each.ready() for each in results) == 1)
    running.wait_for("succeeded")
    assert sum(each.ready() for each in results) == 1


@pytest.mark.parametrize("rate", ["'10/day'", "-3"])
def test_a_worker_refuses_a_rate_that_is_none(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], rate: str
) -> None:
    # Given a task with a rate that cannot be read
    code = project(SOURCE.replace('"1/h"', rate))

    # When a worker starts, Then it says which task, what was expected, and ends
    running = worker(code, "-c", "1", ready=False, expected_exits=(1, 2))
    running.wait_for(r"task \S+\.seldom: expected a rate limit to be like")
    assert running.wait() in (1, 2)
