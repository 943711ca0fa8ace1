"""Signed messages between real Celery and amqptasks, in both directions, answers included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from tests.signers import identity, store
from tests.support import ROOT, WorkerProcess

COMMANDS = {
    "celery": (
        *("-m", "celery", "-A", "tests.interop.signed_apps:app", "worker", "-P", "prefork"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    "amqptasks": ("-m", "amqptasks", "-A", "tests.interop.signed_apps:app", "worker"),
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the keys of a worker and a client who trust each other."""
    directory = tmp_path_factory.mktemp("signed")
    store(directory / "store", identity(directory, "worker"), identity(directory, "client"))
    return directory


def environment(people: Path, broker_url: str, kind: str, name: str, queue: str, serializer: str) -> dict[str, str]:
    return os.environ | {
        "SIGNED_DIRECTORY": str(people), "SIGNED_NAME": name, "SIGNED_BROKER": broker_url, "SIGNED_QUEUE": queue,
        "SIGNED_KIND": kind, "SIGNED_SERIALIZER": serializer, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip


@pytest.fixture
def queue(broker_url: str) -> Iterator[str]:
    name = f"signed-{uuid.uuid4().hex[:10]}"
    yield name
    with Admin(endpoints([broker_url], heartbeat_s=None, connection_timeout_s=5, name="a test")) as admin:
        for each in (name, f"{name}.dead"):
            admin.delete(each)


@pytest.mark.parametrize(("worker_kind", "serializer"), [("celery", "json"), ("amqptasks", "msgpack")])
def test_signed_calls_and_answers_are_understood(
    worker_kind: str, serializer: str, people: Path, broker_url: str, queue: str, tmp_path: Path
) -> None:
    # Given a worker of one kind and a program of the other, who trust each other's certificates
    client_kind = "celery" if worker_kind == "amqptasks" else "amqptasks"
    worker = WorkerProcess(
        [sys.executable, *COMMANDS[worker_kind], "-c", "1", "-l", "INFO", "-n", f"signed-{uuid.uuid4().hex[:6]}@test"],
        directory=tmp_path, log=tmp_path / "worker.log",
        env=environment(people, broker_url, worker_kind, "worker", queue, serializer),
    )  # fmt: skip
    worker.expected_exits = None if worker_kind == "celery" else (0,)
    try:
        worker.wait_ready()
        # When the program calls
        done = subprocess.run(
            [sys.executable, "-m", "tests.interop.signed_apps"], capture_output=True, text=True, timeout=50, cwd=ROOT,
            env=environment(people, broker_url, client_kind, "client", queue, serializer),
        )  # fmt: skip
        # Then each call runs, and each answer is read
        assert done.returncode == 0, f"{done.stderr}\n{worker.log}"
        assert json.loads(done.stdout) == {
            "sum": 5, "chain": 7, "gzip": 5001, "delayed": 2, "retried": 1, "error": "KeyError('signed')",
        }  # fmt: skip
    finally:
        worker.finish()
