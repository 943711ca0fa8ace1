"""How much a worker prefetches: what it is told; untold, more while tasks are very short."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import Project, WorkerProcess, eventually

pytestmark = pytest.mark.broker

SOURCE = """
    import os, time
    from amqptasks import App

    app = App(broker=BROKER, backend="rpc://")
    app.conf.task_default_queue = QUEUE

    @app.task
    def short():
        return None

    @app.task
    def behind(path):
        deadline = time.monotonic() + 30
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.005)
"""


def prefetch_of(rabbitmqctl: Callable[..., str], queue: str) -> list[int]:
    lines = rabbitmqctl("list_consumers", "queue_name", "prefetch_count").splitlines()
    return [int(line.split("\t")[1]) for line in lines if line.split("\t")[0] == queue]


def run_many(project: Project, count: int) -> None:
    with project.app.bulk():
        results = [project.short.delay() for _ in range(count)]
    for result in results:
        result.get(timeout=20)


def test_short_tasks_are_prefetched_in_number_until_a_long_one_comes(
    project: Callable[..., Project],
    worker: Callable[..., WorkerProcess],
    rabbitmqctl: Callable[..., str],
    tmp_path: object,
) -> None:
    # Given a worker of two processes whose prefetch multiplier nobody has set
    code = project(SOURCE)
    worker(code, "-c", "2")
    assert prefetch_of(rabbitmqctl, code.queue) == [8]

    # When it has run many very short tasks
    run_many(code, 400)

    # Then it prefetches more than four for each process
    eventually(lambda: prefetch_of(rabbitmqctl, code.queue) == [128])

    # And when a task takes long, it goes back to four, and gives back what it has beyond that
    gate = f"{tmp_path}/gate"
    with code.app.bulk():
        blocking = [code.behind.delay(gate) for _ in range(60)]
    eventually(lambda: prefetch_of(rabbitmqctl, code.queue) == [8])

    def held_are_few() -> None:
        rows = [row.split("\t") for row in rabbitmqctl("list_queues", "name", "messages_ready").splitlines()]
        ready = {name: int(count) for name, count in (row[:2] for row in rows if row[1:2] and row[1].isdigit())}
        assert ready[code.queue] >= 60 - 2 - 8 - 8

    eventually(held_are_few)
    open(gate, "w").close()
    for result in blocking:
        result.get(timeout=20)


def test_a_multiplier_that_was_set_is_kept(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], rabbitmqctl: Callable[..., str]
) -> None:
    # Given a worker that was told its multiplier
    code = project(SOURCE)
    worker(code, "-c", "2", "--prefetch-multiplier", "3")

    # When it runs many very short tasks
    run_many(code, 400)

    # Then it prefetches what it was told
    assert prefetch_of(rabbitmqctl, code.queue) == [6]


def test_no_more_is_prefetched_than_runs_where_that_is_disabled(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], rabbitmqctl: Callable[..., str]
) -> None:
    # Given a worker that is not to prefetch
    code = project(SOURCE)
    worker(code, "-c", "2", "--disable-prefetch")

    # When it runs many very short tasks / Then it has one message for each process, before and after
    assert prefetch_of(rabbitmqctl, code.queue) == [2]
    run_many(code, 400)
    assert prefetch_of(rabbitmqctl, code.queue) == [2]
