"""Publishing what nobody waits for, beside what is confirmed: on the same connection, over a channel of its own.

A message that cannot be written now is refused, not queued: who sends decides what becomes of it. What closes this
channel closes nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from pika.channel import Channel

from amqptasks.broker.confirms import ConfirmChannel
from amqptasks.broker.declarer import perform
from amqptasks.broker.frames import publish_frames
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.topology import Step, conflict
from amqptasks.clock import monotonic
from amqptasks.wire.message import EncodedMessage

logger = logging.getLogger(__name__)

#: After the broker has closed the channel, another is not opened sooner than this, seconds.
REOPEN_S: Final = 5.0
PRECONDITION_FAILED: Final = 406


class UnconfirmedChannel:
    """Sends messages of one purpose over the connections of a `ConfirmChannel`. Belongs to the loop's thread.

    Args:
        confirms: Whose connections it uses.
        step: What is declared first on each of them.
        purpose: What is sent, for the log.
        on_ready: Called when messages can be sent, again after each loss.
    """

    def __init__(
        self, loop: Loop, confirms: ConfirmChannel, step: Step, purpose: str, on_ready: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._confirms = confirms
        self._step = step
        self._purpose = purpose
        self._on_ready = on_ready
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._not_before = 0.0
        #: What the broker has said against it, told once.
        self._told: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a message can be written now. Asking also opens the channel where there is none."""
        connection = self._confirms.connection
        if connection is None or not connection.is_open:
            return False
        if connection is not self._connection:
            self._connection, self._channel, self._not_before = connection, None, 0.0
        if self._channel is None:
            self._open(connection)
            return False
        return not self._confirms.is_blocked and not connection.has_unsent

    def send(self, message: EncodedMessage) -> bool:
        """Write a message; False, and nothing done, where that cannot be had at once.

        Raises:
            EncodeError: AMQP cannot carry it.
        """
        if not self.is_ready or self._channel is None or self._connection is None:
            return False
        frame_max = int(self._connection.params.frame_max or 131072)
        number = int(self._channel.channel_number)
        self._connection.emit(publish_frames(number, message, frame_max, mandatory=False))
        return True

    def _open(self, connection: Connection) -> None:
        now = monotonic()
        if now < self._not_before:
            return
        # An answer may never come: asked again after that time, then.
        self._not_before = now + REOPEN_S
        connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        if channel.connection is not self._connection or self._channel is not None:
            channel.close()
            return

        def declared(_frame: Any) -> None:
            if channel.connection is self._connection:
                self._channel, self._told = channel, None
                self._on_ready()

        channel.add_on_close_callback(self._closed)
        perform(channel, self._step, declared)

    def _closed(self, channel: Channel, error: Exception) -> None:
        connection = self._connection
        if connection is None or channel.connection is not connection or not connection.is_open:
            return
        self._channel = None
        self._not_before = monotonic() + REOPEN_S
        code, text = getattr(error, "reply_code", 0), getattr(error, "reply_text", str(error))
        if text != self._told:
            self._told = text
            said = str(conflict(text, self._step)) if code == PRECONDITION_FAILED else f"{code} {text}"
            logger.error("No %s can be sent for now; the broker closed their channel: %s", self._purpose, said)
