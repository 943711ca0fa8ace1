"""AMQP frames of one publish, written in one piece.

pika builds three frame objects for each publish and sends each by itself; here they are one byte string. Used by the
publisher only.
"""

from __future__ import annotations

import struct
from typing import Final

from amqptasks.exceptions import EncodeError
from amqptasks.wire.message import EncodedMessage

_FRAME = struct.Struct(">BHI").pack
_PUBLISH_HEAD = struct.Struct(">HHH").pack
_CONTENT_HEAD = struct.Struct(">HHQ").pack
_METHOD, _HEADER, _BODY = 1, 2, 3
_BASIC, _PUBLISH = 60, 40
_END: Final = b"\xce"
_FRAME_OVERHEAD = 8


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise EncodeError(f"expected a name or routing key of at most 255 bytes, got {len(data)}: {text[:40]!r}…")
    return bytes((len(data),)) + data


def publish_frames(channel: int, message: EncodedMessage, frame_max: int, *, mandatory: bool) -> bytes:
    """Encode ``basic.publish``, its content header and its body for one channel.

    Raises:
        EncodeError: The properties do not fit one frame: the broker would close the connection (501).
    """
    body, properties = message.body, message.properties
    if len(properties) + 12 + _FRAME_OVERHEAD > frame_max:
        raise EncodeError(
            f"expected headers of at most {frame_max} bytes, got {len(properties)}: put large data into the arguments"
        )
    method = b"".join(
        (
            _PUBLISH_HEAD(_BASIC, _PUBLISH, 0),
            _short(message.exchange),
            _short(message.routing_key),
            b"\x01" if mandatory else b"\x00",
        )
    )
    size = len(body)
    parts = [
        _FRAME(_METHOD, channel, len(method)), method, _END,
        _FRAME(_HEADER, channel, 12 + len(properties)), _CONTENT_HEAD(_BASIC, 0, size), properties, _END,
    ]  # fmt: skip
    room = frame_max - _FRAME_OVERHEAD
    if size <= room:
        if size:
            parts += (_FRAME(_BODY, channel, size), body, _END)
    else:
        for start in range(0, size, room):
            chunk = body[start : start + room]
            parts += (_FRAME(_BODY, channel, len(chunk)), chunk, _END)
    return b"".join(parts)
