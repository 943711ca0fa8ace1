"""Consuming one queue on a channel of its own, with acks put together once a turn.

A channel per queue keeps their fates apart: what closes one, such as the broker's delivery timeout, requeues that
queue's deliveries only. Delivery tags are worth nothing once their channel has gone, so a `Delivery` remembers its
channel's number and settles nothing on a later one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pika.channel import Channel

from amqptasks.broker.declarer import Declarer
from amqptasks.broker.incoming import Properties
from amqptasks.broker.link import Backoff, Connection
from amqptasks.broker.loop import Loop
from amqptasks.broker.needs import Need
from amqptasks.exceptions import ImproperlyConfigured, OperationalError, TopologyConflict

logger = logging.getLogger(__name__)

#: Without a prefetch limit, acks that may wait are sent when half of this many do.
UNLIMITED_ACKS = 200


@dataclass(slots=True, eq=False)
class Delivery:
    """One message as it arrived. ``epoch`` names the channel it came on."""

    consumer: QueueConsumer
    epoch: int
    tag: int
    exchange: str
    routing_key: str
    redelivered: bool
    properties: Properties
    body: bytes

    @property
    def is_current(self) -> bool:
        """Whether its channel is still there. If not, the broker has given the message back to the queue."""
        return self.epoch == self.consumer.epoch

    def ack(self) -> None:
        """Tell the broker that the message is dealt with (``basic.ack``), at the end of the turn."""
        self.consumer.ack(self)

    def give_back(self, *, has_run: bool = False) -> None:
        """Put the message back into its queue. What ``has_run`` counts as delivered in every version of RabbitMQ."""
        self.consumer.give_back(self, has_run=has_run)


class QueueConsumer:
    """Consumes one queue for as long as there is a connection. Belongs to the loop's thread.

    Args:
        prefetch: Deliveries the broker may have outstanding with this consumer; 0 for no limit.
        on_delivery: Gets each delivery.
        on_consuming: Called each time consuming begins.
        on_lost: Called when the channel has gone, with the reason: its deliveries are stale now.
        on_refused: Called when the queue cannot be declared as wanted.
        ack_delay_s: Acks wait this long, at most until half of the prefetch waits, and then leave as one; 0 for the end
            of the turn.
        is_own: The queue is nobody else's: it is deleted when consuming is stopped.
    """

    def __init__(
        self,
        loop: Loop,
        queue: str,
        *,
        need: Need | None,
        prefetch: int,
        on_delivery: Callable[[Delivery], None],
        on_consuming: Callable[[QueueConsumer], None] | None = None,
        on_lost: Callable[[QueueConsumer, str], None] | None = None,
        on_refused: Callable[[QueueConsumer, TopologyConflict], None] | None = None,
        arguments: Mapping[str, Any] | None = None,
        tag_prefix: str = "amqptasks",
        ack_delay_s: float = 0.0,
        is_own: bool = False,
    ) -> None:
        self._ack_delay_s = ack_delay_s
        self.queue = queue
        self.epoch = 0
        self._loop = loop
        self._need = need
        self._is_own = is_own
        self._prefetch = prefetch
        self._on_delivery = on_delivery
        self._on_consuming = on_consuming
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._arguments = dict(arguments or {})
        self._tag_prefix = tag_prefix
        self._connection: Connection | None = None
        self._declarer: Declarer | None = None
        self._version: tuple[int, ...] | None = None
        self._channel: Channel | None = None
        self._consumer_tag: str | None = None
        self._wanted = True
        self._is_consuming = False
        self._consumers = 0
        self._failures = 0
        self._backoff = Backoff(base_s=0.1, max_s=10.0)
        # Deliveries not yet acked, in the order of their tags, and those of them that wait for the turn's end.
        self._outstanding: dict[int, None] = {}
        self._acked: set[int] = set()

    @property
    def is_consuming(self) -> bool:
        """Whether the broker may send deliveries now."""
        return self._is_consuming

    @property
    def outstanding(self) -> int:
        """Deliveries of this channel that are not settled."""
        return len(self._outstanding)

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Consume over this connection from now on."""
        self._connection, self._declarer, self._version = connection, declarer, version
        self._begin()

    def down(self, reason: str) -> None:
        """Forget the connection."""
        self._connection = self._declarer = None
        self._lose(reason)

    def stop_consuming(self) -> None:
        """Take no more deliveries; those that are here can still be acked (``basic.cancel``)."""
        self._wanted = self._is_consuming = False
        channel, tag, self._consumer_tag = self._channel, self._consumer_tag, None
        if channel is not None and tag is not None and channel.is_open:
            channel.basic_cancel(tag, callback=lambda _frame: self._stopped())

    def _stopped(self) -> None:
        if self._is_own and self._channel is not None and self._channel.is_open:
            self._channel.queue_delete(self.queue)

    def resume(self) -> None:
        """Consume again after `stop_consuming`."""
        if self._wanted:
            return
        self._wanted = True
        if self._channel is not None and self._channel.is_open:
            self._qos(self._channel)
        else:
            self._begin()

    def end(self) -> None:
        """Close the channel for good, after `stop_consuming`. What is not settled goes back to the queue."""
        self.flush()
        channel = self._channel
        self._lose("consumed no longer")
        self._connection = self._declarer = None
        if channel is not None and channel.is_open:
            channel.close()

    def set_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Consume with these arguments from the next time on."""
        self._arguments = dict(arguments)

    def set_prefetch(self, prefetch: int) -> None:
        """Change how much the broker may have outstanding. For AMQP that takes a new consumer."""
        if prefetch == self._prefetch:
            return
        self._prefetch = prefetch
        channel, tag, self._consumer_tag = self._channel, self._consumer_tag, None
        if channel is not None and tag is not None and channel.is_open:
            channel.basic_cancel(tag, callback=lambda _frame: self._qos(channel))

    def _qos(self, channel: Channel | None) -> None:
        if self._channel is not None and channel is self._channel and channel.is_open:
            # Per consumer, never global: a quorum queue closes the whole connection on global QoS (540).
            asked = self._prefetch

            def answered(_frame: Any) -> None:
                # It may have been changed meanwhile; a consumer keeps what holds when it begins.
                (self._consume if asked == self._prefetch else self._qos)(channel)

            channel.basic_qos(prefetch_count=asked, callback=answered)

    def ack(self, delivery: Delivery) -> None:
        """Ack one delivery at the end of the turn; a stale one is left alone, for the broker has it back."""
        if delivery.epoch != self.epoch:
            return
        if not self._acked:
            if self._ack_delay_s:
                # Not at once: an answer that is published in this turn leaves before any book-keeping.
                self._loop.at_turn_end(self._flush_later)
            else:
                self._loop.at_turn_end(self.flush)
        self._acked.add(delivery.tag)
        if self._ack_delay_s and len(self._acked) * 2 >= (self._prefetch or UNLIMITED_ACKS):
            self.flush()

    def _flush_later(self) -> None:
        self._loop.call_later(self._ack_delay_s, self.flush)

    def give_back(self, delivery: Delivery, *, has_run: bool = False) -> None:
        """Requeue one delivery now."""
        if delivery.epoch != self.epoch or self._channel is None or delivery.tag not in self._outstanding:
            return
        del self._outstanding[delivery.tag]
        # From RabbitMQ 4.3 only basic.reject counts as a failed delivery.
        if has_run:
            self._channel.basic_reject(delivery.tag, requeue=True)
        else:
            self._channel.basic_nack(delivery.tag, requeue=True)

    def flush(self) -> None:
        """Send the acks that wait: one for the unbroken run of oldest tags, one each for those beyond a gap."""
        channel, acked, outstanding = self._channel, self._acked, self._outstanding
        if not acked or channel is None or not channel.is_open:
            acked.clear()
            return
        last = 0
        run = 0
        for tag in outstanding:
            if tag not in acked:
                break
            last = tag
            run += 1
        connection = self._connection
        assert connection is not None
        connection.cork()
        if run:
            if run == len(outstanding):
                outstanding.clear()
            else:
                for tag in [each for each in outstanding if each <= last]:
                    del outstanding[tag]
            channel.basic_ack(last, multiple=run > 1)
        if len(acked) > run:
            for tag in sorted(acked):
                if tag > last and outstanding.pop(tag, 0) is None:
                    channel.basic_ack(tag)
        connection.uncork()
        acked.clear()

    # -- the channel

    def _begin(self) -> None:
        if self._declarer is None or not self._wanted:
            return
        if self._need is None:
            self._open()
        else:
            try:
                steps = self._need.steps(self._version)
            except ImproperlyConfigured as error:
                self._declared(TopologyConflict(str(error)))
                return
            self._declarer.ensure(self._need.key, steps, self._declared)

    def _declared(self, error: OperationalError | None) -> None:
        if error is None:
            self._open()
        elif isinstance(error, TopologyConflict) and self._on_refused is not None:
            self._on_refused(self, error)
            self._later()
        elif self._connection is not None:
            logger.error("Cannot declare queue %r: %s", self.queue, error)
            self._later()

    def _open(self) -> None:
        if self._connection is not None and self._wanted:
            self._connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        if channel.connection is not self._connection:
            if channel.is_open:
                # Asked for before `end`.
                channel.close()
            return
        self.epoch += 1
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(self._cancelled)
        self._qos(channel)

    def _consume(self, channel: Channel) -> None:
        if self._channel is None or channel is not self._channel or not self._wanted:
            return
        epoch = self.epoch
        outstanding = self._outstanding
        on_delivery = self._on_delivery

        def deliver(
            tag: int, redelivered: bool, exchange: str, routing_key: str, properties: Properties, body: bytes
        ) -> None:
            outstanding[tag] = None
            on_delivery(Delivery(self, epoch, tag, exchange, routing_key, redelivered, properties, body))

        def deliver_by_pika(_channel: Channel, method: Any, properties: Properties, body: bytes) -> None:
            redelivered = bool(method.redelivered)
            deliver(method.delivery_tag, redelivered, method.exchange, method.routing_key, properties, body)

        def consuming(_frame: Any) -> None:
            self._failures = 0
            self._is_consuming = True
            if self._on_consuming is not None:
                self._on_consuming(self)

        channel.connection.on_deliver[channel.channel_number] = deliver
        self._consumers += 1
        tag = f"{self._tag_prefix}.{self.queue}.{epoch}.{self._consumers}"[:255]
        self._consumer_tag = channel.basic_consume(
            self.queue, deliver_by_pika, consumer_tag=tag, arguments=self._arguments, callback=consuming
        )

    def _cancelled(self, _frame: Any) -> None:
        logger.warning(
            "The broker cancelled consuming from queue %r (deleted or moved; or, from RabbitMQ 4.3 on, a task ran "
            "longer than the queue's delivery timeout); declaring it again",
            self.queue,
        )
        if self._declarer is not None and self._need is not None:
            self._declarer.forget(self._need.key)
        channel = self._channel
        self._lose("cancelled by the broker")
        if channel is not None and channel.is_open:
            channel.close()
        self._later()

    def _closed(self, channel: Channel, error: Exception) -> None:
        if channel is not self._channel:
            return
        connection = self._connection
        code, text = getattr(error, "reply_code", 0), getattr(error, "reply_text", str(error))
        self._lose(f"{code} {text}")
        if connection is None or not connection.is_open:
            return
        if code == 406 and "timeout" in text:
            logger.error(
                "The broker took back the deliveries of queue %r: a task ran longer than its "
                "delivery timeout (%s). Raise "
                "consumer_timeout on the broker, or use early acks for such tasks",
                self.queue, text,
            )  # fmt: skip
        else:
            logger.error("The broker closed the channel of queue %r: %s %s", self.queue, code, text)
        if code == 404 and self._declarer is not None and self._need is not None:
            self._declarer.forget(self._need.key)
        self._later()

    def _lose(self, reason: str) -> None:
        had = self._channel is not None
        if self._channel is not None and self._connection is not None:
            self._connection.on_deliver.pop(self._channel.channel_number, None)
        self._channel = None
        self._consumer_tag = None
        self._is_consuming = False
        self.epoch += 1
        self._outstanding = {}
        self._acked = set()
        if had and self._on_lost is not None:
            self._on_lost(self, reason)

    def _later(self) -> None:
        connection = self._connection
        wait_s = 0.0 if not self._failures else self._backoff.delay_s(self._failures)
        self._failures += 1

        def again() -> None:
            if self._connection is connection and self._channel is None:
                self._begin()

        self._loop.call_later(wait_s, again)
