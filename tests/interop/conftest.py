"""Real Celery and amqptasks side by side: clients of both kinds in this process, workers of both kinds beside it."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from tests.support import ROOT, WorkerProcess

pytest.register_assert_rewrite("tests.interop.calls", "tests.interop.canvas_calls", "tests.interop.chord_calls")

from tests.interop.calls import Client, Gate, celery_client, our_client  # noqa: E402 - after its asserts were told to speak

COMMANDS = {
    # Without what only other Celery workers would hear: it starts faster.
    "celery": (
        *("-m", "celery", "-A", "tests.interop.tasks:celery_app", "worker", "-P", "prefork"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    "amqptasks": ("-m", "amqptasks", "-A", "tests.interop.tasks:our_app", "worker"),
}

Start = Callable[..., WorkerProcess]
QueueOf = Callable[[str, str], str]


@contextmanager
def stored_in(url: str) -> Iterator[None]:
    """Let the workers that are started here keep their results in a store, and chords of ours be counted there."""
    said = {"INTEROP_BACKEND": url, "INTEROP_CHORD_JOIN": "store"}
    before = {key: os.environ.get(key) for key in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


@contextmanager
def workers(broker_url: str) -> Iterator[Start]:
    """Start workers: ``start("celery", queue, "quorum", "-E")``. At the end ours must stop cleanly; the queues go."""
    running: list[WorkerProcess] = []
    queues: list[str] = []

    def start(kind: str, queue: str, queue_type: str, *arguments: str) -> WorkerProcess:
        queues.append(queue)
        node = f"{kind}-{uuid.uuid4().hex[:6]}@test"
        environment = os.environ | {
            "INTEROP_BROKER": broker_url, "INTEROP_QUEUE": queue, "INTEROP_QUEUE_TYPE": queue_type,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1", "NO_COLOR": "1",
        }  # fmt: skip
        command = [sys.executable, *COMMANDS[kind], "-c", "2", "-l", "INFO", "-n", node, *arguments]
        process = WorkerProcess(command, directory=directory, log=directory / f"{node}.log", env=environment)
        running.append(process)
        return process

    with tempfile.TemporaryDirectory(prefix="amqptasks-interop-") as name:
        directory = Path(name)
        try:
            yield start
            for process in running:
                if "celery" in process.command:
                    # A peer, not under test: its warm stop can take longer than a test may.
                    process.expected_exits = None
                    process.kill_group()
                process.finish()
        finally:
            for process in running:
                process.kill_group()
            with Admin(endpoints([broker_url], heartbeat_s=10, connection_timeout_s=5, name="interop tests")) as admin:
                for queue in queues:
                    admin.delete(queue)
                    admin.delete(f"{queue}.dead")


@pytest.fixture(scope="module")
def start_worker(broker_url: str) -> Iterator[Start]:
    """Start a real worker of either kind for the tests of a module; see `workers`."""
    with workers(broker_url) as start:
        yield start


def name_of(worker: WorkerProcess) -> str:
    """Return what a worker is called."""
    return worker.command[worker.command.index("-n") + 1]


@pytest.fixture(scope="module")
def make_client(broker_url: str) -> Iterator[Callable[..., Client]]:
    """Make a client of either kind: ``make_client("celery", queue, "quorum", task_protocol=1)``."""
    makers = {"celery": celery_client, "amqptasks": our_client}
    made: list[Client] = []

    def make(kind: str, queue: str, queue_type: str, **settings: object) -> Client:
        made.append(makers[kind](broker_url, queue, queue_type, **settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(params=["quorum", "classic"])
def queue_type(request: pytest.FixtureRequest) -> str:
    """The type of every queue. Both kinds of app must be told the same one.

    No fixture of the module may depend on it: in random order, each change would start every worker again.
    """
    return str(request.param)


@pytest.fixture(scope="module")
def queue_of(start_worker: Start) -> QueueOf:
    """A queue that a worker of this kind consumes: ``queue_of("celery", "quorum")``. One for all tests of a module."""

    @functools.cache
    def queue_of(kind: str, queue_type: str) -> str:
        name = f"interop-{kind}-{uuid.uuid4()}"
        start_worker(kind, name, queue_type).wait_ready()
        return name

    return queue_of


@pytest.fixture(scope="module")
def client_of(make_client: Callable[..., Client]) -> Callable[..., Client]:
    """Do as `make_client`, but make one client for all tests of a module."""
    return functools.cache(make_client)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate for one task. It is open at the end, whatever became of the test."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()
