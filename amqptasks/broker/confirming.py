"""A management session that can also publish, one message at a time, each confirmed before the call returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
from pika.channel import Channel

from amqptasks.broker.admin import Admin
from amqptasks.exceptions import OperationalError

__all__ = ["ConfirmingAdmin", "NotPublished", "Returned"]


class NotPublished(OperationalError):
    """A message is not where it was to go, or nobody knows."""


class Returned(NotPublished):
    """No queue took it."""


class ConfirmingAdmin(Admin):
    """A session that publishes. Belongs to the thread that made it, as every `Admin`."""

    _out: Channel | None = None
    _on_confirm: Callable[[bool], None]
    _on_return: Callable[[str], None]
    _on_out_closed: Callable[[str], None]

    def publish(self, exchange: str, key: str, body: bytes, properties: pika.BasicProperties) -> None:
        """Publish a message and wait until the broker confirms that it is in a queue.

        Raises:
            Returned: There is no queue for it.
            NotPublished: The broker refused it.
        """
        channel = self._publishing()
        outcome: list[str | None] = []
        returned: list[str] = []
        self._on_confirm = lambda is_ack: outcome.append(
            None if is_ack else "the broker refused it: the queue is full"
        )  # fmt: skip
        self._on_return = returned.append
        self._on_out_closed = outcome.append
        channel.basic_publish(exchange, key, body, properties, mandatory=True)
        self._await(lambda: bool(outcome) or self._gives_up(), "basic.publish")
        if not outcome:
            raise NotPublished("the broker has blocked this connection")
        problem = outcome[0]
        if problem is not None:
            raise NotPublished(problem)
        if returned:
            raise Returned(f"there is no queue for key {key!r} of exchange {exchange!r}")

    def _gives_up(self) -> bool:
        """Whether to wait no longer for a confirm."""
        return False

    def _publishing(self) -> Channel:
        """Return a channel in confirm mode, apart from the one that holds messages: a refusal closes it."""
        if self._out is not None and self._out.is_open:
            return self._out
        self._out = None
        opened: list[Channel] = []
        ready: list[Any] = []
        self._connected().channel(on_open_callback=opened.append)
        self._await(lambda: bool(opened), "channel.open")
        channel = opened[0]
        channel.add_on_return_callback(lambda _channel, method, _properties, _body: self._on_return(method.reply_text))
        channel.add_on_close_callback(lambda _channel, error: self._on_out_closed(_words(error)))
        self._on_out_closed = ready.append
        channel.confirm_delivery(
            lambda frame: self._on_confirm(isinstance(frame.method, pika.spec.Basic.Ack)), callback=ready.append
        )
        self._await(lambda: bool(ready), "confirm.select")
        self._out = channel
        return channel


def _words(error: Exception) -> str:
    """What the broker said when it closed a channel."""
    if isinstance(error, pika.exceptions.ChannelClosed):
        return f"{error.reply_code} {error.reply_text}"
    return str(error)
