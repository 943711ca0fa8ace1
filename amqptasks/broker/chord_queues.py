"""The queues of chords: what to declare. Pure, and cheap to import: pika comes in with the connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from amqptasks.broker.needs import Need
from amqptasks.entities import Queue

__all__ = ["EXPIRY_GRACE_S", "collector_need", "join_queue", "join_queue_name"]

#: A collector that nobody has looked at is deleted this long after its chord's deadline, seconds.
EXPIRY_GRACE_S: Final = 3600.0
#: The longest time that RabbitMQ takes for ``x-expires``, milliseconds.
_MAX_EXPIRES_MS: Final = (1 << 32) - 1


def join_queue_name(prefix: str) -> str:
    """Return the name of the queue that asks for chords to be joined."""
    return f"{prefix}.chord.join.v1"


def join_queue(name: str) -> Queue:
    """Return the queue that asks for chords to be joined."""
    return Queue(name, queue_arguments={"x-queue-type": "quorum"})


def collector_need(collector: str, expires_s: float) -> Need:
    """Return what must be declared before a chord's parts may be sent."""
    expires_ms = min(max(1, int((expires_s + EXPIRY_GRACE_S) * 1000)), _MAX_EXPIRES_MS)

    def steps(_version: tuple[int, ...] | None) -> Sequence[Any]:
        from amqptasks.broker.topology import DeclareQueue

        # Classic: its count is exact as soon as a message is confirmed or given back, and only classic queues know
        # exclusive consumers.
        return (DeclareQueue(collector, arguments={"x-queue-type": "classic", "x-expires": expires_ms}),)

    # Two starts of one chord may differ by a little in the time that is left.
    return Need(f"queue {collector}", steps)
