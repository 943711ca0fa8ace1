"""Settings that are seen in messages, queues and workers: each is set, and what it promises is looked for.

Two workers with many settings serve all of the tests about workers; every other setting that acts has its proof
elsewhere, see ``tests/unit/test_settings_proofs.py``.
"""

from __future__ import annotations

import json
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgpack
import pika
import pika.exceptions
import pytest

from amqptasks.app.app import App
from amqptasks.broker.delays import Ladder
from amqptasks.broker.parameters import endpoints
from amqptasks.broker.revocations import stream_name, stream_need
from amqptasks.broker.topology import DeclareExchange, DeclareQueue
from amqptasks.entities import Queue
from amqptasks.exceptions import ContentError, InvalidTaskError, NotSent, TaskRevokedError, WorkerLostError
from tests.proxy import Proxy
from tests.running import Found, Workshop
from tests.support import eventually

SOURCE = """
    import os
    from amqptasks.exceptions import Reject

    @app.task
    def echo(*values):
        return len(values)

    @app.task
    def fail(text):
        note(f"fail {text}")
        raise ValueError(text)

    @app.task
    def die(text):
        note(f"die {text}")
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(bind=True)
    def again(self, text):
        note(f"again {text}")
        raise Reject("again", requeue=True)

    @app.task(acks_late=False)
    def early(text, name=None):
        note(f"begun {text}")
        if name:
            gate(name)
"""

ARGUMENTS = [[[1]]]

#: Read by the first worker.
STRICT = (
    "task_acks_late=yes", "task_acks_on_failure_or_timeout=no", "task_crash_limit=1", "task_dead_letter_suffix=.lost",
    "task_delivery_limit=2", "task_message_max_bytes=5000", "task_message_max_items=50", "task_message_max_depth=10",
    "task_track_started=yes", "accept_content=json", "result_serializer=msgpack", "result_persistent=yes",
)  # fmt: skip
#: Read by the second one.
LENIENT = ("task_acks_late=yes", "task_acks_on_failure=no", "task_reject_on_worker_lost=no")


# ---- What is sent


class Desk:
    """An app that sends to a queue of its own, and a hand at the broker."""

    def __init__(self, broker_url: str) -> None:
        self.url = broker_url
        self.queue = f"effects-{uuid.uuid4().hex[:8]}"
        self._apps: list[App] = []
        self._exchanges: set[str] = set()
        self._queues = {self.queue}
        self.connection = pika.BlockingConnection(
            endpoints([broker_url], heartbeat_s=None, connection_timeout_s=5, name="a test")[0].parameters
        )

    def app(self, **settings: Any) -> App:
        self._apps.append(App(broker=self.url, set_as_current=False, task_default_queue=self.queue, **settings))
        return self._apps[-1]

    def sent(self, settings: dict[str, Any], **options: Any) -> Found:
        """Send a task, and take its message from the queue."""
        self.app(**settings).send_task("work", ARGUMENTS, **options)
        channel = self.connection.channel()
        method, properties, body = channel.basic_get(options.get("queue", self.queue), auto_ack=True)
        assert method is not None, "no message"
        return Found(body, dict(properties.headers), properties)

    def type_of(self, queue: str) -> str:
        """Of which type a queue is: RabbitMQ refuses to declare it as another."""
        for kind in ("classic", "quorum"):
            channel = self.connection.channel()
            try:
                channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
            except pika.exceptions.ChannelClosedByBroker as error:
                assert "x-queue-type" in error.reply_text, error
            else:
                return kind
        raise AssertionError(f"queue {queue} is of another type")

    def also_delete(self, *queues: str, exchange: str | None = None) -> None:
        self._queues |= set(queues)
        if exchange:
            self._exchanges.add(exchange)

    def close(self) -> None:
        for app in self._apps:
            app.close()
        channel = self.connection.channel()
        for queue in self._queues:
            channel.queue_delete(queue)
        for exchange in self._exchanges:
            channel.exchange_delete(exchange)
        self.connection.close()


@pytest.fixture
def desk(broker_url: str) -> Iterator[Desk]:
    desk = Desk(broker_url)
    yield desk
    desk.close()


def is_deflated(found: Found) -> bool:
    return (
        found.headers["compression"] == "application/x-gzip" and json.loads(zlib.decompress(found.body))[0] == ARGUMENTS
    )


@pytest.mark.parametrize(
    ("setting", "value", "holds"),
    [
        ("task_serializer", "msgpack", lambda found: msgpack.unpackb(found.body)[0] == ARGUMENTS),
        ("task_compression", "gzip", is_deflated),
        ("task_default_delivery_mode", "transient", lambda found: found.properties.delivery_mode == 1),
        ("task_default_priority", 7, lambda found: found.properties.priority == 7),
        ("task_repr_maxlevels", 2, lambda found: found.headers["argsrepr"] == "([[...]],)"),
        ("timezone", "Asia/Tokyo", lambda found: found.headers["eta"] == "2020-01-01T00:00:00+00:00"),
    ],
)
def test_a_setting_is_seen_in_the_message(desk: Desk, setting: str, value: Any, holds: Callable[[Found], Any]) -> None:
    # Given a moment that has passed, nine o'clock in the morning of an unnamed zone
    # When a task is sent / Then its message is as the setting says
    assert holds(desk.sent({setting: value}, eta=datetime(2020, 1, 1, 9)))


def test_a_queue_that_is_only_named_has_the_type_that_is_set(desk: Desk) -> None:
    # Given two names that no setting declares / When a task is sent to each / Then its queue is of the type wanted
    for kind in ("classic", "quorum"):
        name = f"{desk.queue}-{kind}"
        desk.also_delete(name)
        desk.sent({"task_create_missing_queue_type": kind}, queue=name)
        assert desk.type_of(name) == kind


def test_a_queue_that_is_only_named_has_an_exchange_of_the_type_that_is_set(desk: Desk) -> None:
    name = f"{desk.queue}-topic"
    desk.also_delete(name, exchange=name)
    assert desk.sent({"task_create_missing_queue_exchange_type": "topic"}, queue=name).body
    # It is there, and declaring it as something else would be refused.
    desk.connection.channel().exchange_declare(name, passive=True)
    desk.connection.channel().exchange_declare(name, "topic", durable=True)


def test_sends_wait_for_the_broker_unless_told_otherwise(desk: Desk) -> None:
    # Given a queue that takes nothing
    arguments = {"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"}
    desk.connection.channel().queue_declare(desk.queue, durable=True, arguments=arguments)
    queues = [Queue(desk.queue, no_declare=True)]

    # When a task is sent / Then the sender hears of it, or does not ask
    with pytest.raises(NotSent):
        desk.app(task_queues=queues, broker_publish_timeout=0.5).send_task("work")
    assert desk.app(task_queues=queues, broker_publish_confirm=False).send_task("work").id


def test_delayed_tasks_wait_in_queues_of_the_name_and_type_that_are_set(desk: Desk) -> None:
    # Given a prefix of our own, and delay queues that are to be classic
    prefix = f"effects{uuid.uuid4().hex[:8]}"
    ladder = Ladder(prefix, "classic")
    for step in ladder.steps():
        if isinstance(step, DeclareQueue):
            desk.also_delete(step.queue)
        elif isinstance(step, DeclareExchange):
            desk.also_delete(exchange=step.exchange)

    # When a delayed task is sent / Then it waits in one of those queues
    desk.app(task_queue_prefix=prefix, delay_queue_type="classic").send_task("work", countdown=3600)
    channel = desk.connection.channel()
    queues = [step for step in ladder.steps() if isinstance(step, DeclareQueue)]
    waiting = [step for step in queues if channel.queue_declare(step.queue, passive=True).method.message_count]
    assert len(waiting) == 1
    # Declaring it with other arguments would be refused.
    channel.queue_declare(waiting[0].queue, durable=True, arguments=dict(waiting[0].arguments))


def test_orders_to_revoke_are_kept_as_long_as_the_setting_says(desk: Desk) -> None:
    # Given a prefix of our own, and orders that are to be kept for three days / When one is sent
    prefix = f"effects{uuid.uuid4().hex[:8]}"
    name = stream_name(prefix)
    desk.also_delete(name)
    desk.app(task_queue_prefix=prefix, task_revoke_expires=3 * 86400).control.revoke("an id")
    # Then its stream is of that age: declaring it otherwise would be refused
    (declared,) = stream_need(prefix, 3 * 86400).steps(None)
    assert isinstance(declared, DeclareQueue) and declared.arguments["x-max-age"] == "3D"
    desk.connection.channel().queue_declare(name, durable=True, arguments=dict(declared.arguments))


# ---- A worker with strict settings


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("strict"), broker_url, SOURCE) as shop:
        shop.also_delete(f"{shop.queue}.lost")
        shop.start("-c", "1", "--", *STRICT)
        yield shop


def lost(shop: Workshop, task_id: str) -> Found:
    """Wait for a dead letter where the setting says that it goes."""

    def look() -> Found | bool:
        found = shop.take(f"{shop.queue}.lost")
        return found if found is not None and found.headers.get("id") == task_id else False

    letter = eventually(look, 20.0)
    assert isinstance(letter, Found)
    return letter


def test_a_failure_is_rejected_by_setting(strict: Workshop) -> None:
    # Given task_acks_on_failure_or_timeout=no / When a task fails / Then it is among the dead letters of our own suffix
    result = strict.tasks.fail.delay("rejected")
    with pytest.raises(ValueError, match="rejected"):
        result.get(timeout=20)
    assert lost(strict, result.id).headers["x-amqptasks-reason"] == "rejected"


def test_a_task_may_cost_as_many_children_as_the_setting_says(strict: Workshop) -> None:
    # Given task_crash_limit=1 / When a task kills its child / Then it is not tried again
    result = strict.tasks.die.delay("once")
    with pytest.raises(WorkerLostError):
        result.get(timeout=20)
    assert lost(strict, result.id).headers["x-amqptasks-reason"] == "too-many-crashes"
    assert strict.ledger().count("die once") == 1


def test_a_message_is_delivered_as_often_as_the_setting_says(strict: Workshop) -> None:
    # Given task_delivery_limit=2 / When a task puts itself back for ever / Then that ends after the second time
    with pytest.raises(InvalidTaskError, match="delivered 3 times"):
        strict.tasks.again.delay("twice").get(timeout=20)
    assert strict.ledger().count("again twice") == 2


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("setting", "argument"),
    [
        ("task_message_max_bytes", "x" * 6000),
        ("task_message_max_items", [[]] * 60),
        ("task_message_max_depth", nested(12)),
    ],
    ids=["task_message_max_bytes", "task_message_max_items", "task_message_max_depth"],
)
def test_a_body_is_read_within_the_limits_that_are_set(strict: Workshop, setting: str, argument: Any) -> None:
    # Given a body that is beyond one limit, and within the others / When it is sent / Then the worker does not read it
    result = strict.tasks.echo.delay(argument)
    assert lost(strict, result.id).headers["x-amqptasks-reason"] == "unreadable", setting


def test_content_that_is_not_accepted_is_not_read(strict: Workshop) -> None:
    # Given accept_content=json / When a task comes in msgpack, which is accepted by default / Then it is not read
    result = strict.tasks.echo.apply_async((1,), serializer="msgpack")
    assert "application/x-msgpack" in lost(strict, result.id).headers["x-amqptasks-detail"]


def test_answers_are_written_as_the_settings_say(strict: Workshop) -> None:
    # Given result_serializer=msgpack, result_persistent=yes and task_track_started=yes
    answers = f"{strict.queue}-answers"
    strict.also_delete(answers)
    strict.admin.declare([DeclareQueue(answers, arguments={"x-queue-type": "classic"})])

    # When a task is answered / Then first its start is told, and all of it as they say
    strict.tasks.echo.apply_async((1, 2), reply_to=answers)
    strict.is_waiting(2, answers)
    found = [strict.take(answers), strict.take(answers)]
    read = [msgpack.unpackb(each.body) for each in found if each is not None]
    assert [each["status"] for each in read] == ["STARTED", "SUCCESS"]
    assert read[1]["result"] == 2
    assert [each.properties.delivery_mode for each in found if each is not None] == [2, 2]


def test_an_answer_is_read_if_its_content_is_accepted(strict: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    # Given answers in msgpack
    name = f"{strict.project.name}.echo"
    said = "refused a body of content type 'application/x-msgpack', accepted are application/json"
    with App(broker=strict.broker_url, backend="rpc://", set_as_current=False) as app:
        # When they are read where tasks and results may be in both / Then they are there
        assert app.send_task(name, (1,), queue=strict.queue).get(timeout=20) == 1
        assert said not in caplog.text
    with App(broker=strict.broker_url, backend="rpc://", set_as_current=False, result_accept_content=["json"]) as app:
        # And where results may be in JSON alone, they are refused
        result = app.send_task(name, (1,), queue=strict.queue)
        with pytest.raises(ContentError, match=re.escape(said)):
            result.get(timeout=20)
        assert said in caplog.text


# ---- A worker with lenient settings


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("lenient"), broker_url, SOURCE) as shop:
        shop.start("-c", "1", "--", *LENIENT)
        yield shop


def test_a_failure_alone_is_rejected_by_setting(lenient: Workshop) -> None:
    # Given task_acks_on_failure=no / When a task fails / Then it is among the dead letters
    result = lenient.tasks.fail.delay("alone")
    assert lenient.dead_letter_of(result.id).headers["x-amqptasks-reason"] == "rejected"


def test_a_task_whose_child_died_fails_by_setting(lenient: Workshop) -> None:
    # Given task_reject_on_worker_lost=no / When a task kills its child / Then it fails, and does not come back
    with pytest.raises(WorkerLostError):
        lenient.tasks.die.delay("failed").get(timeout=20)
    lenient.is_waiting(0)
    assert lenient.ledger().count("die failed") == 1


# ---- A worker that loses its broker


def test_no_more_tasks_begin_than_may_wait_for_their_confirms(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    # Given a worker that holds ten tasks, of which three may be unsettled, and a broker that takes nothing any more
    with Workshop(tmp_path_factory.mktemp("pause"), broker_url, SOURCE) as shop, Proxy(broker_url) as proxy:
        worker = shop.start(
            "-c", "1", "--prefetch-multiplier", "20", "--", f"broker_url={proxy.url}", "broker_heartbeat=1",
            "worker_settlement_limit=3",
        )  # fmt: skip
        gate = shop.gate()
        with shop.app.bulk():
            for number in range(10):
                shop.tasks.early.delay(number, gate.name)
        gate.reached()
        shop.is_waiting(0)
        proxy.stall()

        # When the tasks may end, and until the worker gives its connections up
        gate.open()
        worker.wait_for("Lost the publishing connection")

        # Then it has run three of them, by the order of its log: with the connection those that wait for it are gone
        assert worker.log.partition("Lost the publishing connection")[0].count(" succeeded in ") == 3
        assert shop.ledger()[:3] == ["begun 0", "begun 1", "begun 2"]

        # And all of the others, once the broker is back
        proxy.heal()
        for number in range(10):
            eventually(lambda number=number: f"begun {number}" in shop.ledger(), 20.0)


# ---- A worker that finds tasks waiting


def test_a_worker_keeps_as_many_revoked_ids_in_mind_as_it_is_told(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    # Given two waiting tasks that have been revoked / When a worker comes that keeps one revoked id in mind
    with Workshop(tmp_path_factory.mktemp("revoked"), broker_url, SOURCE) as shop:
        first, second = shop.tasks.early.delay("first"), shop.tasks.early.delay("second")
        first.revoke()
        second.revoke()
        shop.start("-c", "1", "--", "task_revokes_max=1")
        # Then it has forgotten the first
        with pytest.raises(TaskRevokedError):
            second.get(timeout=20)
        assert first.get(timeout=20) is None
        assert shop.ledger() == ["begun first"]


def test_the_asyncio_pool_runs_as_many_plain_tasks_at_once_as_it_is_told(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    # Given a worker with an event loop and one thread, which a plain task holds
    source = (
        SOURCE
        + """
    @app.task
    async def native(text):
        note(f"begun {text}")
    """
    )
    with Workshop(tmp_path_factory.mktemp("threads"), broker_url, source) as shop:
        shop.start("-P", "asyncio", "-c", "10", "--", "worker_asyncio_threads=1")
        gate = shop.gate()
        shop.tasks.early.delay("first", gate.name)
        gate.reached()
        # When another plain task and one for the loop are sent / Then the one for the loop runs, and the other waits
        second = shop.tasks.early.delay("second")
        shop.tasks.native.delay("native").get(timeout=20)
        assert shop.ledger() == ["begun first", "begun native"]
        gate.open()
        second.get(timeout=20)
