"""Revoking: a task that has not begun never does, whoever has it, and whenever its worker was started."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import amqptasks
from amqptasks.app.options import policy_of
from amqptasks.exceptions import TaskRevokedError
from amqptasks.states import REVOKED
from amqptasks.wire.message import Message, encode
from tests.support import Project, WorkerProcess, eventually

pytestmark = pytest.mark.broker

SOURCE = """
    import asyncio, os, signal, sys, time
    from amqptasks import App
    from amqptasks.signals import task_revoked

    app = App(broker=BROKER, backend="rpc://")
    app.conf.task_default_queue = QUEUE
    app.conf.task_queue_prefix = QUEUE

    @task_revoked.connect
    def told(request=None, terminated=None, signum=None, expired=None, **kwargs):
        print("told", request.id, terminated, signum, expired, flush=True)

    @app.task
    def note(path, text="ran"):
        with open(path, "a") as file:
            file.write(text + "\\n")
        return text

    @app.task(acks_late=True)
    def late(path):
        note_begin(path)
        behind(path + ".never")

    @app.task
    def early(path):
        note_begin(path)
        behind(path + ".never")

    @app.task
    def counting(path):
        note_begin(path)
        # One step of C code that takes hours.
        sum(range(10 ** 12))

    @app.task
    async def sleeping(path):
        note_begin(path)
        await asyncio.sleep(50)

    @app.task
    def cleaning(path):
        def clean(number, frame):
            with open(path, "a") as file:
                file.write("cleaned\\n")
            sys.exit(3)

        signal.signal(signal.SIGTERM, clean)
        note_begin(path)
        time.sleep(50)

    def note_begin(path):
        with open(path, "a") as file:
            file.write("began\\n")

    @app.task
    def behind(path):
        open(path + ".began", "w").close()
        deadline = time.monotonic() + 50
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.005)
        return "went through"
"""


@pytest.fixture
def code(project: Callable[..., Project]) -> Project:
    return project(SOURCE)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


def assert_revoked(result: Any) -> None:
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=20)
    assert result.state == REVOKED


def test_a_task_revoked_before_any_worker_is_there_never_runs(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path
) -> None:
    # Given two waiting tasks, one of them revoked, and no worker
    unwanted, wanted = code.note.delay(str(notes), "unwanted"), code.note.delay(str(notes), "wanted")
    unwanted.revoke()

    # When a worker starts
    running = worker(code, "-c", "1")

    # Then the one is told to be revoked, everywhere, and the other runs
    assert_revoked(unwanted)
    assert wanted.get(timeout=20) == "wanted"
    assert notes.read_text() == "wanted\n"
    assert f"Discarding revoked task: {code.note.name}[{unwanted.id}]" in running.log
    assert f"told {unwanted.id} False None False" in running.log


def test_a_revocation_may_be_for_some_workers_alone(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path
) -> None:
    # Given two waiting tasks, one revoked for another worker, the other for the one that will come
    app = code.module.app
    wanted, unwanted = code.note.delay(str(notes), "wanted"), code.note.delay(str(notes), "unwanted")
    app.control.revoke(wanted.id, ["somebody@else"])
    app.control.revoke(unwanted.id, destination=["somebody@else", "mine@test"], terminate=True)

    # When that worker starts / Then it heeds what is for it, and nothing else
    worker(code, "-c", "1", "-n", "mine@test")
    assert_revoked(unwanted)
    assert wanted.get(timeout=20) == "wanted"
    assert notes.read_text() == "wanted\n"


def test_a_revocation_survives_every_worker(code: Project, worker: Callable[..., WorkerProcess], notes: Path) -> None:
    # Given a task that is revoked while it waits for its time, and a worker that knew of it and is gone
    first = worker(code, "-c", "1")
    delayed = code.note.apply_async((str(notes),), countdown=3)
    delayed.revoke()
    first.kill()

    # When its time comes, with a new worker
    worker(code, "-c", "1")

    # Then it does not run
    assert_revoked(delayed)
    assert not notes.exists()


def test_prefetched_tasks_are_revoked_where_they_wait(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path, tmp_path: Path
) -> None:
    # Given a worker that is busy, and has prefetched three more
    running = worker(code, "-c", "1")
    gate = tmp_path / "gate"
    blocking = code.behind.delay(str(gate))
    waiting = [code.note.delay(str(notes), str(number)) for number in range(3)]
    running.wait_for(rf"Task \S+\[{waiting[2].id}\] received")

    # When one of them is revoked
    waiting[1].revoke()

    # Then it ends at once, while the worker is still busy, and the others run after
    assert_revoked(waiting[1])
    assert not blocking.ready()
    gate.touch()
    assert blocking.get(timeout=20) == "went through"
    assert [waiting[0].get(timeout=20), waiting[2].get(timeout=20)] == ["0", "2"]
    assert notes.read_text() == "0\n2\n"


def test_many_are_revoked_by_one_order(code: Project, worker: Callable[..., WorkerProcess], notes: Path) -> None:
    # Given many waiting tasks in one set, and one that is not of it
    results = amqptasks.ResultSet([code.note.delay(str(notes), str(number)) for number in range(20)])
    other = code.note.delay(str(notes), "other")

    # When the set is revoked and a worker starts
    results.revoke()
    worker(code, "-c", "2")

    # Then none of them runs
    assert other.get(timeout=20) == "other"
    for each in results:
        assert_revoked(each)
    assert notes.read_text() == "other\n"


def test_tasks_are_revoked_by_what_they_are_stamped_with(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path
) -> None:
    # Given tasks stamped with customers
    def stamped(customer: Any) -> Any:
        return code.note.apply_async(
            (str(notes), str(customer)), stamped_headers=["customer"], customer=customer
        )  # fmt: skip

    results = {name: stamped(name) for name in ("ann", "bob", "cid")}

    # When those of two of them are revoked, one by the app and one by any result
    code.app.control.revoke_by_stamped_headers({"customer": ["ann"]})
    results["bob"].revoke_by_stamped_headers({"customer": "cid"})
    worker(code, "-c", "1")

    # Then only the third's runs
    assert results["bob"].get(timeout=20) == "bob"
    assert_revoked(results["ann"])
    assert_revoked(results["cid"])
    assert notes.read_text() == "bob\n"


def test_a_worker_that_was_cut_off_knows_what_was_revoked_meanwhile(
    code: Project, worker: Callable[..., WorkerProcess], rabbitmqctl: Callable[..., str], notes: Path
) -> None:
    # Given a worker that has read some revocations
    running = worker(code, "-c", "1")
    before = code.note.delay(str(notes), "before")
    before.get(timeout=20)
    code.app.control.revoke("something-else")

    # When all connections are closed, and a task is revoked and sent at the same time
    rabbitmqctl("close_all_connections", "test")
    running.wait_for("Lost the consuming connection")
    code.app.control.revoke("the-one")
    result = code.note.apply_async((str(notes), "revoked"), task_id="the-one")

    # Then it does not run, and the worker goes on
    assert_revoked(result)
    assert code.note.delay(str(notes), "after").get(timeout=20) == "after"
    assert notes.read_text() == "before\nafter\n"


def begin(task: Any, notes: Path) -> Any:
    """Send a task and wait until it runs."""
    result = task.delay(str(notes))
    eventually(lambda: notes.exists() and "began" in notes.read_text(), 20)
    return result


def assert_terminated(code: Project, result: Any, running: WorkerProcess, number: int) -> None:
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=20)
    assert result.state == REVOKED
    running.wait_for(rf"Terminating \S+\[{result.id}\] \({signal.Signals(number).name}\)")
    running.wait_for(f"told {result.id} True {number} False")
    # Its place is there for others.
    assert code.note.delay("/dev/null", "next").get(timeout=20) == "next"


@pytest.mark.parametrize("kind", ["early", "late", "counting", "sleeping"])
def test_a_running_task_is_ended_with_its_process(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path, kind: str
) -> None:
    # Given a task that runs, and another that was sent behind it
    running = worker(code, "-c", "1")
    result = begin(getattr(code, kind), notes)
    behind = code.note.delay("/dev/null", "behind")

    # When it is revoked with terminate
    result.revoke(terminate=True)

    # Then it ends, is not run again, and the other runs
    assert_terminated(code, result, running, signal.SIGTERM)
    assert behind.get(timeout=20) == "behind"
    assert notes.read_text() == "began\n"


def test_a_running_task_is_ended_with_the_signal_that_was_asked_for(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path
) -> None:
    # Given a task that runs, When it is terminated with another signal, Then that ends it
    running = worker(code, "-c", "1")
    result = begin(code.late, notes)
    code.app.control.terminate(result.id, signal="KILL")
    assert_terminated(code, result, running, signal.SIGKILL)


def test_a_task_may_clean_up_when_it_is_terminated(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path
) -> None:
    # Given a task with a handler of its own for the signal
    worker(code, "-c", "1")
    result = begin(code.cleaning, notes)

    # When it is terminated, Then the handler has run
    result.revoke(terminate=True, signal="SIGTERM")
    eventually(lambda: "cleaned" in notes.read_text(), 20)


def test_a_coroutine_is_cancelled(code: Project, worker: Callable[..., WorkerProcess], notes: Path) -> None:
    # Given a coroutine that runs in the asyncio pool, When it is terminated, Then it ends
    running = worker(code, "-P", "asyncio", "-c", "1")
    result = begin(code.sleeping, notes)
    result.revoke(terminate=True)
    assert_terminated(code, result, running, signal.SIGTERM)


def test_a_pool_that_cannot_end_a_task_says_so(
    code: Project, worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    # Given a task that runs in a thread
    running = worker(code, "-P", "threads", "-c", "1")
    gate = tmp_path / "gate"
    result = code.behind.delay(str(gate))
    eventually(lambda: (tmp_path / "gate.began").exists(), 20)

    # When it is terminated, Then the log says that it runs on, and it does
    result.revoke(terminate=True)
    running.wait_for(rf"Revoked task \S+\[{result.id}\] runs on: its pool cannot end it")
    gate.touch()
    assert result.get(timeout=20) == "went through"


def test_records_that_cannot_be_read_are_passed_over(
    code: Project, worker: Callable[..., WorkerProcess], notes: Path
) -> None:
    # Given garbage among the revocations
    code.app.control.revoke("first")
    stream = f"{code.queue}.revoked.v1"
    for body in (b"", b"\xff\x00", b"[]", b'{"ids": 7}', b'{"ids": [""], "stamps": {}, "at": 0, "signal": "SIGTERM"}'):
        message = Message(body, "application/json", "utf-8", {}, delivery_mode=2)
        code.app.publisher.publish(encode(message, "", stream), (), policy_of(code.app.conf))
    code.app.control.revoke("last")

    # When a worker reads them
    running = worker(code, "-c", "1")

    # Then it says so, and knows the others
    eventually(lambda: running.log.count("that cannot be read") == 5)
    for task_id in ("first", "last"):
        assert_revoked(code.note.apply_async((str(notes),), task_id=task_id))
    assert not notes.exists()


@pytest.mark.parametrize("ids", [7, [7], [""], [None]])
def test_what_is_no_id_is_refused_before_anything_is_sent(code: Project, ids: Any) -> None:
    # Given what is no id, When it is revoked, Then the error says what was expected
    with pytest.raises(TypeError, match="expected the ids of tasks to be texts|not iterable"):
        code.app.control.revoke(ids)


def test_a_signal_that_is_none_is_refused(code: Project) -> None:
    # Given a signal's name that does not exist, When a task is terminated with it, Then the error lists those that do
    with pytest.raises(ValueError, match=r"one of SIGABRT, .*SIGTERM.*, got: 'SIGFOO'"):
        code.app.control.terminate("some-id", signal="SIGFOO")
