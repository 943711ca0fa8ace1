"""Notes of delayed calls, made by whoever sends them: see `broker/delay_index.py`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amqptasks.broker.delay_index import DelayIndex
    from amqptasks.broker.publisher import Publisher

__all__ = ["note_delayed"]

#: The digits and dots in front of a queue's name in the routing key of a delayed message.
_DIGITS = 12


def note_delayed(
    publisher: Publisher, conf: Any, name: str, task_id: str, due: datetime, routing_key: str,
    headers: Mapping[str, Any],
) -> None:  # fmt: skip
    """Note that a call was delayed. Costs its caller a microsecond or two, and waits for nothing."""
    index: DelayIndex = publisher.index or _make_index(publisher, conf.task_queue_prefix)
    index.add(
        (task_id, name, due.timestamp(), routing_key[_DIGITS:], headers.get("argsrepr"), headers.get("kwargsrepr"))
    )


def _make_index(publisher: Publisher, prefix: str) -> DelayIndex:
    from amqptasks.broker.delay_index import DelayIndex

    index = publisher.index = DelayIndex(prefix, publisher.note, publisher.call_later)
    return index
