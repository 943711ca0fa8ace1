"""What is handed between the thread that decides what beat sends (`service`) and the one that sends (`leadership`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from amqptasks.beat.state import Record
from amqptasks.broker.consumer import Delivery
from amqptasks.broker.needs import Need
from amqptasks.wire.message import EncodedMessage

__all__ = ["Batch", "Event", "LeadLost", "Led", "Lost", "Ordered", "Sendable"]


class LeadLost(Exception):
    """Another beat may lead by now: what was handed over may have been sent, or not."""


@dataclass(frozen=True, slots=True)
class Led:
    """This beat leads from now on. ``records`` is what the last leader has left."""

    term: str
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """This beat leads no more."""

    term: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ordered:
    """Somebody asks the leader to do something. To be acknowledged by a `Batch`."""

    term: str
    delivery: Delivery


Event = Led | Lost | Ordered


@dataclass(slots=True)
class Sendable:
    """A message to be sent by the leader, and what must be declared before. ``error`` is why the broker refused it."""

    message: EncodedMessage
    needs: tuple[Need, ...]
    what: str
    mandatory: bool = True
    error: Exception | None = None


@dataclass(slots=True)
class Batch:
    """What one tick sends. In this order, each confirmed before the next: the messages, the record, the answers; then
    what it replaces or answers is acknowledged.

    Attributes:
        failures: What could not be sent, and why: messages that the broker refuses for good.
    """

    messages: Sequence[Sendable] = ()
    record: Record | None = None
    answers: Sequence[Sendable] = ()
    orders: Sequence[Delivery] = ()
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    #: The size of the record, once it is confirmed.
    record_bytes: int = 0
