"""``status``, ``inspect`` and ``control``: Celery's program with our workers, ours with Celery's, and both alike."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from amqptasks.exceptions import TaskRevokedError
from tests.interop.calls import TIMEOUT_S, Client, Gate, get
from tests.interop.conftest import Start, name_of
from tests.interop.programs import PATIENCE_S, Program
from tests.support import ROOT, WorkerProcess, eventually

#: Whose program talks to whose worker.
PAIRS = [("celery", "amqptasks"), ("amqptasks", "celery"), ("amqptasks", "amqptasks")]
TYPE = "quorum"


@dataclass(frozen=True)
class Worker:
    """A worker, its queue, and a program of the same kind that sends it tasks."""

    kind: str
    name: str
    queue: str
    client: Client
    process: WorkerProcess


@pytest.fixture(scope="module")
def environment(broker_url: str) -> dict[str, str]:
    """What the apps of `tests.interop.tasks` are told."""
    queue = f"interop-cli-{uuid.uuid4().hex[:8]}"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        "INTEROP_BROKER": broker_url, "INTEROP_QUEUE": queue, "INTEROP_QUEUE_TYPE": TYPE, "PYTHONPATH": paths,
    }  # fmt: skip


@pytest.fixture(scope="module")
def programs(environment: dict[str, str]) -> Iterator[dict[str, Program]]:
    """The programs of both kinds."""
    made = {kind: Program(kind, environment) for kind in ("celery", "amqptasks")}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture(scope="module")
def start_named(start_worker: Start, make_client: Callable[..., Client]) -> Callable[..., Worker]:
    """Start a worker of a kind, and know what it is called. It is not waited for."""

    def start(kind: str, *arguments: str) -> Worker:
        queue = f"interop-{kind}-{uuid.uuid4()}"
        process = start_worker(kind, queue, TYPE, "-E", *arguments)
        return Worker(kind, name_of(process), queue, make_client(kind, queue, TYPE), process)

    return start


@pytest.fixture(scope="module")
def workers_of(start_named: Callable[..., Worker]) -> dict[str, Worker]:
    """A worker of each kind, for all tests."""
    started = {kind: start_named(kind) for kind in ("celery", "amqptasks")}
    for each in started.values():
        each.process.wait_ready()
    return started


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}")
def pair(
    request: pytest.FixtureRequest, programs: dict[str, Program], workers_of: dict[str, Worker]
) -> tuple[Program, Worker]:
    """A program, and a worker that it talks to."""
    program, worker = request.param
    return programs[program], workers_of[worker]


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Make gates for tasks to stay at. They are open at the end."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate-{len(made)}"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()


def test_status_shows_the_worker(pair: tuple[Program, Worker]) -> None:
    # When its status is asked for, then it is there, in Celery's words
    program, worker = pair
    said = program("status", "-d", worker.name, "-t", str(PATIENCE_S))
    assert said.out == f"->  {worker.name}: OK\n\n1 node online.\n"


def test_the_program_as_it_is_typed_finds_our_worker(
    environment: dict[str, str], workers_of: dict[str, Worker], tmp_path: Path
) -> None:
    # When somebody types `celery -A … inspect ping`
    worker = workers_of["amqptasks"]
    command = [sys.executable, "-m", "celery", "-A", "tests.interop.tasks:celery_app", "inspect", "ping"]
    done = subprocess.run(
        [*command, "-d", worker.name, "-t", str(PATIENCE_S)], env=os.environ | environment | {"NO_COLOR": "1"},
        cwd=tmp_path, text=True, capture_output=True, timeout=2 * TIMEOUT_S,
    )  # fmt: skip

    # Then our worker answers
    assert (done.returncode, done.stdout) == (0, f"->  {worker.name}: OK\n        pong\n\n1 node online.\n"), done


ASKED: dict[str, Callable[[Any, Worker], bool]] = {
    "ping": lambda reply, _worker: reply == {"ok": "pong"},
    "clock": lambda reply, _worker: reply["clock"] > 0,
    "stats": lambda reply, worker: (
        reply["pool"]["max-concurrency"] >= 2
        and reply["pid"] == worker.process.pid
        and isinstance(reply["total"], dict)
        and reply["broker"]["transport"] == "amqp"
        and "password" not in reply["broker"]
        and reply["rusage"]["maxrss"] > 0
    ),
    "registered": lambda reply, _worker: any(each.startswith("interop.echo") for each in reply),
    "active_queues": lambda reply, worker: worker.queue in [each["name"] for each in reply],
    "conf": lambda reply, worker: reply["task_default_queue"] == worker.queue and "guest:guest" not in str(reply),
    "report": lambda reply, worker: worker.queue in reply["ok"] and "guest:guest" not in reply["ok"],
    "reserved": lambda reply, _worker: isinstance(reply, list),
    "scheduled": lambda reply, _worker: isinstance(reply, list),
    "revoked": lambda reply, _worker: isinstance(reply, list),
    "memdump": lambda reply, _worker: isinstance(reply, str),
    "query_task nothing": lambda reply, _worker: reply == {},
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_worker_answers(pair: tuple[Program, Worker], asked: str) -> None:
    program, worker = pair
    reply = program.ask(worker.name, "inspect", *asked.split())
    assert ASKED[asked](reply, worker), reply


@pytest.mark.parametrize("kind", ["celery", "amqptasks"])
@pytest.mark.parametrize(
    "asked", ["ping", "registered", "registered rate_limit max_retries", "active_queues", "conf", "query_task nothing"]
)
def test_both_programs_print_the_same(
    programs: dict[str, Program], workers_of: dict[str, Worker], kind: str, asked: str
) -> None:
    # When both programs ask the same worker the same, then they print the same
    command = ["inspect", *asked.split(), "-d", workers_of[kind].name, "-t", str(PATIENCE_S)]
    ours, theirs = programs["amqptasks"](*command), programs["celery"](*command)
    assert ours.out == theirs.out


def test_tasks_are_seen_running_and_waiting(pair: tuple[Program, Worker], gates: Callable[[], Gate]) -> None:
    # Given a worker that runs two tasks at once, and has three
    program, worker = pair
    held = [gates() for _number in range(3)]
    ids = [worker.client.task("wait").delay(str(gate.path)).id for gate in held]

    # Then two are seen to run, as they were called
    def two_run() -> Any:
        reply = program.ask(worker.name, "inspect", "active")
        assert len(reply) == 2
        return reply

    for task in eventually(two_run, TIMEOUT_S):
        assert (task["name"], task["hostname"]) == ("interop.wait", worker.name)
        assert task["args"] == [str(held[ids.index(task["id"])].path)]
        assert task["worker_pid"] != worker.process.pid
        assert task["time_start"] > 0
        running = task["id"]

    # And the third to wait
    def third_waits() -> None:
        assert [task["id"] for task in program.ask(worker.name, "inspect", "reserved")] == ids[2:]

    eventually(third_waits, TIMEOUT_S)

    # And each is found by its id
    found = program.ask(worker.name, "inspect", "query_task", running, ids[2])
    assert {task_id: state for task_id, (state, _task) in found.items()} == {running: "active", ids[2]: "reserved"}

    # And none of them when they have ended
    def none_is_left() -> None:
        for gate in held:
            gate.open()
        assert not {task["id"] for task in program.ask(worker.name, "inspect", "active")} & set(ids)
        assert program.ask(worker.name, "inspect", "reserved") == []

    eventually(none_is_left, TIMEOUT_S)


def test_limits_change(pair: tuple[Program, Worker]) -> None:
    # When limits of a task are changed, then the worker says so, and the rate is seen
    program, worker = pair
    told = program.ask(worker.name, "control", "rate_limit", "interop.stamps", "100/m")
    assert told == {"ok": "new rate limit set successfully"}
    assert "interop.stamps [rate_limit=100/m]" in program.ask(worker.name, "inspect", "registered", "rate_limit")
    told = program.ask(worker.name, "control", "time_limit", "interop.stamps", "30", "60")
    assert told == {"ok": "time limits set successfully"}


@pytest.mark.parametrize(
    "command", ["rate_limit interop.nothing 1/m", "time_limit interop.nothing 1 2", "autoscale 3 1"]
)
def test_what_cannot_be_done_is_an_error(pair: tuple[Program, Worker], command: str) -> None:
    # When a worker cannot do what it is told, then it says so; and our program tells scripts too
    program, worker = pair
    reply = program.ask(worker.name, "control", *command.split(), code=int(program.kind == "amqptasks"))
    assert list(reply) == ["error"]


def test_the_pool_grows_and_shrinks(pair: tuple[Program, Worker]) -> None:
    program, worker = pair

    def runs_at_once(count: int) -> None:
        pool = program.ask(worker.name, "inspect", "stats")["pool"]
        assert len(pool["processes"]) == count
        # Celery's keeps the number that it was started with.
        assert worker.kind == "celery" or pool["max-concurrency"] == count

    # When the pool is told to grow, then it has one place more, until it shrinks
    assert program.ask(worker.name, "control", "pool_grow", "1") == {"ok": "pool will grow"}
    eventually(lambda: runs_at_once(3), TIMEOUT_S)
    assert program.ask(worker.name, "control", "pool_shrink", "1") == {"ok": "pool will shrink"}
    eventually(lambda: runs_at_once(2), TIMEOUT_S)


def test_a_queue_is_added_and_left(pair: tuple[Program, Worker], broker_url: str) -> None:
    # Given a queue that nobody consumes
    program, worker = pair
    queue = f"interop-added-{uuid.uuid4().hex[:8]}"

    def consumed() -> list[str]:
        return [each["name"] for each in program.ask(worker.name, "inspect", "active_queues")]

    try:
        # When the worker is told to, it does its tasks
        assert program.ask(worker.name, "control", "add_consumer", queue) == {"ok": f"add consumer {queue}"}
        eventually(lambda: queue in consumed(), TIMEOUT_S)
        if worker.kind == "amqptasks":
            # Celery's declares it as a queue of another type than its own programs do.
            assert get(worker.client.task("add").apply_async((2, 3), queue=queue)) == 5

        # And leaves it when told so
        told = program.ask(worker.name, "control", "cancel_consumer", queue)
        assert told == {"ok": f"no longer consuming from {queue}"}
        eventually(lambda: queue not in consumed(), TIMEOUT_S)
    finally:
        with Admin(endpoints([broker_url], heartbeat_s=10, connection_timeout_s=5, name="interop tests")) as admin:
            admin.delete(queue)


def test_events_are_switched(pair: tuple[Program, Worker]) -> None:
    # Given a worker that sends events / When they are switched off and on, then it says so. Without heartbeats, as it
    # was started here, Celery's cannot switch them on again
    program, worker = pair
    orders = ["enable_events", "disable_events", "disable_events", "enable_events", "enable_events"]
    told = [program.ask(worker.name, "control", each)["ok"] for each in orders]
    assert told[2:5:2] == ["task events already disabled", "task events already enabled"]
    assert worker.kind == "celery" or told[1:4:2] == ["task events disabled", "task events enabled"]
    assert program.ask(worker.name, "control", "heartbeat") is None


def test_a_delayed_task_is_seen_and_revoked(pair: tuple[Program, Worker]) -> None:
    # Given a task that is not due
    program, worker = pair
    result = worker.client.task("add").apply_async((1, 2), countdown=3)

    # When it is asked what is scheduled, then it is there, wherever it waits
    def is_scheduled() -> None:
        scheduled = program.ask(worker.name, "inspect", "scheduled")
        found = [each for each in scheduled if each["request"]["id"] == result.id]
        assert [each["request"]["name"] for each in found] == ["interop.add"]
        assert found[0]["eta"]

    eventually(is_scheduled, TIMEOUT_S)

    # When it is revoked, then the worker knows, and the caller hears of it when it is due
    assert "ok" in program.ask(worker.name, "control", "revoke", result.id)
    eventually(lambda: result.id in program.ask(worker.name, "inspect", "revoked"), TIMEOUT_S)
    with pytest.raises(Exception, match="revoked"):
        get(result)


def test_a_running_task_is_terminated(pair: tuple[Program, Worker], gates: Callable[[], Gate]) -> None:
    # Given a task that runs
    program, worker = pair
    gate = gates()
    result = worker.client.task("wait").delay(str(gate.path))
    eventually(lambda: result.id in [each["id"] for each in program.ask(worker.name, "inspect", "active")], TIMEOUT_S)

    # When it is terminated, then it ends as revoked
    assert program.ask(worker.name, "control", "terminate", "KILL", result.id) == {"ok": f"terminate: {result.id}"}
    with pytest.raises(Exception) as caught:
        get(result)
    assert type(caught.value).__name__ in (TaskRevokedError.__name__, "Terminated")


@pytest.mark.parametrize(("program", "kind"), [("celery", "amqptasks"), ("amqptasks", "celery")])
def test_a_worker_is_scaled_and_shut_down(
    programs: dict[str, Program], start_named: Callable[..., Worker], program: str, kind: str
) -> None:
    # Given a worker that scales itself
    worker = start_named(kind, "--autoscale=3,1")
    worker.process.wait_ready()

    # When its bounds are changed, then it keeps to them
    told = programs[program].ask(worker.name, "control", "autoscale", "5", "2")
    assert told == {"ok": "autoscale now max=5 min=2"}
    scaler = programs[program].ask(worker.name, "inspect", "stats")["autoscaler"]
    assert (scaler["max"], scaler["min"]) == (5, 2)

    # When it is told to shut down, then it ends, as after a warm stop. Celery's workers answer that to nobody
    programs[program]("control", "shutdown", "-d", worker.name, "-t", "2", code=None)
    assert worker.process.wait() == 0


@pytest.mark.parametrize("kind", ["celery", "amqptasks"])
def test_nobody_answers(programs: dict[str, Program], kind: str) -> None:
    said = programs[kind]("inspect", "ping", "-d", "nobody@nowhere", "-t", "0.3", code=69)
    assert said.err.startswith("Error: No nodes replied within time constraint")
