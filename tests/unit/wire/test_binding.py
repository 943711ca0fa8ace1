"""What a signature covers beside the body, and that nothing of it can be exchanged."""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from amqptasks.broker.incoming import _table
from amqptasks.exceptions import UntrustedContent
from amqptasks.wire.binding import ARRIVAL_HEADER, Policy, arrival, bound, check, policy
from amqptasks.wire.message import encode_table

HEADERS = {
    "lang": "py", "task": "shop.pay", "id": "1-2-3", "root_id": "1-2-3", "retries": 0, "timelimit": [None, 2.5],
    "eta": None, "argsrepr": "(1,)", "tenant": "naïve", "stamps": {"who": ["me", True]}, "raw": b"\xff\x00",
    "text as bytes": b"text", "when": datetime(2024, 2, 29, 12, 30, 15, 999), "big": 2**60, "price": Decimal("1.10"),
    "pair": (1, 2),
}  # fmt: skip
PLACE = ("work", "", "work")
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@pytest.fixture(autouse=True)
def own_policy() -> Iterator[None]:
    yield
    for field in dataclasses.fields(Policy):
        setattr(policy, field.name, getattr(Policy(), field.name))


def travelled(headers: dict[str, Any]) -> dict[str, Any]:
    """What a worker's connection makes of headers."""
    table = encode_table(headers)
    return _table(table, 4, len(table), 0)


def came(
    headers: dict[str, Any], *, reply_to: str | None = "replies", correlation_id: str = "1-2-3", queue: str = "work",
    exchange: str = "", routing_key: str = "work",
) -> dict[str, Any]:  # fmt: skip
    """The headers as a worker's parent hands them on."""
    return {**headers, ARRIVAL_HEADER: arrival(headers, reply_to, correlation_id, queue, exchange, routing_key)}


def body(place: tuple[str, str, str] | None = PLACE, headers: dict[str, Any] = HEADERS) -> list[Any]:
    return [[1], {}, bound(EMBED, headers, "replies", "1-2-3", place)]


def test_what_arrives_as_it_was_sent_is_believed() -> None:
    # Given headers of every kind that AMQP carries / When they have travelled, and the broker and workers added theirs
    headers = travelled({**HEADERS, "compression": "application/x-gzip"}) | {"x-death": [1], "x-amqptasks-crashes": 2}
    # Then they are what was signed, through the ladder too
    check(body(), came(headers))
    check(body(), came(headers, exchange="amqptasks.due", routing_key="0.0.1.work"))


@pytest.mark.parametrize(
    "change",
    [
        {"task": "shop.refund"}, {"id": "3-2-1"}, {"retries": 1}, {"eta": "2030-01-01T00:00:00+00:00"},
        {"expires": "2000-01-01T00:00:00+00:00"}, {"timelimit": [None, None]}, {"tenant": "other"}, {"more": 1},
        {"stamps": {"who": ["you", True]}}, {"raw": b"\xff\x01"}, {"ignore_result": True}, {"group": "g"},
    ],
    ids=str,
)  # fmt: skip
def test_a_body_with_the_headers_of_another_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UntrustedContent, match="the headers, or the address of the answer, are not those"):
        check(body(), came({**travelled(HEADERS), **change}))
    without = {key: value for key, value in travelled(HEADERS).items() if key not in change}
    if len(without) < len(HEADERS):
        with pytest.raises(UntrustedContent):
            check(body(), came(without))


def test_an_answer_cannot_be_led_elsewhere() -> None:
    with pytest.raises(UntrustedContent, match="the address of the answer"):
        check(body(), came(travelled(HEADERS), reply_to="theirs"))
    with pytest.raises(UntrustedContent, match="the address of the answer"):
        check(body(), came(travelled(HEADERS), correlation_id="another"))


def test_a_task_runs_only_where_it_was_sent() -> None:
    # Given a task for one queue / When it comes by another / Then it is refused, unless many may get it
    with pytest.raises(UntrustedContent, match="signed for queue 'work', and came from another"):
        check(body(), came(travelled(HEADERS), queue="admin", routing_key="admin"))
    check(body(place=None), came(travelled(HEADERS), queue="admin", routing_key="admin"))
    # And a second queue bound to the same exchange by the same key gets its copy
    check(body(place=("a", "orders", "new")), came(travelled(HEADERS), queue="b", exchange="orders", routing_key="new"))


def test_what_says_itself_how_it_came_in_is_not_asked() -> None:
    # Given one that was made elsewhere with a note of its own / When nobody here took it in / Then it is refused
    with pytest.raises(UntrustedContent):
        check(body(), dict(HEADERS))


def test_it_is_good_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given tasks that were signed an hour ago, one of them with an eta half an hour ago
    policy.max_age_s = 1000.0
    past = datetime.now(timezone.utc) - timedelta(minutes=30)
    with monkeypatch.context() as then:
        an_hour_ago = time.time() - 3600
        then.setattr(time, "time", lambda: an_hour_ago)
        old = body()
        due = body(headers={**HEADERS, "eta": past.isoformat()})
    # When they are read / Then both are too old, and of age where more is allowed
    with pytest.raises(UntrustedContent, match=r"signed 3600 seconds ago.*security_max_age"):
        check(old, came(travelled(HEADERS)))
    with_eta = came(travelled({**HEADERS, "eta": past.isoformat()}))
    with pytest.raises(UntrustedContent, match="1800 seconds ago"):
        check(due, with_eta)
    policy.max_age_s = 2000.0
    check(due, with_eta)
    policy.max_age_s = None
    check(old, came(travelled(HEADERS)))


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2}, {"v": None}, {"time": "now"}, {"time": None}, {"time": float("nan")}, {"to": "work"}, {"to": [1]},
        {"headers": None}, {"headers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_binding_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    value = body()
    value[2] = {**EMBED, "signed": {**value[2]["signed"], **changes}}
    with pytest.raises(UntrustedContent):
        check(value, came(travelled(HEADERS)))


@pytest.mark.parametrize("note", [1, "x", [], {"v": 1}], ids=repr)
def test_no_kind_of_binding_or_note_can_break_it(note: Any) -> None:
    for value in ([[], {}, {"signed": note}], body()):
        with pytest.raises(UntrustedContent):
            check(value, {**HEADERS, ARRIVAL_HEADER: note})


def test_celerys_bodies_are_read_unless_that_is_not_wanted() -> None:
    # Given a body without a binding, as Celery writes it / Then it is read, and refused where bindings are required
    protocol_1 = {"task": "shop.pay", "id": "1-2-3", "args": []}
    values: list[Any] = [[[1], {}, EMBED], [[1], {}, None], [], "text", protocol_1]
    for value in values:
        policy.needs_binding = False
        check(value, came(travelled(HEADERS)))
        policy.needs_binding = True
        with pytest.raises(UntrustedContent, match="security_require_binding"):
            check(value, came(travelled(HEADERS)))


def test_a_signed_result_is_no_task() -> None:
    # Given a result with its arguments, as result_extended has it / When it comes as a task / Then it is refused
    result = {"task_id": "1-2-3", "status": "SUCCESS", "result": 1, "name": "shop.pay", "args": [1], "kwargs": {}}
    with pytest.raises(UntrustedContent, match="not that of the task that the headers name"):
        check(result, came(travelled(HEADERS)))


def test_the_headers_of_the_table_travel_as_the_test_says() -> None:
    # Or the tests above would prove little.
    assert struct.unpack_from(">I", encode_table(HEADERS))[0] > 200
    assert travelled(HEADERS)["pair"] == [1, 2] and travelled(HEADERS)["price"] == "1.10"
