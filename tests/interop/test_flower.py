"""The real Flower, pointed at our broker: it shows our workers and tasks, and its buttons work, by its REST API."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from tests.interop.calls import TIMEOUT_S, Gate
from tests.interop.conftest import Start, name_of, stored_in
from tests.support import ROOT, WorkerProcess, eventually

QUEUE = f"interop-flower-{uuid.uuid4().hex[:8]}"
TYPE = "quorum"


class Flower:
    """A Flower that runs."""

    def __init__(self, process: WorkerProcess, port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    def read(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Get a page, or post; return its status and text."""
        request = urllib.request.Request(f"{self._url}{path}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def get(self, path: str) -> Any:
        """Get JSON."""
        status, text = self.read(path)
        assert status == 200, text
        return json.loads(text)

    def page(self, path: str) -> str:
        """Get a page for people."""
        status, text = self.read(path)
        assert status == 200, text
        return text

    def post(self, path: str, body: Any) -> Any:
        """Post JSON."""
        status, text = self.read(path, json.dumps(body).encode())
        assert status == 200, text
        return json.loads(text)

    def press(self, path: str, **fields: Any) -> str:
        """Press a button of a worker or a task, and return what is said then."""
        said: dict[str, str] = {}

        def pressed() -> bool:
            status, text = self.read(path, urllib.parse.urlencode(fields).encode())
            # It gives a worker one second.
            if status == 403 and "Unknown reason" in text:
                return False
            assert status == 200, text
            said.update(json.loads(text))
            return True

        eventually(pressed, TIMEOUT_S)
        return said["message"]

    def worker(self, name: str) -> Any:
        """Return what it knows of a worker, asked anew."""

        def known() -> Any:
            status, text = self.read(f"/api/workers?refresh=1&workername={name}")
            assert status == 200, text
            found = json.loads(text)[name]
            assert found.keys() >= {"stats", "active_queues", "registered", "active", "reserved", "scheduled", "conf"}
            return found

        return eventually(known, TIMEOUT_S)

    def task(self, task_id: str, state: str) -> Any:
        """Return what it knows of a task, once it is in this state."""

        def known() -> Any:
            status, text = self.read(f"/api/task/info/{task_id}")
            assert status == 200, text
            task = json.loads(text)
            assert task["state"] == state, task
            return task

        return eventually(known, TIMEOUT_S)


@pytest.fixture(scope="module", autouse=True)
def kept_in_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Results are where Flower finds them: by rpc:// Celery hears of them in the thread only that has sent the task."""
    with stored_in(f"file://{tmp_path_factory.mktemp('results')}"):
        yield


@pytest.fixture(scope="module")
def started(start_worker: Start, broker_url: str) -> Iterator[tuple[Flower, WorkerProcess, WorkerProcess]]:
    """A Flower, a worker that sends events, and one that scales itself."""
    worker = start_worker("amqptasks", QUEUE, TYPE, "-E", "--", "worker_pool_restarts=true")
    scaling = start_worker("amqptasks", f"{QUEUE}-scaling", TYPE, "-E", "--autoscale=3,1")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {
        "INTEROP_BROKER": broker_url, "INTEROP_QUEUE": QUEUE, "INTEROP_QUEUE_TYPE": TYPE,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1", "FLOWER_UNAUTHENTICATED_API": "true",
    }  # fmt: skip
    command = [
        *(sys.executable, "-m", "celery", "-A", "tests.interop.tasks:celery_app", "flower"),
        *("--address=127.0.0.1", f"--port={port}", "--inspect_timeout=2000"),
    ]
    with tempfile.TemporaryDirectory(prefix="amqptasks-flower-") as name:
        process = WorkerProcess(command, directory=Path(name), log=Path(name) / "flower.log", env=environment)
        try:
            for each in (worker, scaling):
                each.wait_ready()
            process.wait_for("Visit me at")
            flower = Flower(process, port)
            for each in (worker, scaling):
                flower.worker(name_of(each))
            yield flower, worker, scaling
        finally:
            process.kill_group()


@pytest.fixture(scope="module")
def flower(started: tuple[Flower, WorkerProcess, WorkerProcess]) -> Flower:
    return started[0]


@pytest.fixture(scope="module")
def worker(started: tuple[Flower, WorkerProcess, WorkerProcess]) -> WorkerProcess:
    """The worker that Flower sends tasks to."""
    return started[1]


@pytest.fixture(scope="module")
def name(worker: WorkerProcess) -> str:
    return name_of(worker)


def test_workers_are_shown(flower: Flower, name: str) -> None:
    # When Flower asks all workers, then ours are there
    eventually(lambda: name in flower.get("/api/workers?refresh=1"), TIMEOUT_S)
    assert flower.get("/api/workers?status=1")[name] is True

    # And of each its pool, its queues, its broker, its tasks and its settings
    known = flower.worker(name)
    assert known["stats"]["pool"]["max-concurrency"] >= 2
    assert known["stats"]["broker"]["transport"] == "amqp"
    assert QUEUE in [queue["name"] for queue in known["active_queues"]]
    assert "interop.add" in [each.partition(" ")[0] for each in known["registered"]]
    assert known["conf"]["task_default_queue"] == QUEUE


def test_a_worker_has_its_page(flower: Flower, name: str) -> None:
    # When somebody opens the page of all workers, and that of one, then they are not empty
    assert name in flower.page("/workers")
    page = flower.page(f"/worker/{name}")
    for shown in (name, QUEUE, "interop.add", "PreforkPool", "127.0.0.1"):
        assert shown in page


def test_a_task_that_flower_sends_is_run_and_shown(flower: Flower, name: str) -> None:
    # When a task is sent from Flower
    sent = flower.post("/api/task/async-apply/interop.echo", {"args": [1, "two"], "kwargs": {"three": 3}})

    # Then it is shown with all there is to it, and its result
    task = flower.task(sent["task-id"], "SUCCESS")
    assert (task["name"], task["args"], task["kwargs"]) == ("interop.echo", "[1, 'two']", "{'three': 3}")
    assert (task["worker"], task["result"]) == (name, "[[1, 'two'], {'three': 3}]")
    assert 0 <= task["runtime"] < TIMEOUT_S
    assert task["received"] <= task["started"] <= task["succeeded"]
    result = flower.get(f"/api/task/result/{sent['task-id']}?timeout={TIMEOUT_S}")
    assert result["result"] == [[1, "two"], {"three": 3}]

    # And so on its page, and in the table
    page = flower.page(f"/task/{sent['task-id']}")
    for shown in ("interop.echo", "[1, &#39;two&#39;]", "SUCCESS", name):
        assert shown in page or shown.replace("&#39;", "&#x27;") in page
    assert sent["task-id"] in flower.get(f"/api/tasks?workername={name}&taskname=interop.echo")
    query = "draw=1&start=0&length=10&search[value]=&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"
    assert sent["task-id"] in [each["uuid"] for each in flower.get(f"/tasks/datatable?{query}")["data"]]
    assert "interop.echo" in flower.get("/api/task/types")["task-types"]


def test_a_task_is_run_and_waited_for(flower: Flower, worker: WorkerProcess) -> None:
    assert flower.post("/api/task/apply/interop.add", {"args": [2, 3]})["result"] == 5


def test_a_failure_is_shown(flower: Flower, worker: WorkerProcess) -> None:
    # When a task fails, then Flower shows how
    sent = flower.post("/api/task/async-apply/interop.refuse", {"args": ["no"]})
    task = flower.task(sent["task-id"], "FAILURE")
    assert task["exception"] == "Refused('no')"
    assert "in refuse" in task["traceback"]


def test_the_pool_changes(flower: Flower, name: str) -> None:
    # When the pool is told to grow, then it has more processes, until it shrinks
    def processes() -> int:
        return len(flower.worker(name)["stats"]["pool"]["processes"])

    before = processes()
    assert name in flower.press(f"/api/worker/pool/grow/{name}", n=1)
    eventually(lambda: processes() > before, TIMEOUT_S)
    assert name in flower.press(f"/api/worker/pool/shrink/{name}", n=1)
    eventually(lambda: processes() <= before, TIMEOUT_S)


def test_the_pool_is_restarted(flower: Flower, name: str) -> None:
    # When the pool is restarted, then other processes do the work
    def processes() -> set[int]:
        return set(flower.worker(name)["stats"]["pool"]["processes"])

    before = processes()
    assert name in flower.press(f"/api/worker/pool/restart/{name}")
    eventually(lambda: not before & processes(), TIMEOUT_S)


def test_queues_are_added_and_left(flower: Flower, name: str, broker_url: str) -> None:
    added = f"{QUEUE}-added"

    def consumed() -> list[str]:
        return [queue["name"] for queue in flower.worker(name)["active_queues"]]

    try:
        # When a worker is told to consume a queue, then it does, until it is told to leave it
        assert flower.press(f"/api/worker/queue/add-consumer/{name}", queue=added) == f"add consumer {added}"
        eventually(lambda: added in consumed(), TIMEOUT_S)
        said = flower.press(f"/api/worker/queue/cancel-consumer/{name}", queue=added)
        assert said == f"no longer consuming from {added}"
        eventually(lambda: added not in consumed(), TIMEOUT_S)
    finally:
        with Admin(endpoints([broker_url], heartbeat_s=10, connection_timeout_s=5, name="interop tests")) as admin:
            admin.delete(added)


def test_limits_change(flower: Flower, name: str) -> None:
    said = flower.press("/api/task/rate-limit/interop.stamps", workername=name, ratelimit="100/m")
    assert said == "new rate limit set successfully"
    assert any("rate_limit=100/m" in each for each in flower.worker(name)["registered"])
    said = flower.press("/api/task/timeout/interop.stamps", workername=name, soft=30, hard=60)
    assert said == "time limits set successfully"


def test_a_task_that_is_not_due_is_revoked(flower: Flower, worker: WorkerProcess) -> None:
    # When a delayed task is revoked, then it ends so when it is due
    sent = flower.post("/api/task/async-apply/interop.add", {"args": [2, 3], "countdown": 1.5})
    assert sent["task-id"] in flower.press(f"/api/task/revoke/{sent['task-id']}")
    flower.task(sent["task-id"], "REVOKED")


def test_a_running_task_is_terminated(flower: Flower, name: str, gate: Gate) -> None:
    # Given a task that runs, as Flower shows
    sent = flower.post("/api/task/async-apply/interop.wait", {"args": [str(gate.path)]})
    flower.task(sent["task-id"], "STARTED")
    assert sent["task-id"] in [each["id"] for each in flower.worker(name)["active"]]

    # When it is terminated, then it ends so
    assert sent["task-id"] in flower.press(f"/api/task/revoke/{sent['task-id']}", terminate=1, signal="SIGKILL")
    flower.task(sent["task-id"], "REVOKED")


def test_metrics_tell_of_our_worker(flower: Flower, name: str) -> None:
    # Given a task that has run
    sent = flower.post("/api/task/async-apply/interop.add", {"args": [1, 1]})
    flower.task(sent["task-id"], "SUCCESS")

    # When Prometheus reads the metrics, then the worker is on line, and the task counted
    def told() -> None:
        lines = flower.page("/metrics").splitlines()
        assert f'flower_worker_online{{worker="{name}"}} 1.0' in lines
        counted = f'flower_events_total{{task="interop.add",type="task-succeeded",worker="{name}"}}'
        assert any(line.startswith(counted) for line in lines)
        assert any(line.startswith("flower_task_runtime_seconds_count") and name in line for line in lines)

    eventually(told, TIMEOUT_S)


def test_a_worker_is_scaled_and_shut_down(started: tuple[Flower, WorkerProcess, WorkerProcess]) -> None:
    # Given a worker that scales itself
    flower, _worker, scaling = started
    name = name_of(scaling)

    # When its bounds are changed, then it has them
    assert name in flower.press(f"/api/worker/pool/autoscale/{name}", min=2, max=4)
    scaler = flower.worker(name)["stats"]["autoscaler"]
    assert (scaler["max"], scaler["min"]) == (4, 2)

    # When it is told to shut down, then it ends, as after a warm stop, and is shown as gone
    assert flower.press(f"/api/worker/shutdown/{name}") == "Shutting down!"
    assert scaling.wait() == 0
    eventually(lambda: flower.get("/api/workers?status=1")[name] is False, TIMEOUT_S)
