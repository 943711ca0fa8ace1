"""Lets beat answer ``inspect ping``, so that a probe can tell that it lives (``beat_enable_remote_control``).

It answers nothing else, and nothing at all when the thread that decides what to send has been busy for too long: a
probe can only act on silence.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, Final

from amqptasks.broker.confirms import ConfirmChannel, Outgoing
from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.mailbox import MailboxNames, reply_need
from amqptasks.clock import monotonic
from amqptasks.exceptions import AmqptasksError
from amqptasks.wire.pidbox import ControlReply, encode_reply, matches, read_request, reply_exchange
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import accepted

__all__ = ["LEAST_AGE_S", "Busyness", "Ping", "node_of"]

logger = logging.getLogger("amqptasks.beat")

#: Without ``beat_remote_control_max_tick_age``, beat may be busy for twice its longest sleep, but at least this long.
LEAST_AGE_S: Final = 60.0
PREFETCH: Final = 10


def node_of(hostname: str | None) -> str:
    """Return the name that beat answers by: ``celerybeat@host``, unless another name, or host, is said. ``%h``, ``%n``
    and ``%d`` are the host, its first part, its domain."""
    host = socket.gethostname()
    name, _, domain = host.partition(".")
    text = hostname or host
    for letter, value in (("%h", host), ("%n", name), ("%d", domain)):
        text = text.replace(letter, value)
    return text if "@" in text else f"celerybeat@{text}"


class Busyness:
    """Since when the thread that decides has been busy. Written by that thread, read by any.

    Args:
        most_s: How long it may be busy, seconds; 0 for as long as it likes.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._since: float | None = None

    def begin(self) -> None:
        """It has something to do."""
        self._since = monotonic()

    def end(self) -> None:
        """It waits."""
        self._since = None

    @property
    def is_too_long(self) -> bool:
        """Whether it has been busy for too long."""
        since = self._since
        return bool(self._most_s) and since is not None and monotonic() - since > self._most_s


class Ping:
    """Answers pings over the connections it is given. Belongs to the loop's thread.

    Args:
        hostname: The name it answers by.
        busyness: Whether to answer.
    """

    def __init__(self, app: Any, hostname: str, busyness: Busyness) -> None:
        self.hostname = hostname
        self._app = app
        self._busyness = busyness
        self._names = MailboxNames.of(app.conf)
        self._accept = accepted(app.conf.accept_content)
        self._confirms: ConfirmChannel | None = None
        self._consumer: QueueConsumer | None = None

    def up(
        self, loop: Loop, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None,
        confirms: ConfirmChannel,
    ) -> None:  # fmt: skip
        """Answer over this connection from now on."""
        self._confirms = confirms
        queue = self._names.queue_name(self.hostname)
        self._consumer = QueueConsumer(
            loop, queue, need=self._names.queue_need(queue), prefetch=PREFETCH, on_delivery=self._on_delivery,
            on_refused=lambda _consumer, conflict: logger.error("beat: cannot answer pings: %s", conflict),
            tag_prefix="control",
        )  # fmt: skip
        self._consumer.up(connection, declarer, version)

    def down(self, reason: str) -> None:
        """Forget the connection."""
        self._confirms = None
        if self._consumer is not None:
            self._consumer.down(reason)

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.ack()
        properties = delivery.properties
        try:
            request = read_request(
                properties.headers, properties.content_type, properties.content_encoding, delivery.body, self._accept,
                self._app.limits(),
            )  # fmt: skip
            is_meant = request.method == "ping" and matches(request, self.hostname)
        except AmqptasksError as error:
            logger.debug("beat: passed over a command that cannot be read: %s", printable(str(error), 300))
            return
        # Others are the workers' business: an error for each would be all that is seen.
        if not is_meant or request.reply_to is None or self._confirms is None:
            return
        if request.reply_to[0] not in ("", reply_exchange(self._names.namespace)):
            return
        if self._busyness.is_too_long:
            logger.error("beat: does not answer a ping: the scheduler has been busy for too long")
            return
        reply = ControlReply(request.ticket, {self.hostname: {"ok": "pong"}}, self._app.clock.forward())
        message = encode_reply(reply, request.reply_to, self._app.conf.task_serializer)
        needs = (reply_need(self._names.namespace),) if request.reply_to[0] else ()
        self._confirms.send(Outgoing(message, needs, lambda _out, _error: None, mandatory=False))
