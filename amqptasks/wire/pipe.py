"""Frames between a worker's parent and its children: MessagePack values, one after another, over a socket pair.

Both ends are this package, so nothing is versioned; what crosses may still hold foreign text, as plain data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

#: A frame holds a message's body and its headers; bodies are bounded by ``task_message_max_bytes`` before they come
#: here.
MAX_FRAME_BYTES = 1 << 30
#: What a reader begins with, and what it keeps in memory: msgpack fills its buffer to the end before it starts over.
#: Its own 1 MiB a reader would be a tenth of a small worker. It grows for the frame that needs more.
BUFFER_BYTES = 64 * 1024

_pack = msgpack.Packer(default=str, use_bin_type=True, unicode_errors="surrogatepass", autoreset=True).pack


def encode_frame(value: Any) -> bytes:
    """Encode one frame. Values that MessagePack does not know, such as a header's date, travel as their text."""
    frame: bytes = _pack(value)
    return frame


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=False,
            use_list=True,
            read_size=BUFFER_BYTES,
            max_buffer_size=MAX_FRAME_BYTES,
            unicode_errors="surrogatepass",
            strict_map_key=False,
        )

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take bytes in and return the frames that are complete."""
        self._unpacker.feed(data)
        return iter(self._unpacker)
