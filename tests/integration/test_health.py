"""A worker's health, as a probe and Prometheus see it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import flower.events
import pytest
from prometheus_client.parser import text_string_to_metric_families

from amqptasks.worker.task_counts import TaskCounts
from tests.command import Shell
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import ROOT, WorkerProcess, eventually

SOURCE = """
@app.task
def add(x, y):
    return x + y

@app.task
def fail():
    raise KeyError("why")

@app.task(bind=True, max_retries=3)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0)

@app.task
def stand(name):
    note("begun")
    gate(name)
"""


class Watched:
    """A worker with a health file and a port, its broker behind a proxy."""

    def __init__(self, shop: Workshop, proxy: Proxy, directory: Path) -> None:
        self.shop, self.proxy = shop, proxy
        self.file = directory / "health"
        self.worker: WorkerProcess = shop.start(
            "-c", "1", "--health-file", str(self.file),
            "--http", "0", env={"AMQPTASKS_BROKER_URL": proxy.url},
        )  # fmt: skip
        self.port = int(self.worker.wait_for(r"Listening on http://127\.0\.0\.1:(\d+)")[1])
        self.node = self.worker.command[self.worker.command.index("-n") + 1]

    def get(self, path: str) -> tuple[int, str, str]:
        """Ask over HTTP: status, content type, text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type") or "", answer.read().decode()
        finally:
            connection.close()

    def healthz(self) -> tuple[int, dict[str, Any]]:
        status, _kind, text = self.get("/healthz")
        return status, json.loads(text)

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Every sample: its name, the values of its labels, its value."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[2]):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("health")
    with Proxy(broker_url) as proxy, Workshop(directory, broker_url, SOURCE) as shop:
        yield Watched(shop, proxy, directory)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def is_fit(watched: Watched) -> None:
    """Wait until the worker says by both ways that all is well."""

    def look() -> None:
        assert watched.healthz()[0] == 200
        assert watched.file.exists()

    eventually(look, 20)


def test_a_worker_that_is_well_says_so(watched: Watched, shell: Shell) -> None:
    # Given a worker that is ready / When it is asked by HTTP
    is_fit(watched)
    status, found = watched.healthz()
    # Then it says who it is and since when it is well
    assert (status, found["state"], found["node"], found["pid"]) == (200, "ready", watched.node, watched.worker.pid)
    assert "reasons" not in found and found["since"] <= found["time"]
    # And its file says the same, in one line
    in_file = json.loads(watched.file.read_text())
    assert watched.file.read_text().count("\n") == 1
    assert {**in_file, "time": found["time"]} == found
    # And the probe sees it, without an app
    assert shell("health", "--file", str(watched.file)).stdout.startswith(f"{watched.node}: ready, ")
    told = json.loads(shell("health", "--file", str(watched.file), "--json").stdout)
    assert told["ok"] is True and told["node"] == watched.node and told["age"] < 15
    # And it is written again and again, never in part
    before = watched.file.stat().st_mtime_ns
    eventually(lambda: watched.file.stat().st_mtime_ns > before)
    assert [each.name for each in watched.file.parent.iterdir() if each.name.startswith("health")] == ["health"]


def test_a_worker_without_its_broker_is_not_well(watched: Watched, shell: Shell) -> None:
    is_fit(watched)
    # When the broker goes away / Then it is said at once, and why
    watched.proxy.refuse()
    try:

        def unfit() -> dict[str, Any]:
            status, found = watched.healthz()
            assert status == 503
            assert len(found["reasons"]) == 2
            return found

        found = eventually(unfit, 20)
        assert found["state"] == "unfit"
        assert re.match(r"not connected to amqp://\S+ for consuming", found["reasons"][0])
        assert "guest:guest" not in str(found)
        assert watched.metrics()["amqptasks_connected"] == {("consuming",): 0, ("publishing",): 0}
        # And the file grows old
        old = watched.file.stat().st_mtime_ns

        def probe() -> str:
            return shell("health", "--file", str(watched.file), "--max-age", "1", code=1).stderr

        assert "ready" in eventually(_without_error(probe), 20)
        assert watched.file.stat().st_mtime_ns == old
    finally:
        watched.proxy.heal()
    # When it is back / Then all is well again
    is_fit(watched)
    eventually(lambda: watched.file.stat().st_mtime_ns > old, 20)
    assert min(watched.metrics()["amqptasks_reconnects_total"].values()) >= 1


def _without_error(probe: Any) -> Any:
    """Turn a code that is not the expected one into "not yet"."""

    def look() -> Any:
        try:
            return probe()
        except AssertionError:
            return False

    return look


def test_a_worker_that_hangs_is_noticed(watched: Watched, shell: Shell) -> None:
    # Given a worker that is well / When its process stands still
    is_fit(watched)
    os.kill(watched.worker.pid, signal.SIGSTOP)
    try:
        # Then its file grows old
        told = eventually(
            _without_error(lambda: shell("health", "--file", str(watched.file), "--max-age", "1", "--json", code=1)), 20
        )
        assert json.loads(told.stdout)["ok"] is False
    finally:
        os.kill(watched.worker.pid, signal.SIGCONT)
    is_fit(watched)


def test_the_worker_is_counted(watched: Watched) -> None:
    # Given a task that stands, and one behind it
    is_fit(watched)
    shop = watched.shop
    gate = shop.gate()
    standing = shop.tasks.stand.delay(gate.name)
    waiting = shop.tasks.add.delay(1, 2)
    gate.reached()

    def name(task: str) -> str:
        return f"{shop.project.name}.{task}"

    def look() -> dict[str, dict[tuple[str, ...], float]]:
        found = watched.metrics()
        assert found["flower_worker_number_of_currently_executing_tasks"] == {(watched.node,): 1}
        assert found["flower_worker_prefetched_tasks"][watched.node, name("add")] == 1
        return found

    # When it is asked / Then what is and what was is counted
    found = eventually(look, 20)
    assert watched.get("/metrics")[1].startswith("text/plain; version=0.0.4")
    assert found["flower_worker_online"] == {(watched.node,): 1}
    assert found["amqptasks_connected"] == {("consuming",): 1, ("publishing",): 1}
    assert found["amqptasks_consuming"] == {(shop.queue,): 1}
    assert found["amqptasks_pool_places"] == {(): 1}
    gate.open()
    standing.get(timeout=20)
    assert waiting.get(timeout=20) == 3
    shop.app.send_task("no.such.task").get(timeout=20, propagate=False)
    eventually(lambda: watched.metrics().get("amqptasks_dead_letters_total") == {("unknown-task",): 1}, 20)
    eventually(lambda: watched.metrics()["amqptasks_unsettled_tasks"] == {(): 0}, 20)


def test_what_becomes_of_tasks_is_counted_under_flowers_names(tmp_path: Path, broker_url: str) -> None:
    with Proxy(broker_url) as proxy, Workshop(tmp_path, broker_url, SOURCE) as shop:
        # Given a worker that sends no events / When tasks succeed, fail, are tried again, expire, and are not known
        watched = Watched(shop, proxy, tmp_path)
        is_fit(watched)
        for _ in range(3):
            assert shop.tasks.add.delay(1, 2).get(timeout=20) == 3
        gone = shop.tasks.add.apply_async((1, 2), expires=-1)
        unknown = shop.app.send_task("no.such." + "x" * 50)
        for result in (shop.tasks.fail.delay(), shop.tasks.again.delay(), gone, unknown):
            result.get(timeout=20, propagate=False)
        # Then each is counted
        names = {task: f"{shop.project.name}.{task}" for task in ("add", "fail", "again")}
        expected = {
            ("task-received", "add"): 3, ("task-started", "add"): 3, ("task-succeeded", "add"): 3,
            ("task-revoked", "add"): 1, ("task-received", "fail"): 1, ("task-started", "fail"): 1,
            ("task-failed", "fail"): 1, ("task-received", "again"): 2, ("task-started", "again"): 2,
            ("task-retried", "again"): 1, ("task-succeeded", "again"): 1, ("task-failed", ""): 1,
        }  # fmt: skip

        def look() -> dict[str, dict[tuple[str, ...], float]]:
            found = watched.metrics()
            assert found["flower_events_total"] == {
                (watched.node, kind, names.get(task, "")): count for (kind, task), count in expected.items()
            }
            return found

        found = eventually(look, 20)
        assert found["flower_task_runtime_seconds_count"] == {
            (watched.node, names["add"]): 3, (watched.node, names["again"]): 1,
        }  # fmt: skip
        assert found["flower_task_runtime_seconds_bucket"][watched.node, names["add"], "+Inf"] == 3
        assert found["flower_task_prefetch_time_seconds"] == {(watched.node, name): 0 for name in names.values()}
        # When a task runs that had to wait / Then it is said for how long
        gate = shop.gate()
        before = shop.tasks.stand.delay(gate.name)
        behind = shop.gate("behind")
        shop.tasks.stand.delay(behind.name)
        gate.reached()
        gate.open()
        before.get(timeout=20)
        behind.reached()
        waited = watched.metrics()["flower_task_prefetch_time_seconds"][watched.node, f"{shop.project.name}.stand"]
        assert waited > 0
        behind.open()


def test_the_metrics_have_flowers_names_labels_and_kinds() -> None:
    # Given Flower's own metrics and ours, of the same kinds / Then each of theirs is there, with its kind and labels
    theirs = vars(flower.events.get_prometheus_metrics()).values()
    counts = TaskCounts(cast(Any, None), "w1")
    page = ROOT / "amqptasks" / "worker" / "monitoring.py"
    ours = {each.name: (each.kind, each.labels) for each in counts.families(())}
    for metric in theirs:
        name = metric._name + ("_total" if metric._type == "counter" else "")
        if name in ours:
            assert ours[name] == (metric._type, tuple(metric._labelnames))
        else:
            assert f'"{name}", "{metric._type}"' in page.read_text()
    assert len(list(theirs)) == 6


def test_a_worker_that_stops_says_so_to_the_end(tmp_path: Path, broker_url: str, shell: Shell) -> None:
    with Proxy(broker_url) as proxy, Workshop(tmp_path, broker_url, SOURCE) as shop:
        # Given a worker with a running task
        watched = Watched(shop, proxy, tmp_path)
        is_fit(watched)
        gate = shop.gate()
        shop.tasks.stand.delay(gate.name)
        gate.reached()
        # When it is told to stop / Then it is well while the task goes on, and says that it stops
        watched.worker.signal(signal.SIGTERM)
        eventually(lambda: watched.healthz()[1]["state"] == "stopping", 20)
        assert watched.healthz()[0] == 200
        eventually(lambda: json.loads(watched.file.read_text())["state"] == "stopping", 20)
        # When it has ended / Then there is no file left
        gate.open()
        assert watched.worker.wait() == 0
        assert not watched.file.exists()
        told = shell("health", "--file", str(watched.file), code=69)
        assert told.stderr == (
            f"Error: no health file {str(watched.file)!r}: No such file or directory; no worker is ready there\n"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--http", "web"), "Error: --http: expected PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, got: 'web'"),
        (("--http", "127.0.0.1:70000"), "Error: --http: expected PORT or HOST:PORT"),
        (("--http", "192.0.2.1:8080"), "Error: cannot listen on 192.0.2.1:8080: Cannot assign requested address"),
        (("--health-file", "no/such/place"), "Error: cannot write the health file '"),
    ],
)
def test_what_cannot_be_had_is_said_on_one_line(watched: Watched, arguments: tuple[str, ...], message: str) -> None:
    shell = Shell(watched.shop.directory)
    environment = {"PYTHONPATH": f"{Path(__file__).parents[2]}"}
    done = shell("-A", watched.shop.project.name, "worker", *arguments, code=2, env=environment)
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_a_probe_imports_no_app_and_no_broker(watched: Watched, shell: Shell) -> None:
    # Given a worker that is well / When the probe runs / Then nothing is imported that it does not need
    is_fit(watched)
    found = shell("health", "--file", str(watched.file), env={"PYTHONPROFILEIMPORTTIME": "1"})
    modules = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "amqptasks.cli.main" in modules
    assert not modules & {"pika", "msgpack", "tenacity", "asyncio", "amqptasks.app.app", "amqptasks.settings", "http"}
