"""Queues and exchanges are declared as with kombu, and checked where they are written."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from amqptasks.entities import Binding, Exchange, Queue, binding
from amqptasks.exceptions import ImproperlyConfigured


def test_a_queue_alone_needs_no_binding() -> None:
    # Given a queue without an exchange / When its bindings are asked for
    queue = Queue("mail")
    # Then there are none: the default exchange reaches it by name
    assert queue.all_bindings() == ()
    assert queue.durable
    assert queue.exchange == Exchange("")


def test_an_exchange_may_be_given_by_name() -> None:
    # Given an exchange by name / When the queue is made / Then it is a direct exchange of that name, and bound
    queue = Queue("mail", "mail", "mail.out")
    assert queue.exchange == Exchange("mail", "direct")
    assert queue.all_bindings() == (Binding(Exchange("mail"), "mail.out"),)


def test_several_bindings_come_after_the_queues_own() -> None:
    # Given a queue with an exchange of its own and two bindings, one to the default exchange
    topic = Exchange("events", "topic")
    queue = Queue("log", topic, "log.#", bindings=[binding(topic, "audit.#", {"x": 1}), binding("")])
    # Then its own binding comes first, and the default exchange is left out
    assert [each.routing_key for each in queue.all_bindings()] == ["log.#", "audit.#"]
    assert queue.all_bindings()[1].arguments == {"x": 1}


def test_an_exclusive_queue_ends_with_its_connection() -> None:
    assert Queue("replies", exclusive=True).auto_delete


def test_a_clone_differs_only_in_what_is_named() -> None:
    # Given a queue with all it can have
    queue = Queue(
        "mail", Exchange("mail", "topic"), "mail.#", alias="post", queue_arguments={"x-queue-type": "classic"},
        binding_arguments={"a": 1}, consumer_arguments={"x-priority": 5}, expires=60, message_ttl=1.5, max_length=10,
        max_length_bytes=1000, max_priority=5, no_declare=True, durable=False,
    )  # fmt: skip
    # When it is cloned / Then only the name differs, and renaming back gives an equal queue
    other = queue.clone(name="post")
    assert other.name == "post"
    assert other != queue
    assert other.clone(name="mail") == queue
    assert hash(other.clone(name="mail")) == hash(queue)


def test_queues_are_values() -> None:
    # Given arguments in a dictionary of the user's / When it is changed later / Then the queue is not
    arguments = {"x-max-length": 1}
    queue = Queue("mail", queue_arguments=arguments)
    arguments["x-max-length"] = 2
    assert queue.queue_arguments == {"x-max-length": 1}
    # And queues can be compared, kept in sets, and pickled
    assert len({queue, Queue("mail", queue_arguments={"x-max-length": 1})}) == 1
    assert pickle.loads(pickle.dumps(queue)) == queue  # noqa: S301 - our own bytes


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers", "x-consistent-hash"])
def test_every_type_of_exchange_can_be_declared(kind: str) -> None:
    assert Exchange("e", kind).type == kind


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Queue(7), "name of a queue"),  # type: ignore[arg-type]
        (lambda: Queue("é" * 128), "longer than the 255 bytes"),
        (lambda: Queue("\ud800"), "UTF-8"),
        (lambda: Queue("q", "e", "k" * 256), "routing key"),
        (lambda: Queue("q", 5), "name of an exchange"),  # type: ignore[arg-type]
        (lambda: Queue("q", bindings=[Exchange("e")]), "Bindings"),  # type: ignore[list-item]
        (lambda: Queue("q", queue_arguments=[1]), "queue_arguments of queue 'q'"),  # type: ignore[arg-type]
        (lambda: Queue("q", expires=-1), "expires of queue 'q'"),
        (lambda: Queue("q", message_ttl="1m"), "message_ttl of queue 'q'"),  # type: ignore[arg-type]
        (lambda: Queue("q", max_length=1.5), "max_length of queue 'q'"),  # type: ignore[arg-type]
        (lambda: Queue("q", max_priority=256), "at most 255"),
        (lambda: Exchange("e", "topics"), "expected the type of exchange 'e'"),
        (lambda: Exchange("e", delivery_mode=3), "delivery_mode of exchange 'e'"),
    ],
)
def test_a_mistake_is_named_where_it_is_made(make: Any, said: str) -> None:
    # Given a declaration that RabbitMQ could not take / When it is made / Then the error says what is wrong with it
    with pytest.raises(ImproperlyConfigured) as caught:
        make()
    assert said in str(caught.value)


def test_names_may_use_all_255_bytes() -> None:
    assert len(Queue("q" * 255, "e" * 255, "k" * 255).name) == 255
