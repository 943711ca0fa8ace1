"""``amqptasks migrate`` between two virtual hosts of a real broker: what moves, what stays, what a kill does."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.by_hand import ByHand
from amqptasks.broker.moving import Destination, Source
from amqptasks.broker.parameters import endpoints
from amqptasks.broker.topology import DeclareQueue, dead_queue, plan
from tests.command import Shell, environment, here
from tests.running import Workshop
from tests.support import eventually

SOURCE = """
app.conf.task_queues = [Queue(QUEUE, Exchange("", "direct"))]

@app.task(name="shop.add")
def add(x, y):
    return x + y
"""


def endpoint(url: str) -> Any:
    return endpoints([url], heartbeat_s=None, connection_timeout_s=5, name="a test")


class Removal(Workshop):
    """A workshop at the source, and another virtual host as the destination."""

    other_url = ""

    def migrate(self, *words: str, code: int = 0, ends: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        urls = ends or (self.broker_url, self.other_url)
        return Shell(self.directory)("-A", self.project.name, "migrate", *urls, *words, code=code)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start it, and do not wait for its end."""
        command = [sys.executable, "-m", "amqptasks", "-A", self.project.name, "migrate", self.broker_url]
        return subprocess.Popen(
            [*command, self.other_url, *words], cwd=self.directory, env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def fill(self, bodies: list[bytes], queue: str = "") -> None:
        """Put messages into a queue at the source."""
        with Destination(endpoint(self.broker_url)) as putting:
            for each in self.app.queues.values():
                putting.declare(plan(each, default_type="quorum", version=putting.version))
            properties = pika.BasicProperties(delivery_mode=2)
            assert all(putting.put_all([(queue or self.queue, body, properties) for body in bodies]))

    def there(self, queue: str = "") -> int:
        """How many messages wait at the destination."""
        with Admin(endpoint(self.other_url)) as admin:
            counts = admin.counts(queue or self.queue)
        return counts[0] if counts else 0

    def take_all(self, queue: str = "") -> list[bytes]:
        """Take every message at the destination."""
        with Source(endpoint(self.other_url)) as taking:
            taking.consume(queue or self.queue)
            found = []
            while batch := taking.take(1000, 1.0):
                found += [each.body for each in batch]
                for each in batch:
                    taking.ack(each)
            taking.settle()
        return found


@pytest.fixture(scope="module")
def other_url(broker_url: str, rabbitmqctl: Callable[..., str]) -> Iterator[str]:
    """A virtual host of these tests' own."""
    name = f"new-{uuid.uuid4().hex[:8]}"
    # All at once: starting rabbitmqctl takes seconds. The tests empty it, and it ends with the broker.
    all_of_it = '<<".*">>, <<".*">>, <<".*">>, <<"tests">>'
    rabbitmqctl(
        "eval",
        f'rabbit_vhost:add(<<"{name}">>, <<"tests">>), '
        f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, {all_of_it}).',
    )
    yield f"{broker_url.rpartition('/')[0]}/{name}"


@pytest.fixture
def shop(tmp_path: Path, broker_url: str, other_url: str) -> Iterator[Removal]:
    with Removal(tmp_path, broker_url, "from amqptasks import Exchange, Queue\n" + SOURCE) as made:
        made.other_url = other_url
        yield made
        with Admin(endpoint(other_url)) as admin:
            for tail in ("", "-two", "-full", ".dead"):
                admin.delete(made.queue + tail)


def test_tasks_move_as_they_are_and_run_at_the_other_broker(shop: Removal) -> None:
    # Given tasks that wait, one with everything a message can have, and one that came back already
    shop.fill([])
    sent = shop.tasks.add.delay(1, 2)
    headers = {"task": "shop.add", "id": "x", "n": 2**40, "deep": {"list": [1, "two", True, None]}, "x-death": [{}]}
    headers |= {"x-delivery-count": 3, "x-first-death-queue": "old"}
    given = {
        "content_type": "application/x-none", "content_encoding": "binary", "delivery_mode": 2, "priority": 3,
        "correlation_id": "c", "reply_to": "r", "expiration": "600000", "message_id": "m", "timestamp": 1700000000,
        "type": "t", "app_id": "a",
    }  # fmt: skip
    body = bytes(range(256))
    with ByHand(endpoint(shop.broker_url)) as by_hand:
        by_hand.put("", shop.queue, body, {**given, "headers": headers})
    # When they are moved / Then it says so, nothing is left, and the queue is of the same kind there
    done = shop.migrate()
    assert done.stdout.startswith(f"Moved 2 messages: {shop.queue} 2.\n")
    assert re.search(r"2/2 messages", done.stderr)
    shop.is_waiting(0)
    assert shop.there() == 2
    # And each is to the byte what it was, without what the old broker had written on it
    with ByHand(endpoint(shop.other_url)) as by_hand:
        task, other = by_hand.get(shop.queue, no_ack=True), by_hand.get(shop.queue, no_ack=True)
    assert task is not None and other is not None
    assert task.properties["headers"]["id"] == sent.id and json.loads(task.body)[0] == [1, 2]
    assert other.body == body
    kept = {key: value for key, value in headers.items() if not key.startswith("x-")}
    # The other broker counts from the start
    assert other.properties["headers"].pop("x-delivery-count") == 0
    assert other.properties == {**given, "headers": kept}


def test_a_kill_in_between_loses_nothing_and_it_can_be_run_again(shop: Removal) -> None:
    # Given many messages
    bodies = [b"%d" % number for number in range(3000)]
    shop.fill(bodies)
    # When moving them is killed on the way
    process = shop.begin()
    eventually(lambda: shop.there() > 0, 20.0)
    process.kill()
    process.communicate(timeout=20)
    before = shop.there()
    # And it is run again
    eventually(lambda: shop.waiting() + before >= len(bodies), 20.0)
    shop.migrate()
    # Then every message is there, a few of them twice at most
    found = Counter(shop.take_all())
    assert set(found) == set(bodies)
    assert found.total() - len(bodies) <= 200
    shop.is_waiting(0)


def test_only_some_are_moved(shop: Removal) -> None:
    # Given tasks of two kinds, one of them from an old program
    shop.fill([json.dumps({"task": "shop.old", "id": "1", "args": [], "kwargs": {}}).encode()])
    for _number in range(3):
        shop.tasks.add.delay(1, 1)
    # When those of one kind are moved / Then the others stay, in any number
    assert json.loads(shop.migrate("-T", "shop.o*", "--json").stdout)["moved"] == 1
    shop.is_waiting(3)
    # When two are moved into a queue of another name / Then one is left
    target = f"{shop.queue}-two"
    done = json.loads(shop.migrate("-Q", f"{shop.queue}:{target}", "-n", "2", "--json").stdout)
    assert (done["moved"], done["queues"]) == (2, {shop.queue: 2})
    shop.is_waiting(1)
    assert shop.there(target) == 2
    # When it is copied / Then it is in both places
    assert shop.migrate("--copy").stdout == f"Copied 1 message: {shop.queue} 1.\n"
    shop.is_waiting(1)
    assert shop.there() == 2


def test_messages_that_are_not_meant_do_not_stop_those_behind_them(shop: Removal) -> None:
    # Given more messages that are not meant than are under way at once, and one that is, behind them
    shop.fill([b"%d" % number for number in range(450)] + [json.dumps({"task": "shop.old", "id": "1"}).encode()])
    assert json.loads(shop.migrate("-T", "shop.old", "--json").stdout)["moved"] == 1
    shop.is_waiting(450)


def test_what_stays_is_told_and_can_be_fetched(shop: Removal) -> None:
    # Given a delayed task, and a dead letter
    shop.fill([])
    shop.app.send_task("shop.add", (1, 1), countdown=300)
    dead = f"{shop.queue}.dead"
    with ByHand(endpoint(shop.broker_url)) as by_hand:
        by_hand.declare([dead_queue(shop.app.conf, shop.queue, by_hand.version)])
        by_hand.put("", dead, b"unreadable", {"headers": {"amqptasks-reason": "unreadable"}})
    # When the queue is moved / Then both are named
    said = shop.migrate().stdout
    assert re.search(r"\d+ delayed tasks? still at the source: -F moves them when they are due", said)
    assert f"1 dead letter still in {dead} at the source: -Q {dead} moves them" in said
    # When the dead letters are asked for / Then they move as they are
    shop.migrate("-Q", dead)
    with ByHand(endpoint(shop.other_url)) as by_hand:
        found = by_hand.get(dead, no_ack=True)
    assert found is not None and found.properties["headers"]["amqptasks-reason"] == "unreadable"


def test_it_goes_on_for_ever_until_it_is_told(shop: Removal) -> None:
    shop.fill([b"first"] * 1000)
    process = shop.begin("-F")
    # Given that it runs / When more comes, a delayed task among it / Then that moves too
    eventually(lambda: shop.there() == 1000, 20.0)
    shop.app.send_task("shop.add", (1, 1), countdown=0.3)
    eventually(lambda: shop.there() == 1001, 20.0)
    # When it is told to end / Then it says what it has done
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert said.startswith(f"Moved 1001 messages: {shop.queue} 1001.")
    assert errors == f"Moved 1000 messages: {shop.queue} 1000 so far\n"


def test_a_destination_that_takes_no_more_keeps_them_at_the_source(shop: Removal) -> None:
    # Given a queue there that refuses what is too much
    shop.fill([b"%d" % number for number in range(5)])
    target = f"{shop.queue}-full"
    with ByHand(endpoint(shop.other_url)) as by_hand:
        arguments = {"x-queue-type": "classic", "x-max-length": 2, "x-overflow": "reject-publish"}
        by_hand.declare([DeclareQueue(target, arguments=arguments)])
    # When messages are moved there / Then those that it refused stay, and that is told
    done = shop.migrate("-Q", f"{shop.queue}:{target}", code=1)
    assert "did not take" in done.stderr and "it is full" in done.stderr
    assert "Run it again" in done.stderr
    taken = shop.there(target)
    assert 0 < taken < 5
    shop.is_waiting(5 - taken)


@pytest.mark.parametrize(
    ("words", "ends", "code", "says"),
    [
        ((), ("amqp://localhost:1", "amqp://localhost:1"), 2, "source and destination are the same broker"),
        (("-Q", "a:"), (), 2, "-Q: expected QUEUE or FROM:TO, got: 'a:'"),
        (("-a", "--copy"), (), 2, "give one of them"),
        (("-n", "0"), (), 2, "0 is not in the range"),
        (("-Q", "nowhere"), (), 1, "there is no queue 'nowhere' at amqp://guest@"),
        ((), ("amqp://localhost:1", "amqp://localhost:2"), 69, "no broker could be reached: amqp://guest@localhost:1"),
        ((), ("redis://localhost", "amqp://localhost:2"), 2, "expected a URL that begins with amqp://"),
        ((), ("amqp://localhost:1",), 2, "missing DESTINATION"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], ends: tuple[str, ...], code: int, says: str, broker_url: str, other_url: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (said,) = here(capfd, "migrate", *(ends or (broker_url, other_url)), *words, code=code)[1].splitlines()
    assert says in said and "guest:guest" not in said
