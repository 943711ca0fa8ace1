"""Publishing on a loop: mandatory, confirmed, in batches, with every message ending in exactly one outcome.

`ConfirmChannel` is the half that lives on the loop's thread. Workers use it as it is; programs go through
`publisher.Publisher`, which adds threads, deadlines and retries. A message is *claimed* just before it is written: who
claims it first, the loop or a caller that gives up, decides whether it can ever have reached the broker.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import pika.exceptions
from pika.channel import Channel

from amqptasks.broker.declarer import Declarer
from amqptasks.broker.frames import publish_frames
from amqptasks.broker.link import Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.needs import Need
from amqptasks.clock import monotonic
from amqptasks.exceptions import (
    EncodeError,
    ImproperlyConfigured,
    NotSent,
    OperationalError,
    TopologyConflict,
    Unroutable,
)
from amqptasks.wire.message import EncodedMessage

logger = logging.getLogger(__name__)

#: Delayed messages are held back while so many messages are unconfirmed. Their delays begin when the broker takes them
#: in: what has been written and waits in front of it, in thousands, would all be late by that.
TIMED_IN_FLIGHT = 192
#: After a refusal another channel is taken, but not more often than this, seconds.
RENEW_EVERY_S = 1.0
#: How often a channel that is to be closed is looked at, and how long what it carries is waited for, seconds.
RENEW_LOOK_S = 0.02
RENEW_PATIENCE_S = 10.0


class Interrupted(OperationalError):
    """A try that ended without an answer from the broker. ``written`` says whether the message had left."""

    def __init__(self, reason: str, *, written: bool) -> None:
        super().__init__(reason)
        self.written = written


class Outgoing:
    """One message on its way out, and the callback that learns its end: ``on_done(outgoing, error or None)``."""

    __slots__ = (
        "_claim",
        "is_impatient",
        "mandatory",
        "message",
        "needs",
        "on_done",
        "redeclared",
        "returned",
        "was_written",
    )

    def __init__(
        self,
        message: EncodedMessage,
        needs: tuple[Need, ...],
        on_done: Callable[[Outgoing, OperationalError | EncodeError | None], None],
        *,
        mandatory: bool = True,
        is_impatient: bool = False,
    ) -> None:
        self.is_impatient = is_impatient
        self.message = message
        self.needs = needs
        self.on_done = on_done
        self.mandatory = mandatory
        self.returned: str | None = None
        self.redeclared = False
        self.was_written = False
        self._claim = [None]

    def claim(self) -> bool:
        """Take the right to decide this message's fate; True for one caller only, whatever thread it is on."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    @property
    def is_claimed(self) -> bool:
        """Whether someone decides, or has decided, its fate."""
        return not self._claim

    def release(self) -> None:
        """Give the right back, for another try."""
        self._claim = [None]


class ConfirmChannel:
    """Sends `Outgoing` messages over the connections it is given, one after another. Belongs to the loop's thread."""

    def __init__(self, loop: Loop, *, confirm: bool = True) -> None:
        self._loop = loop
        self._confirm = confirm
        self._connection: Connection | None = None
        self._declarer: Declarer | None = None
        self._version: tuple[int, ...] | None = None
        self._channel: Channel | None = None
        self._number = 0
        self._frame_max = 131072
        self._tag = 0
        # No tag below this one is unconfirmed.
        self._oldest = 1
        self._blocked = False
        self._scheduled = False
        #: A delayed message is first in the queue, and is held back.
        self._is_held = False
        self._queue: deque[Outgoing] = deque()
        #: Written and not yet answered, by delivery tag, oldest first.
        self._unconfirmed: dict[int, Outgoing] = {}
        # How many wait for what they need to be declared.
        self._declaring = 0
        # After the broker closed the channel on one of several messages, they go out one at a time to find which.
        self._suspects: deque[Outgoing] = deque()
        self._renewed_at = 0.0

    @property
    def waiting(self) -> int:
        """Messages that have not had their outcome."""
        return len(self._queue) + len(self._unconfirmed) + len(self._suspects) + self._declaring

    @property
    def connection(self) -> Connection | None:
        """The connection in use; None while there is none."""
        return self._connection

    @property
    def is_blocked(self) -> bool:
        """Whether the broker takes nothing at present, because of an alarm."""
        return self._blocked

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Use this connection from now on."""
        self._connection, self._declarer, self._version = connection, declarer, version
        self._blocked = False
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel()

    def down(self, reason: str) -> None:
        """Forget the connection: what was written is answered with `Interrupted`, what was not stays queued."""
        self._connection = self._declarer = self._channel = None
        lost = [*self._take_unconfirmed(), *self._suspects]
        self._suspects.clear()
        for out in lost:
            self._finish(out, Interrupted(reason, written=True))

    def _take_unconfirmed(self) -> list[Outgoing]:
        """Empty the table of what is unconfirmed. A thread that is just adding to it notices that the table changed."""
        table, self._unconfirmed = self._unconfirmed, {}
        taken = []
        while table:
            taken.append(table.popitem()[1])
        return taken[::-1]

    def send_direct(self, out: Outgoing) -> bool:
        """Write a message from the calling thread, whichever it is, if that can be done at once; else do nothing.

        It spares a waiting caller the way through the loop's thread. The outcome is told there, as always.

        Raises:
            Reentered: The caller is a signal handler that interrupted this same method.
        """
        connection, channel, declarer = self._connection, self._channel, self._declarer
        if connection is None or channel is None or declarer is None or self._blocked or self._queue or self._suspects:
            return False
        for need in out.needs:
            if not declarer.has(need.key):
                return False
        if out.message.readdress is not None:
            if len(self._unconfirmed) >= TIMED_IN_FLIGHT:
                return False
            out.message.exchange, out.message.routing_key = out.message.readdress()
        number, frame_max = self._number, self._frame_max
        frames = publish_frames(number, out.message, frame_max, mandatory=out.mandatory)
        if not connection.begin_direct():
            return False
        try:
            unconfirmed = self._unconfirmed
            if self._channel is not channel or not out.claim():
                return False
            self._tag = tag = self._tag + 1
            unconfirmed[tag] = out
            out.was_written = True
            connection.write_direct(frames)
        finally:
            connection.end_direct()
        if unconfirmed is not self._unconfirmed and unconfirmed.pop(tag, None) is not None:
            # The connection ended meanwhile, and whoever collected what was lost with it did not see this one.
            self._finish(out, Interrupted("the connection was lost", written=True))
        return True

    def send(self, out: Outgoing) -> None:
        """Send as soon as there is a connection. What is sent in one turn of the loop leaves together."""
        self._queue.append(out)
        if not self._scheduled:
            self._scheduled = True
            self._loop.at_turn_end(self.pump)

    def add(self, out: Outgoing) -> None:
        """Queue a message; `pump` sends it."""
        self._queue.append(out)

    def send_later(self, out: Outgoing, wait_s: float) -> None:
        """Send after a pause."""
        self._loop.call_later(wait_s, lambda: self.send(out))

    def pump(self) -> None:
        """Write what can be written now."""
        self._scheduled = False
        connection = self._connection
        if connection is None or self._channel is None or self._blocked:
            return
        if self._suspects:
            self._pump_suspect(connection)
            return
        queue = self._queue
        self._is_held = False
        if not queue:
            return
        if not connection.cork_exclusively():
            # A caller's thread is writing, and tags must be given in the order of writing.
            self._scheduled = True
            self._loop.call_later(0.0005, self.pump)
            return
        try:
            while queue:
                if queue[0].message.readdress is not None and len(self._unconfirmed) >= TIMED_IN_FLIGHT:
                    self._is_held = True
                    break
                self._offer(connection, queue.popleft())
        finally:
            connection.uncork()

    def forget_claimed(self) -> None:
        """Drop the queued messages that their senders have given up: they would not be sent, but take up memory."""
        self._queue = deque(out for out in self._queue if not out.is_claimed)

    def fail_impatient(self, error: OperationalError) -> None:
        """Answer the queued messages that are to be tried once only, instead of keeping them for the next
        connection."""
        for out in [each for each in self._queue if each.is_impatient]:
            self._queue.remove(out)
            self._finish_unwritten(out, error)

    def _offer(self, connection: Connection, out: Outgoing) -> None:
        declarer = self._declarer
        need = None
        if declarer is not None:
            for each in out.needs:
                if not declarer.has(each.key):
                    need = each
                    break
        if need is None or declarer is None:
            self._write(connection, out)
            return

        def declared(error: OperationalError | None) -> None:
            self._declaring -= 1
            if error is None:
                self.send(out)
            elif isinstance(error, TopologyConflict):
                self._finish_unwritten(out, error)
            elif self._connection is connection:
                self._finish_unwritten(out, NotSent(str(error)))
            else:
                self._queue.append(out)

        self._declaring += 1
        try:
            steps = need.steps(self._version)
        except ImproperlyConfigured as error:
            # What is to be declared cannot be: known only now, for it depends on the broker's version.
            self._finish_unwritten(out, NotSent(str(error)))
            return
        declarer.ensure(need.key, steps, declared)

    def _write(self, connection: Connection, out: Outgoing) -> None:
        if not out.claim():
            return
        if out.message.readdress is not None:
            out.message.exchange, out.message.routing_key = out.message.readdress()
        try:
            frames = publish_frames(self._number, out.message, self._frame_max, mandatory=out.mandatory)
        except EncodeError as error:
            out.on_done(out, error)
            return
        out.was_written = True
        if self._confirm:
            self._tag += 1
            self._unconfirmed[self._tag] = out
        connection.emit(frames)
        if not self._confirm:
            out.on_done(out, None)

    def _pump_suspect(self, connection: Connection) -> None:
        # While there are suspects nothing is sent directly, so tags are given here alone.
        while self._suspects and not self._unconfirmed:
            out = self._suspects.popleft()
            if out.was_written:
                # Claimed in its first try already: it may be written again, the id is the same.
                out.release()
            self._offer(connection, out)

    def _finish(self, out: Outgoing, error: OperationalError | EncodeError | None) -> None:
        out.on_done(out, error)

    def _finish_unwritten(self, out: Outgoing, error: OperationalError) -> None:
        if out.claim():
            out.on_done(out, error)

    # -- the channel

    def _open_channel(self) -> None:
        assert self._connection is not None
        self._connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Channel) -> None:
        if self._connection is None or channel.connection is not self._connection:
            return
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._on_return)
        self._tag = 0
        self._oldest = 1
        self._number = int(channel.channel_number)
        self._frame_max = int(channel.connection.params.frame_max or 131072)

        def ready(_frame: Any) -> None:
            self._channel = channel
            self.pump()

        if self._confirm:
            channel.connection.on_confirm[self._number] = self._on_confirm
            channel.confirm_delivery(self._on_confirm_frame, callback=ready)
        else:
            ready(None)

    def _channel_closed(self, channel: Channel, error: Exception) -> None:
        connection = self._connection
        if connection is None or channel.connection is not connection or not connection.is_open:
            return
        self._channel = None
        connection.on_confirm.pop(self._number, None)
        reason = f"{getattr(error, 'reply_code', '')} {getattr(error, 'reply_text', error)}".strip()
        lost = self._take_unconfirmed()
        if len(lost) == 1:
            self._refused(lost[0], error, reason)
        elif lost:
            logger.warning(
                "The broker closed the channel (%s); finding which of %d messages it refused", reason, len(lost)
            )
            self._suspects.extend(lost)
        if self._connection is connection and connection.is_open:
            self._open_channel()

    def _refused(self, out: Outgoing, error: Exception, reason: str) -> None:
        missing = isinstance(error, pika.exceptions.ChannelClosed) and error.reply_code == 404
        if missing and self._try_again_declared(out):
            return
        self._finish(out, NotSent(f"the broker refused the message to {_address(out)}: {reason}"))

    def _try_again_declared(self, out: Outgoing) -> bool:
        if not out.needs or out.redeclared or self._declarer is None:
            return False
        out.redeclared = True
        out.returned = None
        out.release()
        for need in out.needs:
            self._declarer.forget(need.key)
        self._queue.append(out)
        self._loop.at_turn_end(self.pump)
        return True

    def _on_return(self, _channel: Channel, method: Any, properties: Any, _body: bytes) -> None:
        for out in list(self._unconfirmed.values()):
            message = out.message
            if (
                out.returned is None
                and message.routing_key == method.routing_key
                and message.exchange == method.exchange
                and message.correlation_id == properties.correlation_id
            ):
                out.returned = f"{method.reply_code} {method.reply_text}"
                return
        logger.error(
            "The broker had no queue for a message to exchange %r with routing key %r",
            method.exchange,
            method.routing_key,
        )

    def _on_confirm_frame(self, frame: Any) -> None:
        method = frame.method
        self._on_confirm(method.delivery_tag, method.multiple, method.NAME == "Basic.Ack")

    def _on_confirm(self, tag: int, multiple: bool, is_ack: bool) -> None:
        unconfirmed = self._unconfirmed
        # Counting tags rather than walking the table: other threads may be adding to it.
        first = self._oldest if multiple else tag
        for each in range(first, tag + 1):
            out = unconfirmed.pop(each, None)
            if out is None:
                continue
            if out.returned is not None and is_ack:
                if not self._try_again_declared(out):
                    self._finish(out, Unroutable(f"no queue takes messages to {_address(out)} ({out.returned})"))
            elif is_ack:
                out.on_done(out, None)
            else:
                self._finish(out, Interrupted("the broker refused the message (basic.nack)", written=False))
                self._renew()
        if multiple or tag == self._oldest:
            self._oldest = tag + 1
        # Not for each confirm: what is written together costs less.
        if self._suspects or (self._queue and not (self._is_held and len(unconfirmed) > TIMED_IN_FLIGHT // 2)):
            self.pump()

    def _renew(self) -> None:
        """Take another channel after a refusal, once what this one carries has its answers.

        A channel that came to a quorum queue while that had lost its leader asks the dead one for ever, and refuses
        everything (RabbitMQ 3.10).
        """
        channel, now = self._channel, monotonic()
        if channel is None or now - self._renewed_at < RENEW_EVERY_S:
            return
        self._renewed_at = now
        # Nothing is written from here on. A thread that is just writing is done before the first look.
        self._channel = None
        self._loop.call_later(RENEW_LOOK_S, lambda: self._close_when_answered(channel))

    def _close_when_answered(self, channel: Channel) -> None:
        connection = self._connection
        if connection is None or channel.connection is not connection or not channel.is_open:
            return
        if not self._unconfirmed:
            # Its end opens another.
            channel.close()
        elif monotonic() - self._renewed_at > RENEW_PATIENCE_S:
            connection.drop(f"the broker refused a message and has not answered others for {RENEW_PATIENCE_S:g} s")
        else:
            self._loop.call_later(RENEW_LOOK_S, lambda: self._close_when_answered(channel))

    def _on_blocked(self, connection: Any, _frame: Any) -> None:
        if connection is self._connection:
            self._blocked = True

    def _on_unblocked(self, connection: Any, _frame: Any) -> None:
        if connection is self._connection:
            self._blocked = False
            self.pump()


def _address(out: Outgoing) -> str:
    message = out.message
    if not message.exchange:
        return f"queue {message.routing_key!r}"
    return f"exchange {message.exchange!r} with routing key {message.routing_key!r}"
