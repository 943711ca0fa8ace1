"""Hearing events: ``app.events.Receiver``, in the caller's own thread."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from amqptasks.broker.listener import Listener
from amqptasks.broker.topology import BindQueue, DeclareExchange, DeclareQueue, Step
from amqptasks.clock import LamportClock, utcoffset
from amqptasks.events import messages
from amqptasks.exceptions import ContentError, ImproperlyConfigured
from amqptasks.wire.message import TRANSIENT, Message, encode
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import Limits, accepted, dumps

__all__ = ["Handler", "Receiver", "ReceivingApp"]

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Handler = Callable[[Event], Any]

#: How often a capture looks whether it is to stop, seconds.
LOOK_S: Final = 1.0


class ReceivingApp(Protocol):
    """What a receiver needs of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""

    @property
    def clock(self) -> LamportClock:
        """The process's logical clock."""

    def connection_for_read(self) -> Listener:
        """Make a connection."""

    def limits(self) -> Limits:
        """The limits on what is decoded."""


class Receiver:
    """Hears events and hands them to functions. Belongs to the thread that made it.

    Args:
        channel: A connection of `app.connection`, which stays the caller's; one of its own without.
        handlers: Functions by type of event; ``"*"`` gets every event that has none of its own.
        routing_key: Which events, as a pattern of a topic exchange: ``task.#``, ``worker.*``. Of tasks, most come under
            ``task.multi``.
        node_id: Ends the name of the queue; made up without.
        accept: Serializers that are read: JSON and that of the setting ``event_serializer`` without.
        queue_prefix, queue_ttl, queue_expires, queue_exclusive, queue_durable: Instead of the settings.

    Attributes:
        should_stop: Set it to end a capture, within a second.
        unreadable: How many messages were no events.
        declares: Its exchange, its queue and how they are bound.

    Raises:
        ImproperlyConfigured: The queue would be both exclusive and durable.
    """

    app: ReceivingApp

    def __init__(
        self, channel: Listener | None = None, handlers: Mapping[str, Handler] | None = None, routing_key: str = "#",
        node_id: str | None = None, app: ReceivingApp | None = None, queue_prefix: str | None = None,
        accept: Iterable[str] | None = None, queue_ttl: float | None = None, queue_expires: float | None = None,
        queue_exclusive: bool | None = None, queue_durable: bool | None = None, *, connection: Listener | None = None,
    ) -> None:  # fmt: skip
        if app is not None:
            self.app = app
        conf = self.app.conf
        self.connection = channel if channel is not None else connection
        self.handlers: Mapping[str, Handler] = {} if handlers is None else handlers
        self.routing_key = routing_key
        self.node_id = node_id or str(uuid.uuid4())
        self.queue_prefix: str = queue_prefix or conf.event_queue_prefix
        self.queue = f"{self.queue_prefix}.{self.node_id}"
        self.should_stop = False
        self.unreadable = 0
        ttl_s = conf.event_queue_ttl if queue_ttl is None else queue_ttl
        expires_s = conf.event_queue_expires if queue_expires is None else queue_expires
        is_exclusive = bool(conf.event_queue_exclusive if queue_exclusive is None else queue_exclusive)
        is_durable = bool(conf.event_queue_durable if queue_durable is None else queue_durable)
        if is_exclusive and is_durable:
            raise ImproperlyConfigured(
                "the queue of a monitor cannot be both exclusive and durable: set one of event_queue_exclusive and "
                "event_queue_durable to False"
            )
        # The type is said, for a virtual host may have another default, which knows no queues that come and go.
        arguments = {
            "x-queue-type": "classic", "x-message-ttl": _milliseconds(ttl_s), "x-expires": _milliseconds(expires_s)
        }  # fmt: skip
        self.declares: tuple[Step, ...] = (
            messages.exchange_of(conf.event_exchange),
            DeclareQueue(
                self.queue, durable=is_durable, exclusive=is_exclusive, auto_delete=not is_durable,
                arguments={key: value for key, value in arguments.items() if value is not None},
            ),
            BindQueue(self.queue, conf.event_exchange, routing_key),
        )  # fmt: skip
        self._accept = messages.accepted_types(conf.event_serializer) if accept is None else accepted(accept)
        self._limits = self.app.limits()

    def capture(self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True) -> None:
        """Hear events until ``limit`` messages have come, or `should_stop` is set, or the program is interrupted.

        Args:
            limit: How many messages; one may hold many events of tasks. None: without end.
            timeout: Give up when nothing has come for so many seconds.
            wakeup: Ask all workers first to say that they live.

        Raises:
            TimeoutError: Nothing has come in ``timeout`` seconds.
            OperationalError: The broker cannot be reached, or the connection was lost.
        """
        for _ in self.itercapture(limit, timeout, wakeup):
            pass

    def itercapture(
        self, limit: int | None = None, timeout: float | None = None, wakeup: bool = True
    ) -> Iterator[None]:  # fmt: skip
        """As `capture`, for a ``for`` loop: gives control back after each message."""
        connection = self.connection
        if connection is not None:
            yield from self._capture(connection, limit, timeout, wakeup)
            return
        with self.app.connection_for_read() as own:
            yield from self._capture(own, limit, timeout, wakeup)

    def _capture(
        self, connection: Listener, limit: int | None, timeout: float | None, wakeup: bool
    ) -> Iterator[None]:  # fmt: skip
        self.open(connection, wakeup=wakeup)
        try:
            yield from self._until(connection, limit, timeout)
        finally:
            connection.hush()

    def _until(self, connection: Listener, limit: int | None, timeout: float | None) -> Iterator[None]:
        received, last = 0, time.monotonic()
        while not self.should_stop and (not limit or received < limit):
            left_s = LOOK_S if timeout is None else min(LOOK_S, last + timeout - time.monotonic())
            if connection.wait(max(0.0, left_s)):
                self.handle_next(connection)
                received, last = received + 1, time.monotonic()
                yield
            elif timeout is not None and time.monotonic() >= last + timeout:
                raise TimeoutError(f"no event has come in {timeout:g} seconds")

    def open(self, connection: Listener, *, wakeup: bool = True) -> None:
        """Begin to hear events over a connection; `handle_next` takes them."""
        connection.listen(self.declares, self.queue)
        if wakeup:
            self.wakeup_workers(connection)

    def handle_next(self, connection: Listener) -> bool:
        """Hand the events of the oldest message that has come to their functions; False if there is none."""
        heard = connection.take()
        if heard is None:
            return False
        properties, body = heard
        try:
            events = messages.read_events(
                body, properties.content_type, properties.content_encoding, self._accept, self._limits
            )
        except ContentError as error:
            self.unreadable += 1
            # Whoever sends one may send a million: the first tells enough.
            level = logging.WARNING if self.unreadable == 1 else logging.DEBUG
            logger.log(level, "A message of %s was no event: %s", self.queue, printable(error, 300))
            return True
        for event in events:
            self.process(*self.event_from_message(event))
        return True

    def process(self, type: str, event: Event) -> None:
        """Hand one event to its function."""
        handler = self.handlers.get(type) or self.handlers.get("*")
        if handler is not None:
            handler(event)

    def event_from_message(self, body: Event, localize: bool = True) -> tuple[str, Event]:
        """Complete an event that has come: its clock, when it was received, and its time by this machine's zone."""
        clock = self.app.clock
        if body["type"] == messages.TASK_SENT:
            # Programs never take in the clocks of others: theirs mean nothing.
            body["clock"] = (clock.value or 1) - 1
            clock.adjust(body["clock"])
        elif type(body.get("clock")) is int:
            clock.adjust(body["clock"])
        else:
            body["clock"] = clock.forward()
        if not _is_moment(body.get("timestamp")):
            body.pop("timestamp", None)
        elif localize and _is_moment(body.get("utcoffset")):
            body["timestamp"] -= (body["utcoffset"] - utcoffset()) * 3600
        body["local_received"] = time.time()
        return body["type"], body

    def wakeup_workers(self, channel: Listener | None = None) -> None:
        """Ask all workers to say that they live."""
        connection = channel or self.connection
        if connection is not None:
            connection.tell(*heartbeat_request(self.app.conf.control_exchange, self.app.clock.forward()))


def heartbeat_request(control_exchange: str, clock: int) -> tuple[Any, Sequence[Step]]:
    """Return the remote command ``heartbeat`` to all workers, and what it needs declared."""
    exchange = f"{control_exchange}.pidbox"
    order: dict[str, Any] = {
        "method": "heartbeat",
        "arguments": {},
        "destination": None,
        "pattern": None,
        "matcher": None,
    }
    content_type, content_encoding, body = dumps(order, "json")
    message = Message(
        body, content_type, content_encoding, {"clock": clock, "expires": 0.0}, delivery_mode=TRANSIENT
    )  # fmt: skip
    return encode(message, exchange, ""), (DeclareExchange(exchange, "fanout", durable=False),)


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _is_moment(value: Any) -> bool:
    # A number that arithmetic and `datetime` bear; NaN is none.
    return type(value) in (int, float) and -1e11 < value < 1e11
