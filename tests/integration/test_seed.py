"""What the document this project grew from shows of calling, expiry, bound tasks, requests, results, states and
configuration, each with the outcome that it shows.

Its project is a module ``tasks.py`` with a ``celeryconfig.py`` beside it, started by the command it gives. Retries,
time limits, workflows, signals, monitoring and periodic tasks are left to the tests of those.
"""

from __future__ import annotations

import ast
import datetime
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks import App, states
from amqptasks.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeoutError
from amqptasks.result import AsyncResult
from tests.running import Workshop
from tests.support import ROOT, WorkerProcess, eventually

TASKS = """
    import time
    from amqptasks.utils.log import get_task_logger

    logger = get_task_logger(__name__)

    app.config_from_object('celeryconfig')

    @app.task
    def add(x, y):
        return x + y

    @app.task(bind=True)
    def add_bound(self, x, y):
        logger.info(self.request.id)
        return x + y

    @app.task(bind=True)
    def add_when_binded(self, x, y):
        print(f"self -> {self}")
        print(f"self.request -> {self.request}")
        return x + y

    @app.task
    def do_exception_task():
        raise Exception("Exception Error")

    @app.task(ignore_result=True)
    def add_ignored(x, y):
        note(f"add_ignored {x + y}")
        return x + y

    @app.task
    def behind(name):
        note(f"begun {name}")
        gate(name)
        return name

    @app.task(track_started=True)
    def tracked(name):
        gate(name)
        return "tracked"
"""
CONFIGURATION = """
broker_url = {url!r}
result_backend = 'rpc://'

task_serializer = 'json'
result_serializer = 'json'
accept_content = ['json']
timezone = 'Europe/Oslo'
enable_utc = True
"""


def run_worker(shop: Workshop, *arguments: str, env: dict[str, str] | None = None) -> WorkerProcess:
    """Start ``amqptasks <arguments>`` in the project's directory."""
    if shop.directory.name[:4] != "seed":
        # The document gives no names. The one worker that all tests share is there, and has the default one.
        arguments = (*arguments, "-n", f"w{len(shop.workers)}@{shop.queue}")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    worker = WorkerProcess(
        [sys.executable, "-m", "amqptasks", *arguments],
        directory=shop.directory, log=shop.directory / f"w{len(shop.workers)}.log",
        env=os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | (env or {}),
    )  # fmt: skip
    shop.workers.append(worker)
    return worker


def make_shop(directory: Path, broker_url: str) -> Workshop:
    (directory / "celeryconfig.py").write_text(CONFIGURATION.format(url=broker_url.replace("amqp://", "pyamqp://")))
    return Workshop(directory, broker_url, TASKS, name="tasks")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """The project, and a worker started as the document starts it."""
    with make_shop(tmp_path_factory.mktemp("seed"), broker_url) as made:
        run_worker(made, "--app", "tasks", "worker", "--loglevel", "INFO").wait_ready()
        yield made


@pytest.fixture
def workshop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """The same project, for one test that starts its own worker."""
    # One module of a name can be there at a time: the other project's is put back at the end.
    kept = sys.modules.pop("tasks", None)
    with make_shop(tmp_path, broker_url) as made:
        yield made
    if kept is not None:
        sys.modules["tasks"] = kept


# -- running, calling


def test_the_short_form_of_the_command_starts_a_worker_too(workshop: Workshop) -> None:
    worker = run_worker(workshop, "-A", "tasks", "worker", "-l", "INFO")
    worker.wait_ready()
    assert workshop.tasks.add.delay(2, 2).get(timeout=20) == 4


def test_delay_and_apply_async_call_a_task(shop: Workshop) -> None:
    assert shop.tasks.add.delay(2, 2).get(timeout=20) == 4
    assert shop.tasks.add.apply_async((2, 2)).get(timeout=20) == 4
    assert shop.tasks.add.apply_async((2,), {"y": 2}).get(timeout=20) == 4


def test_a_countdown_of_three_seconds_takes_at_least_three(shop: Workshop) -> None:
    started = time.time()
    result = shop.tasks.add.apply_async((2, 2), countdown=3)
    assert not result.ready()
    assert result.get(timeout=30) == 4
    assert time.time() - started >= 3


# -- expiry


def test_a_task_that_runs_before_it_expires_runs(shop: Workshop) -> None:
    tomorrow = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    # As the document has it, without a zone: it is then meant in the app's
    naive = datetime.datetime.now() + datetime.timedelta(days=1)
    for expires in (60, tomorrow, naive):
        assert shop.tasks.add.apply_async((10, 10), {}, expires=expires).get(timeout=20) == 20


def test_an_expired_task_is_revoked(shop: Workshop) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    for expires in (-1, now - datetime.timedelta(minutes=1)):
        result = shop.tasks.add.apply_async((10, 10), expires=expires)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
        assert result.status == states.REVOKED


def test_a_task_that_expires_in_the_queue_is_revoked(workshop: Workshop) -> None:
    # Given a task that expires while no worker is there / When one comes
    result = workshop.tasks.add.apply_async((10, 10), expires=0.5)
    in_time = workshop.tasks.add.apply_async((1, 1), expires=3600)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.6)
    run_worker(workshop, "-A", "tasks", "worker", "-l", "INFO").wait_ready()
    # Then it does not run
    assert isinstance(result.get(timeout=20, propagate=False), TaskRevokedError)
    assert in_time.get(timeout=20) == 2


# -- bound tasks and their request


def test_a_bound_task_logs_its_id(shop: Workshop) -> None:
    result = shop.tasks.add_bound.delay(1, 2)
    assert result.get(timeout=20) == 3
    shop.workers[0].wait_for(rf"INFO/ForkPoolWorker-\d+\] tasks\.add_bound\[{result.id}\]: {result.id}")


def test_a_bound_task_prints_itself_and_its_request(shop: Workshop) -> None:
    result = shop.tasks.add_when_binded.delay(5, 5)
    assert result.get(timeout=20) == 10
    log = shop.workers[0]
    log.wait_for(r"self -> <@task: tasks\.add_when_binded of tasks at 0x[0-9a-f]+>")
    found = log.wait_for(rf"self\.request -> <Context: (\{{.*'id': '{result.id}'.*\}})>")
    request = ast.literal_eval(found[1])
    # Then the fields are there, in this order, with these values
    expected = {
        "lang": "py", "task": "tasks.add_when_binded", "id": result.id, "shadow": None, "eta": None, "expires": None,
        "group": None, "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": result.id,
        "parent_id": None, "argsrepr": "(5, 5)", "kwargsrepr": "{}", "origin": ..., "ignore_result": False,
        "properties": ..., "reply_to": ..., "correlation_id": result.id, "hostname": ..., "delivery_info": ...,
        "args": [5, 5], "kwargs": {}, "is_eager": False, "callbacks": None, "errbacks": None, "chain": None,
        "chord": None, "called_directly": False, "_protected": 1,
    }  # fmt: skip
    assert [key for key in request if key in expected] == list(expected)
    assert {key: request[key] for key, value in expected.items() if value is not ...} == {
        key: value for key, value in expected.items() if value is not ...
    }
    assert re.fullmatch(r"gen\d+@\S+", request["origin"]) and re.fullmatch(r"celery@\S+", request["hostname"])
    properties = request["properties"]
    assert properties["correlation_id"] == result.id and properties["delivery_mode"] == 2
    assert properties["reply_to"] == request["reply_to"] == shop.app.backend.reply_to()
    assert properties["delivery_info"] == {"exchange": "", "routing_key": shop.queue}
    assert request["delivery_info"].keys() == {"exchange", "routing_key", "priority", "redelivered"}
    assert (request["delivery_info"]["exchange"], request["delivery_info"]["routing_key"]) == ("", shop.queue)


# -- results


def test_a_result_is_not_ready_and_then_is(shop: Workshop) -> None:
    gate = shop.gate()
    result = shop.tasks.behind.delay(gate.name)
    gate.reached()
    assert result.ready() is False
    gate.open()
    assert result.get(timeout=20) == gate.name
    assert result.ready() is True
    assert shop.tasks.add.delay(4, 4).get(timeout=20) == 8


def test_waiting_for_less_than_the_task_takes_raises(shop: Workshop) -> None:
    gate = shop.gate()
    result = shop.tasks.behind.delay(gate.name)
    gate.reached()
    with pytest.raises(TimeoutError, match=r"^The operation timed out\.$"):
        result.get(timeout=0.2)
    # And without a timeout get() blocks until the result is there
    gate.open()
    assert result.get() == gate.name


def test_get_raises_what_the_task_raised(shop: Workshop) -> None:
    result = shop.tasks.do_exception_task.delay()
    with pytest.raises(Exception, match="^Exception Error$") as caught:
        result.get(timeout=20)
    assert type(caught.value) is Exception


def test_get_without_propagate_returns_it(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    result = shop.tasks.do_exception_task.delay()
    print(result.get(timeout=20, propagate=False))
    assert capsys.readouterr().out == "Exception Error\n"
    # And the traceback of the worker can be had
    lines = str(result.traceback).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert '    raise Exception("Exception Error")' in lines
    assert lines[-1] == "Exception: Exception Error"
    assert re.search(r'File "\S*tasks\.py", line \d+, in do_exception_task', str(result.traceback))
    # And it has failed
    assert result.failed() is True
    assert result.status == "FAILURE"


def test_forget_returns_nothing(shop: Workshop) -> None:
    forgotten: Any = shop.tasks.add.delay(1, 1).forget()
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'get'"):
        forgotten.get()


# -- states


def test_an_unknown_task_is_pending(shop: Workshop) -> None:
    assert shop.app.AsyncResult("e9f6c8f0-fec9-4ae8-a8c6-cf8c8451d4f8").state == states.PENDING == "PENDING"


def test_a_task_that_waits_is_pending_then_started_if_tracked_then_success(shop: Workshop) -> None:
    gate = shop.gate()
    result = shop.tasks.tracked.delay(gate.name)
    gate.reached()
    eventually(lambda: result.status == states.STARTED == "STARTED", 20.0)
    gate.open()
    assert result.get(timeout=20) == "tracked"
    assert result.status == states.SUCCESS == "SUCCESS"
    # And a task that is not tracked does not say when it started
    gate = shop.gate()
    silent = shop.tasks.behind.delay(gate.name)
    gate.reached()
    assert silent.status == "PENDING"
    gate.open()
    silent.get(timeout=20)


def test_states_of_the_end(shop: Workshop) -> None:
    done, failed = shop.tasks.add.delay(9, 9), shop.tasks.do_exception_task.delay()
    done.get(timeout=20, propagate=False)
    failed.get(timeout=20, propagate=False)
    assert (done.status, failed.status) == ("SUCCESS", "FAILURE")
    assert {states.PENDING, states.STARTED, states.RETRY} & states.READY_STATES == set()


# -- configuration


def test_settings_are_set_one_by_one_or_many_at_once() -> None:
    app = App("tasks", backend="rpc://", broker="pyamqp://", set_as_current=False)
    app.conf.task_serializer = "json"
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        result_serializer="json",
        timezone="Europe/Oslo",
        enable_utc=True,
    )
    assert (app.conf.task_serializer, list(app.conf.accept_content)) == ("json", ["json"])
    assert (app.conf.timezone, app.conf.enable_utc, app.conf.result_backend) == ("Europe/Oslo", True, "rpc://")
    assert str(app.timezone) == "Europe/Oslo"


def test_settings_come_from_a_module(shop: Workshop) -> None:
    # Given the configuration module of the document, which the worker above runs with
    conf = shop.app.conf
    assert "celeryconfig" in conf.source_of("timezone")
    assert (conf.timezone, list(conf.accept_content), conf.result_serializer) == ("Europe/Oslo", ["json"], "json")
    # And it can be tried by itself
    done = subprocess.run([sys.executable, "-m", "celeryconfig"], cwd=shop.directory, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_content_that_is_not_accepted_is_not_run(shop: Workshop) -> None:
    # "Ignore other content": a message of another kind ends among the dead letters
    result = shop.tasks.add.apply_async((1, 1), serializer="msgpack")
    assert shop.dead_letter_of(result.id).properties.content_type == "application/x-msgpack"


def test_the_defaults_are_good_enough_to_begin_with() -> None:
    conf = App(set_as_current=False).conf
    assert (conf.task_serializer, conf.result_serializer, conf.enable_utc) == ("json", "json", True)
    assert (conf.task_ignore_result, conf.task_store_errors_even_if_ignored) == (False, False)
    assert (conf.task_acks_late, conf.task_track_started, conf.worker_prefetch_multiplier) == (False, False, 4)
    assert issubclass(SoftTimeLimitExceeded, Exception)


def test_a_task_that_ignores_its_result_gives_none(shop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    result = shop.tasks.add_ignored.delay(1, 1)
    print(result.get())
    assert capsys.readouterr().out == "None\n"
    shop.noted("add_ignored 2")


def test_results_are_ignored_globally_and_errors_kept(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    # Given an app and a worker with both settings
    settings = {"AMQPTASKS_TASK_IGNORE_RESULT": "1", "AMQPTASKS_TASK_STORE_ERRORS_EVEN_IF_IGNORED": "1"}
    run_worker(workshop, "-A", "tasks", "worker", "-l", "INFO", env=settings).wait_ready()
    workshop.app.conf.update(task_ignore_result=True)
    print(workshop.tasks.add.delay(1, 1).get(timeout=20))
    # When errors are to be kept / Then they are returned, and values are not
    workshop.app.conf.update(task_store_errors_even_if_ignored=True)
    print(workshop.tasks.add.delay(1, 1).get(timeout=20))
    print(workshop.tasks.do_exception_task.delay().get(timeout=20, propagate=False))
    assert capsys.readouterr().out == "None\nNone\nException Error\n"


@pytest.mark.parametrize(("late", "before", "after"), [("0", 1, 2), ("1", 2, 3)])
def test_late_acks_come_after_the_task_and_others_before(
    workshop: Workshop, late: str, before: int, after: int
) -> None:
    # Given three tasks, and a worker that holds one message at a time
    settings = {"AMQPTASKS_TASK_ACKS_LATE": late, "AMQPTASKS_WORKER_PREFETCH_MULTIPLIER": "1"}
    worker = run_worker(workshop, "-A", "tasks", "worker", "-c", "1", env=settings)
    worker.wait_ready()
    gate = workshop.gate()
    for _ in range(3):
        workshop.tasks.behind.delay(gate.name)
    gate.reached()
    # Then it takes the next while the first runs, if that was acknowledged before
    workshop.is_waiting(before)
    # And so it stays: acks may take some milliseconds
    assert all(workshop.waiting() == before for _ in range(100))
    # And when it is killed, the first comes back if it was to be acknowledged after
    worker.kill()
    workshop.is_waiting(after)


def test_as_many_processes_as_told_or_as_cores(workshop: Workshop, shop: Workshop) -> None:
    cores = len(os.sched_getaffinity(0))
    assert len(shop.workers[0].children()) == cores
    worker = run_worker(workshop, "-A", "tasks", "worker", env={"AMQPTASKS_WORKER_CONCURRENCY": "3"})
    worker.wait_ready()
    assert len(worker.children()) == 3


@pytest.mark.parametrize(("multiplier", "left"), [("4", 6), ("1", 9), ("0", 0)])
def test_the_prefetch_multiplier_says_how_much_is_fetched_ahead(workshop: Workshop, multiplier: str, left: int) -> None:
    # Given ten tasks that keep their messages, and a worker with one process
    settings = {
        "AMQPTASKS_WORKER_PREFETCH_MULTIPLIER": multiplier, "AMQPTASKS_TASK_ACKS_LATE": "1",
        "AMQPTASKS_WORKER_CONCURRENCY": "1",
    }  # fmt: skip
    run_worker(workshop, "-A", "tasks", "worker", env=settings).wait_ready()
    gate = workshop.gate()
    results: list[AsyncResult] = [workshop.tasks.behind.delay(gate.name) for _ in range(10)]
    gate.reached()
    # Then it has fetched so many, and 0 means as many as there are
    workshop.is_waiting(left)
    gate.open()
    for each in results:
        each.get(timeout=20)


def test_loggers_of_tasks_are_loggers(shop: Workshop) -> None:
    assert isinstance(shop.tasks.logger, logging.Logger) and shop.tasks.logger.name == "tasks"
