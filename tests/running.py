"""What tests of running tasks share: a workshop (a project, its real workers, its queues), gates that hold a task where
a test wants it, and a ledger that counts runs.

The tasks of a workshop's project see the top of `PRELUDE`: ``app``, ``note(text)`` and ``gate(name)``.
"""

from __future__ import annotations

import errno
import os
import sys
import textwrap
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pika
import pika.exceptions

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from amqptasks.exceptions import OperationalError
from tests.support import ROOT, Project, WorkerProcess, eventually

PRELUDE = '''
import os, signal, sys, threading
from pathlib import Path
from amqptasks import App

HERE = Path(__file__).parent

def note(text):
    """Write a line into the ledger, whole, whoever else writes."""
    descriptor = os.open(HERE / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{text}\\n".encode())
    os.close(descriptor)

def gate(name):
    """Stay here until the test opens the gate of this name."""
    with open(HERE / f"gate-{name}") as opened:
        opened.read()

app = App(__name__, broker=BROKER, backend="rpc://")
app.conf.task_default_queue = QUEUE
'''


class Gate:
    """A named pipe that tasks stop at: a task that reads it stays until the test, its writer, lets go."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._path = path = directory / f"gate-{name}"
        self._held: list[int] = []
        self._is_open = False
        os.mkfifo(path)

    def reached(self, within_s: float = 20.0) -> None:
        """Wait until a task stands at the gate."""

        def someone_reads() -> bool:
            try:
                self._held.append(os.open(self._path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return False
            return True

        eventually(someone_reads, within_s)

    def open(self) -> None:
        """Let every task through, those that come later too. Safe twice."""
        if self._is_open:
            return
        self._is_open = True
        # Both ends are held while a plain file takes the pipe's name, so that nobody is left waiting at the old pipe.
        self._held.append(os.open(self._path, os.O_RDWR | os.O_NONBLOCK))
        opened = self._path.with_suffix(".opened")
        opened.touch()
        opened.rename(self._path)
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()


@dataclass(frozen=True)
class Found:
    """A message taken from a queue."""

    body: bytes
    headers: dict[str, Any]
    properties: Any


class Workshop:
    """A project with a queue of its own, the workers that serve it, and a hand at the broker. Closing it stops all."""

    def __init__(
        self, directory: Path, broker_url: str, source: str, *, queue: str | None = None, name: str | None = None
    ) -> None:
        self.directory = directory
        self.broker_url = broker_url
        self.queue = queue or f"work-{uuid.uuid4().hex[:12]}"
        self.project = Project(
            directory, name or f"shop_{uuid.uuid4().hex[:8]}", PRELUDE + textwrap.dedent(source), broker_url=broker_url,
            queue=self.queue,
        )  # fmt: skip
        self.workers: list[WorkerProcess] = []
        # Without heartbeats: nothing serves them between two steps of a test.
        self._endpoint = endpoints([broker_url], heartbeat_s=None, connection_timeout_s=5, name="a test")[0]
        self._gates: dict[str, Gate] = {}
        self._connection: Any = None
        self._channel: Any = None
        self._admin: Admin | None = None
        self._to_delete = {self.queue, f"{self.queue}.dead"}

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the project

    @property
    def tasks(self) -> Any:
        """The project's module, imported here."""
        return self.project.module

    @property
    def app(self) -> Any:
        """The project's app, in this process."""
        return self.project.module.app

    def gate(self, name: str | None = None) -> Gate:
        """Make a gate, or return the one that was made under this name."""
        name = name or uuid.uuid4().hex[:8]
        made = self._gates.get(name)
        if made is None:
            made = self._gates[name] = Gate(self.directory, name)
        return made

    def open_gates(self) -> None:
        """Open all gates that were made: no task stays behind one."""
        for gate in self._gates.values():
            gate.open()

    def ledger(self) -> list[str]:
        """What the tasks have noted, in order."""
        path = self.directory / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    def noted(self, text: str, times: int = 1, within_s: float = 20.0) -> None:
        """Wait until a line stands in the ledger this many times."""

        def look() -> None:
            assert self.ledger().count(text) == times, f"{text!r} stands {self.ledger().count(text)} times"

        eventually(look, within_s)

    # -- workers

    def start(
        self,
        *arguments: str,
        ready: bool = True,
        expected_exits: tuple[int, ...] | None = (0,),
        env: Mapping[str, str] | None = None,
        project: str | None = None,
        level: str = "INFO",
    ) -> WorkerProcess:
        """Start a worker on the project, and wait until it is ready."""
        number = len(self.workers)
        command = [
            sys.executable, "-m", "amqptasks", "-A", project or self.project.name, "worker", "-l", level, "-n",
            f"w{number}-{uuid.uuid4().hex[:6]}@test", *arguments,
        ]  # fmt: skip
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | dict(env or {})
        worker = WorkerProcess(
            command, directory=self.directory, log=self.directory / f"w{number}.log", env=environment
        )
        worker.expected_exits = expected_exits
        self.workers.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    # -- the broker

    @property
    def admin(self) -> Admin:
        """A management session."""
        if self._admin is None:
            self._admin = Admin([self._endpoint])
        return self._admin

    def waiting(self, queue: str | None = None) -> int:
        """How many messages stand ready in a queue: neither held by a worker nor settled."""
        try:
            counts = self.admin.counts(queue or self.queue)
        except OperationalError:
            # Tests close connections, this one too: the next call opens another.
            counts = self.admin.counts(queue or self.queue)
        return 0 if counts is None else counts[0]

    def is_waiting(self, expected: int, queue: str | None = None) -> None:
        """Wait until exactly this many messages stand ready."""

        def look() -> None:
            found = self.waiting(queue)
            assert found == expected, f"{found} messages in {queue or self.queue}, expected {expected}"

        eventually(look, 20.0)

    def also_delete(self, *queues: str) -> None:
        """Delete these queues at the end, and their dead letters."""
        for queue in queues:
            self._to_delete |= {queue, f"{queue}.dead"}

    def delete_exchange(self, exchange: str) -> None:
        """Delete an exchange, now."""
        self._pika().exchange_delete(exchange)

    def publish(
        self, body: bytes, headers: Mapping[str, Any] | None, *, queue: str | None = None, **properties: Any
    ) -> None:
        """Put a message into the queue by hand, confirmed, as any other program could."""
        channel = self._pika()
        made = pika.BasicProperties(headers=None if headers is None else dict(headers), delivery_mode=2, **properties)
        channel.basic_publish("", queue or self.queue, body, made, mandatory=True)

    def take(self, queue: str) -> Found | None:
        """Take the oldest message from a queue; None when it is empty or there is none of that name."""
        if not self.admin.exists(queue):
            return None
        try:
            method, properties, body = self._pika().basic_get(queue, auto_ack=True)
        except pika.exceptions.ConnectionClosedByBroker:
            # RabbitMQ 3.10 answers "internal error" while a quorum queue is being made: there is nothing in it yet.
            return None
        return None if method is None else Found(body, dict(properties.headers or {}), properties)

    def peek(self) -> Found:
        """Look at the oldest message of the queue, and put it back."""
        method, properties, body = self._pika().basic_get(self.queue)
        assert method is not None, f"no message in {self.queue}"
        self._pika().basic_reject(method.delivery_tag, requeue=True)
        return Found(body, dict(properties.headers or {}), properties)

    def dead_letter(self, wanted: Callable[[Found], bool] = lambda _found: True, within_s: float = 20.0) -> Found:
        """Wait for a dead letter of the queue, and take it. Others that are met on the way are thrown away."""

        def look() -> Found | bool:
            found = self.take(f"{self.queue}.dead")
            return found if found is not None and wanted(found) else False

        letter = eventually(look, within_s)
        assert isinstance(letter, Found)
        return letter

    def dead_letter_of(self, task_id: str) -> Found:
        """Wait for the dead letter of a task."""
        return self.dead_letter(lambda found: task_id in (found.headers.get("id"), found.properties.correlation_id))

    def _pika(self) -> Any:
        if self._connection is None or not self._connection.is_open:
            self._connection = pika.BlockingConnection(self._endpoint.parameters)
            self._channel = None
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        return self._channel

    # -- the end

    def close(self) -> None:
        """Open every gate, stop every worker, delete what was declared. Fails if a worker did not end as expected."""
        problems = []
        for each in self._gates.values():
            each.open()
        for worker in self.workers:
            try:
                worker.finish()
            except AssertionError as error:
                problems.append(str(error))
        if self.project._module is not None:
            self.app.close()
        self.project.forget()
        if self._connection is not None and self._connection.is_open:
            self._connection.close()
        # Tests close connections, this one too: where one was lost, another is opened.
        self.admin.close()
        for queue in self._to_delete:
            self.admin.delete(queue)
        self.admin.close()
        assert not problems, "\n".join(problems)
