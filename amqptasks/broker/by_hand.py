"""What a user does on the broker by hand, one AMQP method at a time: ``amqptasks amqp``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pika
from pika.channel import Channel

from amqptasks.broker.admin import Refused
from amqptasks.broker.confirming import ConfirmingAdmin
from amqptasks.broker.topology import Step
from amqptasks.exceptions import OperationalError

__all__ = ["ByHand", "Got"]

PROPERTIES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Got:
    """A message, and where it was; held by the session until it is acknowledged, unless it was taken at once."""

    body: bytes
    properties: dict[str, Any]
    delivery_tag: int
    redelivered: bool
    exchange: str
    routing_key: str
    #: How many more wait in the queue.
    message_count: int


class ByHand(ConfirmingAdmin):
    """A session of single methods. A refusal is an `OperationalError` with the broker's own words."""

    def __enter__(self) -> ByHand:
        self.connect()
        return self

    def carry_out(self, step: Step) -> Any:
        """Declare or bind, and return the broker's answer.

        Raises:
            OperationalError: By every method here: the broker refused, in its words.
        """
        try:
            return self._carry_out(step).method
        except Refused as refusal:
            raise self._error(step.method, refusal) from None

    def unbind(self, queue: str, exchange: str, key: str, arguments: Mapping[str, Any]) -> None:
        """Undo a binding; one that there is not is no error."""
        self._do(
            "queue.unbind",
            lambda channel, then: channel.queue_unbind(queue, exchange, key, arguments=dict(arguments), callback=then),
        )

    def delete_exchange(self, exchange: str, *, if_unused: bool = False) -> None:
        """Delete an exchange; one that there is not is no error."""
        self._do(
            "exchange.delete",
            lambda channel, then: channel.exchange_delete(exchange, if_unused=if_unused, callback=then),
        )

    def get(self, queue: str, *, no_ack: bool = False) -> Got | None:
        """Take the oldest message of a queue; None if it is empty.

        Unless ``no_ack``, it is held until `ack`, and goes back when the session ends.
        """

        def ask(channel: Channel, then: Callable[[Any], None]) -> None:
            self._on_empty = lambda: then(None)
            channel.basic_get(queue, lambda _channel, *found: then(found), auto_ack=no_ack)

        found = self._do("basic.get", ask)
        if found is None:
            return None
        method, properties, body = found
        known = {name: getattr(properties, name) for name in PROPERTIES if getattr(properties, name) is not None}
        return Got(
            body, known, method.delivery_tag, method.redelivered, method.exchange, method.routing_key,
            method.message_count,
        )  # fmt: skip

    def ack(self, tag: int) -> None:
        """Take a message that `get` returned out of its queue."""
        channel = self._channel
        if channel is None or not channel.is_open:
            raise OperationalError(f"there is no delivery {tag}: this session holds no message, the queue has it again")
        channel.basic_ack(tag)
        # An ack has no answer, and a wrong one closes the channel: the answer to this tells which it was.
        self._do("basic.ack", lambda each, then: each.basic_qos(callback=then))

    def put(self, exchange: str, key: str, body: bytes, properties: Mapping[str, Any]) -> None:
        """Publish a message, and wait until it is in a queue."""
        self.publish(exchange, key, body, pika.BasicProperties(**properties))

    def _do(self, method: str, send: Callable[[Channel, Callable[[Any], None]], object]) -> Any:
        try:
            return self._request(method, send)
        except Refused as refusal:
            raise self._error(method, refusal) from None
