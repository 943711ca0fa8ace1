"""A short session that puts questions to whoever consumes a queue, and waits for the answer to each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from amqptasks.broker.admin import _turn
from amqptasks.broker.mailbox import Mailbox
from amqptasks.broker.needs import Need
from amqptasks.clock import monotonic
from amqptasks.exceptions import OperationalError
from amqptasks.wire.message import EncodedMessage

__all__ = ["REPLY_TO", "Inquiry"]

#: RabbitMQ's own way for answers, without a queue: the broker puts the way back here in its place.
REPLY_TO: Final = "amq.rabbitmq.reply-to"


class Inquiry(Mailbox):
    """A session that asks. Belongs to the thread that made it, as every `Admin`."""

    _inbox: list[tuple[Any, bytes]] | None = None
    _asked_on: Any = None

    def __enter__(self) -> Inquiry:
        self.connect()
        return self

    def declare_needs(self, *needs: Need) -> None:
        """Declare what is missing.

        Raises:
            TopologyConflict: It is there with other arguments.
        """
        for need in needs:
            self.declare(need.steps(self.version))

    def put(self, message: EncodedMessage, timeout_s: float, take: Callable[[Any, bytes], bool]) -> bool:
        """Send a question whose ``reply_to`` is `REPLY_TO`, and hand over what comes.

        Args:
            timeout_s: How long the answer is waited for, from when the broker has the question. Seconds.
            take: Gets the properties and the body of each message; returns whether that is the answer.

        Returns:
            Whether the answer came.

        Raises:
            OperationalError: The broker could not be asked, or was lost meanwhile.
        """
        channel = self._open_channel()
        if self._asked_on is not channel or self._inbox is None:
            self._inbox, self._asked_on = [], channel
            self._consume(REPLY_TO, self._inbox)
        inbox, loop = self._inbox, self._loop
        assert loop is not None
        self._send(message)
        deadline = monotonic() + timeout_s
        while (left_s := deadline - monotonic()) > 0:
            _turn(loop, lambda: bool(inbox) or self._ended is not None, left_s)
            came = inbox[:]
            del inbox[: len(came)]
            # What is left over is an answer that came too late for the one who asked.
            if any(take(properties, body) for properties, body in came):
                return True
            if self._ended is not None:
                raise OperationalError(f"the connection to {self._label} was lost while answers came: {self._ended}")
        return False
