"""A real worker whose pool grows with its work and shrinks afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Workshop
from tests.support import WorkerProcess, eventually

SOURCE = """
    app.conf.update(worker_autoscale_keepalive=0.2, task_acks_late=True)

    @app.task
    def stands(name):
        note(f"{name} {os.getpid()} {threading.current_thread().name}")
        gate(name)
        return name

    @app.task
    def where():
        return os.getpid()
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


def children(worker: WorkerProcess) -> set[int]:
    """The processes that the worker has forked and not reaped."""
    path = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    return {int(each) for each in path.read_text().split()}


@pytest.mark.parametrize(("pool", "multiplier"), [("prefork", "1"), ("prefork", "0"), ("threads", "4")])
def test_the_pool_grows_to_its_work_and_shrinks_after_it(shop: Workshop, pool: str, multiplier: str) -> None:
    # Given a worker of one to three, with late acks
    worker = shop.start("-P", pool, "--autoscale", "3,1", "--prefetch-multiplier", multiplier)
    before = children(worker)
    standing = shop.gate("g")

    # When five tasks come that stand at a gate / Then three of them run, each in a place of its own
    results = [shop.tasks.stands.delay("g") for _ in range(5)]
    eventually(lambda: len(shop.ledger()) == 3, within_s=20)
    worker.wait_for(r"Scaling up \d processes\.")
    assert len(set(shop.ledger())) == 3
    if pool == "prefork":
        assert len(children(worker)) == len(before) + 2

    # When they may go on / Then all five succeed
    standing.open()
    assert [each.get(timeout=20) for each in results] == ["g"] * 5

    # And after the keepalive there is one again
    worker.wait_for(r"Scaling down \d processes\.")
    eventually(lambda: len(children(worker)) == len(before), within_s=20)
    # And that one works; nobody was missed
    assert shop.tasks.where.delay().get(timeout=20)
    assert "starting another" not in worker.log


def test_a_worker_may_have_nobody_while_there_is_nothing_to_do(shop: Workshop) -> None:
    # Given a worker of none to two / When a task comes / Then there is a child for it, and later none
    worker = shop.start("--autoscale", "2")
    before = children(worker)
    child = shop.tasks.where.delay().get(timeout=20)
    assert child not in before
    eventually(lambda: child not in children(worker), within_s=20)
    # And again
    assert shop.tasks.where.delay().get(timeout=20) != child
