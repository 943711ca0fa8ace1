"""Our encoder of properties against pika's decoder: what one writes, the other reads."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties

from amqptasks.exceptions import EncodeError
from amqptasks.wire.message import Message, encode, encode_properties

shorts = st.text(max_size=60)
moments = st.integers(0, 253402300799).map(lambda seconds: datetime.fromtimestamp(seconds, timezone.utc))
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | shorts | st.binary(max_size=20) | moments
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(shorts, inner, max_size=4), max_leaves=12
)
messages = st.builds(
    Message, st.binary(max_size=10), content_type=shorts, content_encoding=shorts,
    headers=st.dictionaries(shorts, values, max_size=6), correlation_id=st.none() | shorts,
    reply_to=st.none() | shorts, delivery_mode=st.sampled_from([1, 2]), priority=st.none() | st.integers(0, 255),
    expiration=st.none() | shorts, message_id=st.none() | shorts, timestamp=st.none() | st.integers(0, 2**64 - 1),
    type=st.none() | shorts, user_id=st.none() | shorts, app_id=st.none() | shorts,
)  # fmt: skip


def read(message: Message) -> BasicProperties:
    properties = BasicProperties()
    properties.decode(encode_properties(message))
    return properties


@given(messages)
def test_pika_reads_what_we_write(message: Message) -> None:
    # Given a message with any properties / When it is encoded / Then pika reads the same
    properties = read(message)
    for name in (
        "content_type", "content_encoding", "correlation_id", "reply_to", "delivery_mode", "priority", "expiration",
        "message_id", "timestamp", "type", "user_id", "app_id",
    ):  # fmt: skip
        assert getattr(properties, name) == getattr(message, name), name
    assert (properties.headers or {}) == message.headers
    assert properties.cluster_id is None


def test_an_address_goes_with_the_message() -> None:
    message = encode(Message(b"body", correlation_id="id"), "exchange", "key")
    assert (message.exchange, message.routing_key, message.body, message.correlation_id) == (
        "exchange", "key", b"body", "id",
    )  # fmt: skip


def test_a_plain_message_is_persistent_json() -> None:
    properties = read(Message(b"[]"))
    assert properties.delivery_mode == 2
    assert (properties.content_type, properties.content_encoding) == ("application/json", "utf-8")
    assert properties.headers is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, "two"), [1, "two"]),
        (Decimal("1.10"), "1.10"),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone.utc)),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime(2025, 12, 31, 22, tzinfo=timezone.utc)),
        (2**31, 2**31),
        (-(2**31) - 1, -(2**31) - 1),
        (True, True),
    ],
)
def test_values_that_amqp_has_no_type_for_travel_as_the_nearest(value: object, expected: object) -> None:
    # When a header has a value of this kind / Then it arrives as the nearest that AMQP has
    found = (read(Message(b"", headers={"key": value})).headers or {})["key"]
    assert found == expected and isinstance(found, type(expected))


def test_a_set_travels_as_a_list() -> None:
    headers = read(Message(b"", headers={"key": {1}, "frozen": frozenset({2})})).headers
    assert headers == {"key": [1], "frozen": [2]}


def test_a_floating_point_number_keeps_its_value() -> None:
    # pika's reader cuts the fraction off; ours reads what was written
    from amqptasks.broker.incoming import read_properties

    encoded = encode_properties(Message(b"", headers={"key": 1.5}))
    found = read_properties(encoded, 2, len(encoded), int.from_bytes(encoded[:2], "big"))
    assert found.headers == {"key": 1.5}


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"key": object()}, "a header value that AMQP can carry"),
        ({"key": [1, {"deep": object()}]}, "a header value that AMQP can carry"),
        ({"key": 2**63}, "at most 64 bits"),
        ({"key": -(2**63) - 1}, "at most 64 bits"),
        ({"key": "\ud800"}, "valid Unicode"),
        ({"key": ["\ud800"]}, "valid Unicode"),
        ({"x" * 256: 1}, "at most 255 bytes"),
        ({"\ud800": 1}, "at most 255 bytes of UTF-8"),
        ({1: 1}, "an AMQP name"),
    ],
)
def test_a_header_that_cannot_be_carried_is_named(headers: dict[Any, Any], problem: str) -> None:
    with pytest.raises(EncodeError, match=problem):
        encode_properties(Message(b"", headers=headers))


@pytest.mark.parametrize(
    "wrong",
    [
        {"correlation_id": "x" * 256}, {"reply_to": "\ud800"}, {"content_type": 5}, {"expiration": 1000},
        {"priority": 256}, {"priority": -1}, {"priority": "high"}, {"timestamp": -1}, {"timestamp": 1.5},
        {"headers": {"key": datetime(1969, 1, 1, tzinfo=timezone.utc)}},
    ],
)  # fmt: skip
def test_a_property_that_cannot_be_carried_is_an_encode_error(wrong: dict[str, Any]) -> None:
    # When a property is not of its kind / Then it is this package's error, whoever gave it
    with pytest.raises(EncodeError):
        encode_properties(Message(b"", **wrong))
