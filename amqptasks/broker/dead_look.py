"""A short look at the oldest messages of a queue, from a worker's own loop: they are handed out and go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pika.channel import Channel
from pika.spec import Basic

from amqptasks.broker.link import Connection

__all__ = ["look"]


def look(
    connection: Connection, queue: str, most: int, take: Callable[[Any], None], done: Callable[[], None]
) -> None:  # fmt: skip
    """Hand over the properties of the oldest messages of a queue, then give all of them back.

    Not for work queues: it counts as a delivery of each. Call ``done`` once, also where there is no such queue, or the
    connection is lost.
    """
    left = [most]

    def opened(channel: Channel) -> None:
        # Whatever ends the channel puts everything back.
        channel.add_on_close_callback(lambda _channel, _error: done())
        channel.add_callback(lambda _frame: channel.close(), [Basic.GetEmpty], one_shot=True)
        channel.queue_declare(queue, passive=True, callback=lambda frame: begin(channel, frame.method.message_count))

    def begin(channel: Channel, count: int) -> None:
        left[0] = min(most, count)
        again(channel)

    def again(channel: Channel) -> None:
        if not channel.is_open:
            return
        if left[0] <= 0:
            channel.close()
            return
        left[0] -= 1
        channel.basic_get(queue, got)

    def got(channel: Channel, _method: Any, properties: Any, _body: bytes) -> None:
        take(properties)
        again(channel)

    connection.channel(on_open_callback=opened)
