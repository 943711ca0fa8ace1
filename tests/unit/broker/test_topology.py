"""Queues become declarations that every version of RabbitMQ takes; a refusal becomes words."""

from __future__ import annotations

from typing import Any

import pytest

from amqptasks.broker.topology import (
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    Step,
    conflict,
    dead_letter_queue,
    plan,
    queue_type,
    server_version,
)
from amqptasks.entities import Exchange, Queue, binding
from amqptasks.exceptions import ImproperlyConfigured, TopologyConflict

V3_10, V3_12, V4_0, V4_3 = (3, 10, 8), (3, 12, 0), (4, 0, 5), (4, 3, 6)
VERSIONS = (V3_10, V3_12, V4_0, V4_3, (), None)


def declared(queue: Queue, version: tuple[int, ...] | None = V3_10, default_type: str = "quorum") -> DeclareQueue:
    found = [step for step in plan(queue, default_type=default_type, version=version) if isinstance(step, DeclareQueue)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("properties", "version"),
    [
        ({"product": "RabbitMQ", "version": "3.10.8"}, (3, 10, 8)),
        ({"product": b"RabbitMQ", "version": b"4.0.5"}, (4, 0, 5)),
        ({"version": "4.1.0-rc.2"}, (4, 1, 0)),
        ({"version": "3.13.3+1.g1234"}, (3, 13, 3)),
        ({"product": "LavinMQ", "version": "2.1.0"}, ()),
        ({"version": "unknown"}, ()),
        ({"version": None}, ()),
        ({}, ()),
    ],
)
def test_the_version_is_read_from_the_greeting(properties: dict[str, Any], version: tuple[int, ...]) -> None:
    assert server_version(properties) == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("default_type", ["quorum", "classic"])
def test_a_plain_queue_is_durable_and_says_its_type(version: tuple[int, ...] | None, default_type: str) -> None:
    step = declared(Queue("mail"), version, default_type)
    assert step == DeclareQueue("mail", durable=True, arguments={"x-queue-type": default_type})


@pytest.mark.parametrize(
    "options",
    [
        {"exclusive": True},
        {"auto_delete": True},
        {"durable": False},
        {"max_priority": 5},
        {"queue_arguments": {"x-max-priority": 5}},
        {"queue_arguments": {"x-queue-mode": "lazy"}},
        {"queue_arguments": {"x-queue-version": 2}},
        {"queue_arguments": {"x-queue-type": "classic"}},
    ],
)
def test_what_quorum_queues_cannot_do_makes_a_queue_classic(options: dict[str, Any]) -> None:
    queue = Queue("mail", **options)
    assert declared(queue).arguments["x-queue-type"] == "classic"
    assert queue_type(queue, "quorum") == "classic"


@pytest.mark.parametrize(
    "options", [{"exclusive": True}, {"auto_delete": True}, {"durable": False}, {"max_priority": 5}]
)
def test_asking_for_quorum_and_for_what_it_cannot_do_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="only classic queues"):
        declared(Queue("mail", queue_arguments={"x-queue-type": "quorum"}, **options))


@pytest.mark.parametrize("kind", ["stream", "Quorum", "", 1, None.__class__])
def test_an_unknown_type_is_refused(kind: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="'quorum' or 'classic'"):
        declared(Queue("mail", queue_arguments={"x-queue-type": kind}))
    with pytest.raises(ImproperlyConfigured, match="task_default_queue_type"):
        declared(Queue("mail"), default_type=kind)


def test_limits_become_the_brokers_arguments_in_its_units() -> None:
    queue = Queue("mail", expires=1.5, message_ttl=0, max_length=7, max_length_bytes=2**40, max_priority=255)
    assert declared(queue).arguments == {
        "x-queue-type": "classic",
        "x-expires": 1500,
        "x-message-ttl": 0,
        "x-max-length": 7,
        "x-max-length-bytes": 2**40,
        "x-max-priority": 255,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"expires": 0}, {"expires": 0.0004}, {"expires": float("nan")}, {"expires": float("inf")}, {"expires": "1"},
        {"message_ttl": -1}, {"message_ttl": True}, {"max_length": -1}, {"max_length": 1.5}, {"max_length_bytes": "9"},
        {"max_priority": 256}, {"max_priority": -1},
    ],
)  # fmt: skip
def test_a_limit_the_broker_would_refuse_names_the_queue(options: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="queue 'mail'"):
        declared(Queue("mail", **options))


@pytest.mark.parametrize(
    ("kind", "argument", "value", "sent_to"),
    [
        # -1 deletes a message at its first redelivery before 4.0, where it came to mean "no limit".
        ("quorum", "x-delivery-limit", -1, {V4_0, V4_3}),
        ("quorum", "x-delivery-limit", 20, set(VERSIONS)),
        ("quorum", "x-consumer-timeout", 1000, {V3_12, V4_0, V4_3}),
        ("classic", "x-consumer-timeout", 1000, {V3_12, V4_0}),
        ("classic", "x-queue-leader-locator", "balanced", {V4_0, V4_3}),
        ("quorum", "x-queue-leader-locator", "balanced", set(VERSIONS)),
        ("classic", "x-queue-master-locator", "min-masters", {V3_10, V3_12}),
        ("quorum", "x-single-active-consumer", True, set(VERSIONS)),
    ],
)
def test_an_argument_is_sent_to_the_versions_that_understand_it(
    kind: str, argument: str, value: Any, sent_to: set[Any]
) -> None:
    queue = Queue("mail", queue_arguments={argument: value})
    assert {version for version in VERSIONS if argument in declared(queue, version, kind).arguments} == sent_to


@pytest.mark.parametrize("argument", ["x-delivery-limit", "x-dead-letter-strategy"])
def test_a_classic_queue_is_refused_what_only_quorum_queues_know(argument: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=argument):
        declared(Queue("mail", queue_arguments={argument: 3}), default_type="classic")


@pytest.mark.parametrize("overflow", ["reject-publish", "reject-publish-dlx"])
def test_a_queue_that_would_jam_everyones_delays_is_refused(overflow: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="delayed tasks"):
        declared(Queue("mail", max_length=9, queue_arguments={"x-overflow": overflow}))


def test_exchanges_come_first_then_the_queue_then_its_bindings() -> None:
    topic = Exchange("news", "topic", arguments={"alternate-exchange": "rest"})
    queue = Queue("mail", topic, "a.#", bindings=[binding(topic, "b.#"), binding(Exchange("all", "fanout"))])
    assert plan(queue, default_type="quorum", version=V4_0) == (
        DeclareExchange("news", "topic", arguments={"alternate-exchange": "rest"}),
        DeclareExchange("all", "fanout"),
        DeclareQueue("mail", arguments={"x-queue-type": "quorum"}),
        BindQueue("mail", "news", "a.#"),
        BindQueue("mail", "news", "b.#"),
        BindQueue("mail", "all", ""),
    )


def test_exchanges_that_are_not_ours_are_bound_and_not_declared() -> None:
    queue = Queue("mail", Exchange("amq.topic", "topic"), "a", bindings=[binding(Exchange("theirs", no_declare=True))])
    methods = [step.method for step in plan(queue, default_type="quorum", version=None)]
    assert methods == ["queue.declare", "queue.bind", "queue.bind"]


def test_nothing_is_declared_for_a_queue_that_says_so() -> None:
    assert plan(Queue("mail", "news", no_declare=True), default_type="quorum", version=None) == ()


@pytest.mark.parametrize("queue", ["mail", Queue("mail", exclusive=True), Queue("mail", max_priority=9)])
def test_dead_letters_are_kept_in_a_durable_queue_of_the_default_type(queue: Queue | str) -> None:
    step = dead_letter_queue(queue, ".dead", "quorum", V4_0)
    limit = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
    assert step == DeclareQueue("mail.dead", durable=True, arguments=limit)


def test_a_name_too_long_for_its_dead_letters_says_what_to_shorten() -> None:
    with pytest.raises(ImproperlyConfigured, match="task_dead_letter_suffix"):
        dead_letter_queue("ü" * 127, ".dead", "quorum", None)


def test_a_conflict_shows_both_sides_and_the_way_out() -> None:
    text = (
        "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mail' in vhost '/': received the value "
        "'quorum' of type 'longstr' but current is the value 'classic' of type 'longstr'"
    )
    error = conflict(text, declared(Queue("mail", message_ttl=60)))
    assert isinstance(error, TopologyConflict)
    assert str(error).splitlines()[:7] == [
        "queue 'mail' already exists in vhost '/' with another x-queue-type than this program declares.",
        "                 declared here  on the broker",
        "  x-queue-type   'quorum'       'classic'",
        "  auto_delete    false          (not told)",
        "  durable        true           (not told)",
        "  exclusive      false          (not told)",
        "  x-message-ttl  60000          (not told)",
    ]
    assert "amqptasks queues delete mail" in str(error)


@pytest.mark.parametrize(
    ("reply", "ours", "theirs"),
    [
        ("arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'", "true", "false"),
        (
            "arg 'x-message-ttl' for queue 'q' in vhost 'a'b': received none but current is the value '5' of type 'T'",
            "(not set)", "5",
        ),
        (
            "arg 'x-max-length' for queue 'q' in vhost '/': received the value '9' of type 'long' but current is none",
            "9", "(not set)",
        ),
    ],
)  # fmt: skip
def test_each_form_of_the_brokers_words_is_understood(reply: str, ours: str, theirs: str) -> None:
    options = {"max_length": 9} if "x-max-length" in reply else {}
    error = conflict(f"PRECONDITION_FAILED - inequivalent {reply}", declared(Queue("q", **options)))
    row = str(error).splitlines()[2]
    assert row.split(maxsplit=1)[1].startswith(ours) and row.endswith(theirs)


@pytest.mark.parametrize(
    "step",
    [
        DeclareQueue("q", arguments={"x-foo": 1}),
        DeclareExchange("e"),
        BindQueue("q", "e", "k"),
    ],
)
@pytest.mark.parametrize("reply", ["PRECONDITION_FAILED - invalid arg 'x-foo'", "", "inequivalent arg"])
def test_words_of_the_broker_that_are_new_to_us_are_passed_on(reply: str, step: Step) -> None:
    error = conflict(reply, step)
    assert reply in str(error) and step.method in str(error)


def test_an_exchange_of_another_type_is_told_apart() -> None:
    reply = "inequivalent arg 'type' for exchange 'news' in vhost '/': received 'direct' but current is 'topic'"
    text = str(conflict(reply, DeclareExchange("news", "direct")))
    assert "exchange 'news' already exists" in text
    assert "'direct'" in text and "'topic'" in text
