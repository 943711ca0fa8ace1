"""Events as data, and their messages: one event by itself, or a list of events of one group.

Pure: nothing here talks to a broker. An event is a flat map. ``type`` is its group and what happened, such as
``task-sent``; ``hostname``, ``pid``, ``clock``, ``timestamp`` and ``utcoffset`` say who tells it, and when.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from amqptasks.broker.topology import DeclareExchange
from amqptasks.exceptions import DecodeError
from amqptasks.wire.message import TRANSIENT, EncodedMessage, Message, encode
from amqptasks.wire.serializers import Limits, accepted, dumps, loads

#: What a worker says of itself, as what it is. Celery's workers say ``py-celery``.
SOFTWARE: Final = "py-amqptasks"
WORKER_ONLINE: Final = "worker-online"
WORKER_HEARTBEAT: Final = "worker-heartbeat"
WORKER_OFFLINE: Final = "worker-offline"
TASK_SENT: Final = "task-sent"
TASK_RECEIVED: Final = "task-received"
TASK_STARTED: Final = "task-started"
TASK_SUCCEEDED: Final = "task-succeeded"
TASK_FAILED: Final = "task-failed"
TASK_REJECTED: Final = "task-rejected"
TASK_REVOKED: Final = "task-revoked"
TASK_RETRIED: Final = "task-retried"
TASK_CANCELLED: Final = "task-cancelled"

#: Routing key of a list of task events.
TASKS_KEY: Final = "task.multi"
#: Longest type and name of a node: both become part of AMQP names.
MAX_NAME: Final = 200


def new_event(type: str, _fields: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Make an event. Without a ``timestamp`` it has happened now."""
    event = {**(_fields or {}), **fields, "type": type}
    event.setdefault("timestamp", time.time())
    return event


def group_from(type: str) -> str:
    """Return the group of a type of event: ``task`` of ``task-sent``."""
    return type.partition("-")[0]


def routing_key(type: str) -> str:
    """Return under which key events of a type are published."""
    return type.replace("-", ".")


def exchange_of(name: str) -> DeclareExchange:
    """Return what must be declared before events can be published or heard."""
    return DeclareExchange(name, "topic", durable=True)


def event_message(
    events: Mapping[str, Any] | Sequence[Mapping[str, Any]], key: str, *, exchange: str, hostname: str, serializer: str
) -> EncodedMessage:
    """Encode one event, or a list of them, as a message.

    Raises:
        EncodeError: The serializer cannot carry them, or the key or name is too long for AMQP.
    """
    content_type, content_encoding, body = dumps(events, serializer)
    message = Message(body, content_type, content_encoding, {"hostname": hostname}, delivery_mode=TRANSIENT)
    return encode(message, exchange, key)


def read_events(
    body: bytes, content_type: Any, content_encoding: Any, accept: frozenset[str], limits: Limits
) -> list[dict[str, Any]]:
    """Read a message, which may come from anyone, as events that have a type. Others in it are left out.

    Raises:
        ContentDisallowed: Its content type is not accepted.
        DecodeError: It cannot be read, or holds no events.
    """
    value = loads(body, content_type, content_encoding, accept, limits)
    events = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) for each in events):
        raise DecodeError("expected an event, or a list of events: each a map")
    return [each for each in events if _has_type(each)]


def _has_type(event: Mapping[str, Any]) -> bool:
    kind = event.get("type")
    return isinstance(kind, str) and 0 < len(kind) <= MAX_NAME


def accepted_types(serializer: str) -> frozenset[str]:
    """Return the content types that a receiver takes: that of the setting, and JSON."""
    return accepted({serializer, "json"})
