"""``amqptasks doctor`` in front of a real broker: what it finds, what it says to do, and its exit code."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.broker.topology import DeclareQueue
from tests.command import Shell
from tests.running import Workshop
from tests.support import PrivateBroker

pytestmark = pytest.mark.broker

SOURCE = """
    @app.task
    def add(x, y):
        return x + y
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


class Report:
    """What the doctor found."""

    def __init__(self, shop: Workshop, *options: str, code: int = 0, env: dict[str, str] | None = None) -> None:
        done = Shell(shop.directory)("-A", shop.project.name, *options, "doctor", "--json", code=code, env=env)
        facts = json.loads(done.stdout)
        self.status: str = facts["status"]
        self.findings: list[dict[str, str]] = facts["findings"]

    def of(self, check: str, text: str = "") -> dict[str, str]:
        """The one finding of this kind that holds this text."""
        found = [each for each in self.findings if each["check"] == check and text in each["text"]]
        assert len(found) == 1, self.findings
        return found[0]


def declare(shop: Workshop, queue: str, **arguments: Any) -> None:
    shop.admin.declare((DeclareQueue(queue, arguments=arguments),))


def test_a_healthy_project_is_found_so(shop: Workshop) -> None:
    # Given a queue as the project declares it / When the doctor looks
    declare(shop, shop.queue, **{"x-queue-type": "quorum"})
    report = Report(shop)
    # Then everything of it is in order
    version = ".".join(map(str, shop.admin.version))
    assert report.of("version")["text"] == f"RabbitMQ {version}"
    assert report.of("queues", shop.queue)["text"] == f"{shop.queue}: quorum, 0 messages, 0 consumers"
    for check in ("broker", "rights", "alarms", "clock", "settings", "consumer_timeout"):
        assert report.of(check)["status"] == "ok"
    assert "agree" in report.of("clock")["text"] and "unknown" in report.of("consumer_timeout")["text"]
    # And people get lines, with a summary, and no password
    text = Shell(shop.directory)("-A", shop.project.name, "doctor").stdout
    assert f"ok    queues: {shop.queue}: quorum" in text and "findings: 0 bad" in text and "guest:guest" not in text


def test_what_differs_on_the_broker_is_told_with_a_remedy(shop: Workshop) -> None:
    # Given a classic queue where a quorum queue is declared, and dead letters in a queue with other limits
    declare(shop, shop.queue, **{"x-queue-type": "classic"})
    declare(shop, f"{shop.queue}.dead", **{"x-queue-type": "quorum", "x-delivery-limit": 5})
    shop.publish(b"x", {}, queue=f"{shop.queue}.dead")
    # When the doctor looks / Then it says so, and ends with 1
    report = Report(shop, code=1)
    assert report.status == "bad"
    conflict = report.of("queues", f"queue '{shop.queue}' already exists")
    assert conflict["status"] == "bad" and "x-queue-type" in conflict["text"]
    assert f"amqptasks queues delete {shop.queue}" in conflict["remedy"] and "'classic'" in conflict["remedy"]
    assert report.of("dead letters", "1 dead letter")["status"] == "warn"
    assert report.of("dead letters", "x-delivery-limit")["status"] == "warn"
    # And nothing was changed by looking
    shop.is_waiting(1, f"{shop.queue}.dead")


def test_a_queue_that_nobody_serves_is_a_warning(shop: Workshop) -> None:
    declare(shop, shop.queue, **{"x-queue-type": "quorum"})
    shop.publish(b"x", {})
    shop.is_waiting(1)
    found = Report(shop).of("queues", shop.queue)
    assert found["status"] == "warn" and f"worker -Q {shop.queue}" in found["remedy"]
    # The message was not touched: it has not been delivered to anybody
    assert not shop.peek().headers.get("x-delivery-count")


def test_a_missing_queue_is_not_made(shop: Workshop) -> None:
    assert "not there yet" in Report(shop).of("queues", shop.queue)["text"]
    assert not shop.admin.exists(shop.queue) and not shop.admin.exists(f"{shop.queue}.dead")


def test_unsafe_settings_are_told(shop: Workshop) -> None:
    # Given settings that can lose tasks or memory / When the doctor looks / Then each is a warning, with what to do
    prefix = f"p{uuid.uuid4().hex[:8]}"
    unsafe = {
        "BROKER_PUBLISH_CONFIRM": "false", "TASK_IGNORE_RESULT": "true", "WORKER_PREFETCH_MULTIPLIER": "0",
        "BROKER_HEARTBEAT": "0", "DELAY_QUEUE_TYPE": "classic", "TASK_QUEUE_PREFIX": prefix,
    }  # fmt: skip
    report = Report(shop, env={f"AMQPTASKS_{name}": value for name, value in unsafe.items()})
    assert report.status == "warn"
    for check in (
        "broker_publish_confirm", "task_acks_late", "worker_prefetch_multiplier", "broker_heartbeat", "delay_queue_type"
    ):  # fmt: skip
        found = report.of(check)
        assert found["status"] == "warn" and found["remedy"]
    # And who accepts pickle is told that it is bad; who acknowledges late, of the broker's patience
    open_to_all = {"ACCEPT_CONTENT": "json,pickle", "RESULT_ACCEPT_CONTENT": "pickle", "TASK_ACKS_LATE": "true"}
    open_to_all["CHORD_JOIN"] = "store"
    report = Report(shop, env={f"AMQPTASKS_{name}": value for name, value in open_to_all.items()}, code=1)
    assert report.of("accept_content")["status"] == report.of("result_accept_content")["status"] == "bad"
    # And of chords that nothing could count
    assert report.of("chord_join")["status"] == "bad"
    timeout = report.of("consumer_timeout")
    assert timeout["status"] == "warn" and ".add (no time limit)" in timeout["text"]
    # But not if no task can take as long as that
    report = Report(shop, env={"AMQPTASKS_TASK_ACKS_LATE": "true", "AMQPTASKS_TASK_TIME_LIMIT": "60"})
    assert report.of("consumer_timeout")["status"] == "ok"


def test_a_broker_that_is_away_is_a_finding(shop: Workshop) -> None:
    report = Report(shop, "-b", "amqp://guest:secret@127.0.0.1:1//", code=1)
    found = report.of("broker")
    assert found["status"] == "bad" and "refused" in found["text"] and "start RabbitMQ" in found["remedy"]
    assert "secret" not in json.dumps(report.findings)
    # The settings are looked at all the same
    assert report.of("settings")["status"] == "ok"


def test_rights_and_alarms_are_found_by_trying(tmp_path: Path, own_broker: PrivateBroker) -> None:
    # Given a user who may read nothing of the project's, and declare nothing of ours
    with Workshop(tmp_path, own_broker.url, SOURCE) as shop:
        declare(shop, shop.queue, **{"x-queue-type": "quorum"})
        own_broker.ctl("add_user", "ann", "ann")
        own_broker.ctl("set_permissions", "ann", f"^{shop.queue}$", "^$", "^$")
        url = own_broker.url.replace("guest:guest", "ann:ann")
        # When she asks / Then each right that is missing is named, with the command that gives it
        report = Report(shop, "-b", url, code=1)
        for right in ("configure:", "write:", "read:"):
            found = report.of("rights", right)
            assert found["status"] == "bad" and "rabbitmqctl set_permissions" in found["remedy"]
        # When she may not even look at a queue / Then everything else is looked at all the same
        own_broker.ctl("set_permissions", "ann", "^$", "^$", "^$")
        blind = Report(shop, "-b", url, code=1)
        assert any(each["check"] == "rights" and shop.queue in each["text"] for each in blind.findings)
        assert blind.of("alarms")["status"] == "warn" and "unknown: 403 ACCESS_REFUSED" in blind.of("alarms")["text"]
        assert {each["check"] for each in blind.findings} >= {"version", "clock", "consumer_timeout"}
        # When she is given what the report says / Then it is enough
        patterns = report.of("rights", "read:")["remedy"].split("'")[1::2]
        own_broker.ctl("set_permissions", "ann", *patterns)
        assert Report(shop, "-b", url).of("rights")["status"] == "ok"
        # When memory runs out / Then that is told, at once
        own_broker.ctl("set_vm_memory_high_watermark", "0.000001")
        found = Report(shop, "-b", url, code=1).of("alarms")
        assert found["status"] == "bad" and "memory" in found["text"]
        own_broker.ctl("set_vm_memory_high_watermark", "0.8")
