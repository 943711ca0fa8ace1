"""Events between Celery and amqptasks: each one's monitors read what the other one's workers tell."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest

from amqptasks import App
from tests.interop import tasks
from tests.interop.conftest import COMMANDS, workers
from tests.support import WorkerProcess, eventually

pytestmark = pytest.mark.broker

Event = dict[str, Any]

#: What both kinds of worker tell of a task, by type; the fields that every event has are left out.
FIELDS = {
    "task-received": {"uuid", "name", "args", "kwargs", "root_id", "parent_id", "retries", "eta", "expires"},
    "task-started": {"uuid"},
    "task-succeeded": {"uuid", "result", "runtime"},
    "task-failed": {"uuid", "exception", "traceback"},
    "task-retried": {"uuid", "exception", "traceback"},
    "task-revoked": {"uuid", "terminated", "signum", "expired"},
    "worker-online": {"freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"},
    "worker-heartbeat": {"freq", "active", "processed", "loadavg", "sw_ident", "sw_ver", "sw_sys"},
}
COMMON = {"type", "hostname", "pid", "clock", "timestamp", "utcoffset", "local_received"}


class Monitor:
    """A program that hears events in a thread: Celery's receiver and state, or ours."""

    def __init__(self, kind: str, broker_url: str) -> None:
        self.events: list[Event] = []
        self.app: Any = (celery.Celery if kind == "celery" else App)("monitor", broker=broker_url, set_as_current=False)
        self.state: Any = self.app.events.State()
        self.is_celery = kind == "celery"
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _hear(self, event: Event) -> None:
        self.events.append(dict(event))
        self.state.event(event)

    def _run(self) -> None:
        # The same lines for both: those of Celery's guide to monitoring.
        with self.app.connection() as connection:
            self._receiver = self.app.events.Receiver(connection, handlers={"*": self._hear})
            self._receiver.capture(limit=None, timeout=None, wakeup=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._receiver.should_stop = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.app.close()

    def wait(self, hostname: str, kind: str, task_id: str | None = None, *, having: str = "type") -> Event:
        """Wait for an event of a worker that has a field."""

        def look() -> Event:
            for each in self.events:
                is_of_task = task_id in (None, each.get("uuid"))
                if (each["type"], each["hostname"]) == (kind, hostname) and is_of_task and having in each:
                    return each
            raise AssertionError(f"no {kind} of {hostname}")

        return eventually(look, 30.0)


def node_of(process: WorkerProcess) -> str:
    return process.command[process.command.index("-n") + 1]


@pytest.fixture(scope="module")
def queue() -> str:
    return f"events-{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="module")
def nodes(broker_url: str, queue: str) -> Iterator[dict[str, WorkerProcess]]:
    """A worker of each kind that tells events, of the same tasks, each with a queue of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in COMMANDS:
            words = [word for word in COMMANDS[kind] if word != "--without-heartbeat"]
            patch.setitem(COMMANDS, kind, (*words, "-E"))
        with workers(broker_url) as start:
            made = {kind: start(kind, f"{queue}-{kind}", "classic") for kind in COMMANDS}
            for each in made.values():
                each.wait_ready(40.0)
            yield made


@pytest.fixture(scope="module")
def monitors(broker_url: str, nodes: dict[str, WorkerProcess]) -> Iterator[dict[str, Monitor]]:
    """A monitor of each kind, both of which hear both workers."""
    with Monitor("celery", broker_url) as theirs, Monitor("amqptasks", broker_url) as ours:
        made = {"celery": theirs, "amqptasks": ours}
        for monitor in made.values():
            # They ask all workers to say that they live.
            for node in nodes.values():
                monitor.wait(node_of(node), "worker-heartbeat")
        yield made


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(broker_url: str, queue: str) -> Iterator[Call]:
    """Send a task to the worker of a kind, by our program: ``call("celery", "add", 1, 2)``."""
    app = tasks.register(App("caller", set_as_current=False))
    app.conf.update(tasks.settings(broker_url, queue, "classic"))

    def send(kind: str, name: str, *args: Any, **options: Any) -> Any:
        return app.tasks[f"interop.{name}"].apply_async(args, queue=f"{queue}-{kind}", **options)

    yield send
    app.close()


@pytest.mark.parametrize("monitor", ["celery", "amqptasks"])
def test_the_events_of_both_workers_are_alike(
    monitors: dict[str, Monitor], nodes: dict[str, WorkerProcess], call: Call, monitor: str
) -> None:
    # Given a worker of each kind, and a monitor that hears both
    heard = monitors[monitor]
    told: dict[str, dict[str, Event]] = {}
    for kind, worker in nodes.items():
        node = node_of(worker)
        # When the same tasks are run by both
        good = call(kind, "add", 2, 3, shadow="shady")
        bad = call(kind, "refuse", "no")
        again = call(kind, "flaky", 1)
        late = call(kind, "add", 1, 1, expires=-5)
        told[kind] = {
            "task-received": heard.wait(node, "task-received", good.id),
            "task-started": heard.wait(node, "task-started", good.id),
            "task-succeeded": heard.wait(node, "task-succeeded", good.id),
            "task-failed": heard.wait(node, "task-failed", bad.id),
            "task-retried": heard.wait(node, "task-retried", again.id),
            "task-revoked": heard.wait(node, "task-revoked", late.id),
            # The one that Celery's worker was asked for tells less.
            "worker-heartbeat": heard.wait(node, "worker-heartbeat", having="active"),
        }
    ours, theirs = told["amqptasks"], told["celery"]
    for kind, event in ours.items():
        other = theirs[kind]
        # Then they have the same fields, of the same types
        assert event.keys() == COMMON | FIELDS[kind]
        assert event.keys() == other.keys()
        for field in event:
            assert type(event[field]) is type(other[field]), field
        # And the same values, where those do not depend on who runs it, and when
        own = {"hostname", "pid", "clock", "timestamp", "local_received", "uuid", "root_id", "traceback", "runtime",
               "active", "processed", "loadavg", "sw_ident", "sw_ver"}  # fmt: skip
        for field in event.keys() - own:
            assert event[field] == other[field], field


@pytest.mark.parametrize("kind", ["celery", "amqptasks"])
def test_both_states_draw_the_same_picture(
    monitors: dict[str, Monitor], nodes: dict[str, WorkerProcess], call: Call, kind: str
) -> None:
    # Given monitors of both kinds / When a worker runs a task
    node = node_of(nodes[kind])
    task_id = call(kind, "add", 20, 22).id
    for monitor in monitors.values():
        monitor.wait(node, "task-succeeded", task_id)
    # Then both states know it alike
    known, left_out = [], ("clock", "root", "parent", "worker")
    for monitor in monitors.values():
        task = eventually(lambda monitor=monitor: monitor.state.tasks.get(task_id) or False)
        known.append(
            {
                **{name: getattr(task, name) for name in task._fields if name not in left_out},
                "children": list(task.children), "worker": task.worker.hostname, "ready": task.ready,
                "info": task.info(),
            }
        )  # fmt: skip
    assert known[0] == known[1]
    assert (known[0]["state"], known[0]["result"], known[0]["name"]) == ("SUCCESS", "42", "interop.add")
    # And the worker
    for monitor in monitors.values():
        monitor.wait(node, "worker-heartbeat")
        worker = monitor.state.workers[node]
        assert worker.alive and worker.pid == nodes[kind].pid
        assert node in [each.hostname for each in monitor.state.alive_workers()]
        assert task_id in [uuid for uuid, _task in monitor.state.tasks_by_type("interop.add")]


def test_events_of_programs_are_heard_by_both(monitors: dict[str, Monitor], broker_url: str, queue: str) -> None:
    # Given a program of each kind that tells what it sends / When it sends
    told = {}
    name = f"{queue}-nobody"
    for kind, package in (("celery", celery.Celery), ("amqptasks", App)):
        app: Any = tasks.register(package("teller", set_as_current=False))
        app.conf.update(
            {**tasks.settings(broker_url, name, "classic"), "task_send_sent_event": True, "result_backend": None}
        )
        task_id = app.send_task("interop.add", (1, 2), {"z": 3}, expires=60).id
        who = f"gen{tasks.os.getpid()}@{socket.gethostname()}"
        told[kind] = [monitor.wait(who, "task-sent", task_id) for monitor in monitors.values()]
        app.close()
    # Then monitors of both kinds hear the same of both
    left_out = {"uuid", "root_id", "clock", "timestamp", "local_received", "expires"}
    shown = [{key: each[key] for key in each.keys() - left_out} for events in told.values() for each in events]
    assert all(each == shown[0] for each in shown), shown
    assert shown[0]["queue"] == name and shown[0]["args"] == "(1, 2)"
    assert all(type(each["expires"]) is str for events in told.values() for each in events)
    # And the queue goes again
    from amqptasks.broker.admin import Admin

    with Admin(monitors["amqptasks"].app.endpoints("clean-up")) as admin:
        admin.delete(name)
