"""A worker that reads signed messages only: calls and answers pass, and whatever is not signed for this very call, by
somebody trusted, ends among the dead letters with its reason. The worker of this module outlives all of it."""

from __future__ import annotations

import base64
import dataclasses
import json
import pickle
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks import chord
from amqptasks.exceptions import DecodeError, TimeoutError
from amqptasks.wire import binding, serializers, signed
from amqptasks.wire.binding import Policy, policy
from amqptasks.wire.chord import collector_name
from tests.running import Found, Workshop
from tests.signers import Identity, identity, store
from tests.support import eventually

SOURCE = """
from datetime import datetime, timezone
app.conf.update(
    task_queue_prefix="signed",
    task_serializer="auth", result_serializer="auth", accept_content=["auth"], security_key=str(HERE / "shop.key"),
    security_certificate=str(HERE / "shop.crt"), security_cert_store=str(HERE / "store"),
    task_compression="gzip", result_extended=True,
    # RabbitMQ itself, from 4.0 on, takes no message that is larger than the default.
    task_message_max_bytes=8 * 1024 * 1024,
)
app.setup_security()

@app.task
def add(x, y=0):
    note(f"add {x}")
    return x + y

@app.task
def total(values):
    return sum(values)

@app.task
def pay(amount):
    note(f"pay {amount}")

@app.task(bind=True)
def tenant(self):
    return self.request.headers

@app.task
def fail():
    raise KeyError("signed")
"""

SEPARATOR = b"\x00\x01"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    directory = tmp_path_factory.mktemp("signed")
    shop = identity(directory, "shop")
    late = identity(directory, "late", days=(-9, -1))
    identity(directory, "stranger")
    store(directory / "store", shop, late)
    with Workshop(directory, broker_url, SOURCE) as made:
        worker = made.start("-c", "2")
        children = worker.children()
        yield made
        assert worker.process.poll() is None and set(children) <= set(worker.children()), "a message has cost a process"
        for sign in ("The I/O loop hit an error", "Examining a message failed", "raised an internal error"):
            assert sign not in worker.log, worker.log
        assert "secret" not in worker.log, "what was refused is not to be seen in the log"
    serializers.unregister("auth")
    for field in dataclasses.fields(Policy):
        setattr(policy, field.name, getattr(Policy(), field.name))


# ---- what passes


def test_what_a_chord_says_is_signed(shop: Workshop) -> None:
    # Given a chord that is under way
    total, add = shop.tasks.total, shop.tasks.add
    result = chord([add.s(1, 1), add.s(2, 2).set(countdown=1)], total.s())()
    collector = collector_name(shop.app.conf.task_queue_prefix, result.parent.id)
    eventually(lambda: shop.waiting(collector) == 2, 20.0)
    # When somebody puts an end of the other part into its collector that is not signed
    end = {"v": 1, "chord": collector, "index": 1, "task_id": "x", "result": 1000}
    for content_type in ("application/json", "application/data"):
        shop.publish(json.dumps(end).encode(), {}, queue=collector, content_type=content_type, content_encoding="utf-8")
    # Then it does not count: the body gets what the parts have returned
    assert result.get(timeout=20) == 6


def test_calls_and_answers_are_signed(shop: Workshop) -> None:
    # When signed tasks are called / Then they run, and their signed answers are read
    assert shop.tasks.add.delay(2, 3).get(timeout=20) == 5
    assert shop.tasks.tenant.apply_async(headers={"tenant": "acme", "share": 2.5}).get(timeout=20) == {
        "tenant": "acme", "share": 2.5,
    }  # fmt: skip
    with pytest.raises(KeyError, match="signed"):
        shop.tasks.fail.delay().get(timeout=20)


def test_delays_chains_groups_and_expiry_pass(shop: Workshop) -> None:
    # When calls wait in the broker, follow each other, go side by side, or come too late / Then it is as unsigned
    assert shop.tasks.add.apply_async((1,), {"y": 1}, countdown=0.3).get(timeout=20) == 2
    assert (shop.tasks.add.s(1, 1) | shop.tasks.add.s(5)).delay().get(timeout=20) == 7
    from amqptasks import group
    from amqptasks.exceptions import TaskRevokedError

    assert group(shop.tasks.add.s(each, 1) for each in range(3))().get(timeout=20) == [1, 2, 3]
    with pytest.raises(TaskRevokedError, match="expired"):
        shop.tasks.add.apply_async((1,), expires=-1).get(timeout=20)


def test_an_unsigned_answer_is_thrown_away(shop: Workshop) -> None:
    # Given a call / When somebody answers in the worker's place, unsigned / Then nobody believes him
    task_id, backend = str(uuid.uuid4()), shop.app.backend
    backend.expect(task_id)
    shop.tasks.add.delay(1).get(timeout=20)  # so that somebody listens
    answer = {"task_id": task_id, "status": "SUCCESS", "result": "forged", "children": []}
    shop.publish(
        json.dumps(answer).encode(), None, queue=backend.reply_to(), content_type="application/json",
        content_encoding="utf-8", correlation_id=task_id,
    )  # fmt: skip
    shop.tasks.add.delay(1).get(timeout=20)  # it has come in by now
    with pytest.raises(TimeoutError):
        shop.app.AsyncResult(task_id).get(timeout=0.2)


# ---- what is refused


@dataclasses.dataclass
class Call:
    """A signed call as it lies in the queue, to be changed on its way."""

    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    queue: str

    @property
    def parts(self) -> list[bytes]:
        """The fields of the envelope."""
        return base64.b64decode(self.body).split(SEPARATOR, 4)

    def put(self, at: int, value: bytes) -> None:
        """Replace a field of the envelope."""
        parts = self.parts
        parts[at] = value
        self.body = base64.b64encode(SEPARATOR.join(parts))


def captured(shop: Workshop, amount: Any, **options: Any) -> Call:
    """Call ``add``, and take the message away before a worker can have it."""
    elsewhere = f"{shop.queue}.elsewhere"
    shop.also_delete(elsewhere)
    shop.app.conf.task_compression = None
    # As if sent to the worker's queue, which is what the signature says.
    true_place = shop.app.sender.routing.route
    own = true_place("x", (), {}, {}).place

    def signed_for_the_worker(embed: Any, headers: Any, reply_to: Any, correlation_id: Any, _place: Any) -> Any:
        return binding.bound(embed, headers, reply_to, correlation_id, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amqptasks.app.sender.bound", signed_for_the_worker)
        shop.tasks.add.apply_async((amount,), queue=elsewhere, **options)

    def taken() -> Any:
        return shop.take(elsewhere) or False

    found = eventually(taken)
    assert isinstance(found, Found)
    properties = {
        name: getattr(found.properties, name)
        for name in ("content_type", "content_encoding", "correlation_id", "reply_to")
    }
    return Call(found.body, found.headers, properties, shop.queue)


def as_somebody_else(shop: Workshop, name: str) -> None:
    """Sign what this process sends as another, even if his time is over."""
    somebody = Identity(name, shop.directory / f"{name}.key", shop.directory / f"{name}.crt")
    load = signed._load_certificate
    with pytest.MonkeyPatch.context() as patch:
        lasting = load("security_certificate", str(somebody.certificate)).ends.replace(year=9998)
        patch.setattr(signed, "_load_certificate", lambda *each: dataclasses.replace(load(*each), ends=lasting))
        shop.app.setup_security(key=str(somebody.key), cert=str(somebody.certificate))


@pytest.fixture
def by(shop: Workshop) -> Iterator[Callable[[str], Call]]:
    """Make a call that somebody else has signed."""

    def make(name: str) -> Call:
        as_somebody_else(shop, name)
        call = captured(shop, "secret words")
        shop.app.setup_security()
        return call

    yield make
    shop.app.setup_security()


def refused(shop: Workshop, call: Call, reason: str) -> Found:
    """Send it: it becomes a dead letter for that reason, nobody is answered, and the worker goes on."""
    task_id = str(call.properties.get("correlation_id") or "")
    shop.app.backend.expect(task_id)
    before = shop.ledger().count("add secret words")
    shop.publish(call.body, call.headers, queue=call.queue, **call.properties)
    letter = shop.dead_letter_of(task_id)
    assert letter.headers["x-amqptasks-reason"] == "unreadable"
    assert reason in letter.headers["x-amqptasks-detail"], letter.headers["x-amqptasks-detail"]
    assert letter.headers["x-amqptasks-detail"].isprintable()
    assert letter.body == call.body
    assert shop.tasks.add.delay(1, 1).get(timeout=20) == 2
    record = shop.app.backend.fetch(task_id)
    assert record is None, f"it was answered: {record}"
    assert shop.ledger().count("add secret words") == before
    return letter


def test_a_call_that_is_passed_on_as_it_was_runs(shop: Workshop) -> None:
    # Given a call that was taken away / When it is put into the queue unchanged / Then it runs: the tests below show
    # what changes do, and not what taking away does
    call = captured(shop, "unchanged")
    shop.publish(call.body, call.headers, queue=call.queue, **call.properties)
    shop.noted("add unchanged")


def test_what_is_not_signed_is_refused(shop: Workshop) -> None:
    # Given calls in every form that the process can read, pickle too / Then they are not looked at
    for body, content_type in (
        (json.dumps([["secret words"], {}, {}]).encode(), "application/json"),
        (pickle.dumps((["secret words"], {}, {})), "application/x-python-serialize"),
        (b"", "text/plain"),
    ):
        call = captured(shop, "secret words")
        call.body, call.properties["content_type"] = body, content_type
        refused(shop, call, "the message is not signed")


def test_an_unsigned_order_that_is_over_makes_no_answer_in_our_name(shop: Workshop) -> None:
    # Given an unsigned message that a worker would settle by itself: expired, of an unknown task, or of protocol 1
    for change in ({"expires": "2000-01-01T00:00:00+00:00"}, {"task": "no.such.task"}, {"task": None}):
        call = captured(shop, "secret words")
        call.headers |= change
        call.body, call.properties["content_type"] = b"[[], {}, {}]", "application/json"
        refused(shop, call, "the message is not signed")


@pytest.mark.parametrize("at", [1, 4], ids=["signature", "body"])
def test_a_forged_signature_is_refused(shop: Workshop, at: int) -> None:
    call = captured(shop, "secret words")
    body = bytearray(call.parts[4].replace(b"secret words", b"secret WORDS"))
    call.put(at, bytes(body) if at == 4 else base64.b64encode(bytes(256)))
    refused(shop, call, "the signature does not fit the body")


def test_a_signer_whom_nobody_knows_is_refused(shop: Workshop, by: Callable[[str], Call]) -> None:
    refused(shop, by("stranger"), "whose certificate is not in security_cert_store")


def test_a_signer_whose_certificate_has_expired_is_refused(shop: Workshop, by: Callable[[str], Call]) -> None:
    refused(shop, by("late"), "has expired on")


@pytest.mark.parametrize(
    "inner", ["application/x-python-serialize", "application/x-yaml", "application/data", "x" * 999]
)
def test_a_body_that_is_said_to_be_of_another_kind_is_refused(shop: Workshop, inner: str) -> None:
    call = captured(shop, "secret words")
    call.put(2, inner.encode())
    refused(shop, call, "a signed body said to be of content type")


@pytest.mark.parametrize("length", [0, 1, 40, -8, -1])
def test_an_envelope_that_is_cut_off_is_refused(shop: Workshop, length: int) -> None:
    call = captured(shop, "secret words")
    call.body = call.body[:length]
    refused(shop, call, "")


@pytest.mark.deadline(60)
def test_a_huge_envelope_is_refused_and_a_large_one_read(shop: Workshop) -> None:
    # Given a body within the limits / Then it is read
    assert shop.tasks.add.delay("x" * 2_000_000, "y").get(timeout=30) == "x" * 2_000_000 + "y"
    # Given an envelope at the limit that is no envelope at all, and one beyond it / Then both are refused
    call = captured(shop, "secret words")
    call.body = b"QUFB" * (2 * 1024 * 1024)
    refused(shop, call, "a signed body has five fields")
    call = captured(shop, "secret words")
    call.body = b"QUFB" * (2 * 1024 * 1024) + b"QUFB"
    refused(shop, call, "at most 8388608 bytes")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "{name}.pay"}, {"id": "another"}, {"eta": "2999-01-01T00:00:00+00:00"}, {"tenant": "theirs"},
        {"expires": "2000-01-01T00:00:00+00:00"}, {"task": "no.such.task"}, {"retries": 2}, {"ignore_result": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_body_with_the_headers_of_another_call_is_refused(shop: Workshop, change: dict[str, Any]) -> None:
    # Given a signed call / When it is sent as another one / Then neither runs, and none is revoked, put off or answered
    call = captured(shop, "secret words")
    call.headers |= {key: value.format(name=shop.project.name) if key == "task" else value
                     for key, value in change.items()}  # fmt: skip
    refused(shop, call, "are not those that the body was signed with")
    assert not any(line.startswith("pay") for line in shop.ledger())


def test_an_answer_is_not_led_elsewhere(shop: Workshop) -> None:
    call = captured(shop, "secret words")
    call.properties["reply_to"] = f"{shop.queue}.elsewhere"
    refused(shop, call, "the address of the answer")


def test_a_call_for_another_queue_is_refused(shop: Workshop) -> None:
    # Given a call that was signed for a queue that others serve / When it is put into this one
    elsewhere = f"{shop.queue}.others"
    shop.also_delete(elsewhere)
    shop.tasks.add.apply_async(("secret words",), queue=elsewhere)
    found = eventually(lambda: shop.take(elsewhere) or False)
    assert isinstance(found, Found)
    properties = {name: getattr(found.properties, name) for name in ("content_type", "correlation_id", "reply_to")}
    # Then it does not run here
    refused(shop, Call(found.body, found.headers, properties, shop.queue), f"it was signed for queue '{elsewhere}'")


def test_a_call_that_is_sent_again_much_later_is_refused(shop: Workshop) -> None:
    # Given a call that was signed the day before yesterday / When it is sent again / Then it is too late
    with pytest.MonkeyPatch.context() as then:
        past = time.time() - 2 * 86400
        then.setattr("amqptasks.wire.binding.time.time", lambda: past)
        call = captured(shop, "secret words")
    refused(shop, call, "(security_max_age)")


def test_a_signed_answer_is_no_call(shop: Workshop) -> None:
    # Given a signed result, with its arguments (result_extended) / When it is sent as a call / Then it is none
    call = captured(shop, "secret words")
    result = {"task_id": call.headers["id"], "status": "SUCCESS", "args": ["secret words"], "kwargs": {}, "name": "add"}
    call.body = serializers.dumps(result, "auth")[2]
    refused(shop, call, "not that of the task that the headers name")


def test_what_somebody_trusted_signs_and_is_no_call_is_answered(shop: Workshop) -> None:
    # Given a signed call of an unknown task / Then its caller learns of it: he is who he says
    shop.also_delete(shop.queue)
    result = shop.app.send_task("no.such.task", ("secret words",))
    with pytest.raises(Exception, match="no.such.task"):
        result.get(timeout=20)
    assert shop.dead_letter_of(result.id).headers["x-amqptasks-reason"] == "unknown-task"


def test_a_reader_of_results_says_what_it_refuses() -> None:
    with pytest.raises(DecodeError, match="refused a body of content type"):
        serializers.loads(b"{}", "application/json", "utf-8", frozenset({"application/data"}))
