"""A worker's events while they cannot leave: the newest are kept, to a bound, and nobody waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from amqptasks import App
from amqptasks.broker.confirms import ConfirmChannel
from amqptasks.broker.loop import Loop
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.events import MAX_WAITING, WorkerEvents
from amqptasks.worker.outcome import SUCCEEDED, Outcome
from amqptasks.worker.request import Request


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.deactivate_poller()
    made.close()


@pytest.fixture
def app() -> App:
    app = App("events", broker="amqp://guest:guest@localhost//", set_as_current=False)
    app.task(name="mail")(lambda: None)
    app.task(name="quiet", send_events=False)(lambda: None)
    return app


def worker_events(app: App, loop: Loop, dispatcher: Dispatcher | None = None) -> WorkerEvents:
    """The events of a worker that has no connection."""
    dispatcher = dispatcher or Dispatcher(loop, list, lambda request: None, lambda is_short: None)
    return WorkerEvents(app, "w@box", loop, ConfirmChannel(loop), dispatcher)


def request_of(app: App, name: str = "mail") -> Request:
    delivery: Any = SimpleNamespace(properties=None)
    return Request(delivery, f"id-of-{name}", name, app.tasks[name], {"argsrepr": "()"}, False)


def test_what_cannot_leave_is_kept_to_a_bound(app: App, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    # Given a worker without a connection / When very many tasks come and go
    events = worker_events(app, loop)
    count = 0
    while count <= MAX_WAITING + 500:
        request = request_of(app)
        events.received(request)
        events.ended(request, Outcome(SUCCEEDED, 0.1, told=["1"]))
        count += 3
    # Then it has kept the last, and counted what it dropped
    assert len(events._waiting) == MAX_WAITING and events.dropped == count - MAX_WAITING
    assert events._waiting[-1]["type"] == "task-succeeded"
    # And heartbeats, which would be wrong later, are not kept at all
    events.ready()
    events.heartbeat()
    events.close()
    assert len(events._waiting) == MAX_WAITING


def test_events_are_enabled_and_disabled_while_it_runs(app: App, loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    # Given a worker that tells nothing of tasks, and two tasks that wait there
    dispatcher = Dispatcher(loop, list, lambda request: None, lambda is_short: None)
    events = worker_events(app, loop, dispatcher)
    mail, quiet = request_of(app), request_of(app, "quiet")
    dispatcher.waiting.extend((mail, quiet))
    assert events.enabled is False
    # When it is told to / Then it says whether that is new
    with caplog.at_level(logging.INFO):
        assert [events.enable(), events.enable(), events.enabled] == [True, False, True]
    # And of what waits, it will be told how that ends, if it may be
    assert (mail.telling, quiet.telling) == (1, 0)
    assert [events.disable(), events.disable(), events.enabled] == [True, False, False]
    assert mail.telling == 0


def test_a_run_is_asked_for_words_only_if_they_are_told(app: App) -> None:
    # Given a task of which nothing is told, and one of which something is / When they are given to a child
    delivery: Any = SimpleNamespace(
        properties=SimpleNamespace(
            content_type="", content_encoding="", reply_to=None, correlation_id="", priority=0, delivery_mode=2
        ),
        consumer=SimpleNamespace(queue="q"), exchange="", routing_key="q", redelivered=False, body=b"",
    )  # fmt: skip
    request = Request(delivery, "id", "mail", app.tasks["mail"], {}, False)
    silent = request.to_frame(1)
    request.telling = 1
    # Then only the frame of the latter asks
    assert request.to_frame(1) == [*silent, True]
    # And an outcome without words is as small as it was
    assert len(Outcome(SUCCEEDED, 0.1).to_frame(1)) == 4
    told = Outcome(SUCCEEDED, 0.1, told=["'x'"])
    assert Outcome.from_frame(told.to_frame(1)).told == ["'x'"]
