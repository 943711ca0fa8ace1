"""Hears messages in the caller's own thread, for as long as the caller goes on asking: a monitor's way to the
broker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from amqptasks.broker.admin import Admin, Refused, _turn
from amqptasks.broker.frames import publish_frames
from amqptasks.broker.incoming import Properties
from amqptasks.broker.link import Backoff
from amqptasks.broker.parameters import Endpoint
from amqptasks.broker.topology import Step
from amqptasks.exceptions import OperationalError
from amqptasks.wire.message import EncodedMessage

__all__ = ["Listener"]

#: A message as it is heard: its properties and its body.
Heard = tuple[Properties, bytes]


class Listener(Admin):
    """A connection of the caller's own: what ``app.connection()`` gives. ``with app.connection() as connection: …``.

    Belongs to the thread that made it. It answers the broker's heartbeats only while `wait` is called: a caller that
    is away for longer than two of them finds the connection lost.
    """

    #: What the methods raise when the connection is lost or refused.
    connection_errors: tuple[type[BaseException], ...] = (OperationalError,)
    channel_errors: tuple[type[BaseException], ...] = (OperationalError,)

    def __init__(self, endpoints: Sequence[Endpoint], *, timeout_s: float = 10.0) -> None:
        super().__init__(endpoints, timeout_s=timeout_s)
        self._heard: deque[Heard] = deque()
        self._consumer_tag: str | None = None
        self._is_woken = False

    def __enter__(self) -> Listener:
        # Not yet connected, as in Celery: who enters may want to say how often that is tried.
        return self

    def __repr__(self) -> str:
        return f"<Connection: {self.as_uri()}>"

    # -- as Celery's programs use it

    @property
    def connected(self) -> bool:
        """Whether it is open now."""
        return self._connection is not None and self._connection.is_open and self._ended is None

    def as_uri(self) -> str:
        """Name the broker, without its password."""
        return self._label or self._endpoints[0].label

    def ensure_connection(
        self, errback: Callable[[Exception, float], object] | None = None, max_retries: int | None = None
    ) -> Listener:
        """Connect, as often as it takes.

        Args:
            errback: Called with the error and the seconds until the next try, after each that failed.
            max_retries: Tries after the first; None: without end.

        Raises:
            BrokerUnavailable: None of them succeeded.
        """
        backoff, failures = Backoff(), 0
        while True:
            try:
                self.connect()
            except OperationalError as error:
                failures += 1
                if max_retries is not None and failures > max_retries:
                    raise
                wait_s = backoff.delay_s(failures)
                if errback is not None:
                    errback(error, wait_s)
                time.sleep(wait_s)
            else:
                return self

    def clone(self) -> Listener:
        """Return another one to the same broker, not connected."""
        return Listener(self._endpoints, timeout_s=self._timeout_s)

    def release(self) -> None:
        """Close it, as `close`."""
        self.close()

    # -- hearing

    def listen(self, steps: Iterable[Step], queue: str) -> None:
        """Declare what is needed, and take whatever comes to a queue from now on, without acks.

        Raises:
            TopologyConflict: The queue or exchange exists with other arguments.
        """
        self.hush()
        self.declare(steps)
        channel = self._open_channel()
        heard = self._heard

        def on_message(*delivered: Any) -> None:
            # The short way for small messages and pika's for large ones end alike.
            heard.append((delivered[-2], delivered[-1]))

        try:
            frame = self._request(
                "basic.consume",
                lambda _channel, then: channel.basic_consume(queue, on_message, auto_ack=True, callback=then),
            )
        except Refused as refusal:
            raise self._error(f"to read queue {queue!r}", refusal) from None
        self._consumer_tag = frame.method.consumer_tag
        self._connected().on_deliver[int(channel.channel_number)] = on_message

    def hush(self) -> None:
        """Hear nothing any more."""
        tag, self._consumer_tag = self._consumer_tag, None
        channel = self._channel
        if tag is not None and self.connected and channel is not None and channel.is_open:
            self._connected().on_deliver.pop(int(channel.channel_number), None)
            channel.basic_cancel(tag)
        self._heard.clear()

    def wait(self, timeout_s: float) -> bool:
        """Wait for messages; False if none has come in this time. Take them by `take`.

        Raises:
            OperationalError: The connection or the queue has gone.
        """
        if self._heard:
            return True
        if self._loop is None:
            raise OperationalError("the connection is closed")
        _turn(self._loop, lambda: bool(self._heard) or self._is_woken or self._is_over, timeout_s)
        self._is_woken = False
        if not self._heard and self._is_over:
            why = self._ended or (f"{self._refusal.code} {self._refusal.text}" if self._refusal else "no channel")
            raise OperationalError(f"the connection to {self._label} was lost: {why}")
        return bool(self._heard)

    def take(self) -> Heard | None:
        """Return the oldest message that has come and was not taken; None if there is none."""
        return self._heard.popleft() if self._heard else None

    def pauses(self, seconds: float, every_s: float) -> Iterator[None]:
        """Wait for so long, giving control back every ``every_s`` seconds: for whoever is to connect again."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, every_s))
            yield

    def wake_by(self, descriptor: int) -> None:
        """Let `wait` return early when something can be read there, such as a key that was pressed."""
        self._connected()
        assert self._loop is not None
        self._loop.add_handler(descriptor, lambda _fd, _events: self._wake(), self._loop.READ)

    def _wake(self) -> None:
        self._is_woken = True

    @property
    def _is_over(self) -> bool:
        return self._ended is not None or self._channel is None

    def tell(self, message: EncodedMessage, steps: Iterable[Step] = ()) -> None:
        """Declare what is needed and send a message that nobody need hear."""
        self.declare(steps)
        channel, connection = self._open_channel(), self._connected()
        frame_max = int(connection.params.frame_max or 131072)
        connection.emit(publish_frames(int(channel.channel_number), message, frame_max, mandatory=False))

    def _parameters(self, endpoint: Endpoint) -> Any:
        return endpoint.parameters
