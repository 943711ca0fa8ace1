"""One publish as bytes: pika's own decoder reads back what was meant, at every size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from amqptasks.broker.frames import publish_frames
from amqptasks.exceptions import EncodeError
from amqptasks.wire.message import EncodedMessage, Message, encode

FRAME_MAX = 4096
ROOM = FRAME_MAX - 8


def decoded(data: bytes) -> list[Any]:
    """Every frame in a string of bytes, by pika; none may be left over."""
    frames = []
    while data:
        consumed, each = frame.decode_frame(data)
        assert consumed and each is not None, "an incomplete frame"
        assert consumed <= FRAME_MAX
        frames.append(each)
        data = data[consumed:]
    return frames


short = st.text(max_size=60)


@given(
    st.integers(1, 65535), short, short, st.booleans(),
    st.integers(0, 3 * ROOM) | st.sampled_from([0, 1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM, 2 * ROOM + 1]),
)  # fmt: skip
def test_pika_reads_back_what_was_published(
    channel: int, exchange: str, routing_key: str, mandatory: bool, size: int
) -> None:
    # Given a message / When it is written for a channel
    body = bytes(size % 251 for size in range(size))
    message = encode(Message(body, headers={"task": "work"}, correlation_id="id-1"), exchange, routing_key)
    method, header, *bodies = decoded(publish_frames(channel, message, FRAME_MAX, mandatory=mandatory))
    # Then it is basic.publish, its header and its body, all on that channel, in frames as large as allowed
    assert {each.channel_number for each in (method, header, *bodies)} == {channel}
    publish = method.method
    assert isinstance(publish, spec.Basic.Publish)
    assert (publish.exchange, publish.routing_key) == (exchange, routing_key)
    assert (publish.mandatory, publish.immediate) == (mandatory, False)
    assert header.body_size == size
    assert header.properties.headers == {"task": "work"}
    assert header.properties.correlation_id == "id-1"
    assert b"".join(each.fragment for each in bodies) == body
    assert len(bodies) == -(-size // ROOM)


@pytest.mark.parametrize("where", ["exchange", "routing_key"])
def test_a_name_that_is_too_long_is_named(where: str) -> None:
    # AMQP has one byte for the length, so 255 bytes fit: 127 of these letters and one more
    for name, fits in (("ü" * 127 + "x", True), ("ü" * 128, False)):
        message = EncodedMessage(**{"exchange": "", "routing_key": "", where: name}, properties=b"\0\0", body=b"")
        if fits:
            assert decoded(publish_frames(1, message, FRAME_MAX, mandatory=True))
        else:
            with pytest.raises(EncodeError, match=r"at most 255 bytes, got 256: 'üüü"):
                publish_frames(1, message, FRAME_MAX, mandatory=True)


def test_headers_that_fill_a_frame_fit_and_one_more_byte_does_not() -> None:
    # Given the largest property list that one frame holds / When it is written / Then the frame is just as large
    properties = b"\x20\x00" + b"\x00" * (FRAME_MAX - 8 - 12 - 2)
    fits = EncodedMessage("", "queue", properties, b"")
    assert len(publish_frames(1, fits, FRAME_MAX, mandatory=True)) > FRAME_MAX
    # When there is one byte more / Then the caller is told, and not the whole connection closed by the broker
    too_long = EncodedMessage("", "queue", properties + b"\x00", b"")
    with pytest.raises(EncodeError, match="headers of at most 4096 bytes, got 4077"):
        publish_frames(1, too_long, FRAME_MAX, mandatory=True)
