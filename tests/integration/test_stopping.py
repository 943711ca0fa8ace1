"""How a worker ends: warm, cold, too late, by itself; what becomes of the tasks it has, and its exit codes."""

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

SOURCE = """
    @app.task
    def early(name, text):
        note(f"begun {text}")
        gate(name)
        return text

    @app.task(acks_late=True)
    def late(name, text):
        note(f"begun {text}")
        gate(name)
        note(f"done {text}")
        return text

    @app.task
    def pid():
        return os.getpid()
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project for one test, which starts its own workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


def get(result: Any) -> Any:
    return result.get(timeout=20)


@pytest.mark.parametrize(
    ("number", "pool", "task"),
    [
        (signal.SIGTERM, "prefork", "early"),
        (signal.SIGTERM, "threads", "late"),
        (signal.SIGTERM, "solo", "late"),
        (signal.SIGINT, "prefork", "late"),
    ],
)
def test_a_warm_stop_ends_what_runs_and_gives_back_the_rest_at_once(
    shop: Workshop, number: int, pool: str, task: str
) -> None:
    # Given a worker that runs a task and holds others
    gate, others = shop.gate(), shop.gate()
    worker = shop.start("-P", pool, "-c", "1", "--prefetch-multiplier", "10")
    send = getattr(shop.tasks, task)
    running = send.delay(gate.name, "running")
    gate.reached()
    waiting = [send.delay(others.name, str(each)) for each in range(3)]
    shop.is_waiting(0)
    # When it is asked to stop / Then those that have not begun are back in the queue while the first still runs
    worker.signal(number)
    worker.wait_for(r"worker: Warm shutdown \(w0-\w+@test\)")
    shop.is_waiting(3)
    assert worker.process.poll() is None
    # And another worker runs them
    others.open()
    shop.start("-c", "1")
    assert [get(each) for each in waiting] == ["0", "1", "2"]
    # And the first ends well, and its worker with it
    gate.open()
    assert get(running) == "running"
    assert worker.wait() == 0
    assert sorted(line for line in shop.ledger() if line.startswith("begun")) == [
        "begun 0", "begun 1", "begun 2", "begun running",
    ]  # fmt: skip
    shop.is_waiting(0)


def test_an_idle_worker_stops_at_once(shop: Workshop) -> None:
    worker = shop.start("-c", "2")
    children = worker.children()
    assert worker.stop() == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_stop_signal_to_the_whole_group_does_not_end_running_tasks(shop: Workshop) -> None:
    # Given a running task / When the group gets INT, as from a terminal, or TERM, as from a service manager
    gate = shop.gate()
    worker = shop.start("-c", "1")
    result = shop.tasks.early.delay(gate.name, "a")
    gate.reached()
    os.killpg(worker.pid, signal.SIGTERM)
    worker.wait_for("Warm shutdown")
    # Then its child works on
    gate.open()
    assert get(result) == "a"
    assert worker.wait() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_second_signal_stops_cold_and_late_ack_tasks_go_back(shop: Workshop, pool: str) -> None:
    # Given a worker that runs a late-ack task
    gate = shop.gate()
    worker = shop.start("-P", pool, "-c", "1", expected_exits=(1,))
    result = shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    children = worker.children()
    # When it is asked twice to stop / Then it ends at once, with code 1, and its children with it
    worker.signal(signal.SIGTERM)
    worker.wait_for("Warm shutdown")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert "Cold shutdown" in worker.log
    eventually(lambda: not any(_is_alive(child) for child in children), 10)
    # And the task is back in its queue, not counted as a crash, and is run by the next worker
    shop.is_waiting(1)
    found = shop.peek()
    assert "x-amqptasks-crashes" not in found.headers
    shop.start("-c", "1")
    gate.open()
    assert get(result) == "a"
    assert shop.ledger() == ["begun a", "begun a", "done a"]


def test_a_quit_signal_stops_cold_at_once(shop: Workshop) -> None:
    gate = shop.gate()
    worker = shop.start("-c", "1", expected_exits=(1,))
    shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    worker.signal(signal.SIGQUIT)
    assert worker.wait() == 1
    assert "Warm shutdown" not in worker.log
    shop.is_waiting(1)


def test_a_warm_stop_that_takes_too_long_becomes_cold(shop: Workshop) -> None:
    # Given a worker that may take half a second for its warm stop
    gate = shop.gate()
    worker = shop.start("-c", "1", "--", "worker_shutdown_timeout=0.5", expected_exits=(1,))
    shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    # When a task does not end in that time / Then it goes back to its queue
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert "worker_shutdown_timeout: cold shutdown" in worker.log
    shop.is_waiting(1)


def test_a_warm_stop_that_is_cut_short_by_a_kill_loses_no_late_ack_task(shop: Workshop) -> None:
    # Given a worker that runs two tasks and holds three / When it is told to stop, and is killed before they end
    gate = shop.gate()
    worker = shop.start("-c", "2", "--prefetch-multiplier", "4")
    results = [shop.tasks.late.delay(gate.name, str(number)) for number in range(5)]
    eventually(lambda: len(shop.ledger()) == 2, 20)
    worker.signal(signal.SIGTERM)
    shop.is_waiting(3)
    worker.kill()
    # Then all are in the queue again, and another worker runs them; those that had begun for the second time
    shop.is_waiting(5)
    gate.open()
    shop.start("-c", "2")
    assert sorted(get(each) for each in results) == [str(number) for number in range(5)]
    begun = Counter(line for line in shop.ledger() if line.startswith("begun"))
    assert sorted(begun.values()) == [1, 1, 1, 2, 2]
    assert sum(line.startswith("done") for line in shop.ledger()) == 5
    shop.is_waiting(0)


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio"])
def test_a_cold_stop_tells_the_callers_of_early_tasks_that_they_are_lost(shop: Workshop, pool: str) -> None:
    # Given a worker that runs an early-ack task and has another, both of which its caller waits for
    gate = shop.gate()
    worker = shop.start("-P", pool, "-c", "1", expected_exits=(1,))
    lost = shop.tasks.early.delay(gate.name, "lost")
    gate.reached()
    waiting = shop.tasks.pid.delay()
    # When it is stopped cold / Then the caller learns that the first is lost
    worker.signal(signal.SIGQUIT)
    with pytest.raises(WorkerLostError, match=r"^Worker exited prematurely: cold shutdown\.$"):
        get(lost)
    assert worker.wait() == 1
    # And the other, which had not begun, is back in its queue, and alone there
    shop.is_waiting(1)
    gate.open()
    shop.start("-c", "1")
    assert get(waiting)
    assert shop.ledger() == ["begun lost"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_comes_during_a_cold_stop_is_not_delivered_over_and_over(shop: Workshop, pool: str) -> None:
    # Given a worker with a running task and room for more
    gate = shop.gate()
    worker = shop.start("-P", pool, "-c", "1", expected_exits=(1,))
    shop.tasks.early.delay(gate.name, "lost")
    gate.reached()
    # When tasks come in all the time while it stops cold
    worker.signal(signal.SIGQUIT)
    sent = 0
    while worker.process.poll() is None:
        shop.tasks.pid.delay()
        sent += 1
    # Then each of them was delivered twice at most
    assert sent
    shop.is_waiting(sent)
    taken = [shop.take(shop.queue) for _ in range(sent)]
    counts = Counter(0 if each is None else each.headers.get("x-delivery-count", 0) for each in taken)
    assert max(counts) <= 2, counts


def test_a_soft_stop_ends_well_if_the_tasks_do(shop: Workshop) -> None:
    # Given a worker that gives running tasks time before a cold stop, one task that runs, and one that waits
    gate = shop.gate()
    worker = shop.start("-c", "1", "--", "worker_soft_shutdown_timeout=60")
    running = shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    waiting = shop.tasks.pid.delay()
    # When it is to stop cold / Then it gives back what waits, and still runs the task
    worker.signal(signal.SIGQUIT)
    worker.wait_for("Initiating Soft Shutdown, terminating in 60 seconds")
    worker.wait_for(r"worker: Soft shutdown \(w0-\w+@test\)")
    shop.is_waiting(1)
    assert worker.process.poll() is None
    # And ends well when that has
    gate.open()
    assert get(running) == "a"
    assert worker.wait() == 0
    assert "Cold shutdown" not in worker.log
    shop.start("-c", "1")
    assert get(waiting)


@pytest.mark.parametrize("how", ["time", "signal"])
def test_a_soft_stop_becomes_cold_in_the_end(shop: Workshop, how: str) -> None:
    # Given a worker in a warm stop, with a task that does not end
    gate = shop.gate()
    seconds = "0.3" if how == "time" else "60"
    worker = shop.start("-c", "1", "--", f"worker_soft_shutdown_timeout={seconds}", expected_exits=(1,))
    shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    worker.signal(signal.SIGINT)
    worker.wait_for("worker: Hitting Ctrl.C again will initiate cold shutdown, terminating all running tasks!")
    # When it is told again, and its time is over or it is told once more / Then the task goes back to its queue
    worker.signal(signal.SIGINT)
    worker.wait_for("worker: Hitting Ctrl.C again will terminate all running tasks!")
    if how == "signal":
        worker.wait_for("Soft shutdown")
        worker.signal(signal.SIGINT)
    assert worker.wait() == 1
    assert "Cold shutdown" in worker.log
    shop.is_waiting(1)


@pytest.mark.parametrize("waits", [True, False])
def test_an_idle_worker_waits_in_a_soft_stop_if_it_is_told_to(shop: Workshop, waits: bool) -> None:
    # Given an idle worker / When it is to stop softly / Then it does so at once, or takes the time that it is given
    worker = shop.start(
        "-c", "1", "--", "worker_soft_shutdown_timeout=0.5", f"worker_enable_soft_shutdown_on_idle={waits}",
        expected_exits=(0,) if waits else (1,),
    )  # fmt: skip
    worker.signal(signal.SIGQUIT)
    worker.wait()
    assert ("Initiating Soft Shutdown" in worker.log) == waits
    assert ("Cold shutdown" in worker.log) != waits


def test_term_may_be_made_to_mean_quit(shop: Workshop) -> None:
    gate = shop.gate()
    worker = shop.start("-c", "1", env={"REMAP_SIGTERM": "SIGQUIT"}, expected_exits=(1,))
    shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 1
    assert "Warm shutdown" not in worker.log
    shop.is_waiting(1)


def test_a_worker_can_be_stopped_while_it_looks_for_its_broker(shop: Workshop) -> None:
    worker = shop.start("-c", "1", ready=False, env={"AMQPTASKS_BROKER_URL": "amqp://127.0.0.1:1//"})
    worker.wait_for("cannot connect to amqp://guest@127.0.0.1:1//")
    assert worker.stop() == 0


def test_children_end_soon_after_a_killed_parent_and_run_nothing_more(shop: Workshop) -> None:
    # Given a worker whose parent alone is killed while a task runs
    gate = shop.gate()
    worker = shop.start("-c", "2", expected_exits=None)
    result = shop.tasks.late.delay(gate.name, "a")
    gate.reached()
    children = worker.children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.process.wait(10)
    # Then its children go too, and the task is run by the next worker
    eventually(lambda: not any(_is_alive(child) for child in children), 20)
    gate.open()
    shop.start("-c", "1")
    assert get(result) == "a"
    assert shop.ledger() == ["begun a", "begun a", "done a"]


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
