"""Messages that no worker can run: each ends among the dead letters with its reason, and its sender gets an error.

The worker of this module must outlive all of them: the same parent and the same children run good tasks to the end.
"""

from __future__ import annotations

import bz2
import json
import re
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.exceptions import AmqptasksError, InvalidTaskError, NotRegistered
from tests.running import Found, Workshop

pytestmark = pytest.mark.broker

#: Half of the default: RabbitMQ itself, from 4.0 on, takes no message that is larger than the default.
LIMIT = 8 * 1024 * 1024

SOURCE = """
    app.conf.worker_prefetch_multiplier = 4
    app.conf.task_message_max_bytes = 8 * 1024 * 1024

    @app.task
    def add(x=0, y=0, **more):
        return x + y

    @app.task(typing=False)
    def one(x):
        return x

    @app.task(bind=True, acks_late=True, max_retries=None)
    def loops(self, text):
        from amqptasks.exceptions import Reject
        note(f"loops {text}")
        raise Reject("again", requeue=True)
"""

ESC = "\x1b[31m"
GOOD_BODY = json.dumps([[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
#: Small messages that inflate to 200 MB.
BOMBS: tuple[tuple[bytes, dict[str, Any]], ...] = (
    (zlib.compress(b" " * 200_000_000, 9), {"headers": {"compression": "application/x-gzip"}}),
    (bz2.compress(b" " * 200_000_000), {"headers": {"compression": "application/x-bz2"}}),
)
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project and one worker with two children, which every message of this module must leave as they are."""
    with Workshop(tmp_path_factory.mktemp("poison"), broker_url, SOURCE) as made:
        worker = made.start("-c", "2")
        children = worker.children()
        yield made
        assert worker.process.poll() is None
        assert worker.children() == children, "a message has cost a child"
        for sign in ("The I/O loop hit an error", "Examining a message failed", "raised an internal error"):
            assert sign not in worker.log, worker.log


def proves_healthy(shop: Workshop) -> None:
    """Both children run good tasks, and nothing is stuck in the queue."""
    with shop.app.bulk():
        results = [shop.tasks.add.delay(number, 1) for number in range(20)]
    assert [each.get(timeout=20) for each in results] == list(range(1, 21))
    assert shop.waiting() == 0


class Sent:
    """A message that was sent by hand, and the answer to it."""

    def __init__(self, shop: Workshop, body: bytes, **changes: Any) -> None:
        self.id = changes.get("correlation_id") or str(uuid.uuid4())
        headers: dict[str, Any] = {"lang": "py", "task": f"{shop.project.name}.add", "id": self.id}
        headers |= changes.pop("headers", {})
        if changes.pop("without_headers", False):
            headers = {}
        properties: dict[str, Any] = JSON | {"correlation_id": self.id, "reply_to": shop.app.backend.reply_to()}
        properties |= changes
        # The place for the answer is made as the sender of a task makes it.
        shop.app.backend.expect(self.id)
        shop.tasks.add.delay().get(timeout=20)
        shop.publish(body, headers, **{key: value for key, value in properties.items() if value is not None})
        self.headers = headers
        self.result = shop.app.AsyncResult(self.id)


def dead_letter_of(shop: Workshop, sent: Sent) -> Found:
    letter = shop.dead_letter(lambda found: found.properties.correlation_id == sent.id)
    headers = letter.headers
    assert headers["x-amqptasks-queue"] == headers["x-amqptasks-routing-key"] == shop.queue
    assert re.fullmatch(r"w0-\w+@test", headers["x-amqptasks-worker"])
    assert re.match(r"\d{4}-\d\d-\d\dT", headers["x-amqptasks-time"])
    assert isinstance(headers["x-amqptasks-detail"], str) and headers["x-amqptasks-detail"].isprintable()
    return letter


#: The bodies and headers of reliability.md's F6 and of its rows I1 to I4: what is wrong, the body, what else differs.
BAD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "random bytes": (bytes(range(256)) * 4, {}),
    "cut-off json": (GOOD_BODY[:-7], {}),
    "empty": (b"", {}),
    "100,000 brackets": (b"[" * 100_000, {}),
    "closed brackets": (b"[" * 50_000 + b"]" * 50_000, {}),
    "pickle": (b"\x80\x04\x95.", {"content_type": "application/x-python-serialize", "content_encoding": "binary"}),
    "yaml": (b"!!python/object/apply:os.system ['true']", {"content_type": "application/x-yaml"}),
    "unknown content type": (GOOD_BODY, {"content_type": "application/x-nothing"}),
    "no content type": (b"\xff\xfe", {"content_type": None, "content_encoding": None}),
    "utf-16": (GOOD_BODY.decode().encode("utf-16"), {}),
    "unreadable msgpack": (b"\xc1\xc1", {"content_type": "application/x-msgpack", "content_encoding": "binary"}),
    "msgpack of 4 billion items": (b"\xdd\xff\xff\xff\xff", {"content_type": "application/x-msgpack"}),
    "millions of empty maps": (b"[[" + b"{}," * 1_200_000 + b"{}],{},{}]", {}),
    "not a number": (b"[[NaN],{},{}]", {}),
    "infinite": (b"[[1e999],{},{}]", {}),
    "a number of 5,000 digits": (b"[[" + b"9" * 5000 + b"],{},{}]", {}),
    "no list": (b'"text"', {}),
    "too short a list": (b"[[],{}]", {}),
    "args no list": (b'[{"a":1},{},{}]', {}),
    "kwargs no map": (b"[[],[1],{}]", {}),
    "kwargs with a number": (b"\x93\x90\x81\x01\x02\x80", {"content_type": "application/x-msgpack"}),
    "embed no map": (b"[[],{},[]]", {}),
    "callbacks no signatures": (b'[[],{},{"callbacks":["os.system"]}]', {}),
    "chain no list": (b'[[],{},{"chain":"x"}]', {}),
    "chord no map": (b'[[],{},{"chord":7}]', {}),
    "typed value that lies": (b'[[{"__type__":"datetime","__value__":"soon"}],{},{}]', {}),
    "id no text": (GOOD_BODY, {"headers": {"id": {"a": "table"}}}),
    "id empty": (GOOD_BODY, {"headers": {"id": ""}}),
    "id missing": (GOOD_BODY, {"headers": {"id": None}}),
    "id of 10,000 characters": (GOOD_BODY, {"headers": {"id": "i" * 10_000}}),
    "id that forges a log line": (GOOD_BODY, {"headers": {"id": f"x\n[CRITICAL] forged {ESC}line"}}),
    "name no text": (GOOD_BODY, {"headers": {"task": ["a", "list"]}}),
    "name that forges a log line": (GOOD_BODY, {"headers": {"task": f"x\n[CRITICAL] forged {ESC}line"}}),
    "name that is binary": (GOOD_BODY, {"headers": {"task": b"\xff\xfe"}}),
    "no headers": (GOOD_BODY, {"without_headers": True}),
    "eta no date": (GOOD_BODY, {"headers": {"eta": "tomorrow"}}),
    "eta a table": (GOOD_BODY, {"headers": {"eta": {"in": 5}}}),
    "expires no date": (GOOD_BODY, {"headers": {"expires": "never"}}),
    "expires a list": (GOOD_BODY, {"headers": {"expires": [1]}}),
    "retries no number": (GOOD_BODY, {"headers": {"retries": "many"}}),
    "retries negative": (GOOD_BODY, {"headers": {"retries": -1}}),
    "timelimit no pair": (GOOD_BODY, {"headers": {"timelimit": "1m"}}),
    "timelimit of texts": (GOOD_BODY, {"headers": {"timelimit": ["a", "b"]}}),
    "group a table": (GOOD_BODY, {"headers": {"group": {}}}),
    "crashes no number": (GOOD_BODY, {"headers": {"x-amqptasks-crashes": "lots"}}),
    "unknown compression": (GOOD_BODY, {"headers": {"compression": "application/x-squeeze"}}),
    "compressed body that is not": (GOOD_BODY, {"headers": {"compression": "application/x-gzip"}}),
    "compression a table": (GOOD_BODY, {"headers": {"compression": {}}}),
    "bomb": BOMBS[0],
    "bomb of bzip2": BOMBS[1],
    "too large": (b"[[" + b" " * (LIMIT + 1) + b"],{},{}]", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_message_goes_to_the_dead_letters_and_its_sender_gets_an_error(shop: Workshop, kind: str) -> None:
    body, changes = BAD[kind]
    worker = shop.workers[0]
    pid, children = worker.pid, worker.children()
    # When the message comes
    sent = Sent(shop, body, **changes)
    # Then it is among the dead letters as it was, with the reason
    letter = dead_letter_of(shop, sent)
    assert letter.headers["x-amqptasks-reason"] == "unreadable", letter.headers
    assert letter.body == body
    assert {key: letter.headers.get(key) for key in sent.headers} == sent.headers
    # And who waits for it is told, under the id that was given twice where one of them cannot be used
    with pytest.raises(AmqptasksError):
        sent.result.get(timeout=20)
    assert sent.result.state == "FAILURE"
    # And the worker and its children are those from before, and work
    proves_healthy(shop)
    assert (worker.process.poll(), worker.pid, worker.children()) == (None, pid, children)


@pytest.mark.parametrize("task", ["nothing.of.the.kind", "os.system", "builtins.exit", "x" * 255])
def test_an_unknown_task_is_kept_and_told(shop: Workshop, task: str) -> None:
    sent = Sent(shop, GOOD_BODY, headers={"task": task})
    assert dead_letter_of(shop, sent).headers["x-amqptasks-reason"] == "unknown-task"
    with pytest.raises(NotRegistered, match="is registered"):
        sent.result.get(timeout=20)
    proves_healthy(shop)


def test_arguments_that_do_not_fit_are_an_error_of_the_task(shop: Workshop) -> None:
    sent = Sent(shop, b"[[1,2,3],{},{}]")
    with pytest.raises(TypeError, match="positional argument"):
        sent.result.get(timeout=20)
    assert shop.take(f"{shop.queue}.dead") is None


#: Odd, and still a task.
ODD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "unknown codec": (GOOD_BODY, {"content_encoding": "martian-7"}),
    "100 kB of headers": (GOOD_BODY, {"headers": {f"own-{number}": "x" * 90 for number in range(1000)}}),
    "a header of every type": (
        GOOD_BODY,
        {"headers": {"a": 1, "b": True, "c": None, "d": [1, "x"], "e": {"f": {"g": []}}, "h": b"\xff", "i": 2**40}},
    ),
    "null headers": (GOOD_BODY, {"headers": dict.fromkeys(("eta", "expires", "retries", "timelimit", "group"))}),
    "nothing embedded": (b"[[1,2],{},null]", {}),
    "protocol 2 with a body of protocol 1": (b'{"args":[1,2],"kwargs":{}}', {}),
    "space around": (b"\n " + GOOD_BODY + b"\n", {}),
    "duplicate keys": (b'[[],{"x":7,"x":1,"y":2},{}]', {}),
    "compressed": (zlib.compress(GOOD_BODY), {"headers": {"compression": "application/x-gzip"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_message_is_a_task_all_the_same(shop: Workshop, kind: str) -> None:
    body, changes = ODD[kind]
    assert Sent(shop, body, **changes).result.get(timeout=20) == 3
    assert shop.take(f"{shop.queue}.dead") is None


def test_a_message_of_protocol_1_is_a_task(shop: Workshop) -> None:
    task_id = str(uuid.uuid4())
    plain = {"task": f"{shop.project.name}.add", "id": task_id, "args": [1, 2], "kwargs": {}, "retries": 0, "utc": True}
    sent = Sent(shop, json.dumps(plain).encode(), without_headers=True, correlation_id=task_id)
    assert sent.result.get(timeout=20) == 3


def test_a_bad_message_whose_headers_fill_their_frame_is_kept_with_fewer(shop: Workshop) -> None:
    sent = Sent(shop, b"bad", headers={f"own-{number}": "x" * 200 for number in range(600)})
    headers = dead_letter_of(shop, sent).headers
    assert headers["x-amqptasks-reason"] == "unreadable" and headers["x-amqptasks-headers-cut"] is True
    proves_healthy(shop)


@pytest.mark.parametrize("where", ["id", "task", "shadow", "eta", "correlation_id", "argsrepr"])
def test_text_from_a_message_forges_no_log_line(shop: Workshop, where: str) -> None:
    forged = f"x\n[2026-01-01: CRITICAL/MainProcess] forged \u202e{ESC}line"
    changes: dict[str, Any] = {"correlation_id": forged} if where == "correlation_id" else {"headers": {where: forged}}
    sent = Sent(shop, GOOD_BODY if where != "correlation_id" else b"bad", **changes)
    if where in ("shadow", "argsrepr"):
        assert sent.result.get(timeout=20) == 3
    else:
        shop.dead_letter(lambda found: forged in (found.headers.get(where), found.properties.correlation_id))
    proves_healthy(shop)
    log = shop.workers[0].log
    assert not re.search(r"^\[2026-01-01: CRIT", log, re.MULTILINE)
    assert "\x1b" not in log and "\u202e" not in log
    assert max(len(line) for line in log.splitlines()) < 1200


def test_text_of_an_error_steers_no_terminal(shop: Workshop) -> None:
    sent = Sent(shop, json.dumps([[], {f"{ESC}x\u202e": 1}, {}]).encode(), headers={"task": f"{shop.project.name}.one"})
    with pytest.raises(TypeError, match="one"):
        sent.result.get(timeout=20)
    assert ESC not in shop.workers[0].log and "\u202e" not in shop.workers[0].log
    assert ESC not in sent.result.traceback


def test_a_bomb_is_never_inflated_past_the_limit(shop: Workshop) -> None:
    # Given a message of 200 kB that inflates to 200 MB
    worker = shop.workers[0]
    processes = [worker.pid, *worker.children()]
    before = {pid: memory_kib(pid, "VmRSS") for pid in processes}
    for pid in processes:
        # Makes the kernel forget the highest use so far.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    for number in range(4):
        body, changes = BOMBS[number % 2]
        sent = Sent(shop, body, **changes)
        dead_letter_of(shop, sent)
    # Then no process took more than four times the limit of one body
    for pid in processes:
        assert memory_kib(pid, "VmHWM") - before[pid] < 4 * 16 * 1024
    proves_healthy(shop)


def test_a_message_that_is_requeued_for_ever_is_not(shop: Workshop) -> None:
    # Given a task that puts its message back whenever it runs / Then the worker ends that at task_delivery_limit
    result = shop.tasks.loops.delay("a")
    with pytest.raises(InvalidTaskError, match="delivered 21 times"):
        result.get(timeout=20)
    letter = shop.dead_letter_of(result.id)
    assert letter.headers["x-amqptasks-reason"] == "too-many-deliveries"
    assert shop.ledger().count("loops a") == 20
    # And the copy carries no header of the broker's, which some versions would drop it for
    assert letter.headers.get("x-delivery-count") in (None, 0)
    assert not [key for key in letter.headers if key.startswith(("x-death", "x-first-death", "x-acquired"))]


def memory_kib(pid: int, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
