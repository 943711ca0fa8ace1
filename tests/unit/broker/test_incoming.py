"""Reading what the broker sends: as pika reads it, however it is cut, and whatever is in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pika import BasicProperties, frame, spec

from amqptasks.broker.incoming import MAX_BODY_BYTES, MAX_HEADER_DEPTH, Properties, read_confirm, read_properties
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.parameters import endpoints
from tests.loops import turn_until

NAMES = [name for name in Properties.__slots__ if name != "is_malformed"]

shorts = st.text(max_size=40)
# pika turns floating point numbers into whole ones when it reads them: those have a test of their own.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=30)
    | st.integers(0, 253402300799).map(lambda seconds: datetime.fromtimestamp(seconds, timezone.utc))
    | st.builds(lambda raw, places: Decimal(raw).scaleb(-places), st.integers(-(2**31), 2**31 - 1), st.integers(0, 9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(shorts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
all_properties = st.builds(
    BasicProperties,
    content_type=st.none() | shorts, content_encoding=st.none() | shorts,
    headers=st.none() | st.dictionaries(shorts, values, max_size=6),
    delivery_mode=st.none() | st.integers(0, 255), priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | shorts, reply_to=st.none() | shorts, expiration=st.none() | shorts,
    message_id=st.none() | shorts, timestamp=st.none() | st.integers(0, 2**64 - 1), type=st.none() | shorts,
    user_id=st.none() | shorts, app_id=st.none() | shorts, cluster_id=st.none() | shorts,
)  # fmt: skip


def shown(properties: Any) -> dict[str, Any]:
    return {name: getattr(properties, name) for name in NAMES}


def read(encoded: bytes, before: bytes = b"", after: bytes = b"") -> Properties:
    """Read a property list (its flags first) that lies somewhere in a buffer."""
    buffer = before + encoded + after
    flags = struct.unpack_from(">H", encoded)[0]
    return read_properties(buffer, len(before) + 2, len(before) + len(encoded), flags)


@given(all_properties)
@example(BasicProperties())
@example(BasicProperties(headers={}))
def test_properties_are_read_as_pika_reads_them(properties: BasicProperties) -> None:
    # Given a property list that pika has written
    encoded = b"".join(properties.encode())
    # When both read it / Then they read the same, whatever lies around it
    expected = BasicProperties()
    expected.decode(encoded)
    ours = read(encoded, b"\x00before", b"\xce\x03after")
    assert not ours.is_malformed
    assert shown(ours) == shown(expected)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        (b"d" + struct.pack(">d", 1.5), 1.5),
        (b"f" + struct.pack(">f", -0.25), -0.25),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xfe", -2),
        (b"U\xff\xfe", -2),
        (b"u\xff\xfe", 65534),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"L" + b"\xff" * 8, -1),
        (b"l" + b"\x7f" + b"\xff" * 7, 2**63 - 1),
        (b"x\x00\x00\x00\x02\xff\x00", b"\xff\x00"),
        (b"S\x00\x00\x00\x02\xff\x00", b"\xff\x00"),
        (b"D\x02\xff\xff\xff\xff", Decimal("-0.01")),
        (b"T" + b"\x00" * 8, datetime(1970, 1, 1, tzinfo=timezone.utc)),
        (b"V", None),
        (b"t\x02", True),
        (b"A\x00\x00\x00\x00", []),
        (b"F\x00\x00\x00\x00", {}),
    ],
)
def test_every_kind_of_header_value_is_known(encoded: bytes, value: object) -> None:
    table = b"\x03key" + encoded
    properties = read(b"\x20\x00" + struct.pack(">I", len(table)) + table)
    assert not properties.is_malformed
    assert properties.headers == {"key": value}


@given(st.integers(0, 0xFFFF), st.binary(max_size=200))
def test_no_bytes_make_the_reader_raise(flags: int, rest: bytes) -> None:
    # When anything at all stands where properties should / Then it is read, or marked
    properties = read(struct.pack(">H", flags) + rest)
    if properties.is_malformed:
        assert set(shown(properties).values()) == {None}


@given(all_properties, st.data())
def test_one_wrong_byte_makes_no_error(properties: BasicProperties, data: st.DataObject) -> None:
    encoded = bytearray(b"".join(properties.encode()))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] = data.draw(st.integers(0, 255))
    read(bytes(encoded), after=b"\xce" + b"x" * 300)


@given(all_properties.filter(lambda each: len(b"".join(each.encode())) > 2), st.data())
def test_properties_cut_short_are_malformed_and_take_nothing_from_behind(
    properties: BasicProperties, data: st.DataObject
) -> None:
    # Given a property list whose end is missing, and other bytes where it should be
    encoded = b"".join(properties.encode())
    cut = encoded[: data.draw(st.integers(2, len(encoded) - 1))]
    # When it is read / Then it is malformed: what follows belongs to someone else
    assert read(cut, after=b"\xce\x01" + b"\x00" * 600).is_malformed
    assert read(cut).is_malformed


@pytest.mark.parametrize(
    "value",
    [
        b"T" + b"\xff" * 8,
        b"T" + struct.pack(">Q", 253402300800),  # year 10000
        b"T" + struct.pack(">Q", 2**56),
        b"?",
        b"S\xff\xff\xff\xff",
        b"A\x00\x00\x00\x01l",
        b"F\x00\x00\x00\x02\x05k",
    ],
)
def test_a_value_that_cannot_be_is_malformed(value: bytes) -> None:
    table = b"\x03key" + value
    assert read(b"\x20\x00" + struct.pack(">I", len(table)) + table).is_malformed


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        inner = b""
        for _ in range(depth):
            inner = b"\x01kF" + struct.pack(">I", len(inner)) + inner
        return b"\x20\x00" + struct.pack(">I", len(inner)) + inner

    assert not read(nested(MAX_HEADER_DEPTH)).is_malformed
    assert read(nested(MAX_HEADER_DEPTH + 1)).is_malformed
    assert read(nested(10_000)).is_malformed


# ---- Whole deliveries, through a real connection

Delivered = tuple[int, int, bool, str, str, str | None, bytes]


class Wire:
    """A real connection with two consuming channels, into which bytes are put as if the broker had sent them."""

    def __init__(self, broker_url: str) -> None:
        self.loop = Loop()
        self.delivered: list[Delivered] = []
        self.malformed: list[bool] = []
        self.by_pika = 0
        self._consuming = 0
        endpoint = endpoints([broker_url], heartbeat_s=0, connection_timeout_s=4.0, name="test of incoming")[0]
        self.connection = Connection(
            parameters=endpoint.parameters, on_open_callback=self._opened, custom_ioloop=self.loop
        )
        turn_until(self.loop, lambda: self._consuming == 2)

    def _opened(self, connection: Any) -> None:
        for number in (1, 2):
            connection.channel(channel_number=number, on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        number = channel.channel_number

        def declared(ok: Any) -> None:
            channel.basic_consume(
                ok.method.queue, self._deliver_by_pika, consumer_tag=f"tag-{number}", callback=consuming
            )

        def consuming(_frame: Any) -> None:
            self._consuming += 1

        self.connection.on_deliver[number] = lambda *delivery: self._deliver(number, *delivery)
        channel.queue_declare("", exclusive=True, callback=declared)

    def _deliver_by_pika(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.by_pika += 1
        self._deliver(
            channel.channel_number, method.delivery_tag, method.redelivered, method.exchange, method.routing_key,
            properties, body,
        )  # fmt: skip

    def _deliver(
        self, number: int, tag: int, redelivered: bool, exchange: str, key: str, props: Any, body: bytes
    ) -> None:
        assert type(props) is Properties
        self.malformed.append(props.is_malformed)
        self.delivered.append((number, tag, redelivered, exchange, key, props.correlation_id, body))

    def receive(self, *pieces: bytes) -> list[Delivered]:
        self.delivered, self.malformed, before = [], [], self.connection.bytes_received
        for piece in pieces:
            self.connection._on_data_available(piece)
        assert self.connection.bytes_received - before == sum(map(len, pieces)), "bytes are left over"
        return self.delivered

    def close(self) -> None:
        self.connection.close()
        turn_until(self.loop, lambda: self.connection.is_closed)
        self.loop.close()


@pytest.fixture(scope="module")
def wire(broker_url: str) -> Iterator[Wire]:
    wire = Wire(broker_url)
    yield wire
    wire.close()


HEARTBEAT = frame.Heartbeat().marshal()


def method(number: int, tag: int, *, redelivered: bool = False, key: str = "key") -> bytes:
    return bytes(frame.Method(number, spec.Basic.Deliver(f"tag-{number}", tag, redelivered, "ex", key)).marshal())


def header(number: int, tag: int, body: bytes) -> bytes:
    properties = BasicProperties(
        content_type="application/json", headers={"task": "work", "retries": 3, "x": None}, correlation_id=f"id-{tag}"
    )
    return bytes(frame.Header(number, len(body), properties).marshal())


def bodies(number: int, body: bytes, size: int = 131064) -> list[bytes]:
    return [bytes(frame.Body(number, body[at : at + size]).marshal()) for at in range(0, len(body), size)]


def delivery(number: int, tag: int, body: bytes, size: int = 131064) -> bytes:
    return b"".join([method(number, tag), header(number, tag, body), *bodies(number, body, size)])


def expected(number: int, tag: int, body: bytes) -> Delivered:
    return number, tag, False, "ex", "key", f"id-{tag}", body


def test_deliveries_arrive_whole_wherever_the_stream_is_cut(wire: Wire) -> None:
    # Given a stream of deliveries on two channels, one without a body, with a heartbeat between them
    stream = delivery(1, 1, b"[[1],{},{}]") + delivery(2, 1, b"") + HEARTBEAT + delivery(1, 2, b"\xce\x01\x00\x01" * 5)
    wanted = [expected(1, 1, b"[[1],{},{}]"), expected(2, 1, b""), expected(1, 2, b"\xce\x01\x00\x01" * 5)]
    # When it arrives in one piece, in two cut at every byte, and byte by byte / Then each is handed over, in order
    assert wire.receive(stream) == wanted
    for at in range(1, len(stream)):
        assert wire.receive(stream[:at], stream[at:]) == wanted, at
    assert wire.receive(*(stream[at : at + 1] for at in range(len(stream)))) == wanted


def test_interleaved_frames_are_put_together(wire: Wire) -> None:
    # Given frames of two channels, and heartbeats, between those of one delivery
    stream = b"".join(
        [
            method(1, 1), HEARTBEAT, header(1, 1, b"one"), HEARTBEAT, *bodies(1, b"one"),
            method(1, 2), delivery(2, 1, b"other"), header(1, 2, b"two"), delivery(2, 2, b"another"),
            *bodies(1, b"two"), delivery(1, 3, b"three"),
        ]
    )  # fmt: skip
    wanted = [
        expected(1, 1, b"one"), expected(2, 1, b"other"), expected(2, 2, b"another"), expected(1, 2, b"two"),
        expected(1, 3, b"three"),
    ]  # fmt: skip
    # When they arrive, however cut / Then each delivery is whole
    assert wire.receive(stream) == wanted
    for at in range(1, len(stream)):
        assert wire.receive(stream[:at], stream[at:]) == wanted, at


@pytest.mark.parametrize("size", [1, 100, MAX_BODY_BYTES, MAX_BODY_BYTES + 1, 131064, 131065, 1_000_000])
def test_bodies_of_any_size_arrive_whole(wire: Wire, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    stream = delivery(1, 1, body) + delivery(1, 2, b"after")
    wanted = [expected(1, 1, body), expected(1, 2, b"after")]
    assert wire.receive(stream) == wanted
    for at in {10, 40, 120, 150, 160, size // 2 + 150, size + 100, len(stream) - 3}:
        assert wire.receive(stream[:at], stream[at:]) == wanted, at
    step = 65_536
    assert wire.receive(*(stream[at : at + step] for at in range(0, len(stream), step))) == wanted


def test_a_small_body_in_several_frames_arrives_whole(wire: Wire) -> None:
    stream = delivery(1, 1, b"a body in frames of four", size=4) + delivery(1, 2, b"after")
    wanted = [expected(1, 1, b"a body in frames of four"), expected(1, 2, b"after")]
    for at in range(1, len(stream)):
        assert wire.receive(stream[:at], stream[at:]) == wanted, at


def test_ordinary_deliveries_do_not_take_the_way_through_pika(wire: Wire) -> None:
    # The point of reading them here; what is not ordinary still arrives.
    wire.by_pika = 0
    wire.receive(delivery(1, 1, b"one") + delivery(2, 1, b"two"))
    assert wire.by_pika == 0
    wire.receive(delivery(1, 2, b"three", size=2))
    assert wire.by_pika == 1


def test_flags_and_addresses_of_a_delivery_are_read(wire: Wire) -> None:
    key = "ü" * 100
    stream = method(1, 2**63, redelivered=True, key=key) + header(1, 7, b"x") + bodies(1, b"x")[0]
    assert wire.receive(stream) == [(1, 2**63, True, "ex", key, "id-7", b"x")]


@pytest.mark.parametrize("size", [5, MAX_BODY_BYTES + 1])
def test_malformed_properties_do_not_end_the_connection(wire: Wire, size: int) -> None:
    # Given a delivery whose header table lies about its length, in front of a good one
    body = b"x" * size
    content = struct.pack(">HHQ", 60, 0, size) + b"\x20\x00" + b"\x00\x00\xff\xff" + b"\x01k"
    bad = method(1, 1) + struct.pack(">BHI", 2, 1, len(content)) + content + b"\xce" + bodies(1, body)[0]
    # When they arrive / Then the first is handed over marked as malformed, and the second as ever
    delivered = wire.receive(bad + delivery(1, 2, b"next"))
    assert delivered == [(1, 1, False, "ex", "key", None, body), expected(1, 2, b"next")]
    assert wire.malformed == [True, False]
    assert wire.connection.is_open


def a_confirm(channel: int, tag: int, *, multiple: bool = False, is_ack: bool = True) -> bytes:
    method = spec.Basic.Ack(tag, multiple) if is_ack else spec.Basic.Nack(tag, multiple, False)
    return bytes(frame.Method(channel, method).marshal())


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("is_ack", [False, True])
def test_a_confirm_is_read_where_it_lies(multiple: bool, is_ack: bool) -> None:
    # Given a confirm with other bytes before and behind it
    seen: list[tuple[int, bool, bool]] = []
    whole = a_confirm(3, 1 << 40, multiple=multiple, is_ack=is_ack)
    buffer = b"xx" + whole + b"yy"

    # When it is read
    behind = read_confirm(buffer, 2, len(buffer), {3: lambda *each: seen.append(each)})

    # Then its owner has it, and reading goes on right behind it
    assert seen == [(1 << 40, multiple, is_ack)]
    assert buffer[behind:] == b"yy"


def test_what_is_no_whole_confirm_of_a_known_channel_is_left_alone() -> None:
    # Given a confirm of a channel nobody reads, a torn one, one with a wrong end, and another method
    seen: list[Any] = []
    owners = {3: lambda *each: seen.append(each)}
    whole = a_confirm(3, 7)
    cases = [
        a_confirm(4, 7),
        whole[:-1],
        whole[:-1] + b"\x00",
        bytes(frame.Method(3, spec.Channel.CloseOk()).marshal()),
    ]

    # When each is offered, Then none is taken
    assert [read_confirm(each, 0, len(each), owners) for each in cases] == [0, 0, 0, 0]
    assert seen == []
