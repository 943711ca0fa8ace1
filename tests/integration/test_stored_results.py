"""Results in a database as workers store them and any process reads them. On one real worker, and SQLite."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from amqptasks.exceptions import TaskRevokedError, TimeoutError, WorkerLostError
from amqptasks.results.handles import AsyncResult, GroupResult
from tests.running import Workshop
from tests.support import ROOT, eventually

SOURCE = """
    app.conf.update(result_backend=f"db+sqlite:///{HERE}/results.db", result_extended=True)

    @app.task
    def add(x, y):
        return x + y

    @app.task(track_started=True)
    def behind(name):
        gate(name)
        return name

    @app.task(bind=True)
    def progress(self, name):
        self.update_state(state="PROGRESS", meta={"done": 1})
        gate(name)
        return "all"

    @app.task(bind=True)
    def delegates(self, task_id):
        thread = threading.Thread(target=self.update_state, args=(task_id, None, {"km": 7}))
        thread.start()
        thread.join()

    @app.task
    def fail(text):
        raise ValueError(text)

    @app.task(ignore_result=True)
    def silent(text):
        note(f"silent {text}")
        return text

    @app.task(ignore_result=True, store_errors_even_if_ignored=True)
    def loud(fails):
        if fails:
            raise ValueError("heard all the same")
        return "never seen"

    @app.task
    def starts():
        return [add.delay(1, 2).id, add.delay(3, 4).id]

    @app.task
    def odd_value():
        return {"value": object()}

    @app.task
    def large_value():
        return "x" * (17 * 1024 * 1024)

    @app.task(acks_late=True, reject_on_worker_lost=False)
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("stored"), broker_url, SOURCE) as shop:
        shop.start("-c", "2")
        yield shop


def rows(shop: Workshop) -> dict[str, Any]:
    """Status and result of every row, by task id, as the database has them."""
    engine = sa.create_engine(f"sqlite:///{shop.directory}/results.db", poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT task_id, status, result FROM celery_taskmeta")).all()
    engine.dispose()
    return {each.task_id: (each.status, each.result) for each in found}


def test_a_result_is_there_for_every_process(shop: Workshop) -> None:
    # Given a result that this process has waited for
    result = shop.tasks.add.delay(2, y=3)
    assert result.get(timeout=20) == 5
    # When a program that did not send the task asks for it by its id
    program = f"import {shop.project.name} as shop; print(shop.app.AsyncResult({result.id!r}).get(timeout=20))"
    paths = os.pathsep.join([str(ROOT), str(shop.directory)])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    # Then it gets it
    assert done.stdout == "5\n", done.stderr
    # And with all that extended results tell
    assert (result.name, result.args, result.kwargs) == (f"{shop.project.name}.add", [2], {"y": 3})
    assert (result.retries, result.queue) == (0, shop.queue)
    assert re.fullmatch(r"w0-\w+@test", result.worker)


def test_a_failure_is_stored_with_its_traceback(shop: Workshop) -> None:
    result = shop.tasks.fail.delay("sold out")
    with pytest.raises(ValueError, match="sold out"):
        result.get(timeout=20)
    assert AsyncResult(result.id, app=shop.app).state == "FAILURE"
    assert "raise ValueError(text)" in (result.traceback or "")


def test_states_on_the_way_can_be_seen(shop: Workshop) -> None:
    # Given a task that tracks its start, and one that tells of its progress
    first, second = shop.gate(), shop.gate()
    started, progressing = shop.tasks.behind.delay(first.name), shop.tasks.progress.delay(second.name)
    first.reached()
    second.reached()
    # When anybody looks / Then they are there
    assert started.state == "STARTED" and set(started.info) == {"pid", "hostname"}
    assert (progressing.state, progressing.info) == ("PROGRESS", {"done": 1})
    assert started.name == f"{shop.project.name}.behind"
    with pytest.raises(TimeoutError):
        started.get(timeout=0.05)
    # And the results come after them, to who waits already too
    seen: list[str] = []
    first.open()
    second.open()
    assert started.get(timeout=20, on_message=lambda message: seen.append(message["status"])) == first.name
    assert progressing.get(timeout=20) == "all"
    assert seen[-1] == "SUCCESS"


def test_a_state_can_be_set_from_anywhere(shop: Workshop) -> None:
    # Given the id of a task that nobody runs
    result = AsyncResult(shop.app.uuid(), app=shop.app)
    # When a program that is no worker says how far it is / Then everybody can see it
    shop.tasks.add.update_state(task_id=result.id, state="ON ITS WAY", meta={"km": 3})
    assert (result.state, result.info) == ("ON ITS WAY", {"km": 3})
    # And when a thread that a task has started does
    assert shop.tasks.delegates.delay(result.id).get(timeout=20) is None
    assert (result.state, result.info) == ("PROGRESS", {"km": 7})


def test_an_ignored_result_is_not_stored_and_an_error_is_where_that_is_asked_for(shop: Workshop) -> None:
    silent, loud, quiet = shop.tasks.silent.delay("x"), shop.tasks.loud.delay(True), shop.tasks.loud.delay(False)
    shop.noted("silent x")
    with pytest.raises(ValueError, match="heard all the same"):
        loud.get(timeout=20)
    assert silent.get(timeout=1) is None
    # Who waits for an error learns that there is none, and no more
    assert quiet.get(timeout=20) is None
    assert (quiet.state, quiet.result) == ("SUCCESS", None)
    # The worker acks after storing: with nothing left to ack, nothing more will come
    shop.is_waiting(0)
    assert silent.id not in rows(shop)


def test_the_tasks_that_a_task_starts_are_its_children(shop: Workshop) -> None:
    result = shop.tasks.starts.delay()
    ids = result.get(timeout=20)
    assert [child.id for child in result.children] == ids
    assert sorted(value for node, value in result.collect() if node is not result) == [3, 7]


def test_a_group_is_restored_by_its_id(shop: Workshop) -> None:
    from amqptasks.canvas.group import group

    sent = group(shop.tasks.add.s(each, each) for each in range(3)).apply_async()
    sent.save()
    restored = GroupResult.restore(sent.id, app=shop.app)
    assert restored is not None and restored.get(timeout=20) == [0, 2, 4]
    assert {task_id for task_id, _meta in restored.iter_native(timeout=20)} == {each.id for each in sent.results}
    restored.forget()
    restored.delete()
    assert GroupResult.restore(sent.id, app=shop.app) is None
    assert not {each.id for each in sent.results} & set(rows(shop))


def test_a_chain_that_breaks_fails_all_that_it_will_never_reach(shop: Workshop) -> None:
    tasks = shop.tasks
    last = (tasks.fail.si("the first") | tasks.add.s(1) | tasks.add.s(2)).apply_async()
    with pytest.raises(ValueError, match="the first"):
        last.get(timeout=20)
    # Not only the first, which was waited for too: the others are there for who asks for them alone
    for step in (last, last.parent):
        eventually(lambda step=step: rows(shop).get(step.id, ("", None))[0] == "FAILURE")


def test_what_the_worker_itself_has_to_say_is_stored_too(shop: Workshop) -> None:
    # Given a task that comes too late, and one that ends its process
    late = shop.tasks.add.apply_async((1, 1), expires=-1)
    dead = shop.tasks.dies.delay()
    # When they are waited for / Then they are told of, though no task could
    with pytest.raises(TaskRevokedError):
        late.get(timeout=20)
    assert late.state == "REVOKED"
    with pytest.raises(WorkerLostError):
        dead.get(timeout=20)
    # And so is a name that nobody knows; its message is kept
    unknown = shop.app.send_task("no.such.task")
    with pytest.raises(Exception, match=r"no task named 'no\.such\.task' is registered"):
        unknown.get(timeout=20)
    assert shop.dead_letter_of(unknown.id).headers["x-amqptasks-reason"] == "unknown-task"


@pytest.mark.parametrize(("task", "said"), [("odd_value", "object"), ("large_value", "task_message_max_bytes")])
def test_a_value_that_cannot_be_stored_fails_its_task(shop: Workshop, task: str, said: str) -> None:
    result = getattr(shop.tasks, task).delay()
    with pytest.raises(Exception, match=said):
        result.get(timeout=20)
    assert result.state == "FAILURE"


OUTAGE = """
    app.conf.update(
        result_backend=(HERE / "url").read_text(), task_acks_late=True, task_track_started=True,
        result_backend_max_sleep_between_retries_ms=200,
    )

    @app.task
    def answer(name):
        gate(name)
        note("ran")
        return 42

    @app.task(ignore_result=True)
    def aside():
        note("aside")
"""


def test_a_task_is_acked_once_its_result_is_stored_and_not_before(
    tmp_path: Path, broker_url: str, own_database: Any
) -> None:
    (tmp_path / "url").write_text(f"db+{own_database.url}")
    with Workshop(tmp_path, broker_url, OUTAGE) as shop:
        # Given a task that is running while its database is killed
        worker = shop.start("-c", "2")
        gate = shop.gate()
        result = shop.tasks.answer.delay(gate.name)
        gate.reached()
        assert result.state == "STARTED"
        own_database.kill()
        # When it ends, its result cannot be stored, and the worker says so and keeps the message
        gate.open()
        shop.noted("ran")
        worker.wait_for(r"Cannot store the result of task \S+ in db\+postgresql://amqptasks:\*\*\*@.*trying again in")
        # And another task that expired, of which the worker itself must tell
        expired = shop.tasks.answer.apply_async((gate.name,), expires=-1)
        worker.wait_for("has expired")
        worker.wait_for(f"Cannot store the result of task {expired.id} in")
        # And the worker goes on with what has no result to store
        shop.tasks.aside.delay()
        shop.noted("aside")
        # When the database is back / Then both are stored, by who waits meanwhile too, and the task ran once
        own_database.start()
        assert result.get(timeout=30) == 42
        with pytest.raises(TaskRevokedError):
            expired.get(timeout=30)
        assert shop.ledger() == ["ran", "aside"]
        assert worker.stop() == 0
        shop.is_waiting(0)


def test_a_result_that_never_can_be_stored_takes_the_message_to_the_dead_letters(
    tmp_path: Path, broker_url: str
) -> None:
    # Given a database that cannot be opened, and a worker that is to give up soon
    source = f"""
    app.conf.update(result_backend="db+sqlite:///{tmp_path}/missing/results.db", result_backend_max_retries=2)

    @app.task
    def add(x, y):
        return x + y
    """
    with Workshop(tmp_path, broker_url, source) as shop:
        worker = shop.start("-c", "1")
        worker.wait_for("The result backend db\\+sqlite:///.*missing/results.db is not ready: .*unable to open")
        # When a task ends
        result = shop.tasks.add.delay(1, 2)
        # Then it is not lost: it lies in the dead letters, with the reason, and the worker goes on
        letter = shop.dead_letter_of(result.id)
        assert letter.headers["x-amqptasks-reason"] == "result-not-stored"
        assert "unable to open database file" in letter.headers["x-amqptasks-detail"]
        shop.is_waiting(0)
        assert worker.log.count(f"Cannot store the result of task {result.id} in") == 2
        second = shop.tasks.add.delay(3, 4)
        assert shop.dead_letter_of(second.id)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_the_worker_itself_stores_in_every_pool_and_whatever_dies(tmp_path: Path, broker_url: str, pool: str) -> None:
    # Given a database that is not there yet, and a task that came too late
    source = f"""
    app.conf.update(
        result_backend="db+sqlite:///{tmp_path}/later/results.db", result_backend_max_sleep_between_retries_ms=100
    )

    @app.task
    def add(x, y):
        return x + y
    """
    with Workshop(tmp_path, broker_url, source) as shop:
        worker = shop.start("-c", "2", "-P", pool)
        expired = shop.tasks.add.apply_async((1, 2), expires=-1)
        worker.wait_for(f"Cannot store the result of task {expired.id} in")
        if pool == "prefork":
            # When the process that tries to store its result dies, another goes on
            os.kill(worker.children()[-1], signal.SIGKILL)
            worker.wait_for(r"Storer-1 ended \(signal 9 \(SIGKILL\)\); starting another")
        # And when the database is there
        (tmp_path / "later").mkdir()
        # Then the result is
        with pytest.raises(TaskRevokedError):
            expired.get(timeout=20)
        # And tasks run as ever, and the worker ends as ever
        assert shop.tasks.add.delay(1, 2).get(timeout=20) == 3
        shop.is_waiting(0)
        assert worker.stop() == 0


def test_a_worker_whose_results_never_can_be_stored_does_not_start(tmp_path: Path, broker_url: str) -> None:
    source = 'app.conf.update(result_backend="db+mysql://me:secret@host/x")'
    with Workshop(tmp_path, broker_url, source) as shop:
        worker = shop.start("-c", "1", ready=False, expected_exits=(1,))
        worker.wait_for("needs a driver that is not installed")
        assert worker.wait() == 1
        assert "secret" not in worker.log


def test_the_tables_are_made_when_the_worker_starts_unless_that_is_left_to_the_first_result(
    tmp_path: Path, broker_url: str
) -> None:
    source = """
    app.conf.update(result_backend=f"db+sqlite:///{HERE}/results.db", database_create_tables_at_setup=EARLY)

    @app.task
    def add(x, y):
        return x + y
    """
    for early in (True, False):
        directory = tmp_path / str(early)
        directory.mkdir()
        with Workshop(directory, broker_url, source.replace("EARLY", str(early))) as shop:
            shop.start("-c", "1")
            path = directory / "results.db"
            if early:
                eventually(lambda path=path: path.exists() and path.stat().st_size > 0)
            else:
                assert not path.exists()
                assert shop.tasks.add.delay(1, 2).get(timeout=20) == 3
