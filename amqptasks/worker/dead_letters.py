"""Copies of messages that cannot be run, for ``<queue>.dead``: the body as it was, and why, when and where it came to
this.

Pure: what to publish. The worker confirms it before it acks the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from amqptasks.app.app import App
from amqptasks.broker.consumer import Delivery
from amqptasks.clock import utcnow
from amqptasks.wire import dead_letter as wire
from amqptasks.wire.message import PERSISTENT, EncodedMessage, Message, encode
from amqptasks.wire.reprs import printable
from amqptasks.wire.task import without_broker_headers

CRASHES_HEADER: Final = wire.CRASHES
#: Room for what is added, so that the copy's headers still fit one frame of 128 KiB.
_MAX_HEADER_BYTES: Final = 120_000
MAX_DETAIL_CHARACTERS: Final = 1000

# Reasons, as they stand in the header.
UNREADABLE: Final = "unreadable"
UNKNOWN_TASK: Final = "unknown-task"
TOO_MANY_CRASHES: Final = "too-many-crashes"
TOO_MANY_DELIVERIES: Final = "too-many-deliveries"
REJECTED: Final = "rejected"
FAILED: Final = "failed"
UNSENDABLE: Final = "follow-up-refused"
UNSTORED: Final = "result-not-stored"


def dies_of_failure(app: App, task: Any) -> bool:
    """Whether a failure of this task takes its message to the dead letters."""
    choice = task.dead_letter_on_failure
    return bool(app.conf.task_dead_letter_on_failure if choice is None else choice)


def failure_text(error: BaseException) -> str:
    """Say in one line what a task failed with, whatever its error's own text does."""
    try:
        text = str(error)
    except Exception as trouble:
        text = f"<its text raised {type(trouble).__name__}>"
    # Bounded here too: it crosses a pipe before it is cut for the header.
    return f"{type(error).__name__}: {text[:MAX_DETAIL_CHARACTERS]}" if text else type(error).__name__


def clean_headers(headers: Any) -> dict[str, Any]:
    """Return a message's headers without those of the broker."""
    return without_broker_headers(headers) if isinstance(headers, Mapping) else {}


def copy_of(delivery: Delivery, headers: Mapping[str, Any]) -> Message:
    """Return the message of a delivery with other headers, everything else as it was."""
    properties = delivery.properties
    return Message(
        body=delivery.body,
        content_type=properties.content_type or "application/octet-stream",
        content_encoding=properties.content_encoding or "binary",
        headers=headers,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        delivery_mode=PERSISTENT,
        priority=properties.priority,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        type=properties.type,
        app_id=properties.app_id,
    )


def dead_letter(
    delivery: Delivery, queue: str, dead_queue: str, reason: str, detail: str, hostname: str
) -> EncodedMessage:
    """Make the copy of a delivery for the queue of dead letters."""
    properties = delivery.properties
    original = clean_headers(properties.headers)
    added: dict[str, Any] = {
        wire.REASON: reason,
        wire.DETAIL: printable(detail, MAX_DETAIL_CHARACTERS),
        wire.TIME: utcnow().isoformat(),
        wire.WORKER: hostname,
        wire.QUEUE: queue,
        wire.EXCHANGE: delivery.exchange,
        wire.ROUTING_KEY: delivery.routing_key,
        wire.DEATHS: wire.next_death(original),
    }
    if properties.is_malformed:
        added[wire.HEADERS_CUT] = True
    else:
        lost = wire.properties_not_carried(properties)
        if lost:
            added[wire.PROPERTIES] = lost
    message = encode(copy_of(delivery, {**original, **added}), "", dead_queue)
    if len(message.properties) > _MAX_HEADER_BYTES:
        # The original headers filled their frame; with ours they would close the connection. Keep the small ones.
        kept = {key: value for key, value in original.items() if len(repr(value)) < 256}
        small = dict(list(kept.items())[:50])
        message = encode(copy_of(delivery, {**small, **added, wire.HEADERS_CUT: True}), "", dead_queue)
    return message


def delivery_count(delivery: Delivery) -> int:
    """Return how often the broker has delivered this message before, as far as it tells (quorum queues do)."""
    headers = delivery.properties.headers
    count = headers.get("x-delivery-count") if isinstance(headers, Mapping) else None
    return count if type(count) is int and count >= 0 else 0
