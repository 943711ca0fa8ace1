"""What a worker does while all is well: starting, logging, its pools, how many tasks it takes, who runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks._version import __version__
from tests.running import Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

SOURCE = """
    from amqptasks.exceptions import Ignore, Reject
    from amqptasks.utils.log import get_task_logger

    logger = get_task_logger(__name__)

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def where():
        return [os.getpid(), threading.current_thread().name]

    @app.task
    def behind(name, text):
        note(f"begun {text}")
        gate(name)
        note(f"done {text}")
        return text

    @app.task(acks_late=True)
    def late(name, text):
        note(f"begun {text}")
        gate(name)
        return text

    @app.task
    def talk():
        print("printed by the task")
        logger.warning("logged by the task")

    @app.task(bind=True)
    def ignored(self):
        self.update_state(state="HELD", meta="for ever")
        raise Ignore

    @app.task(acks_late=True)
    def rejected(text):
        note(f"rejected {text}")
        raise Reject("not today", requeue=False)

    @app.task(acks_late=True, bind=True)
    def requeued(self, text):
        note(f"requeued {text}")
        if not self.request.delivery_info["redelivered"]:
            raise Reject("once more", requeue=True)
        return "second time"

    @app.task
    def rejected_early(text):
        raise Reject("too late for that", requeue=True)

    @app.task(acks_late=True, acks_on_failure=False)
    def keeps_failures():
        raise ValueError("keep me")
"""


@pytest.fixture
def workshop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project for one test, which starts its own workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project and one worker with two children, for the tests that need no other."""
    with Workshop(tmp_path_factory.mktemp("worker"), broker_url, SOURCE) as made:
        made.start("-c", "2")
        yield made


def get(result: Any) -> Any:
    return result.get(timeout=20)


# -- what it says


def test_a_worker_says_what_it_is_and_when_it_is_ready(shop: Workshop) -> None:
    log = shop.workers[0].log
    node = re.search(r"^ (w0-\w+@test) amqptasks v(\S+)$", log, re.MULTILINE)
    assert node is not None and node[2] == __version__
    name = shop.project.name
    for line in (
        f".> app:         <App {name} at 0x", ".> transport:   amqp://guest@", ".> results:     rpc://",
        ".> concurrency: 2 (prefork), prefetch 8", f".> {shop.queue}", f"  . {name}.add",
    ):  # fmt: skip
        assert line in log, line
    # And the ready line stands last of all that is said at the start
    assert re.search(rf"\[[-\d]+ [:,\d]+: INFO/MainProcess\] {node[1]} ready\.\n", log)
    assert log.index("[queues]") < log.index("[tasks]") < log.index(" ready.")
    assert "guest:guest" not in log


def test_a_task_leaves_two_lines_in_the_log(shop: Workshop) -> None:
    result = shop.tasks.add.delay(2, 2)
    assert get(result) == 4
    worker, name = shop.workers[0], f"{shop.project.name}.add"
    worker.wait_for(rf"INFO/MainProcess\] Task {name}\[{result.id}\] received\n")
    worker.wait_for(rf"INFO/ForkPoolWorker-\d\] Task {name}\[{result.id}\] succeeded in \d\.\d+s: 4\n")


def test_what_a_task_prints_and_logs_is_in_the_log(shop: Workshop) -> None:
    result = shop.tasks.talk.delay()
    assert get(result) is None
    name = f"{shop.project.name}.talk"
    shop.workers[0].wait_for(r"WARNING/ForkPoolWorker-\d\] printed by the task\n")
    shop.workers[0].wait_for(rf"WARNING/ForkPoolWorker-\d\] {name}\[{result.id}\]: logged by the task\n")


def test_a_quiet_log_level_keeps_the_ready_line(workshop: Workshop) -> None:
    worker = workshop.start("-c", "1", level="ERROR")
    assert get(workshop.tasks.add.delay(1, 2)) == 3
    assert worker.stop() == 0
    assert "received" not in worker.log and "succeeded" not in worker.log
    assert f"  . {workshop.project.name}.add" not in worker.log


# -- pools


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_pool_runs_tasks_where_it_says(workshop: Workshop, pool: str) -> None:
    worker = workshop.start("-P", pool, "-c", "2")
    places = {tuple(get(workshop.tasks.where.delay())) for _ in range(10)}
    pids = {pid for pid, _thread in places}
    if pool == "prefork":
        assert pids <= set(worker.children()) and len(worker.children()) == 2
    else:
        assert pids == {worker.pid}
        assert "MainThread" not in {thread for _pid, thread in places}
        assert worker.children() == []
    assert f"{1 if pool == 'solo' else 2} ({pool})" in worker.log
    # And errors and large arguments pass through it as well
    assert get(workshop.tasks.add.delay("x" * 300_000, "y")) == "x" * 300_000 + "y"
    with pytest.raises(TypeError, match="unsupported operand"):
        get(workshop.tasks.add.delay(1, "y"))
    assert worker.stop() == 0


@pytest.mark.parametrize(("pool", "slots"), [("prefork", 3), ("threads", 3), ("solo", 1)])
def test_as_many_tasks_run_at_once_as_there_are_slots(workshop: Workshop, pool: str, slots: int) -> None:
    workshop.start("-P", pool, "-c", "3")
    gate = workshop.gate()
    results = [workshop.tasks.behind.delay(gate.name, str(number)) for number in range(5)]
    eventually(lambda: len(workshop.ledger()) == slots, 20)
    gate.open()
    assert sorted(get(each) for each in results) == ["0", "1", "2", "3", "4"]
    # Then no task began before a slot was free for it
    running = most = 0
    for line in workshop.ledger():
        running += 1 if line.startswith("begun") else -1
        most = max(most, running)
    assert most == slots


def test_an_unknown_pool_is_answered_with_those_there_are(workshop: Workshop) -> None:
    worker = workshop.start("-P", "preforked", ready=False, expected_exits=(2,))
    worker.wait_for("did you mean 'prefork'|expected .*prefork")
    assert worker.wait() == 2
    assert "Traceback" not in worker.log


# -- how much it takes


@pytest.mark.parametrize(("multiplier", "left"), [("1", 9), ("4", 6), ("0", 0)])
def test_a_worker_fetches_as_much_ahead_as_it_is_told(workshop: Workshop, multiplier: str, left: int) -> None:
    # Given a worker with one slot, whose late-ack tasks keep their messages
    gate = workshop.gate()
    workshop.start("-c", "1", "--prefetch-multiplier", multiplier)
    # When ten are sent / Then it takes that many times its slots, or everything
    results = [workshop.tasks.late.delay(gate.name, str(number)) for number in range(10)]
    gate.reached()
    workshop.is_waiting(left)
    gate.open()
    assert [get(each) for each in results] == [str(number) for number in range(10)]
    assert [line for line in workshop.ledger() if line.startswith("begun")] == [f"begun {n}" for n in range(10)]


# -- who runs what


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_long_task_delays_no_short_one_while_a_slot_is_idle(workshop: Workshop, pool: str) -> None:
    # Given a worker that has learnt that tasks are short, and so sends them ahead
    workshop.start("-P", pool, "-c", "2", "--prefetch-multiplier", "100")
    with workshop.app.bulk():
        short = [workshop.tasks.add.delay(number, 1) for number in range(1000)]
    assert [get(each) for each in short] == list(range(1, 1001))
    # When a long one comes among many short ones
    gate = workshop.gate()
    with workshop.app.bulk():
        before = [workshop.tasks.add.delay(number, 1) for number in range(50)]
        long = workshop.tasks.behind.delay(gate.name, "long")
        after = [workshop.tasks.add.delay(number, 1) for number in range(100)]
    # Then all of them are done while it runs
    gate.reached()
    assert [get(each) for each in before + after] == [*range(1, 51), *range(1, 101)]
    assert not long.ready()
    gate.open()
    assert get(long) == "long"


# -- tasks that steer the worker


def test_an_ignored_task_keeps_the_state_it_gave_itself(shop: Workshop) -> None:
    result = shop.tasks.ignored.delay()
    shop.workers[0].wait_for(rf"Task \S+\[{result.id}\] ignored")
    eventually(lambda: result.state == "HELD", 20)
    shop.is_waiting(0)


def test_a_rejected_task_is_among_the_dead_letters(shop: Workshop) -> None:
    result = shop.tasks.rejected.delay("a")
    letter = shop.dead_letter_of(result.id)
    assert letter.headers["x-amqptasks-reason"] == "rejected"
    assert "not today" in letter.headers["x-amqptasks-detail"]
    assert shop.ledger().count("rejected a") == 1
    assert result.state == "PENDING"


def test_a_requeued_task_runs_again(shop: Workshop) -> None:
    assert get(shop.tasks.requeued.delay("b")) == "second time"
    assert shop.ledger().count("requeued b") == 2


def test_a_task_acked_early_cannot_be_rejected_any_more(shop: Workshop) -> None:
    result = shop.tasks.rejected_early.delay("c")
    shop.workers[0].wait_for(rf"Task \S+\[{result.id}\] rejected")
    shop.is_waiting(0)
    assert shop.take(f"{shop.queue}.dead") is None


def test_a_failed_task_can_be_kept_among_the_dead_letters(shop: Workshop) -> None:
    result = shop.tasks.keeps_failures.delay()
    with pytest.raises(ValueError, match="keep me"):
        get(result)
    assert shop.dead_letter_of(result.id).headers["x-amqptasks-reason"] == "rejected"


# -- a start that cannot be


def test_a_queue_with_other_arguments_stops_the_start_and_shows_both_sides(workshop: Workshop) -> None:
    # Given a queue that exists as classic / When a worker that declares it as quorum starts
    workshop.app.conf.task_default_queue_type = "classic"
    workshop.tasks.add.delay(1, 1)
    worker = workshop.start(ready=False, expected_exits=(1,))
    # Then it ends at once, and says what stands on each side
    assert worker.wait() == 1
    assert re.search(r"declared here +on the broker\n +x-queue-type +'quorum' +'classic'", worker.log), worker.log
    assert f"amqptasks queues delete {workshop.queue}" in worker.log
    assert "Traceback" not in worker.log
    # And the message is still there
    assert workshop.waiting() == 1
