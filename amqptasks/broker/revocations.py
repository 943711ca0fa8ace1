"""The stream that keeps revocations, and reading it: from its beginning when a worker starts, then as it grows.

A stream (RabbitMQ 3.9) can be read by every worker, as often as need be, and forgets by age. Reading it through is what
makes a revocation reach workers that start later. Its end is found by a marker that the reader writes itself: a stream
does not tell.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from amqptasks.broker.confirms import ConfirmChannel, Outgoing
from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.needs import Need
from amqptasks.broker.topology import DeclareQueue, Step
from amqptasks.exceptions import ContentError, EncodeError, OperationalError, TopologyConflict
from amqptasks.wire.message import PERSISTENT, EncodedMessage, Message, encode
from amqptasks.wire.revocation import Revocation, read_revocation

logger = logging.getLogger(__name__)

#: Records the broker sends ahead.
PREFETCH: Final = 500
#: Whole segments are dropped: small ones keep the stream near its age.
SEGMENT_BYTES: Final = 1_000_000
MAX_BYTES: Final = 64_000_000


def stream_name(prefix: str) -> str:
    """Return the name of the stream."""
    return f"{prefix}.revoked.v1"


def stream_need(prefix: str, expires_s: float) -> Need:
    """Return what must be declared before a revocation can be written or read."""
    name = stream_name(prefix)
    # The age is part of a queue's arguments, which never change: it is kept in whole days.
    days = max(1, -(-int(expires_s) // 86400))
    arguments: dict[str, Any] = {
        "x-queue-type": "stream", "x-max-age": f"{days}D", "x-max-length-bytes": MAX_BYTES,
        "x-stream-max-segment-size-bytes": SEGMENT_BYTES,
    }  # fmt: skip

    def steps(_version: tuple[int, ...] | None) -> Sequence[Step]:
        return (DeclareQueue(name, durable=True, exclusive=False, auto_delete=False, arguments=arguments),)

    return Need(f"queue {name}", steps)


def record_message(prefix: str, revocation: Revocation) -> EncodedMessage:
    """Return the message that writes a revocation."""
    message = Message(revocation.to_body(), "application/json", "utf-8", {}, delivery_mode=PERSISTENT)
    return encode(message, "", stream_name(prefix))


class RevocationReader:
    """Reads the stream over the connections it is given. Belongs to the loop's thread.

    Args:
        confirms: Writes the marker.
        on_revocation: Called with each revocation, oldest first.
        patience_s: How long a worker waits for the end of the stream before it goes to work without.
    """

    def __init__(
        self,
        loop: Loop,
        prefix: str,
        expires_s: float,
        confirms: ConfirmChannel,
        on_revocation: Callable[[Revocation], None],
        patience_s: float,
    ) -> None:
        self._loop = loop
        self._prefix = prefix
        self._need = stream_need(prefix, expires_s)
        self._confirms = confirms
        self._on_revocation = on_revocation
        self._patience_s = patience_s
        self._marker = ""
        self._then: Callable[[], None] | None = None
        self._timer: Any = None
        self._next_offset = 0
        self._consumer = QueueConsumer(
            loop, stream_name(prefix), need=self._need, prefetch=PREFETCH, on_delivery=self._on_delivery,
            on_consuming=self._on_consuming, on_refused=self._on_refused, arguments={"x-stream-offset": "first"},
            tag_prefix="revoked",
        )  # fmt: skip

    def up(
        self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None, then: Callable[[], None]
    ) -> None:
        """Read what is new, and call ``then`` when all that was there has been read, or cannot be."""
        self._cancel()
        self._then = then
        self._marker = uuid.uuid4().hex
        self._timer = self._loop.call_later(self._patience_s, self._give_up)
        if self._next_offset:
            self._consumer.set_arguments({"x-stream-offset": self._next_offset})
        self._consumer.up(connection, declarer, version)

    def down(self, reason: str) -> None:
        """Forget the connection."""
        self._cancel()
        self._then = None
        self._consumer.down(reason)

    def stop(self) -> None:
        """Read no more."""
        self._cancel()
        self._then = None
        self._consumer.stop_consuming()

    def _on_consuming(self, _consumer: QueueConsumer) -> None:
        if self._then is None:
            return
        message = record_message(self._prefix, Revocation(marker=self._marker))

        def done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if error is not None:
                # The patience ends the waiting.
                logger.debug("The marker was not written: %s", error)

        self._confirms.send(Outgoing(message, (self._need,), done))

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        headers = delivery.properties.headers
        offset = headers.get("x-stream-offset") if isinstance(headers, dict) else None
        if isinstance(offset, int):
            self._next_offset = max(self._next_offset, offset + 1)
        try:
            revocation = read_revocation(delivery.body)
        except ContentError as error:
            logger.error("Passed over a record of %s that cannot be read: %s", self._consumer.queue, error)
            return
        if revocation.marker is None:
            self._on_revocation(revocation)
        elif revocation.marker == self._marker:
            self._finish()

    def _on_refused(self, _consumer: QueueConsumer, conflict: TopologyConflict) -> None:
        logger.error("Revoked tasks are not known here: %s", conflict)
        self._finish()

    def _give_up(self) -> None:
        self._timer = None
        logger.error(
            "The end of %s was not reached in %g s; going to work: tasks revoked before may run",
            self._consumer.queue, self._patience_s,
        )  # fmt: skip
        self._finish()

    def _finish(self) -> None:
        self._cancel()
        then, self._then = self._then, None
        if then is not None:
            then()

    def _cancel(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._loop.remove_timeout(timer)
