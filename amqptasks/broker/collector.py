"""Reads a chord's collector, alone, and publishes what follows from it: a joiner's short session with the broker.

The collector is consumed exclusively and nothing in it is acknowledged: whatever ends the session puts everything back.
Only `Admin.delete` takes the messages away, when the chord's body is confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import pika.exceptions
from pika.channel import Channel

from amqptasks.broker.admin import ACCESS_REFUSED, NOT_FOUND, Admin, Refused, _turn
from amqptasks.broker.frames import publish_frames
from amqptasks.broker.needs import Need
from amqptasks.exceptions import OperationalError
from amqptasks.wire.message import EncodedMessage

__all__ = ["BUSY", "GONE", "CollectorSession"]

#: What `read` returns instead of a number: somebody else is reading, or there is no such queue.
BUSY: Final = -1
GONE: Final = -2


class CollectorSession(Admin):
    """A session on one collector. Belongs to the thread that made it, as every `Admin`."""

    _reading: Channel | None = None
    _out: Channel | None = None
    _declared: set[str]

    def __enter__(self) -> CollectorSession:
        self._declared = set()
        self.connect()
        return self

    # -- reading

    def read(
        self, queue: str, count: int, take: Callable[[Any, bytes], None], enough: Callable[[], bool]
    ) -> int:  # fmt: skip
        """Take this many messages of a queue in hand, and keep them until `give_back`; returns how many there were.

        Args:
            take: Called with the properties and the body of each.
            enough: Asked after each whether to go on.

        Returns:
            `BUSY` if another consumer has the queue, `GONE` if there is no such queue.
        """
        refusals: list[Refused] = []
        opened: list[Channel] = []
        begun: list[Any] = []
        received = 0

        def closed(_channel: Channel, error: Any) -> None:
            refusals.append(Refused(getattr(error, "reply_code", 0), getattr(error, "reply_text", str(error))))

        def on_message(*delivered: Any) -> None:
            nonlocal received
            received += 1
            take(delivered[-2], delivered[-1])

        connection = self._connected()
        connection.channel(on_open_callback=opened.append)
        self._await(lambda: bool(opened), "channel.open")
        channel = self._reading = opened[0]
        channel.add_on_close_callback(closed)
        # Small messages come by the short way, large ones by pika's.
        connection.on_deliver[int(channel.channel_number)] = on_message
        channel.basic_consume(queue, on_message, exclusive=True, callback=begun.append)
        self._await(lambda: bool(begun or refusals), "basic.consume")
        seen = -1
        while not refusals and received < count and not enough() and received > seen:
            # As long as they keep coming.
            seen = received
            self._progress(lambda: bool(refusals) or received >= count or enough())
        if not refusals:
            return received
        self._reading = None
        if refusals[0].code == ACCESS_REFUSED and "exclusive" in refusals[0].text:
            return BUSY
        if refusals[0].code == NOT_FOUND:
            return GONE
        raise self._error(f"to read queue {queue!r}", refusals[0])

    def _progress(self, done: Callable[[], bool]) -> None:
        assert self._loop is not None
        _turn(self._loop, lambda: done() or self._ended is not None, self._timeout_s)
        if self._ended is not None:
            raise OperationalError(f"the connection to {self._label} was lost during a read: {self._ended}")

    def give_back(self) -> None:
        """Put everything that is in hand back, and let others read."""
        channel, self._reading = self._reading, None
        if channel is None or not channel.is_open or self._connection is None:
            return
        self._connection.on_deliver.pop(int(channel.channel_number), None)
        channel.close()
        self._await(lambda: channel.is_closed, "channel.close")

    # -- publishing

    def require(self, needs: Iterable[Need]) -> None:
        """Declare what messages need.

        Raises:
            TopologyConflict: It is there, and different.
        """
        version = self.version
        for need in needs:
            if need.key not in self._declared:
                self.declare(need.steps(version))
                self._declared.add(need.key)

    def publish(self, messages: Sequence[EncodedMessage]) -> list[str | None]:
        """Publish messages and wait until each is confirmed; returns, for each, None or why it is in no queue.

        Raises:
            OperationalError: Nobody knows, of some of them.
        """
        try:
            return self._publish(messages)
        except Refused as refusal:
            if len(messages) == 1:
                return [f"the broker refused it: {refusal.code} {refusal.text}"]
            # One of them closed the channel. Sending the others once more does no harm: their ids are the same.
            return [self.publish([each])[0] for each in messages]

    def _publish(self, messages: Sequence[EncodedMessage]) -> list[str | None]:
        channel = self._publishing()
        refusals: list[Refused] = []
        problems: list[str | None] = [None] * len(messages)
        unconfirmed = dict(enumerate(messages))
        connection = self._connected()
        first = self._tag + 1

        def confirmed(tag: int, multiple: bool, is_ack: bool) -> None:
            for each in list(unconfirmed) if multiple else [tag - first]:
                if each <= tag - first and unconfirmed.pop(each, None) is not None and not is_ack:
                    problems[each] = "the broker refused it: its queue is full"

        def returned(_channel: Channel, method: Any, properties: Any, _body: bytes) -> None:
            address = method.exchange, method.routing_key, properties.correlation_id
            for index, each in unconfirmed.items():
                if problems[index] is None and (each.exchange, each.routing_key, each.correlation_id) == address:
                    problems[index] = f"there is no queue for it ({method.reply_text})"
                    return

        self._on_refused, self._on_return = refusals.append, returned
        connection.on_confirm[int(channel.channel_number)] = confirmed
        frame_max = int(connection.params.frame_max or 131072)
        for each in messages:
            connection.emit(publish_frames(int(channel.channel_number), each, frame_max, mandatory=True))
        self._tag += len(messages)
        left = len(messages) + 1
        while unconfirmed and not refusals and len(unconfirmed) < left:
            left = len(unconfirmed)
            self._progress(lambda: not unconfirmed or bool(refusals))
        if refusals:
            raise refusals[0]
        if unconfirmed:
            connection.drop("no confirm")
            raise OperationalError(f"the broker {self._label} did not confirm {len(unconfirmed)} message(s)")
        return problems

    _tag = 0
    _on_refused: Callable[[Refused], None]
    _on_return: Callable[[Channel, Any, Any, bytes], None]

    def _publishing(self) -> Channel:
        if self._out is not None and self._out.is_open:
            return self._out
        opened: list[Channel] = []
        ready: list[Any] = []
        self._connected().channel(on_open_callback=opened.append)
        self._await(lambda: bool(opened), "channel.open")
        channel = opened[0]

        def closed(_channel: Channel, error: Any) -> None:
            self._out = None
            if isinstance(error, pika.exceptions.ChannelClosedByBroker):
                self._on_refused(Refused(error.reply_code, error.reply_text))

        channel.add_on_close_callback(closed)
        channel.add_on_return_callback(lambda *returned: self._on_return(*returned))
        # Every confirm comes the short way.
        channel.confirm_delivery(lambda _frame: None, callback=ready.append)
        self._await(lambda: bool(ready), "confirm.select")
        self._out, self._tag = channel, 0
        return channel
