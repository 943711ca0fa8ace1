"""Moves messages from queue to queue, also from one broker to another: taken, confirmed elsewhere, then acknowledged.

Whatever ends the program in between leaves a message where it was: at worst it is in both places. Each goes into the
queue that is named, not through the exchange that it once came by, so nothing is multiplied on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pika
import pika.exceptions
import pika.spec
from pika.channel import Channel

from amqptasks.broker.admin import Admin, _turn
from amqptasks.broker.trouble import describe
from amqptasks.exceptions import OperationalError
from amqptasks.wire.task import without_broker_headers

__all__ = ["WINDOW", "Destination", "Source", "Taken", "copied_properties"]

#: How many messages are under way at once. They are in this program's memory.
WINDOW: Final = 200

#: What goes along. Not user_id: the other broker knows another user.
_COPIED: Final = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
    "message_id", "timestamp", "type", "app_id", "cluster_id",
)  # fmt: skip


@dataclass(slots=True)
class Taken:
    """A message in hand."""

    queue: str
    body: bytes
    properties: Any
    _tag: int
    _page: _Page


class _Page:
    """A channel with a consumer. Its window is full when so many messages are kept in hand; then another is opened."""

    def __init__(self, queue: str, channel: Channel, window: int) -> None:
        self.queue = queue
        self.channel = channel
        self.window = window
        self.kept = 0
        self.is_acked = False
        self.tag = ""


class Source(Admin):
    """A session that takes messages. Belongs to the thread that made it, as every `Admin`."""

    _arrived: deque[Taken]
    _trouble: str

    def __enter__(self) -> Source:
        self.connect()
        self._arrived = deque()
        self._trouble = ""
        self._pages: list[_Page] = []
        return self

    def consume(self, queue: str, window: int = WINDOW) -> None:
        """Begin to take from a queue, so many at once."""
        opened: list[Channel] = []
        self._connected().channel(on_open_callback=opened.append)
        self._await(lambda: bool(opened), "channel.open")
        page = _Page(queue, opened[0], window)
        self._pages.append(page)
        page.channel.add_on_close_callback(lambda _channel, error: self._on_end(page, describe(error)))
        page.channel.add_on_cancel_callback(lambda _frame: self._on_end(page, "the queue was deleted"))
        page.channel.basic_qos(prefetch_count=window)
        begun: list[Any] = []
        page.tag = page.channel.basic_consume(
            queue, lambda _channel, method, properties, body: self._arrived.append(
                Taken(queue, body, properties, method.delivery_tag, page)
            ), callback=begun.append,
        )  # fmt: skip
        self._await(lambda: bool(begun) or bool(self._trouble), "basic.consume")
        self._check()

    def take(self, most: int, wait_s: float) -> list[Taken]:
        """Return what has arrived, so many at most; waits for the first. Empty if there was none in time.

        Raises:
            OperationalError: The connection was lost, or a queue has gone.
        """
        assert self._loop is not None
        _turn(self._loop, lambda: bool(self._arrived or self._trouble or self._ended), wait_s)
        if not self._arrived:
            self._check()
        return [self._arrived.popleft() for _number in range(min(most, len(self._arrived)))]

    def ack(self, taken: Taken) -> None:
        """Take a message out of its queue for good."""
        if taken._page.channel.is_open:
            taken._page.channel.basic_ack(taken._tag)
            taken._page.is_acked = True

    def keep(self, taken: Taken) -> None:
        """Leave a message in hand until the session ends, when it goes back."""
        page = taken._page
        page.kept += 1
        if page.kept == page.window:
            # It gets no more; the next ones come by another channel, so that the broker's window stays small.
            page.channel.basic_cancel(page.tag)
            self.consume(page.queue, page.window)

    def settle(self) -> None:
        """Wait until the broker has all acks that were sent."""
        for page in [each for each in self._pages if each.channel.is_open and each.is_acked]:
            page.is_acked = False
            # What is answered on a channel came behind the acks there.
            answers: list[Any] = []
            page.channel.basic_qos(prefetch_count=page.window, callback=answers.append)
            self._await(lambda answers=answers: bool(answers) or bool(self._trouble), "basic.ack")  # type: ignore[misc]
            self._check()

    def _on_end(self, page: _Page, why: str) -> None:
        if self._connection is not None and self._connection.is_open:
            self._trouble = self._trouble or f"taking messages of queue {page.queue!r} at {self.label} has ended: {why}"

    def _check(self) -> None:
        if self._ended is not None:
            raise OperationalError(f"the connection to {self.label} was lost: {self._ended}")
        if self._trouble:
            raise OperationalError(self._trouble)


class Destination(Admin):
    """A session that puts messages into queues, many at once, each confirmed."""

    _out: Channel | None = None
    _sent: int
    _pending: dict[int, int]
    _refused: set[int]
    _returned: set[str]
    _closed: str

    def __enter__(self) -> Destination:
        self.connect()
        return self

    def put_all(self, messages: Sequence[tuple[str, bytes, Any]]) -> list[bool]:
        """Put messages into queues; tell of each whether the broker has confirmed it there.

        Args:
            messages: Queue, body, and properties of each.

        Raises:
            OperationalError: The connection was lost, or the broker did not answer: some may be there.
        """
        channel = self._opened()
        for index, (queue, body, properties) in enumerate(messages):
            self._sent += 1
            self._pending[self._sent] = index
            channel.basic_publish("", queue, body, properties, mandatory=True)
        left = len(messages)
        # The deadline is for each step of the way: a broker that is slow but answers is waited for.
        while self._pending and not self._closed:
            self._await(lambda left=left: len(self._pending) < left or bool(self._closed), "basic.publish")  # type: ignore[misc]
            left = len(self._pending)
        lost, self._pending = set(self._pending.values()), {}
        refused, self._refused = self._refused | lost, set()
        return [
            index not in refused and queue not in self._returned for index, (queue, _body, _p) in enumerate(messages)
        ]  # fmt: skip

    @property
    def problem(self) -> str:
        """Why the last messages were not taken, as far as is known."""
        if self._returned:
            return "there is no queue " + ", ".join(map(repr, sorted(self._returned)))
        return self._closed or "it is full, or its policy refuses more"

    def _opened(self) -> Channel:
        if self._out is not None and self._out.is_open:
            return self._out
        opened: list[Channel] = []
        ready: list[Any] = []
        self._connected().channel(on_open_callback=opened.append)
        self._await(lambda: bool(opened), "channel.open")
        self._out = channel = opened[0]
        self._sent, self._pending, self._refused, self._returned, self._closed = 0, {}, set(), set(), ""
        channel.add_on_return_callback(lambda _channel, method, *_rest: self._returned.add(method.routing_key))
        channel.add_on_close_callback(lambda _channel, error: self._on_out_closed(describe(error)))
        channel.confirm_delivery(self._on_confirm, callback=ready.append)
        self._await(lambda: bool(ready), "confirm.select")
        return channel

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        last = method.delivery_tag
        numbers = [each for each in self._pending if each <= last] if method.multiple else [last]
        for number in numbers:
            index = self._pending.pop(number, None)
            if index is not None and isinstance(method, pika.spec.Basic.Nack):
                self._refused.add(index)

    def _on_out_closed(self, why: str) -> None:
        self._closed = why


def copied_properties(properties: Any) -> pika.BasicProperties:
    """Return what goes along with a message: all of the sender's, nothing that a broker has added."""
    known: dict[str, Any] = {name: getattr(properties, name) for name in _COPIED}
    headers = properties.headers
    return pika.BasicProperties(
        headers=without_broker_headers(headers) if isinstance(headers, Mapping) else None, **known
    )  # fmt: skip
