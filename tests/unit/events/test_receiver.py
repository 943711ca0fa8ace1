"""Receiving events: what is declared, and what is made of what comes, whoever sent it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from amqptasks import App
from amqptasks.broker.topology import BindQueue, DeclareExchange, DeclareQueue
from amqptasks.clock import utcoffset
from amqptasks.exceptions import ImproperlyConfigured


@pytest.fixture
def app() -> App:
    return App("events", broker="amqp://guest:guest@localhost//", set_as_current=False)


def queue_of(receiver: Any) -> DeclareQueue:
    return next(step for step in receiver.declares if isinstance(step, DeclareQueue))


def test_a_receiver_declares_what_celerys_does(app: App) -> None:
    # Given the settings as they are / When a receiver is made
    receiver = app.events.Receiver(node_id="me", routing_key="worker.#")
    # Then it has Celery's exchange, and a queue of its own that goes with it
    arguments = {"x-queue-type": "classic", "x-message-ttl": 5000, "x-expires": 60000}
    assert receiver.declares == (
        DeclareExchange("celeryev", "topic", durable=True),
        DeclareQueue("celeryev.me", durable=False, exclusive=True, auto_delete=True, arguments=arguments),
        BindQueue("celeryev.me", "celeryev", "worker.#"),
    )


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("event_queue_prefix", "watch", {"queue": "watch.me"}),
        ("event_queue_ttl", 1.5, {"arguments": {"x-queue-type": "classic", "x-message-ttl": 1500, "x-expires": 60000}}),
        ("event_queue_ttl", None, {"arguments": {"x-queue-type": "classic", "x-expires": 60000}}),
        (
            "event_queue_expires",
            7,
            {"arguments": {"x-queue-type": "classic", "x-message-ttl": 5000, "x-expires": 7000}},
        ),
        ("event_queue_exclusive", False, {"exclusive": False, "auto_delete": True}),
        ("event_queue_durable", True, {"durable": True, "auto_delete": False}),
    ],
)
def test_the_settings_say_what_queue_a_receiver_has(
    app: App, setting: str, value: Any, expected: dict[str, Any]
) -> None:
    # Given a setting; what is durable must not be exclusive
    app.conf.event_queue_exclusive = setting != "event_queue_durable"
    app.conf[setting] = value
    # When a receiver is made / Then its queue is like that
    queue = queue_of(app.events.Receiver(node_id="me"))
    assert {key: getattr(queue, key) for key in expected} == expected


def test_a_queue_is_not_both_exclusive_and_durable(app: App) -> None:
    # Given settings that contradict each other / When a receiver is made / Then it says which
    app.conf.event_queue_durable = True
    with pytest.raises(ImproperlyConfigured, match="event_queue_exclusive and event_queue_durable"):
        app.events.Receiver()


def test_an_event_is_completed(app: App) -> None:
    # Given an event of a machine in another zone, whose clock is ahead
    receiver = app.events.Receiver()
    event = {"type": "task-x", "clock": 41, "timestamp": 1000.0, "utcoffset": utcoffset() + 2}
    # When it comes
    kind, completed = receiver.event_from_message(event)
    # Then its time is this machine's, it says when it came, and the own clock is ahead of it
    assert kind == "task-x"
    assert completed["timestamp"] == 1000.0 - 2 * 3600
    assert abs(completed["local_received"] - time.time()) < 10
    assert app.clock.value == 42


def test_programs_do_not_set_the_clock(app: App) -> None:
    # Given an event of a program, whose clock nobody sets / When it comes
    app.clock.adjust(10)
    event = app.events.Receiver().event_from_message({"type": "task-sent", "clock": 5000})[1]
    # Then its clock is taken from the own one
    assert (event["clock"], app.clock.value) == (10, 12)


@pytest.mark.parametrize(
    "hostile",
    [
        {"clock": "9" * 400}, {"clock": 2**200}, {"clock": -1}, {"clock": True}, {"timestamp": "now"},
        {"timestamp": 1e300, "utcoffset": 1}, {"timestamp": 1.0, "utcoffset": "x"}, {"timestamp": None},
        {"utcoffset": [1]}, {"timestamp": 5, "utcoffset": 1e300}, {},
    ],
)  # fmt: skip
def test_nothing_in_an_event_breaks_a_receiver(app: App, hostile: dict[str, Any]) -> None:
    # Given an event of somebody who means no good / When it comes
    event = app.events.Receiver().event_from_message({"type": "task-x", **hostile})[1]
    # Then it is complete, and the clock is not far ahead for ever
    assert "local_received" in event
    assert app.clock.value <= 2


def test_handlers_are_found_by_type(app: App) -> None:
    # Given handlers for one type and for all others / When events come
    heard: list[tuple[str, str]] = []
    receiver = app.events.Receiver(
        handlers={
            "task-failed": lambda event: heard.append(("failed", event["type"])),
            "*": lambda event: heard.append(("any", event["type"])),
        }
    )
    for kind in ("task-failed", "worker-online"):
        receiver.process(kind, {"type": kind})
    # Then each goes to its own
    assert heard == [("failed", "task-failed"), ("any", "worker-online")]
