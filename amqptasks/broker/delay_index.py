"""Which calls wait in the delay ladder, as far as those know who sent them there.

RabbitMQ does not let anybody look into a queue of the ladder without disturbing it. So whoever delays a call notes that
in a stream, many calls in one message, and whoever wants to know reads the stream. The notes are a convenience: nothing
waits for them, and what is lost of them loses no call.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from amqptasks.broker.needs import Need
from amqptasks.broker.topology import DeclareQueue, Step
from amqptasks.exceptions import EncodeError
from amqptasks.wire.delayed import Note, encode_notes
from amqptasks.wire.message import PERSISTENT, EncodedMessage, Message, encode

__all__ = ["DelayIndex", "note_message", "stream_name", "stream_need"]

logger = logging.getLogger(__name__)

#: Notes in one message, and how long the first of them waits for others, seconds.
BATCH: Final = 300
DELAY_S: Final = 0.05
#: How long notes are kept, and how many bytes of them: about half a million calls.
MAX_AGE: Final = "10D"
MAX_BYTES: Final = 64_000_000
#: Whole segments are dropped: small ones keep the stream near its bounds.
SEGMENT_BYTES: Final = 4_000_000


def stream_name(prefix: str) -> str:
    """Return the name of the stream."""
    return f"{prefix}.delayed.v1"


def stream_need(prefix: str) -> Need:
    """Return what must be declared before notes can be written or read."""
    name = stream_name(prefix)
    arguments: dict[str, Any] = {
        "x-queue-type": "stream", "x-max-age": MAX_AGE, "x-max-length-bytes": MAX_BYTES,
        "x-stream-max-segment-size-bytes": SEGMENT_BYTES,
    }  # fmt: skip

    def steps(_version: tuple[int, ...] | None) -> Sequence[Step]:
        return (DeclareQueue(name, durable=True, exclusive=False, auto_delete=False, arguments=arguments),)

    return Need(f"queue {name}", steps)


def note_message(prefix: str, calls: Sequence[Note], marker: str | None = None) -> EncodedMessage:
    """Return the message that notes calls."""
    message = Message(encode_notes(calls, marker), "application/json", "utf-8", {}, delivery_mode=PERSISTENT)
    return encode(message, "", stream_name(prefix))


class DelayIndex:
    """Collects notes and sends them off, many at once. Safe from any thread.

    Args:
        send: Hands a message over, without waiting for anything.
        later: Calls a function after so many seconds, on any thread.
    """

    def __init__(
        self, prefix: str, send: Callable[[EncodedMessage, tuple[Need, ...]], Any],
        later: Callable[[float, Callable[[], None]], Any],
    ) -> None:  # fmt: skip
        self._prefix = prefix
        self._needs = (stream_need(prefix),)
        self._send = send
        self._later = later
        self._waiting: deque[Note] = deque()
        self._is_armed = False

    def add(self, call: Note) -> None:
        """Note a call that was delayed."""
        waiting = self._waiting
        waiting.append(call)
        if not self._is_armed:
            self._is_armed = True
            self._later(DELAY_S, self._flush_later)
        elif len(waiting) >= BATCH:
            self.flush()

    def _flush_later(self) -> None:
        self._is_armed = False
        self.flush()

    def flush(self) -> None:
        """Send off what was collected."""
        waiting = self._waiting
        while waiting:
            batch: list[Note] = []
            try:
                while len(batch) < BATCH:
                    batch.append(waiting.popleft())
            except IndexError:
                # Another thread has taken the rest.
                pass
            if not batch:
                return
            try:
                self._send(note_message(self._prefix, batch), self._needs)
            except EncodeError as error:
                logger.debug("%d delayed calls are not noted: %s", len(batch), error)
