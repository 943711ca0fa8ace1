"""Every option of apply_async does what it says: seen in the message that RabbitMQ got, or in what became of it."""

from __future__ import annotations

import datetime
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from amqptasks import App, Exchange, Queue
from amqptasks.app.options import KNOWN_OPTIONS
from amqptasks.exceptions import BrokerUnavailable, Unroutable
from tests.running import Found, Workshop
from tests.support import eventually

SOURCE = """
    @app.task
    def add(x=1, y=2):
        return x + y

    @app.task(
        priority=2, serializer="msgpack", expires=3600, ignore_result=True, time_limit=60, soft_time_limit=50,
        compression="gzip", delivery_mode="transient", queue=f"{QUEUE}-own",
    )
    def particular():
        return None

    from amqptasks import Task

    class Shadowed(Task):
        def shadow_name(self, args, kwargs, options):
            return f"add of {args}"

    @app.task(base=Shadowed)
    def shadowed(x, y):
        return x + y

    @app.task(bind=True)
    def parent(self):
        kept = add.delay()
        add.apply_async(add_to_parent=False)
        return kept.id, [each.id for each in self.request.children]
"""
#: Options with a test of their own below or elsewhere; the table has the rest.
TESTED_ELSEWHERE = {
    "retry": "test_sending", "retry_policy": "test_sending", "timeout": "test_sending",
    "immutable": "test_celery_signatures",
}  # fmt: skip
tested = set(TESTED_ELSEWHERE)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project whose queue no worker serves: what is sent can be looked at."""
    with Workshop(tmp_path_factory.mktemp("options"), broker_url, SOURCE) as made:
        made.also_delete(f"{made.queue}-own", f"{made.queue}-other")
        yield made


def sent(shop: Workshop, send: Callable[[], Any], queue: str | None = None) -> Found:
    """Send, and take the message that came."""
    result = send()
    found = eventually(lambda: shop.take(queue or shop.queue) or False, 20.0)
    assert isinstance(found, Found)
    assert found.headers["id"] == result.id
    return found


def body_of(found: Found) -> Any:
    return json.loads(found.body)


def header(name: str, value: Any) -> Callable[[Found], bool]:
    return lambda found: bool(found.headers[name] == value)


def prop(name: str, value: Any) -> Callable[[Found], bool]:
    return lambda found: bool(getattr(found.properties, name) == value)


def embedded(name: str, count: int) -> Callable[[Found], bool]:
    return lambda found: [each["task"].endswith(".add") for each in body_of(found)[2][name]] == [True] * count


NOON = datetime.datetime(2099, 5, 6, 12, tzinfo=datetime.timezone.utc)
SIGNATURE: dict[str, Any] = {
    "task": "proj.add",
    "args": [],
    "kwargs": {},
    "options": {},
    "subtask_type": None,
    "immutable": False,
}

#: Options, and what the message must then have.
TABLE: list[tuple[dict[str, Any], Callable[[Found], bool]]] = [
    ({"task_id": "my-id"}, lambda found: found.headers["id"] == found.properties.correlation_id == "my-id"),
    ({"correlation_id": "other"}, prop("correlation_id", "other")),
    ({"expires": NOON}, header("expires", "2099-05-06T12:00:00+00:00")),
    ({"expires": NOON.isoformat()}, header("expires", "2099-05-06T12:00:00+00:00")),
    ({"expires": 3600}, lambda found: 3500 < seconds_from_now(found.headers["expires"]) <= 3600),
    ({"expires": datetime.timedelta(hours=1)}, lambda found: 3500 < seconds_from_now(found.headers["expires"]) <= 3600),
    ({"expires": NOON}, prop("expiration", None)),
    ({"expiration": "60000"}, prop("expiration", "60000")),
    ({"priority": 7}, prop("priority", 7)),
    ({"priority": 0}, prop("priority", 0)),
    ({"shadow": "another name"}, header("shadow", "another name")),
    ({"time_limit": 9}, header("timelimit", [9, None])),
    ({"soft_time_limit": 3, "time_limit": 9}, header("timelimit", [9, 3])),
    ({"ignore_result": True}, header("ignore_result", True)),
    ({"headers": {"tenant": "blue"}}, header("tenant", "blue")),
    ({"group_id": "g", "group_index": 4}, header("group", "g")),
    ({"group_id": "g", "group_index": 4}, header("group_index", 4)),
    ({"root_id": "r"}, header("root_id", "r")),
    ({"parent_id": "p"}, header("parent_id", "p")),
    ({"retries": 3}, header("retries", 3)),
    ({"origin": "elsewhere"}, header("origin", "elsewhere")),
    ({"argsrepr": "(***)"}, header("argsrepr", "(***)")),
    ({"kwargsrepr": "{***}"}, header("kwargsrepr", "{***}")),
    ({"replaced_task_nesting": 2}, header("replaced_task_nesting", 2)),
    ({"stamped_headers": ["team"], "team": "red"}, header("stamps", {"team": "red"})),
    ({"stamped_headers": ["team"], "stamps": {"team": "red"}}, header("stamped_headers", ["team"])),
    ({"delivery_mode": 1}, prop("delivery_mode", 1)),
    ({"delivery_mode": "transient"}, prop("delivery_mode", 1)),
    ({"delivery_mode": "persistent"}, prop("delivery_mode", 2)),
    ({"reply_to": "a-queue"}, prop("reply_to", "a-queue")),
    ({"app_id": "an-app"}, prop("app_id", "an-app")),
    ({"user_id": "guest"}, prop("user_id", "guest")),
    ({"message_id": "a-message"}, prop("message_id", "a-message")),
    ({"type": "a-type"}, prop("type", "a-type")),
    ({"timestamp": 1700000000}, prop("timestamp", 1700000000)),
    ({"serializer": "msgpack"}, prop("content_type", "application/x-msgpack")),
    ({"serializer": "msgpack"}, lambda found: msgpack.unpackb(found.body)[0] == []),
    ({"compression": "gzip"}, lambda found: json.loads(zlib.decompress(found.body))[0] == []),
    ({"compression": "bzip2"}, header("compression", "application/x-bz2")),
    ({"link": SIGNATURE}, embedded("callbacks", 1)),
    ({"link": [SIGNATURE, SIGNATURE]}, embedded("callbacks", 2)),
    ({"link_error": SIGNATURE}, embedded("errbacks", 1)),
    ({"chain": [SIGNATURE, SIGNATURE]}, embedded("chain", 2)),
    ({"chord": SIGNATURE}, lambda found: body_of(found)[2]["chord"]["task"] == "proj.add"),
    ({"connection": None, "producer": None, "publisher": None, "immediate": False}, prop("delivery_mode", 2)),
]  # fmt: skip
for options, _check in TABLE:
    tested |= options.keys() & KNOWN_OPTIONS


def seconds_from_now(text: str) -> float:
    return (datetime.datetime.fromisoformat(text) - datetime.datetime.now(datetime.timezone.utc)).total_seconds()


@pytest.mark.parametrize(
    ("options", "check"), TABLE, ids=[f"{number} {' '.join(o)}" for number, (o, _) in enumerate(TABLE)]
)
def test_an_option_is_in_the_message(shop: Workshop, options: dict[str, Any], check: Callable[[Found], bool]) -> None:
    found = sent(shop, lambda: shop.tasks.add.apply_async(**options))
    assert check(found), (found.headers, found.properties, found.body)


def test_arguments_are_in_the_body(shop: Workshop) -> None:
    found = sent(shop, lambda: shop.tasks.add.apply_async((1,), {"y": 3}))
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert body_of(found) == [[1], {"y": 3}, embed]
    assert (found.headers["argsrepr"], found.headers["kwargsrepr"]) == ("(1,)", "{'y': 3}")


tested |= {"countdown", "eta"}


@pytest.mark.parametrize("kind", ["countdown", "eta", "eta text"])
def test_a_delay_holds_the_message_in_the_broker(shop: Workshop, kind: str) -> None:
    due = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.5)
    options: Any = {
        "countdown": {"countdown": 0.5}, "eta": {"eta": due}, "eta text": {"eta": due.isoformat()},
    }[kind]  # fmt: skip
    found = sent(shop, lambda: shop.tasks.add.apply_async(**options))
    assert datetime.datetime.now(datetime.timezone.utc) >= due
    assert abs((datetime.datetime.fromisoformat(found.headers["eta"]) - due).total_seconds()) < 0.2


tested |= {"queue", "exchange", "routing_key", "exchange_type", "declare"}


def test_a_call_may_say_where_it_goes(shop: Workshop) -> None:
    name, other = f"{shop.queue}-x", f"{shop.queue}-other"
    add, queue = shop.tasks.add, Queue(other, Exchange(name, "topic"), "sound.*")
    # To a queue by name, and as an object with its exchange
    sent(shop, lambda: add.apply_async(queue=other), other)
    sent(shop, lambda: add.apply_async(queue=queue), other)
    # To an exchange by name, with the queue that it leads to declared first
    sent(shop, lambda: add.apply_async(exchange=name, routing_key="sound.loud", declare=[queue]), other)
    sent(shop, lambda: add.apply_async(exchange=queue.exchange, routing_key="sound.low"), other)
    with pytest.raises(Unroutable):
        add.apply_async(exchange=name, exchange_type="topic", routing_key="light")
    # And an exchange alone may be declared
    news = f"{shop.queue}-news"
    with pytest.raises(Unroutable):
        add.apply_async(exchange=news, declare=Exchange(news, "fanout"))
    with pytest.raises(TypeError, match="expected declare to list queues and exchanges, got: 'queue'"):
        add.apply_async(declare="queue")
    for exchange in (name, news):
        shop.delete_exchange(exchange)


tested |= {"route_name"}


def test_a_call_may_go_where_another_tasks_calls_go(shop: Workshop) -> None:
    # Given a route of one task / When another is called as if it were that one, as maps are / Then it goes there
    other = f"{shop.queue}-other"
    shop.app.conf.task_routes = {"elsewhere": {"queue": other}}
    try:
        sent(shop, lambda: shop.tasks.add.apply_async((1, 2), route_name="elsewhere"), other)
        sent(shop, lambda: shop.tasks.add.apply_async((1, 2), route_name="nowhere in particular"), shop.queue)
    finally:
        shop.app.conf.task_routes = None


tested |= {"mandatory"}


def test_a_message_may_be_meant_for_nobody(shop: Workshop) -> None:
    # Given an exchange without a queue / When a call does not mind / Then it is no error that nobody gets it
    news = f"{shop.queue}-nobody"
    options: dict[str, Any] = {"exchange": news, "declare": [Exchange(news, "fanout")]}
    shop.tasks.add.apply_async(mandatory=False, **options)
    with shop.app.bulk():
        shop.tasks.add.apply_async(mandatory=False, **options)
    with pytest.raises(Unroutable):
        shop.tasks.add.apply_async(mandatory=True, **options)
    shop.delete_exchange(news)


tested |= {"confirm_timeout"}


@pytest.mark.parametrize("options", [{"confirm_timeout": 0.2}, {"timeout": 0.2, "confirm_timeout": 3600}], ids=str)
def test_a_call_may_say_how_long_it_waits(options: dict[str, Any]) -> None:
    with (
        App(broker="amqp://127.0.0.1:1//", set_as_current=False) as app,
        pytest.raises(BrokerUnavailable, match=r"within 0\.2 s"),
    ):
        app.send_task("anything", **options)


tested |= {"add_to_parent"}


def test_a_task_keeps_its_children_unless_told_not_to(shop: Workshop) -> None:
    kept, children = shop.tasks.parent.apply().get()
    assert children == [kept]
    for _ in range(2):
        assert eventually(lambda: shop.take(shop.queue) or False, 20.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"connection": object()}, "does not take 'connection': each process sends over one connection of its own"),
        ({"producer": object()}, "does not take 'producer'"),
        ({"immediate": True}, "does not take 'immediate': RabbitMQ has not had it since version 3.0"),
        ({"team": "red"}, "unexpected option 'team'"),
        ({"stamped_headers": ["team"], "teem": "red"}, "unexpected option 'teem'"),
    ],
)
def test_options_without_a_meaning_are_refused(shop: Workshop, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        shop.tasks.add.apply_async(**options)


def test_what_the_task_says_holds_unless_the_call_says_otherwise(shop: Workshop) -> None:
    # Given a task with options of its own / Then its messages have them
    own = f"{shop.queue}-own"
    found = sent(shop, shop.tasks.particular.delay, own)
    assert (found.properties.priority, found.properties.delivery_mode) == (2, 1)
    assert found.properties.content_type == "application/x-msgpack"
    assert found.headers["timelimit"] == [60, 50] and found.headers["ignore_result"] is True
    assert found.headers["compression"] == "application/x-gzip"
    assert 3500 < seconds_from_now(found.headers["expires"]) <= 3600
    # And a call has the last word
    options: dict[str, Any] = {
        "priority": 5, "delivery_mode": 2, "serializer": "json", "time_limit": 55, "ignore_result": False,
        "queue": shop.queue, "expires": 60,
    }  # fmt: skip
    found = sent(shop, lambda: shop.tasks.particular.apply_async(**options))
    assert (found.properties.priority, found.properties.delivery_mode) == (5, 2)
    assert found.properties.content_type == "application/json"
    assert found.headers["timelimit"] == [55, 50] and not found.headers.get("ignore_result")
    assert seconds_from_now(found.headers["expires"]) <= 60
    with pytest.raises(ValueError, match="soft_time_limit must be at most time_limit, got: 50 > 40"):
        shop.tasks.particular.apply_async(time_limit=40)


def test_a_task_may_name_its_calls(shop: Workshop) -> None:
    found = sent(shop, lambda: shop.tasks.shadowed.delay(1, 2))
    assert found.headers["shadow"] == "add of (1, 2)"
    found = sent(shop, lambda: shop.tasks.shadowed.apply_async((1, 2), shadow="mine"))
    assert found.headers["shadow"] == "mine"


def test_every_option_is_tested() -> None:
    assert KNOWN_OPTIONS - tested == set()
