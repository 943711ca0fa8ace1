"""An app in memory for the canvas: it queues what is sent, as plain JSON, and runs it by the rules workers keep."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks.canvas import Signature, maybe_signature
from amqptasks.exceptions import BrokerUnavailable
from amqptasks.results.handles import AsyncResult
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord
from amqptasks.wire.failures import to_plain


class MemoryTask:
    """A registered function."""

    def __init__(self, app: MemoryApp, function: Callable[..., Any], **attributes: Any) -> None:
        self.app = app
        self.function = function
        self.name = f"tasks.{function.__name__}"
        self.ignore_result = attributes.get("ignore_result", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return self.app.send_task(self.name, args, kwargs, **options)

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        return Signature(self, args, kwargs, immutable=True)


class WatchedBackend(MemoryBackend):
    """Remembers which answers it was told to expect."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[str] = []

    def reply_to(self) -> str:
        return "reply-queue"

    def expect(self, task_id: str) -> None:
        if task_id not in self.expected:
            self.expected.append(task_id)

    def unexpect(self, task_id: str) -> None:
        super().unexpect(task_id)
        if task_id in self.expected:
            self.expected.remove(task_id)


class MemoryApp:
    """Keeps the `Sender` protocol. `run` plays the workers until nothing is left."""

    is_eager = False
    current_worker_task = None

    def __init__(self) -> None:
        self.backend = WatchedBackend()
        self.tasks: dict[str, MemoryTask] = {}
        self.messages: list[dict[str, Any]] = []
        self.ran: list[dict[str, Any]] = []
        self.ids = itertools.count()
        self.bulks = 0
        self.is_away = False

    def task(self, function: Callable[..., Any], **attributes: Any) -> MemoryTask:
        task = MemoryTask(self, function, **attributes)
        self.tasks[task.name] = task
        return task

    def AsyncResult(self, id: str) -> AsyncResult:
        return AsyncResult(id, app=self)

    @contextlib.contextmanager
    def bulk(self) -> Iterator[None]:
        self.bulks += 1
        yield

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult:
        if self.is_away:
            raise BrokerUnavailable("no broker")
        task_id = options.pop("task_id", None) or f"id-{next(self.ids)}"
        message = {"task": name, "id": task_id, "args": args or (), "kwargs": kwargs or {}, "options": options}
        self.backend.expect(task_id)
        # Through JSON and back: what cannot travel, or depends on our classes, shows here.
        self.messages.append(json.loads(json.dumps(message)))
        return AsyncResult(task_id, app=self)

    def run(self) -> None:
        """Run everything that was sent, and what follows from it."""
        while self.messages:
            self._run_one(self.messages.pop(0))

    def _run_one(self, message: dict[str, Any]) -> None:
        self.ran.append(message)
        options = message["options"]
        try:
            value = self.tasks[message["task"]](*message["args"], **message["kwargs"])
        except Exception as error:
            record = ResultRecord.now(message["id"], "FAILURE", to_plain(error), traceback="Traceback: …")
            for errback in options.get("link_error") or ():
                maybe_signature(errback, app=self).apply_async((message["id"],))
        else:
            record = ResultRecord.now(message["id"], "SUCCESS", value)
            for callback in options.get("link") or ():
                maybe_signature(callback, app=self).apply_async((value,))
            rest = list(options.get("chain") or ())
            if rest:
                following = maybe_signature(rest.pop(), app=self)
                following.apply_async((value,), chain=rest, parent_id=message["id"], root_id=options.get("root_id"))
        self.backend.store(record)


@pytest.fixture
def app() -> MemoryApp:
    """An app with the tasks add, mul, double, total and fail."""
    app = MemoryApp()

    def add(x: int, y: int) -> int:
        return x + y

    def mul(x: int, y: int) -> int:
        return x * y

    def double(x: int) -> int:
        return 2 * x

    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def fail(*args: Any) -> None:
        raise ValueError("broken")

    def note(*args: Any) -> list[Any]:
        return list(args)

    for function in (add, mul, double, total, fail, note):
        app.task(function)
    return app


@pytest.fixture
def add(app: MemoryApp) -> MemoryTask:
    """The task that adds two numbers."""
    return app.tasks["tasks.add"]


@pytest.fixture
def mul(app: MemoryApp) -> MemoryTask:
    """The task that multiplies two numbers."""
    return app.tasks["tasks.mul"]


@pytest.fixture
def double(app: MemoryApp) -> MemoryTask:
    """The task that doubles a number."""
    return app.tasks["tasks.double"]


@pytest.fixture
def total(app: MemoryApp) -> MemoryTask:
    """The task that sums a list."""
    return app.tasks["tasks.total"]


@pytest.fixture
def fail(app: MemoryApp) -> MemoryTask:
    """The task that raises ValueError."""
    return app.tasks["tasks.fail"]


@pytest.fixture
def note(app: MemoryApp) -> MemoryTask:
    """The task that returns its arguments."""
    return app.tasks["tasks.note"]
