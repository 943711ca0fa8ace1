"""Counts the messages of queues on a connection that others publish on: one look at a time, for all who ask at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pika.channel import Channel

from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop

__all__ = ["QueueCounter"]

logger = logging.getLogger(__name__)

#: How often it is looked whether there is a connection again, seconds.
RETRY_S = 0.2
NOT_FOUND = 404

#: Told once: how many messages wait in the queue; None if there is no such queue; 0 if the broker does not say.
Counted = Callable[["int | None"], None]


class QueueCounter:
    """Looks at queues by passive declarations, on a channel of its own. Belongs to the loop's thread.

    Who asks in one turn of the loop for the same queue gets one answer: what was confirmed before it is in it.

    Args:
        connection: Returns the connection that is open now, if one is.
    """

    def __init__(self, loop: Loop, connection: Callable[[], Connection | None]) -> None:
        self._loop = loop
        self._connection = connection
        self._channel: Channel | None = None
        # The connection on which the channel is being opened.
        self._opening: Connection | None = None
        self._is_scheduled = False
        self._waiting: dict[str, list[Counted]] = {}
        # The queue that is looked at now. Who asks for it meanwhile waits for the next look.
        self._looking: tuple[str, list[Counted]] | None = None

    def count(self, queue: str, done: Counted) -> None:
        """Look at a queue at the end of the turn, or as soon as there is a connection."""
        self._waiting.setdefault(queue, []).append(done)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._looking is None:
            self._is_scheduled = True
            self._loop.at_turn_end(self._next)

    def _next(self) -> None:
        self._is_scheduled = False
        if self._looking is not None or not self._waiting or (self._opening is not None and self._opening.is_open):
            return
        connection = self._connection()
        if connection is None or not connection.is_open:
            self._is_scheduled = True
            self._loop.call_later(RETRY_S, self._next)
            return
        channel = self._channel
        if channel is None or not channel.is_open or channel.connection is not connection:
            self._opening = connection
            opened = connection.channel(on_open_callback=self._opened)
            opened.add_on_close_callback(self._closed)
            return
        queue = next(iter(self._waiting))
        self._looking = queue, self._waiting.pop(queue)
        channel.queue_declare(queue, passive=True, callback=self._answered)

    def _opened(self, channel: Channel) -> None:
        self._opening = None
        self._channel = channel
        self._next()

    def _answered(self, frame: Any) -> None:
        self._tell(frame.method.message_count)

    def _tell(self, count: int | None) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            for done in looking[1]:
                done(count)
        if self._waiting:
            self._schedule()

    def _closed(self, channel: Channel, error: Exception) -> None:
        self._opening = None
        if channel is self._channel:
            self._channel = None
        code = getattr(error, "reply_code", 0)
        looking = self._looking
        if looking is None:
            if self._waiting:
                self._schedule()
        elif channel.connection.is_open and code == NOT_FOUND:
            self._tell(None)
        elif channel.connection.is_open:
            logger.error("Queue %r cannot be looked at: %s", looking[0], error)
            self._tell(0)
        else:
            # The connection has gone: once more on the next one.
            self._looking = None
            self._waiting[looking[0]] = looking[1] + self._waiting.get(looking[0], [])
            self._schedule()
