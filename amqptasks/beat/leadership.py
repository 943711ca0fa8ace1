"""Who leads: the beat that holds the token. It alone sends; the others wait to be handed the token by the broker.

Every beat consumes the queue of the token, which has a single active consumer. Who is handed something there leads, and
keeps what it was handed unacknowledged for as long as it does; when it dies, or its connection does, the broker hands
the same to the next. Tasks, records and acks all go over the one connection by which the token is held. So a leader
that was frozen, or cut off, cannot send: that connection is gone when it comes to.

What is lost on the way is the leadership, never only a message: whatever goes wrong with the consumer of the token, the
whole connection is dropped, and everything begins anew.

This runs on a loop of its own, in a thread of its own. What happens is told to one listener, as `Event`; the thread
that decides what to send (`service`) waits for that, and hands over what is to be sent (`commit`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from amqptasks.beat.handing_over import Batch, Event, LeadLost, Led, Lost, Ordered, Sendable
from amqptasks.beat.naming import Names
from amqptasks.beat.ping import Ping
from amqptasks.beat.state import BASE, BID, CHANGES, CLAIM, Record, read_record, write_record
from amqptasks.broker.confirms import ConfirmChannel, Interrupted, Outgoing
from amqptasks.broker.consumer import Delivery, QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Backoff, Connection, Link
from amqptasks.broker.loop import LoopThread
from amqptasks.broker.needs import Need
from amqptasks.broker.topology import caution
from amqptasks.clock import utcnow
from amqptasks.exceptions import DecodeError, EncodeError, OperationalError, TopologyConflict
from amqptasks.wire import dead_letter
from amqptasks.wire.message import PERSISTENT, TRANSIENT, EncodedMessage, Message, encode
from amqptasks.wire.reprs import printable
from amqptasks.wire.task import without_broker_headers

__all__ = ["Leadership"]

logger = logging.getLogger("amqptasks.beat")

#: Records in hand at most: those of one leadership (`state.Journal`), and some of others on top.
PREFETCH: Final = 1000
ORDERS_PREFETCH: Final = 4
#: A refused message is tried again after so long, seconds.
AGAIN_S: Final = 0.5
#: How long one that stands by waits to hear who leads before it says that it stands by, seconds.
NEWS_S: Final = 2.0
#: How long the end waits for the connection to close, seconds.
CLOSE_S: Final = 1.0
_MAX_NEWS_BYTES: Final = 4096


class _Handover:
    """A batch on its way, and the thread that waits for it."""

    def __init__(self, term: str, batch: Batch) -> None:
        self.term = term
        self.batch = batch
        self.error: str | None = None
        self.done = threading.Event()

    def end(self, error: str | None = None) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Leadership:
    """This beat's place among the beats of a schedule. Methods are for one thread; ``tell`` is called on the loop's.

    Args:
        endpoints: The brokers.
        names: What is declared there.
        tell: Is told what happens. Must not wait.
        max_bytes: The largest record that is read.
        backoff: How to wait between attempts to connect.
        ping: Answers pings, if they are to be answered.
        digest: Of what this beat would send by: those that differ are told of.
    """

    def __init__(
        self, endpoints: Sequence[Any], names: Names, tell: Callable[[Event], None], max_bytes: int, backoff: Backoff,
        ping: Ping | None = None,
        digest: str = "",
    ) -> None:  # fmt: skip
        self.who = f"beat@{socket.gethostname()} (process {os.getpid()})"
        self._names = names
        self._tell = tell
        self._max_bytes = max_bytes
        self._ping = ping
        self._digest = digest
        self._thread = LoopThread("amqptasks beat")
        self._loop = self._thread.loop()
        self._link = Link(
            self._loop, endpoints, on_up=self._up, on_down=self._down, on_attempt_failed=self._attempt_failed,
            backoff=backoff,
        )  # fmt: skip
        self._confirms: ConfirmChannel | None = None
        self._declarer: Declarer | None = None
        self._consumers: list[QueueConsumer] = []
        #: The term that is claimed or led.
        self._term = ""
        self._leads = False
        # Records in hand, in the order in which they came.
        self._held: list[tuple[Record, Delivery]] = []
        self._base_number = -1
        self._handover: _Handover | None = None
        #: Who leads, as far as was heard and told.
        self._leader = ""
        self._has_failed = False

    @property
    def label(self) -> str:
        """The broker, without its password."""
        return self._link.label

    # -- from the other thread

    def start(self) -> None:
        """Connect, and stand by."""
        self._thread.call(self._link.start)

    def commit(self, term: str, batch: Batch, stopped: threading.Event | None = None) -> None:
        """Send a batch, and return when all of it is confirmed. It is in order, whatever has to be tried again.

        Raises:
            LeadLost: This beat does not lead any more, or is to stop (``stopped``).
        """
        handover = _Handover(term, batch)
        self._thread.call(lambda: self._begin(handover))
        while not handover.done.wait(0.5):
            if stopped is not None and stopped.is_set() and handover.done.wait(2.0) is False:
                raise LeadLost("told to stop while the broker did not answer")
        if handover.error is not None:
            raise LeadLost(handover.error)

    def give_up(self, reason: str) -> None:
        """Leave the lead to another, and stand by again."""
        self._thread.call(lambda: self._link.drop(reason))

    def close(self) -> None:
        """Give the lead to another, and disconnect."""
        self._link.close(self._thread, CLOSE_S, grace_s=CLOSE_S / 2)
        self._thread.stop(CLOSE_S)

    # -- the connection

    def _attempt_failed(self, label: str, error: str, wait_s: float) -> None:
        # The first time as what it is; then it is no news, until there was a connection again.
        level = logging.DEBUG if self._has_failed else logging.ERROR
        self._has_failed = True
        logger.log(level, "beat: cannot connect to %s: %s. Trying again in %.2f seconds...", label, error, wait_s)

    def _up(self, connection: Connection) -> None:
        self._has_failed = False
        logger.info("beat: Connected to %s", self._link.label)
        if why := caution(self._link.version):
            logger.warning("%s", why)
        self._term, self._leads, self._leader = "", False, ""
        self._held, self._base_number = [], -1
        declarer = self._declarer = Declarer(connection)
        # A new one for each connection: what waited in the old one was the business of another term.
        self._confirms = ConfirmChannel(self._loop)
        self._confirms.up(connection, declarer, self._link.version)
        names = self._names
        news, news_need = names.listener()
        self._consumers = [
            self._consumer(news, news_need, self._on_news, lambda _consumer: None),
            self._consumer(names.token, names.token_need(), self._on_record, self._bid),
        ]
        for each in self._consumers:
            each.up(connection, declarer, self._link.version)
        if self._ping is not None:
            self._ping.up(self._loop, connection, declarer, self._link.version, self._confirms)

    def _consumer(
        self, queue: str, need: Need, on_delivery: Callable[[Delivery], None],
        on_consuming: Callable[[QueueConsumer], None], prefetch: int = PREFETCH,
    ) -> QueueConsumer:  # fmt: skip
        return QueueConsumer(
            self._loop, queue, need=need, prefetch=prefetch, on_delivery=on_delivery, on_consuming=on_consuming,
            on_lost=self._channel_lost, on_refused=self._refused, tag_prefix=self.who,
        )  # fmt: skip

    def _down(self, reason: str) -> None:
        if not self._leads:
            logger.warning("beat: Lost the connection: %s. Connecting again.", reason)
        for consumer in self._consumers:
            consumer.down(reason)
        if self._ping is not None:
            self._ping.down(reason)
        if self._confirms is not None:
            self._confirms.down(reason)
        if self._declarer is not None:
            self._declarer.fail(reason)
        self._confirms = self._declarer = None
        self._consumers = []
        self._lose(reason)

    def _channel_lost(self, consumer: QueueConsumer, reason: str) -> None:
        if consumer.queue == self._names.token and (self._leads or self._term):
            connection = self._link.connection
            self._lose(f"the queue of the token was lost: {reason}")

            def drop() -> None:
                if connection is self._link.connection:
                    self._link.drop("the token was lost")

            # Not at once: this may be the connection's own end.
            self._loop.at_turn_end(drop)

    def _refused(self, consumer: QueueConsumer, conflict: TopologyConflict) -> None:
        logger.critical("beat: %s", conflict)

    def _lose(self, reason: str) -> None:
        term, self._term = self._term, ""
        led, self._leads = self._leads, False
        handover, self._handover = self._handover, None
        if handover is not None:
            handover.end(reason)
        if led:
            self._tell(Lost(term, reason))

    # -- the token

    def _bid(self, _consumer: QueueConsumer) -> None:
        """Say that this beat is there. If nobody leads, this is what it is handed, and leads by."""
        self._loop.call_later(NEWS_S, self._say_standing_by)
        self._send_record(Record(BID, self.who))

    def _send_record(self, record: Record) -> None:
        def done(_out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if error is not None and not isinstance(error, Interrupted):
                logger.error("beat: cannot write to %s: %s", self._names.token, error)
                self._link.drop("the queue of the token cannot be written")

        if self._confirms is not None:
            self._confirms.send(Outgoing(self._encoded(record)[0], (self._names.token_need(),), done))

    def _encoded(self, record: Record) -> tuple[EncodedMessage, int]:
        body = write_record(record)
        message = Message(body, "application/json", "utf-8", {"kind": record.kind}, delivery_mode=PERSISTENT)
        return encode(message, "", self._names.token), len(body)

    def _on_record(self, delivery: Delivery) -> None:
        try:
            record = read_record(delivery.body, self._max_bytes)
        except DecodeError as error:
            self._set_aside(delivery, error)
            if not self._term:
                self._claim()
            return
        if record.kind in (BASE, CHANGES):
            self._hold(record, delivery)
        else:
            delivery.ack()
        if not self._term:
            self._claim()
        elif record.kind == CLAIM and record.term == self._term and not self._leads:
            self._lead()
        elif record.kind == BID and self._leads:
            self._send_news()

    def _hold(self, record: Record, delivery: Delivery) -> None:
        if not self._leads:
            self._held.append((record, delivery))
        elif record.term != self._term:
            logger.warning("beat: passed over a record that %s wrote after it had lost the lead", record.who)
            delivery.ack()
        elif record.number < self._base_number:
            delivery.ack()
        else:
            # This beat's own: it comes back, and is held.
            self._held.append((record, delivery))

    def _claim(self) -> None:
        """Begin to lead: what is in front of this claim is all there is."""
        self._term = uuid.uuid4().hex
        self._send_record(Record(CLAIM, self.who, self._term))

    def _lead(self) -> None:
        self._leads = True
        self._leader = self.who
        orders = self._names.orders
        consumer = self._consumer(
            orders, self._names.orders_need(), self._on_order, lambda _consumer: None, prefetch=ORDERS_PREFETCH
        )
        connection, declarer = self._link.connection, self._declarer
        if connection is not None and declarer is not None:
            self._consumers.append(consumer)
            consumer.up(connection, declarer, self._link.version)
        self._send_news()
        self._tell(Led(self._term, tuple(record for record, _delivery in self._held)))

    def _set_aside(self, delivery: Delivery, error: DecodeError) -> None:
        """Move what is no record of ours to the dead letters, with the reason."""
        names, confirms = self._names, self._confirms
        logger.error("beat: found no record in %s, and sets it aside: %s", names.token, printable(str(error), 300))
        need = names.dead_need()
        headers = without_broker_headers(delivery.properties.headers or {})
        headers = {
            **headers, dead_letter.REASON: "no-record", dead_letter.DETAIL: printable(str(error), 500),
            dead_letter.TIME: utcnow().isoformat(), dead_letter.QUEUE: names.token, dead_letter.WORKER: self.who,
        }  # fmt: skip
        properties = delivery.properties
        message = Message(
            delivery.body, properties.content_type or "application/octet-stream", properties.content_encoding or "",
            headers, correlation_id=properties.correlation_id,
        )  # fmt: skip

        def send(message: Message) -> None:
            try:
                encoded = encode(message, "", need.key.removeprefix("queue "))
            except EncodeError:
                encoded = encode(Message(message.body), "", need.key.removeprefix("queue "))
            if confirms is not None:
                confirms.send(Outgoing(encoded, (need,), done))

        def again() -> None:
            if delivery.is_current:
                send(message)

        def done(_out: Outgoing, problem: OperationalError | EncodeError | None) -> None:
            if problem is None:
                delivery.ack()
            elif isinstance(problem, EncodeError):
                # Its headers do not fit a frame of ours.
                send(Message(delivery.body))
            elif isinstance(problem, Interrupted) and problem.written:
                return  # the connection is gone, and the message comes again
            else:
                logger.error("beat: cannot set it aside: %s", problem)
                self._loop.call_later(5.0, again)

        send(message)

    # -- sending

    def _begin(self, handover: _Handover) -> None:
        if not self._leads or handover.term != self._term or self._confirms is None:
            handover.end("another beat may lead")
            return
        self._handover = handover
        self._send_all(handover, handover.batch.messages, lambda: self._write(handover))

    def _send_all(self, handover: _Handover, messages: Sequence[Sendable], then: Callable[[], None]) -> None:
        """Send messages, and go on when each is confirmed, or refused for good."""
        confirms = self._confirms
        waiting = len(messages)
        if not waiting:
            then()
            return

        def done(what: Sendable, out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            nonlocal waiting
            if handover is not self._handover or confirms is None:
                return
            if isinstance(error, Interrupted):
                if not error.written:
                    # Refused for now: a quorum queue without a majority, perhaps.
                    self._again(confirms, out)
                return
            if error is not None:
                what.error = error
                handover.batch.failures.append((what.what, error))
            waiting -= 1
            if not waiting:
                then()

        for each in messages:
            assert confirms is not None
            confirms.send(
                Outgoing(
                    each.message, each.needs, lambda out, error, each=each: done(each, out, error),  # type: ignore[misc]
                    mandatory=each.mandatory,
                )
            )  # fmt: skip

    @staticmethod
    def _again(confirms: ConfirmChannel, out: Outgoing) -> None:
        out.release()
        out.returned = None
        confirms.send_later(out, AGAIN_S)

    def _write(self, handover: _Handover) -> None:
        record, confirms = handover.batch.record, self._confirms
        if record is None:
            self._answer(handover)
            return
        assert confirms is not None
        message, size = self._encoded(record)

        def done(out: Outgoing, error: OperationalError | EncodeError | None) -> None:
            if handover is not self._handover:
                return
            if isinstance(error, Interrupted):
                if not error.written:
                    self._again(confirms, out)
            elif error is not None:
                logger.error("beat: cannot write to %s: %s", self._names.token, error)
                self._link.drop("the queue of the token cannot be written")
            else:
                handover.batch.record_bytes = size
                if record.kind == BASE:
                    self._replace(record.number)
                self._answer(handover)

        confirms.send(Outgoing(message, (self._names.token_need(),), done))

    def _replace(self, number: int) -> None:
        """Acknowledge what a base that is confirmed has replaced."""
        self._base_number = number
        kept = []
        for record, delivery in self._held:
            if record.term == self._term and record.number >= number:
                kept.append((record, delivery))
            else:
                delivery.ack()
        self._held = kept

    def _answer(self, handover: _Handover) -> None:
        self._send_all(handover, handover.batch.answers, lambda: self._end(handover))

    def _end(self, handover: _Handover) -> None:
        for delivery in handover.batch.orders:
            delivery.ack()
        self._handover = None
        handover.end()

    # -- orders and news

    def _on_order(self, delivery: Delivery) -> None:
        self._tell(Ordered(self._term, delivery))

    def _send_news(self) -> None:
        body = json.dumps({"v": 1, "leader": self.who, "digest": self._digest}).encode()
        message = encode(Message(body, delivery_mode=TRANSIENT), self._names.news, "")
        if self._confirms is not None:
            out = Outgoing(message, (self._names.news_need(),), lambda _out, _error: None, mandatory=False)
            self._confirms.send(out)

    def _on_news(self, delivery: Delivery) -> None:
        delivery.ack()
        if self._term or len(delivery.body) > _MAX_NEWS_BYTES:
            return
        try:
            news = json.loads(delivery.body)
            leader, digest = news["leader"], news["digest"]
        except (ValueError, RecursionError, LookupError, TypeError):
            return
        if isinstance(leader, str) and leader != self._leader:
            self._leader = leader
            logger.warning("beat: Standing by: %s leads", printable(leader, 200))
            if digest != self._digest:
                logger.warning(
                    "beat: the entries of the one that leads are not those of this one: it has other settings, or is "
                    "another app's (%s is the name that they share; see beat_schedule_name)", self._names.title
                )  # fmt: skip

    def _say_standing_by(self) -> None:
        if not self._term and not self._leader and self._link.is_up:
            self._leader = "?"
            logger.warning("beat: Standing by: another beat holds the token, and says nothing")
