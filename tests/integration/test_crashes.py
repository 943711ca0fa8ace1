"""Processes that die while they run tasks: what is run again and how often, what is given up, and who is told."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.exceptions import WorkerLostError
from tests.running import Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

SOURCE = """
    @app.task
    def add(x, y=0):
        note(f"add {x}")
        return x + y

    @app.task
    def early(name, text):
        note(f"begun {text}")
        gate(name)
        return text

    @app.task(acks_late=True)
    def late(name, text):
        note(f"begun {text}")
        gate(name)
        return text

    def die(how):
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, how))
        threading.Event().wait()

    @app.task
    def dies(how, text):
        note(f"dies {text}")
        die(how)

    @app.task(acks_late=True)
    def always_dies(text):
        note(f"dies {text}")
        die("SIGKILL")

    @app.task(acks_late=True, crash_limit=1)
    def may_die_once(text):
        note(f"dies {text}")
        die("SIGKILL")

    @app.task(acks_late=True, reject_on_worker_lost=False)
    def given_up(text):
        note(f"dies {text}")
        die("SIGKILL")

    @app.task(acks_late=True)
    def third(number):
        note(f"third {number}")
        if number % 3 == 0 and (HERE / "ledger").read_text().splitlines().count(f"third {number}") == 1:
            die("SIGKILL")
        return number

    @app.task
    def errback(task_id):
        note(f"errback {task_id}")
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project and one worker with two children, for the tests whose crashes it must live through."""
    with Workshop(tmp_path_factory.mktemp("crashes"), broker_url, SOURCE) as made:
        made.start("-c", "2")
        yield made
        assert made.workers[0].process.poll() is None


@pytest.fixture
def workshop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project for one test, which starts its own workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


def get(result: Any) -> Any:
    return result.get(timeout=20)


# -- one child


@pytest.mark.parametrize(
    ("how", "told"), [("SIGKILL", r"signal 9 \(SIGKILL\)"), ("SIGSEGV", "signal 11"), ("exit", "exit code 3")]
)
def test_a_task_acked_early_is_lost_with_its_child_and_its_caller_is_told(shop: Workshop, how: str, told: str) -> None:
    worker = shop.workers[0]
    children = worker.children()
    # When a task ends its own process
    result = shop.tasks.dies.apply_async((how, how), link_error=shop.tasks.errback.s())
    # Then its caller gets the error, which says how, and its errback is called
    with pytest.raises(WorkerLostError, match=f"Worker exited prematurely: {told}"):
        get(result)
    assert result.state == "FAILURE"
    shop.noted(f"errback {result.id}")
    # And it ran once, and another child has taken the place
    assert shop.ledger().count(f"dies {how}") == 1
    eventually(lambda: len(worker.children()) == 2, 20)
    assert worker.children() != children
    assert get(shop.tasks.add.delay(1, 2)) == 3
    assert shop.take(f"{shop.queue}.dead") is None


def test_a_late_ack_task_comes_back_when_its_child_is_killed(shop: Workshop) -> None:
    # Given a late-ack task and, beside it, another task, both running
    gate, other = shop.gate(), shop.gate()
    undisturbed = shop.tasks.early.delay(other.name, "beside")
    other.reached()
    before = set(shop.workers[0].children())
    result = shop.tasks.late.delay(gate.name, "comes back")
    shop.noted("begun comes back")
    # When the child of the first is killed
    os.kill(child_running(before, gate), signal.SIGKILL)
    # Then it runs again, and the other knows nothing of it
    shop.noted("begun comes back", times=2)
    gate.open()
    other.open()
    assert get(result) == "comes back"
    assert get(undisturbed) == "beside"
    assert shop.ledger().count("begun beside") == 1


def test_a_task_that_always_ends_its_child_is_given_up_while_good_tasks_go_on(shop: Workshop) -> None:
    # Given two such tasks among good ones
    with shop.app.bulk():
        bad = [shop.tasks.always_dies.delay(text) for text in ("a", "b")]
        good = [shop.tasks.add.delay(number, 1) for number in range(100, 130)]
    # Then the good ones are done
    assert [get(each) for each in good] == list(range(101, 131))
    # And the bad ones ran three times each, are told as failures, and are among the dead letters
    for result, text in zip(bad, ("a", "b"), strict=True):
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            get(result)
        assert shop.ledger().count(f"dies {text}") == 3
    letters = {shop.dead_letter().headers["id"]: text for text in ("a", "b")}
    assert letters.keys() == {each.id for each in bad}
    shop.is_waiting(0)


def test_a_dead_letter_says_how_often_it_crashed(shop: Workshop) -> None:
    result = shop.tasks.may_die_once.delay("limit of one")
    with pytest.raises(WorkerLostError):
        get(result)
    letter = shop.dead_letter_of(result.id)
    assert letter.headers["x-amqptasks-reason"] == "too-many-crashes"
    assert "ended 1 worker processes, the last by signal 9 (SIGKILL)" in letter.headers["x-amqptasks-detail"]
    assert shop.ledger().count("dies limit of one") == 1


def test_a_late_ack_task_can_be_given_up_with_its_child(shop: Workshop) -> None:
    result = shop.tasks.given_up.delay("given up")
    with pytest.raises(WorkerLostError):
        get(result)
    assert shop.ledger().count("dies given up") == 1
    assert shop.take(f"{shop.queue}.dead") is None
    shop.is_waiting(0)


def test_many_killed_children_lose_no_late_ack_task(shop: Workshop) -> None:
    # Given 36 tasks, of which every third ends its child the first time
    with shop.app.bulk():
        results = [shop.tasks.third.delay(number) for number in range(36)]
    # Then all of them end well, those having begun twice and all others once
    assert [get(each) for each in results] == list(range(36))
    begun = Counter(line for line in shop.ledger() if line.startswith("third"))
    assert begun == {f"third {number}": 1 if number % 3 else 2 for number in range(36)}
    shop.is_waiting(0)


def test_tasks_sent_ahead_to_a_child_that_dies_run_elsewhere_once(workshop: Workshop) -> None:
    # Given a worker that has learnt that tasks are short, and so sends them ahead
    worker = workshop.start("-c", "1", "--prefetch-multiplier", "200")
    with workshop.app.bulk():
        results = [workshop.tasks.add.delay(number) for number in range(1000)]
    assert [get(each) for each in results] == list(range(1000))
    # When a task among them ends its child
    with workshop.app.bulk():
        before = [workshop.tasks.add.delay(number) for number in range(1000, 1020)]
        bad = workshop.tasks.dies.delay("SIGKILL", "it")
        after = [workshop.tasks.add.delay(number) for number in range(2000, 2060)]
    # Then it alone is lost
    with pytest.raises(WorkerLostError):
        get(bad)
    assert [get(each) for each in before + after] == [*range(1000, 1020), *range(2000, 2060)]
    assert max(Counter(workshop.ledger()).values()) == 1
    assert worker.stop() == 0


def test_a_child_that_dies_at_its_start_is_tried_again_after_a_pause(tmp_path: Path, broker_url: str) -> None:
    # Given children of which the first ends before it has run anything
    source = """
        from amqptasks.signals import worker_process_init

        @worker_process_init.connect
        def stumble(**_more):
            if not (HERE / "stumbled").exists():
                (HERE / "stumbled").touch()
                os._exit(7)

        @app.task
        def ok():
            return "ok"
    """
    with Workshop(tmp_path, broker_url, source) as shop:
        worker = shop.start("-c", "1")
        assert get(shop.tasks.ok.delay()) == "ok"
        assert "ForkPoolWorker-1 ended right after its start (exit code 7); trying again in 1 s" in worker.log


# -- the whole tree


def test_a_killed_worker_loses_only_what_was_acked_and_ran(workshop: Workshop) -> None:
    # Given a worker whose tasks are acked early: one runs, others wait in it
    gate = workshop.gate()
    worker = workshop.start("-c", "1", "--prefetch-multiplier", "10")
    running = workshop.tasks.early.delay(gate.name, "running")
    gate.reached()
    waiting = [workshop.tasks.add.delay(number) for number in range(10)]
    # (they fill its prefetch, so all of them are in it only once the running one is acked)
    workshop.is_waiting(0)
    # When parent and children are killed, and another worker comes
    worker.kill()
    gate.open()
    workshop.start("-c", "1")
    # Then what waited runs there, once; what ran is not run again, and nobody is left who could tell
    assert [get(each) for each in waiting] == list(range(10))
    workshop.is_waiting(0)
    assert Counter(workshop.ledger()) == {"begun running": 1} | {f"add {number}": 1 for number in range(10)}
    assert running.state == "PENDING"


def test_a_killed_worker_loses_no_late_ack_task(workshop: Workshop) -> None:
    gate = workshop.gate()
    worker = workshop.start("-c", "2")
    results = [workshop.tasks.late.delay(gate.name, str(number)) for number in range(5)]
    eventually(lambda: len(workshop.ledger()) == 2, 20)
    workshop.is_waiting(0)
    worker.kill()
    gate.open()
    workshop.start("-c", "2")
    assert sorted(get(each) for each in results) == [str(number) for number in range(5)]
    begun = Counter(workshop.ledger())
    assert sorted(begun.values()) == [1, 1, 1, 2, 2]
    workshop.is_waiting(0)


def child_running(children: set[int], gate: Any) -> int:
    """Return which of the children stands at the gate."""
    gate.reached()

    def look() -> int | bool:
        for child in children:
            for descriptor in Path(f"/proc/{child}/fd").iterdir():
                if os.readlink(descriptor).endswith(f"gate-{gate.name}"):
                    return child
        return False

    return eventually(look, 20)
