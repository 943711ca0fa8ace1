"""What a connection can find out about its broker and its own rights, by trying, and leaving nothing behind."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pika
import pika.exceptions
from pika.channel import Channel

from amqptasks.broker.admin import ACCESS_REFUSED, PRECONDITION_FAILED, Refused
from amqptasks.broker.confirming import ConfirmingAdmin, NotPublished, Returned
from amqptasks.broker.topology import DeclareQueue

__all__ = ["Probe"]

#: How long a message may take from one queue of the probe's to the next, seconds.
HOP_S = 3.0


class Probe(ConfirmingAdmin):
    """A session that tries things out. Belongs to the thread that made it, as every `Admin`."""

    _blocked: str | None = None

    def __enter__(self) -> Probe:
        self.connect()
        return self

    def alarm(self) -> str | None:
        """Return the broker's word on why it reads nothing from who publishes; None while it does.

        The session is of no use afterwards if there is one.
        """
        self._connected().add_on_connection_blocked_callback(
            lambda _connection, frame: self._note_blocked(frame.method.reason)
        )
        try:
            # To nowhere: it comes back, unless the broker has stopped reading.
            self.publish("", f"amqptasks.probe.{uuid.uuid4().hex}", b"", pika.BasicProperties())
        except Returned:
            pass  # as it should be
        except NotPublished:
            if self._blocked is None:
                raise
        return self._blocked

    def _note_blocked(self, reason: str) -> None:
        self._blocked = reason or "no reason given"

    def _gives_up(self) -> bool:
        return self._blocked is not None

    def may_declare(self, name: str) -> str | None:
        """Try to make a queue of this name, for this connection only. Returns why it was refused, or None."""
        return self._refusal_of(lambda: self._carry_out(_own_queue(name)))

    def may_publish(self, exchange: str, key: str) -> str | None:
        """Try to publish. Returns why it was refused, or None. What a queue would take arrives there."""
        try:
            self.publish(exchange, key, b"", pika.BasicProperties())
        except Returned:
            return None
        except NotPublished as error:
            return str(error)
        return None

    def may_read(self, queue: str) -> str | None:
        """Try whether this user may consume a queue, without getting any of its messages.

        Returns:
            Why it was refused, or None.
        """
        # RabbitMQ looks at the rights first and at the arguments then: these it refuses.
        consume = {"x-priority": "a probe"}

        def ask(channel: Channel, then: Callable[[Any], None]) -> None:
            channel.basic_consume(queue, lambda *_delivery: None, arguments=consume, callback=then)

        try:
            self._request("basic.consume", ask)
        except Refused as refusal:
            return refusal.text if refusal.code == ACCESS_REFUSED else None
        self._drop_channel()
        return None

    def differs(self, step: DeclareQueue) -> tuple[str, str] | None:
        """Compare a queue that is there with its declaration.

        Returns:
            ``("conflict", words)`` or ``("refused", words)``; None if they are the same.

        Raises:
            OperationalError: The broker answered otherwise.
        """
        try:
            self._carry_out(step)
        except Refused as refusal:
            if refusal.code == PRECONDITION_FAILED:
                return "conflict", refusal.text
            if refusal.code == ACCESS_REFUSED:
                return "refused", refusal.text
            raise self._error(f"to look at queue {step.queue!r}", refusal) from None
        return None

    def clock_ahead_s(self, prefix: str) -> float | None:
        """Return how far the broker's clock is ahead of this machine's, within a second; None if it cannot be told.

        A message that expires at once carries the broker's time to the queue that gets it then.
        """
        name = f"{prefix}.probe.{uuid.uuid4().hex}"
        second = f"{name}.late"
        expiring = {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": second}
        if self.may_declare(second) is not None:
            return None
        if self._refusal_of(lambda: self._carry_out(_own_queue(name, expiring))) is not None:
            return None
        before = time.time()
        self.publish("", name, b"", pika.BasicProperties())
        after = time.time()
        deadline = time.monotonic() + HOP_S
        while time.monotonic() < deadline:
            found = self.peek(second)
            if found:
                moment = _death_time(found[0][0].headers)
                # The broker cuts off the fraction: half a second is the least wrong guess at it.
                return None if moment is None else moment.timestamp() + 0.5 - (before + after) / 2
        return None

    def _refusal_of(self, try_it: Callable[[], object]) -> str | None:
        try:
            try_it()
        except Refused as refusal:
            return refusal.text
        return None

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def _own_queue(name: str, arguments: dict[str, Any] | None = None) -> DeclareQueue:
    return DeclareQueue(
        name, durable=False, exclusive=True, auto_delete=True, arguments={"x-queue-type": "classic"} | (arguments or {})
    )


def _death_time(headers: Any) -> datetime | None:
    deaths = headers.get("x-death") if isinstance(headers, dict) else None
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    moment = first.get("time") if isinstance(first, dict) else None
    return moment if isinstance(moment, datetime) else None
