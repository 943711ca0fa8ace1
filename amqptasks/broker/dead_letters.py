"""Looks at dead letters without taking them, and takes those that are to go: back to work, or away.

A message leaves its queue of dead letters only after the broker has confirmed its copy elsewhere, or because it was to
be thrown away. Whatever ends the program in between leaves it where it was: at worst it is in both places.

To look at a message is to be handed it, unacknowledged, and to give it back. Measured on RabbitMQ 3.10, 4.0 and 4.3: a
quorum queue puts what comes back behind everything else, and counts that as a delivery (4.3 only if the connection
ends first); one of RabbitMQ 4 deletes what was delivered more than 20 times, unless it was declared with another limit,
as our queues of dead letters are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Final

import pika
from pika.channel import Channel

from amqptasks.broker.admin import NOT_FOUND, Refused
from amqptasks.broker.confirming import ConfirmingAdmin, NotPublished, Returned
from amqptasks.broker.topology import DeclareQueue
from amqptasks.exceptions import OperationalError, TopologyConflict
from amqptasks.wire.dead_letter import DeadLetter, original, read_dead_letter
from amqptasks.wire.task import without_broker_headers

__all__ = ["DeadLetters", "Held", "NotMoved"]

#: From so many deliveries on, a letter in a queue that was not declared by us is replaced by a fresh copy, well before
#: RabbitMQ's own limit of 20.
REFRESH_AFTER: Final = 10


class NotMoved(OperationalError):
    """A dead letter stays where it is: its copy did not arrive."""


class Held:
    """A dead letter in hand, until the next one is taken. Left alone it goes back.

    Attributes:
        behind: How many more were in the queue when this one was taken.
    """

    def __init__(self, letter: DeadLetter, body: bytes, tag: int, behind: int, session: DeadLetters) -> None:
        self.letter = letter
        self.body = body
        self.behind = behind
        self.is_settled = False
        self._tag = tag
        self._session = session

    def replay(self, queue: str) -> None:
        """Put the message that died into a queue, confirmed, then take it out of the dead letters.

        Raises:
            NotMoved: It is still where it was.
        """
        headers, properties = original(self.letter.properties)
        self._move(queue, pika.BasicProperties(headers=headers or None, **properties))

    def refresh(self) -> None:
        """Put a fresh copy of the dead letter behind the others of its queue, in its place.

        Raises:
            NotMoved: It is still where it was.
        """
        letter = self.letter
        known = {name: getattr(letter.properties, name) for name in _COPIED}
        headers = without_broker_headers(letter.headers)
        self._move(letter.queue, pika.BasicProperties(headers=headers or None, **known))

    def discard(self) -> None:
        """Throw it away."""
        self._session.ack(self._tag)
        self.is_settled = True

    def _move(self, queue: str, properties: pika.BasicProperties) -> None:
        self._session.put(queue, self.body, properties)
        self.discard()


_COPIED: Final = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "message_id",
    "timestamp", "type", "app_id",
)  # fmt: skip


class DeadLetters(ConfirmingAdmin):
    """A session on queues of dead letters. Belongs to the thread that made it, as every `Admin`."""

    def __enter__(self) -> DeadLetters:
        self.connect()
        return self

    def letters(self, declaration: DeclareQueue) -> Generator[Held, None, None]:
        """Take every dead letter of a queue in hand, oldest first, each once; what is not settled goes back at the end.

        Nobody else gets them meanwhile. Those that arrive while it lasts are left out. Close it if you stop early, for
        example by ``contextlib.closing``. Empty if there is no such queue.

        Args:
            declaration: What `dead_queue` returned. The queue is not made.
        """
        queue = declaration.queue
        if self.counts(queue) is None:
            return
        must_refresh = self.version >= (4, 0) and not self._is_ours(declaration)
        is_holding = False
        left = 1
        try:
            while left > 0:
                held = self._take(queue)
                if held is None:
                    return
                # Not from `counts`: of a quorum queue that is late by a moment. The answer to a get is exact.
                left = left - 1 if is_holding else held.behind
                is_holding = True
                yield held
                if must_refresh and not held.is_settled and held.letter.deliveries >= REFRESH_AFTER:
                    held.refresh()
        finally:
            if is_holding:
                self._return(queue)

    def find(
        self, declaration: DeclareQueue, wanted: Callable[[DeadLetter], bool], most: int | None = None
    ) -> list[tuple[DeadLetter, bytes]]:
        """Return the dead letters of a queue that are wanted, with their bodies, and leave them there."""
        found: list[tuple[DeadLetter, bytes]] = []
        if most == 0:
            return found
        with closing(self.letters(declaration)) as letters:
            for held in letters:
                if wanted(held.letter):
                    found.append((held.letter, held.body))
                    if len(found) == most:
                        break
        return found

    def put(self, queue: str, body: bytes, properties: pika.BasicProperties) -> None:
        """Put a message into a queue and wait until the broker confirms that it is there.

        Raises:
            NotMoved: It is not, or nobody knows.
        """
        try:
            self.publish("", queue, body, properties)
        except Returned:
            raise NotMoved(f"not put into {queue!r}: there is no queue {queue!r}") from None
        except NotPublished as error:
            raise NotMoved(f"not put into {queue!r}: {error}") from error

    def ack(self, tag: int) -> None:
        """Take the message of this delivery tag out of its queue for good."""
        if self._channel is None:
            raise OperationalError(f"the connection to {self.label} was lost: {self._ended}")
        self._channel.basic_ack(tag)

    # -- steps

    def _is_ours(self, declaration: DeclareQueue) -> bool:
        """Whether the queue has the arguments that we declare, among them the one that lets it be looked at."""
        try:
            self.declare((declaration,))
        except (TopologyConflict, OperationalError):
            return False
        return True

    def _take(self, queue: str) -> Held | None:
        answer: Any = self._request("basic.get", lambda channel, then: self._get_held(channel, queue, then))
        if answer is None:
            return None
        method, properties, body = answer
        letter = read_dead_letter(queue, properties, len(body))
        return Held(letter, body, method.delivery_tag, method.message_count, self)

    def _get_held(self, channel: Channel, queue: str, then: Callable[[Any], None]) -> None:
        self._on_empty = lambda: then(None)
        channel.basic_get(queue, lambda _channel, method, properties, body: then((method, properties, body)))

    def _return(self, queue: str) -> None:
        """Give back what is held. Waiting for an answer makes sure that the acks before it have arrived."""
        if self._channel is None or not self._channel.is_open:
            # The broker has taken it all back itself.
            return
        self._channel.basic_nack(0, multiple=True, requeue=True)
        try:
            self._look(queue)
        except Refused as refusal:
            if refusal.code != NOT_FOUND:
                raise self._error(f"to look at queue {queue!r}", refusal) from None
