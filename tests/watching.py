"""Hearing events in a test: a watcher that collects them until what the test waits for has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from amqptasks.broker.listener import Listener

Event = dict[str, Any]


class Watcher:
    """Hears the events of an app, in the test's own thread: ``with Watcher(app) as watcher: watcher.story(task_id)``.

    Attributes:
        events: Those that have come, oldest first.
        messages: How many messages they came in.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        self.events: list[Event] = []
        self.messages = 0
        self.receiver = app.events.Receiver(handlers={"*": self.events.append}, **options)
        self.connection: Listener = app.connection_for_read()

    def __enter__(self) -> Watcher:
        self.receiver.open(self.connection)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def until(self, done: Callable[[], bool], within_s: float = 20.0) -> None:
        """Hear events until something is so."""
        deadline = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < deadline, f"not so within {within_s} s; heard: {self.told()}"
            if self.connection.wait(0.1):
                self.messages += self.receiver.handle_next(self.connection)

    def of(self, task_id: str) -> list[Event]:
        """The events of a task that have come, in the order of their clocks: those in lists may overtake others."""
        return sorted((each for each in self.events if each.get("uuid") == task_id), key=lambda each: each["clock"])

    def first(self, kind: str, *, hostname: str | None = None, task_id: str | None = None) -> Event:
        """Wait for an event of a type."""

        def found() -> list[Event]:
            return [
                each for each in self.events
                if each["type"] == kind and hostname in (None, each["hostname"])
                and task_id in (None, each.get("uuid"))
            ]  # fmt: skip

        self.until(lambda: bool(found()))
        return found()[0]

    def story(self, task_id: str, last: str) -> list[str]:
        """Wait for a task's last event; returns the types of all of them, without their group."""
        self.first(last, task_id=task_id)
        return [each["type"].removeprefix("task-") for each in self.of(task_id)]

    def told(self) -> list[Event]:
        """The last events that have come, without heartbeats."""
        return [each for each in self.events if each["type"] != "worker-heartbeat"][-40:]
