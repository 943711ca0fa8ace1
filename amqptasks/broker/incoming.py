"""Reading deliveries: ``basic.deliver`` with its properties and body, decoded in one pass over the received bytes.

pika cuts each message into three frame objects and copies the rest of its buffer for each; on a busy consumer that is
half of all work. Here whole deliveries are read where they lie. Whatever is not a complete, ordinary delivery (other
methods, large bodies, interleaved frames) goes through pika as before. Properties may come from anyone: those that
cannot be read yield a `Properties` that is marked malformed, and never an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final

from pika.exceptions import InvalidFrameError
from pika.frame import Header, decode_frame

#: Called with delivery tag, redelivered, exchange, routing key, properties and body.
OnDeliver = Callable[[int, bool, str, str, "Properties", bytes], None]

#: Called with delivery tag, multiple, and whether it is an ack.
OnConfirm = Callable[[int, bool, bool], None]

#: Bodies larger than this go through pika, which collects their frames without copying the part that is here already.
MAX_BODY_BYTES: Final = 1 << 16
#: Nesting of tables and arrays in headers.
MAX_HEADER_DEPTH: Final = 32

_DELIVER: Final = b"\x00\x3c\x00\x3c"
#: Frame size, class and method of ``basic.ack`` and ``basic.nack``: 13 bytes, then the frame's end.
_ACK: Final = b"\x00\x00\x00\x0d\x00\x3c\x00\x50"
_NACK: Final = b"\x00\x00\x00\x0d\x00\x3c\x00\x78"
_CONFIRM = struct.Struct(">QBB").unpack_from
_CONFIRM_BYTES: Final = 21
_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from
_U64 = struct.Struct(">Q").unpack_from
_FRAME = struct.Struct(">BHI").unpack_from
_CONTENT = struct.Struct(">BHIHHQH").unpack_from
_CONTENT_BYTES: Final = 21
_END: Final = 0xCE


class Properties:
    """A message's basic properties, under pika's names. ``is_malformed`` says that they could not be read."""

    __slots__ = (
        "app_id", "cluster_id", "content_encoding", "content_type", "correlation_id", "delivery_mode", "expiration",
        "headers", "is_malformed", "message_id", "priority", "reply_to", "timestamp", "type", "user_id",
    )  # fmt: skip

    def __init__(self) -> None:
        self.content_type: str | None = None
        self.content_encoding: str | None = None
        self.headers: dict[str, Any] | None = None
        self.delivery_mode: int | None = None
        self.priority: int | None = None
        self.correlation_id: str | None = None
        self.reply_to: str | None = None
        self.expiration: str | None = None
        self.message_id: str | None = None
        self.timestamp: int | None = None
        self.type: str | None = None
        self.user_id: str | None = None
        self.app_id: str | None = None
        self.cluster_id: str | None = None
        self.is_malformed = False


def read_delivery(buffer: bytes, position: int, end: int, on_deliver: dict[int, OnDeliver]) -> int:
    """Read one delivery and hand it over.

    Returns:
        The position behind it; 0 if more bytes are needed; -1 if it is not one for this reader.
    """
    _kind, channel, size = _FRAME(buffer, position)
    handler = on_deliver.get(channel)
    if handler is None:
        return -1
    head = position + 8 + size
    if head + _CONTENT_BYTES > end:
        return 0
    kind, content_channel, content_size, _class, _weight, body_size, flags = _CONTENT(buffer, head)
    if kind != 2 or content_channel != channel or body_size > MAX_BODY_BYTES:
        return -1
    body_frame = head + 8 + content_size
    finish: int = body_frame + (8 + body_size if body_size else 0)
    if finish > end:
        # Not all of it has come, or its body is split over frames: those are for pika.
        return -1 if body_frame + 7 <= end and _is_split(buffer, body_frame, channel, body_size) else 0
    if body_size and _is_split(buffer, body_frame, channel, body_size):
        return -1
    at = position + 11
    at += 1 + buffer[at]
    tag = _U64(buffer, at)[0]
    redelivered = buffer[at + 8] & 1 == 1
    at += 9
    length = buffer[at]
    exchange = buffer[at + 1 : at + 1 + length].decode("utf-8", "replace")
    at += 1 + length
    length = buffer[at]
    routing_key = buffer[at + 1 : at + 1 + length].decode("utf-8", "replace")
    properties = read_properties(buffer, head + _CONTENT_BYTES, body_frame - 1, flags)
    body = buffer[body_frame + 7 : finish - 1] if body_size else b""
    handler(tag, redelivered, exchange, routing_key, properties, body)
    return finish


def read_confirm(buffer: bytes, position: int, end: int, on_confirm: dict[int, OnConfirm]) -> int:
    """Read one ``basic.ack`` or ``basic.nack`` and hand it over; the position behind it, or 0 if it is another frame or
    incomplete."""
    finish = position + _CONFIRM_BYTES
    if finish > end or buffer[position] != 1:
        return 0
    kind = buffer[position + 3 : position + 11]
    if kind != _ACK and kind != _NACK:
        return 0
    handler = on_confirm.get(_U16(buffer, position + 1)[0])
    if handler is None:
        return 0
    tag, bits, last = _CONFIRM(buffer, position + 11)
    if last != _END:
        return 0
    handler(tag, bits & 1 == 1, kind == _ACK)
    return finish


def read_frame(buffer: bytes, position: int, end: int) -> tuple[int, Any]:
    """Read one frame as pika's object; ``(0, None)`` if more bytes are needed.

    A content header gets our `Properties`: pika's reader raises on malformed ones, which ends the connection, and again
    after the redelivery.
    """
    kind, channel, size = _FRAME(buffer, position)
    if kind == 0x41:
        # "AMQP": the broker speaks another version and says which.
        return decode_frame(buffer[position:])  # type: ignore[no-any-return]
    finish = position + 8 + size
    if finish > end:
        return 0, None
    if kind != 2:
        consumed, frame = decode_frame(buffer[position:finish])
        return consumed, frame
    if buffer[finish - 1] != _END:
        raise InvalidFrameError("Invalid FRAME_END marker")
    body_size, flags = struct.unpack_from(">QH", buffer, position + 11)
    return 8 + size, Header(channel, body_size, read_properties(buffer, position + _CONTENT_BYTES, finish - 1, flags))


def is_delivery(buffer: bytes, position: int, end: int) -> bool:
    """Whether a ``basic.deliver`` frame begins here, as far as can be seen."""
    return end - position >= 11 and buffer[position] == 1 and buffer[position + 7 : position + 11] == _DELIVER


def _is_split(buffer: bytes, position: int, channel: int, body_size: int) -> bool:
    kind, body_channel, size = _FRAME(buffer, position)
    return bool(kind != 3 or body_channel != channel or size != body_size)


def read_properties(buffer: bytes, at: int, end: int, flags: int) -> Properties:
    """Read a property list whose flags were read already. Never raises."""
    properties = Properties()
    try:
        _read(properties, buffer, at, end, flags)
    except (ValueError, IndexError, struct.error, ArithmeticError, OSError):
        # OSError: what the C library says to a moment some billions of years from now.
        malformed = Properties()
        malformed.is_malformed = True
        return malformed
    return properties


def _text(buffer: bytes, at: int) -> tuple[str, int]:
    stop = at + 1 + buffer[at]
    return buffer[at + 1 : stop].decode(), stop


def _read(properties: Properties, buffer: bytes, at: int, end: int, flags: int) -> None:
    if flags & 0x8000:
        properties.content_type, at = _text(buffer, at)
    if flags & 0x4000:
        properties.content_encoding, at = _text(buffer, at)
    if flags & 0x2000:
        stop = at + 4 + _U32(buffer, at)[0]
        if stop > end:
            raise ValueError("the header table is longer than its frame")
        properties.headers = _table(buffer, at + 4, stop, 0)
        at = stop
    if flags & 0x1000:
        properties.delivery_mode = buffer[at]
        at += 1
    if flags & 0x0800:
        properties.priority = buffer[at]
        at += 1
    if flags & 0x0400:
        properties.correlation_id, at = _text(buffer, at)
    if flags & 0x0200:
        properties.reply_to, at = _text(buffer, at)
    if flags & 0x01FC:
        at = _read_rare(properties, buffer, at, flags)
    if at != end:
        # Texts were cut from the buffer without looking: what is longer than its frame took what is behind it.
        raise ValueError("the properties do not end where their frame does")


def _read_rare(properties: Properties, buffer: bytes, at: int, flags: int) -> int:
    if flags & 0x0100:
        properties.expiration, at = _text(buffer, at)
    if flags & 0x0080:
        properties.message_id, at = _text(buffer, at)
    if flags & 0x0040:
        properties.timestamp = _U64(buffer, at)[0]
        at += 8
    if flags & 0x0020:
        properties.type, at = _text(buffer, at)
    if flags & 0x0010:
        properties.user_id, at = _text(buffer, at)
    if flags & 0x0008:
        properties.app_id, at = _text(buffer, at)
    if flags & 0x0004:
        properties.cluster_id, at = _text(buffer, at)
    return at


def _table(buffer: bytes, at: int, end: int, depth: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    while at < end:
        stop = at + 1 + buffer[at]
        key = buffer[at + 1 : stop].decode()
        # Text is nearly all of a task's headers: it skips the general path.
        if buffer[stop] == 0x53:
            start = stop + 5
            at = start + _U32(buffer, stop + 1)[0]
            if at > end:
                raise ValueError("a text is longer than its table")
            try:
                table[key] = buffer[start:at].decode()
            except UnicodeDecodeError:
                table[key] = buffer[start:at]
        else:
            table[key], at = _value(buffer, stop, end, depth)
    if at != end:
        raise ValueError("a value is longer than its table")
    return table


_FIXED: Final[dict[int, tuple[Callable[..., tuple[Any, ...]], int]]] = {
    ord(code): (struct.Struct(form).unpack_from, struct.calcsize(form))
    for code, form in (
        ("b", ">b"), ("B", ">B"), ("s", ">h"), ("U", ">h"), ("u", ">H"), ("I", ">i"), ("i", ">I"), ("L", ">q"),
        ("l", ">q"), ("f", ">f"), ("d", ">d"),
    )
}  # fmt: skip


def _value(buffer: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    kind = buffer[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        unpack, size = fixed
        return unpack(buffer, at)[0], at + size
    if kind == 0x56:  # V
        return None, at
    if kind == 0x74:  # t
        return buffer[at] != 0, at + 1
    if kind == 0x54:  # T
        return datetime.fromtimestamp(_U64(buffer, at)[0], timezone.utc), at + 8
    if kind == 0x44:  # D
        places = buffer[at]
        return Decimal(struct.unpack_from(">i", buffer, at + 1)[0]).scaleb(-places), at + 5
    stop = at + 4 + _U32(buffer, at)[0]
    if stop > end:
        raise ValueError("a value is longer than its table")
    if kind == 0x53:  # S
        raw = buffer[at + 4 : stop]
        try:
            return raw.decode(), stop
        except UnicodeDecodeError:
            return raw, stop
    if kind == 0x78:  # x
        return buffer[at + 4 : stop], stop
    if depth >= MAX_HEADER_DEPTH:
        raise ValueError("the headers are nested too deeply")
    if kind == 0x46:  # F
        return _table(buffer, at + 4, stop, depth + 1), stop
    if kind == 0x41:  # A
        items = []
        at += 4
        while at < stop:
            item, at = _value(buffer, at, stop, depth + 1)
            items.append(item)
        if at != stop:
            raise ValueError("a value is longer than its array")
        return items, stop
    raise ValueError(f"header value of unknown type {kind}")
