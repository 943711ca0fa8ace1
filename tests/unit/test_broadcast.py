"""Broadcasts, queues of one worker, and priorities of all queues, as declarations: what is made of what is written."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from amqptasks.app.routing import Routing
from amqptasks.broker.delays import MAX_QUEUE_NAME_BYTES, Ladder
from amqptasks.broker.topology import BindExchange, BindQueue, DeclareExchange, DeclareQueue, caution, exchanges, plan
from amqptasks.entities import Broadcast, Exchange, Queue
from amqptasks.exceptions import ImproperlyConfigured, QueueNotFound
from amqptasks.settings import Conf
from amqptasks.utils.nodenames import nodename, nodesplit, worker_direct


def routing(**settings: Any) -> Routing:
    conf = Conf()
    conf.update(settings)
    return Routing(conf)


# ---- Broadcasts


def test_a_broadcast_is_a_fanout_exchange_and_a_queue_of_ones_own() -> None:
    one, other = Broadcast("reload"), Broadcast("reload")
    assert one.exchange == Exchange("reload", "fanout")
    assert one.title == one.alias == "reload"
    # Each process has another queue
    assert one.name.startswith("bcast.") and one.name != other.name
    assert one.is_own


def test_the_queue_of_a_broadcast_is_declared_so_that_every_version_takes_it() -> None:
    # RabbitMQ 4 may refuse queues that are neither durable nor exclusive
    for version in ((3, 10, 8), (4, 0, 5), (4, 3, 6), None):
        steps = plan(Broadcast("reload", queue="q"), default_type="quorum", version=version)
        assert steps == (
            DeclareExchange("reload", "fanout"),
            DeclareQueue("q", durable=True, arguments={"x-queue-type": "classic", "x-expires": 60_000}),
            BindQueue("q", "reload", ""),
        )
    assert exchanges(Broadcast("reload")) == (DeclareExchange("reload", "fanout"),)


@pytest.mark.parametrize(
    ("options", "prefix", "is_own"),
    [
        ({}, "bcast.", True),
        ({"unique": True}, "bcast.", True),
        ({"queue": "mine"}, "mine", False),
        ({"queue": "mine", "unique": True}, "mine.", True),
    ],
)
def test_the_name_of_the_queue_may_be_given_and_made_unique(options: Any, prefix: str, is_own: bool) -> None:
    made = Broadcast("reload", **options)
    assert made.name.startswith(prefix)
    assert (made.name == prefix) is not is_own
    assert made.is_own is is_own


def test_a_broadcast_takes_an_exchange_an_alias_and_what_queues_take() -> None:
    topic = Exchange("news", "topic")
    made = Broadcast("reload", exchange=topic, alias="all", routing_key="a.#", expires=5, auto_delete=True)
    assert (made.exchange, made.alias, made.routing_key, made.expires, made.auto_delete) == (
        topic,
        "all",
        "a.#",
        5,
        True,
    )
    assert Broadcast(exchange="news").exchange == Exchange("news", "fanout")
    assert Broadcast(exchange="news").title == "news"
    with pytest.raises(ImproperlyConfigured, match="Broadcast to have a name"):
        Broadcast()


def test_copies_of_a_broadcast_are_broadcasts() -> None:
    made = Broadcast("reload")
    for each in (made.clone(), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301 - our own bytes
        assert isinstance(each, Broadcast)
        assert each == made and each.is_own and each.title == "reload"
    assert made.clone(message_ttl=3).message_ttl == 3
    assert made != Queue(made.name)


def test_a_broadcast_is_found_by_its_name_and_suggested_by_it() -> None:
    reload = Broadcast("reload")
    found = routing(task_queues=[Queue("work"), reload], task_create_missing_queues=False)
    assert found.queue("reload") is reload
    assert found.names() == ["work", "reload"]
    with pytest.raises(QueueNotFound, match="did you mean 'reload'"):
        found.queue("relaod")
    # And what goes to it goes to its exchange
    route = found.route("proj.add", (), {}, {"queue": "reload"})
    assert (route.exchange, route.exchange_type) == ("reload", "fanout")


def test_a_delayed_broadcast_leaves_by_its_exchange_and_by_a_queue_that_keeps_nothing() -> None:
    ladder = Ladder("mine")
    name = ladder.all_of("reload")
    key = "*.*.*.*.*.*.mine.broadcast.reload"
    assert name == "mine.broadcast.reload"
    assert ladder.exits_for(name) == (
        DeclareQueue("mine.nobody", arguments={"x-queue-type": "quorum", "x-message-ttl": 0, "x-max-length": 1}),
        BindQueue("mine.nobody", "mine.delay.v1.due", key),
        BindExchange("reload", "mine.delay.v1.due", key),
    )
    # And a queue by itself
    assert ladder.exits_for("work") == (ladder.exit_for("work"),)
    with pytest.raises(ImproperlyConfigured, match=f"1 to {MAX_QUEUE_NAME_BYTES}"):
        ladder.exits_for(ladder.all_of("x" * 240))


# ---- The queue of one worker


def test_the_queue_of_one_worker_is_celerys() -> None:
    queue = worker_direct("w1@host")
    assert queue == Queue("w1@host.dq2", Exchange("C.dq2"), "w1@host")
    assert worker_direct(queue) is queue
    # And is known by its name, whether or not missing queues are made
    for create in (True, False):
        found = routing(task_create_missing_queues=create).queue("w1@host.dq2")
        assert found == queue
    with pytest.raises(QueueNotFound):
        routing(task_create_missing_queues=False).queue("plain.dq2")


def test_names_of_workers_are_put_together_and_taken_apart() -> None:
    assert nodename("w1", "host") == "w1@host"
    assert nodesplit("w1@host") == ("w1", "host")
    assert nodesplit("host") == (None, "host")


# ---- Priorities, and queues that are made when they are named


@pytest.mark.parametrize(
    ("queue", "most"),
    [
        (Queue("q"), 9),
        (Queue("q", max_priority=3), 3),
        (Queue("q", queue_arguments={"x-queue-type": "classic"}), 9),
        (Queue("q", queue_arguments={"x-queue-type": "quorum"}), None),
        (Queue("q", queue_arguments={"x-max-priority": 4}), None),
        (Broadcast("q"), 9),
    ],
)
def test_the_priority_of_all_queues_is_for_those_that_say_nothing_and_can_have_it(queue: Queue, most: Any) -> None:
    found = routing(task_queues=[queue], task_queue_max_priority=9).queue("q")
    assert found.max_priority == most
    assert type(found) is type(queue)
    assert routing(task_queues=[queue]).queue("q") is queue


def test_queues_that_are_made_get_the_priority_the_type_and_the_exchange_of_the_settings() -> None:
    assert routing(task_queue_max_priority=9).queue("new").max_priority == 9
    assert routing(task_queue_max_priority=9).queues["celery"].max_priority == 9
    made = routing(task_create_missing_queue_type="classic").queue("new")
    assert made == Queue("new", queue_arguments={"x-queue-type": "classic"})
    made = routing(task_create_missing_queue_type="quorum", task_queue_max_priority=9).queue("new")
    assert made.max_priority is None
    made = routing(task_create_missing_queue_exchange_type="topic").queue("new")
    assert made == Queue("new", Exchange("new", "topic"), "new")
    # And what goes to it goes through its exchange
    route = routing(task_create_missing_queue_exchange_type="topic").route("proj.add", (), {}, {"queue": "new"})
    assert (route.exchange, route.routing_key, route.queue_name) == ("new", "new", "new")


# ---- Version gates


@pytest.mark.parametrize(
    ("version", "is_told"),
    [
        ((3, 10, 8), False), ((3, 12, 14), False), ((3, 13, 0), True), ((3, 13, 2), True), ((3, 13, 3), False),
        ((4, 0, 5), False), ((), False), (None, False),
    ],
)  # fmt: skip
def test_a_version_that_loses_delayed_tasks_is_told_of(version: tuple[int, ...] | None, is_told: bool) -> None:
    assert ("3.13.3" in caution(version)) is is_told


@pytest.mark.parametrize("argument", ["x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max"])
def test_delayed_retry_is_for_quorum_queues_of_rabbitmq_4_3(argument: str) -> None:
    queue = Queue("mail", queue_arguments={argument: 1000})

    def sent(version: tuple[int, ...] | None) -> bool:
        step = plan(queue, default_type="quorum", version=version)[0]
        assert isinstance(step, DeclareQueue)
        return argument in step.arguments

    assert [sent(each) for each in ((3, 10, 8), (4, 0, 5), None, (4, 3, 6))] == [False, False, False, True]
    # A classic queue of 4.3 would be refused by RabbitMQ
    with pytest.raises(ImproperlyConfigured, match=argument):
        plan(queue, default_type="classic", version=(4, 3, 6))
