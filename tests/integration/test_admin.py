"""The management session against a real RabbitMQ: answers, refusals, deadlines."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import Endpoint, endpoints
from amqptasks.broker.topology import BindQueue, DeclareExchange, DeclareQueue, plan
from amqptasks.entities import Queue
from amqptasks.exceptions import BrokerUnavailable, OperationalError, TopologyConflict

pytestmark = pytest.mark.broker


def to(*urls: str) -> tuple[Endpoint, ...]:
    return endpoints(urls, heartbeat_s=10, connection_timeout_s=2.0, name="test of admin")


@pytest.fixture
def admin(broker_url: str) -> Iterator[Admin]:
    with Admin(to(broker_url)) as session:
        yield session


@pytest.fixture
def queue(admin: Admin, queue_name: str) -> Iterator[str]:
    yield queue_name
    admin.delete(queue_name)


def declare(admin: Admin, name: str, kind: str = "quorum", **options: Any) -> None:
    admin.declare(plan(Queue(name, **options), default_type=kind, version=admin.version))


def publish(broker_url: str, queue: str, count: int) -> None:
    import pika

    connection = pika.BlockingConnection(to(broker_url)[0].parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    for _ in range(count):
        channel.basic_publish("", queue, b"x", mandatory=True)
    connection.close()


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_queue_is_declared_counted_purged_and_deleted(admin: Admin, broker_url: str, queue: str, kind: str) -> None:
    assert admin.version >= (3, 8)
    assert admin.counts(queue) is None and not admin.exists(queue)
    declare(admin, queue, kind)
    declare(admin, queue, kind)
    assert admin.counts(queue) == (0, 0) and admin.exists(queue)
    publish(broker_url, queue, 3)
    assert admin.counts(queue) == (3, 0)
    assert admin.purge(queue) == 3
    assert admin.counts(queue) == (0, 0)
    assert admin.delete(queue) == 0
    assert admin.counts(queue) is None


def test_what_is_not_there_is_no_error(admin: Admin, queue_name: str) -> None:
    assert (admin.counts(queue_name), admin.purge(queue_name), admin.delete(queue_name)) == (None, None, None)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_a_queue_is_deleted_only_if_empty_when_asked(admin: Admin, broker_url: str, queue: str, kind: str) -> None:
    # Given a queue with messages / When it is to go only if empty / Then it stays, until they are gone
    declare(admin, queue, kind)
    publish(broker_url, queue, 2)
    with pytest.raises(OperationalError, match="2 message"):
        admin.delete(queue, if_empty=True)
    assert admin.purge(queue) == 2
    assert admin.delete(queue, if_empty=True, if_unused=True) == 0


def test_every_refusal_leaves_the_session_usable(
    admin: Admin, broker_url: str, queue: str, unique: Callable[..., str]
) -> None:
    declare(admin, queue, "classic")
    with pytest.raises(TopologyConflict, match="x-queue-type"):
        declare(admin, queue, "quorum")
    with pytest.raises(TopologyConflict, match="message-ttl"):
        declare(admin, queue, "classic", message_ttl=5)
    with pytest.raises(OperationalError, match="404"):
        admin.declare([BindQueue(queue, unique("no-exchange"))])
    with pytest.raises(OperationalError, match="403"):
        admin.declare([DeclareQueue("amq.ours")])
    with pytest.raises(OperationalError, match=r"exchange\.declare"):
        # 503 COMMAND_INVALID closes the whole connection.
        admin.declare([DeclareExchange(unique("exchange"), "no-such-type")])
    assert admin.counts(queue) == (0, 0)


def test_an_exclusive_queue_of_another_connection_is_there_but_not_ours(
    broker_url: str, unique: Callable[..., str]
) -> None:
    name = unique("exclusive")
    with Admin(to(broker_url)) as owner, Admin(to(broker_url)) as other:
        declare(owner, name, exclusive=True)
        assert other.exists(name)
        with pytest.raises(OperationalError, match="405"):
            other.counts(name)
        assert owner.counts(name) == (0, 0)


def test_a_lost_connection_is_replaced_at_the_next_call(
    broker_url: str, queue_name: str, rabbitmqctl: Callable[..., str]
) -> None:
    with Admin(to(broker_url)) as admin:
        assert admin.counts(queue_name) is None
        rabbitmqctl("close_all_user_connections", "guest", "by a test")
        # The call that meets the loss may fail; the next one works.
        try:
            admin.counts(queue_name)
        except OperationalError as error:
            assert "by a test" in str(error) or "lost" in str(error)
        assert admin.counts(queue_name) is None


def test_the_first_broker_that_answers_is_used(broker_url: str) -> None:
    with Admin(to("amqp://nobody:secret@127.0.0.1:1//", broker_url)) as admin:
        assert admin.version
        assert admin.label == to(broker_url)[0].label


def test_no_broker_at_all_names_each_and_why(broker_url: str) -> None:
    host = broker_url.rpartition("@")[2].partition("/")[0]
    with pytest.raises(BrokerUnavailable) as caught:
        Admin(
            to("amqp://u:hush@127.0.0.1:1//", f"amqp://u:hush@{host}//", f"amqp://guest:guest@{host}/nowhere")
        ).connect()
    text = str(caught.value)
    assert "127.0.0.1:1//" in text and "refused" in text
    assert "ACCESS_REFUSED" in text
    assert "nowhere not found" in text
    assert "hush" not in text


def test_a_broker_that_never_answers_is_given_up_in_time() -> None:
    # Given a server that takes connections and says nothing
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"amqp://127.0.0.1:{server.getsockname()[1]}//"
        started = time.monotonic()
        # When a session is opened / Then it ends by its deadline
        with pytest.raises(BrokerUnavailable, match="no broker"):
            Admin(to(silent), timeout_s=0.5).connect()
        assert time.monotonic() - started < 5


def test_closing_twice_or_unopened_is_harmless(broker_url: str) -> None:
    session = Admin(to(broker_url))
    session.close()
    session.connect()
    session.close()
    session.close()
