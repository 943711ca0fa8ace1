"""Chords of real Celery's over a database, which counts nothing: our workers run the task that waits for parts."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import celery
import celery.exceptions
import kombu.pools
import pytest

from amqptasks.exceptions import ChordError
from tests.interop import tasks
from tests.interop.calls import our_client
from tests.interop.chord_calls import check_failures, check_values
from tests.interop.conftest import stored_in, workers
from tests.running import Workshop
from tests.support import eventually

TIMEOUT_S = 30
#: Celery keeps its sessions with the database open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"db+sqlite:///{tmp_path_factory.mktemp('unlocking')}/results.sqlite"


@pytest.fixture(scope="module")
def queue(broker_url: str, store: str) -> Iterator[str]:
    """The queue of a worker of ours, which keeps its results in the database."""
    with stored_in(store), workers(broker_url) as start:
        name = f"unlocking-{uuid.uuid4().hex[:8]}"
        start("amqptasks", name, "quorum").wait_ready()
        yield name


@pytest.fixture(scope="module")
def their_queue(broker_url: str, store: str) -> Iterator[str]:
    """The queue of a worker of Celery's with the same database."""
    with stored_in(store), workers(broker_url) as start:
        name = f"unlocking-celery-{uuid.uuid4().hex[:8]}"
        start("celery", name, "quorum").wait_ready()
        yield name


@pytest.fixture(scope="module")
def on(broker_url: str, store: str, queue: str) -> Iterator[Callable[..., Any]]:
    """Make a call in a Celery program: ``on("add", 1, 2)``."""
    app = celery.Celery("unlocking", set_as_current=False)
    app.conf.update(tasks.settings(broker_url, queue, "quorum"), result_backend=store)
    tasks.register(app)
    yield lambda name, *args: app.tasks[f"interop.{name}"].s(*args)
    kombu.pools.reset()
    app.close()


def begun(header: list[Any], body: Any) -> Any:
    return celery.chord(header, body).apply_async(interval=0.2)


def test_the_body_gets_the_results_in_order(on: Callable[..., Any]) -> None:
    # Given chords of a Celery program, one of them with a part that takes a while / When our worker runs all of it
    result = begun([on("add", number, number) for number in range(5)], on("total"))
    late = begun([on("add", 1, 1) | on("add", 10), on("add", 3, 3)], on("echo"))
    # Then each body was called once all were there, with their results in order
    assert result.get(timeout=TIMEOUT_S) == 20
    assert late.get(timeout=TIMEOUT_S) == [[[12, 6]], {}]


def test_a_part_that_fails_fails_the_body(on: Callable[..., Any], tmp_path: Path) -> None:
    told = tmp_path / "told"
    body = on("echo").on_error(on("write", str(told)))
    result = begun([on("add", 1, 1), on("raises", "ValueError", "no")], body)
    with pytest.raises(celery.exceptions.ChordError, match="Dependency .* raised ValueError"):
        result.get(timeout=TIMEOUT_S, follow_parents=False)
    eventually(lambda: told.exists(), TIMEOUT_S)


@pytest.fixture(scope="module")
def ours(broker_url: str, store: str, queue: str, their_queue: str) -> Iterator[Callable[..., Any]]:
    """Make a call in a program of ours that sends chords as Celery does."""
    queues = {"amqptasks": queue, "celery": their_queue}
    client = our_client(broker_url, queue, "quorum", result_backend=store, chord_join="store")
    yield lambda kind, name, *args: client.app.tasks[f"interop.{name}"].s(*args).set(queue=queues[kind])
    client.close()


def test_chords_of_ours_are_carried_by_workers_of_both_kinds(ours: Callable[..., Any]) -> None:
    check_values(ours)


def test_parts_that_fail_fail_the_bodies_of_ours(ours: Callable[..., Any], tmp_path: Path) -> None:
    check_failures(ours, tmp_path)


SOURCE = """
    app.conf.result_backend = "db+sqlite:///%s/results.sqlite"
    app.conf.task_queue_prefix = "unlocking"
    app.conf.update(%s)

    @app.task
    def total(numbers):
        return sum(numbers)
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Callable[[str], Workshop]]:
    """Start a worker of ours with these settings."""
    with ExitStack() as made:

        def start(settings: str) -> Workshop:
            each = made.enter_context(Workshop(tmp_path, broker_url, SOURCE % (tmp_path, settings)))
            each.start("-c", "1", "-l", "INFO")
            return each

        yield start


def wait_for(shop: Workshop, *args: Any, **options: Any) -> str:
    """Send what a Celery program sends with its chord; its part is never run. Returns the body's id."""
    body_id, part = uuid.uuid4().hex, [[uuid.uuid4().hex, None], None]
    body = {**shop.tasks.total.s(), "options": {"task_id": body_id}}
    shop.app.send_task("celery.chord_unlock", args or (uuid.uuid4().hex, body), {"result": [part], **options})
    return body_id


def test_the_settings_say_when_it_looks_again(shop: Callable[[str], Workshop]) -> None:
    # Given a worker that is to look once an hour / When a part is not there / Then it comes back in an hour
    made = shop("result_chord_retry_interval=3600")
    wait_for(made)
    eventually(lambda: "Retry in 3600" in made.workers[0].log, TIMEOUT_S)


def test_it_does_not_wait_for_ever(shop: Callable[[str], Workshop]) -> None:
    # Given a chord that may take half a second, and one that may be looked at twice / When their parts never end
    made = shop("result_chord_expires=0.5")
    patient, counted = wait_for(made, interval=0.1), wait_for(made, interval=0.1, max_retries=1)
    # Then their bodies fail, and say so
    for body_id, reason in ((patient, "did not all end within 0.5 s"), (counted, "MaxRetriesExceededError")):
        with pytest.raises(ChordError, match=reason):
            made.app.AsyncResult(body_id).get(timeout=TIMEOUT_S)


def test_what_makes_no_sense_stops_nothing(shop: Callable[[str], Workshop]) -> None:
    # Given calls that name no body, no header, or neither in a form that can be read
    made = shop("")
    call = {"task": "x", "args": [], "kwargs": {}, "options": {}}
    for args, result in (((), None), (("gid", 5), []), (("gid", call), 5), (("gid", call), [5]), ((5, call), [])):
        made.app.send_task("celery.chord_unlock", args, {"result": result})
    # Then each fails by itself, and the worker goes on
    eventually(lambda: made.workers[0].log.count("raised unexpected: InvalidTaskError") == 5, TIMEOUT_S)
    assert made.tasks.total.delay([1, 2]).get(timeout=TIMEOUT_S) == 3
