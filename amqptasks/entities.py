"""Exchanges, queues and bindings as plain data, with kombu's constructor arguments.

A settings module declares its queues with these. They know nothing of connections: `broker/topology.py` turns them
into AMQP declarations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured

__all__ = ["Binding", "Exchange", "Queue", "binding"]

EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")
#: AMQP 0-9-1 short strings: names and routing keys.
MAX_NAME_BYTES = 255


def _checked_name(kind: str, name: Any) -> str:
    if not isinstance(name, str):
        raise ImproperlyConfigured(f"expected the name of {kind} to be a string, got: {name!r}")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise ImproperlyConfigured(f"the name of {kind} {name[:40]!r}… is longer than the {MAX_NAME_BYTES} bytes of AMQP")
    return name


@dataclass(frozen=True)
class Exchange:
    """An exchange. ``Exchange("")`` is AMQP's default exchange, which routes by queue name and is never declared."""

    name: str = ""
    type: str = "direct"
    durable: bool = field(default=True, kw_only=True)
    auto_delete: bool = field(default=False, kw_only=True)
    delivery_mode: int | str | None = field(default=None, kw_only=True)
    arguments: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)
    no_declare: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _checked_name("an exchange", self.name)
        # A plug-in's type, such as x-consistent-hash, always starts with "x-".
        if self.type not in EXCHANGE_TYPES and not str(self.type).startswith("x-"):
            raise ImproperlyConfigured(
                f"expected the type of exchange {self.name!r} to be one of {', '.join(EXCHANGE_TYPES)}, got: {self.type!r}"
            )


@dataclass(frozen=True)
class Binding:
    """One binding of a queue to an exchange."""

    exchange: Exchange
    routing_key: str = ""
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)


def binding(exchange: Exchange | str, routing_key: str = "", arguments: Mapping[str, Any] | None = None) -> Binding:
    """Make a `Binding`, for ``Queue(bindings=[…])``."""
    return Binding(_as_exchange(exchange), routing_key, arguments)


def _as_exchange(exchange: Exchange | str | None) -> Exchange:
    if isinstance(exchange, Exchange):
        return exchange
    return Exchange(exchange or "")


@dataclass(frozen=True)
class Queue:
    """A queue and how it is bound.

    Args:
        exchange: An `Exchange` or its name. Without one the queue is reached by name through the default exchange.
        queue_arguments: AMQP ``x-`` arguments. Put ``x-queue-type`` here to choose ``quorum`` or ``classic``.
        expires: Seconds without use until the broker deletes the queue (``x-expires``).
        message_ttl: Seconds a message may wait (``x-message-ttl``).
        max_length: Messages it may hold (``x-max-length``).
        max_length_bytes: Bytes it may hold (``x-max-length-bytes``).
        max_priority: Highest priority (``x-max-priority``); such a queue is classic.
    """

    name: str = ""
    exchange: Exchange = field(default_factory=Exchange)
    routing_key: str = ""
    bindings: tuple[Binding, ...] = field(default=(), kw_only=True)
    durable: bool = field(default=True, kw_only=True)
    exclusive: bool = field(default=False, kw_only=True)
    auto_delete: bool = field(default=False, kw_only=True)
    alias: str | None = field(default=None, kw_only=True)
    queue_arguments: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)
    binding_arguments: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)
    consumer_arguments: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)
    expires: float | None = field(default=None, kw_only=True)
    message_ttl: float | None = field(default=None, kw_only=True)
    max_length: int | None = field(default=None, kw_only=True)
    max_length_bytes: int | None = field(default=None, kw_only=True)
    max_priority: int | None = field(default=None, kw_only=True)
    no_declare: bool = field(default=False, kw_only=True)

    def __init__(
        self,
        name: str = "",
        exchange: Exchange | str | None = None,
        routing_key: str = "",
        *,
        bindings: Iterable[Binding] | None = None,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        alias: str | None = None,
        queue_arguments: Mapping[str, Any] | None = None,
        binding_arguments: Mapping[str, Any] | None = None,
        consumer_arguments: Mapping[str, Any] | None = None,
        expires: float | None = None,
        message_ttl: float | None = None,
        max_length: int | None = None,
        max_length_bytes: int | None = None,
        max_priority: int | None = None,
        no_declare: bool = False,
    ) -> None:
        values = {
            "name": _checked_name("a queue", name),
            "exchange": _as_exchange(exchange),
            "routing_key": _checked_name("a routing key", routing_key or ""),
            "bindings": tuple(bindings or ()),
            "durable": durable,
            # AMQP ties the two: an exclusive queue ends with its connection.
            "exclusive": exclusive,
            "auto_delete": auto_delete or exclusive,
            "alias": alias,
            "queue_arguments": dict(queue_arguments) if queue_arguments else None,
            "binding_arguments": dict(binding_arguments) if binding_arguments else None,
            "consumer_arguments": dict(consumer_arguments) if consumer_arguments else None,
            "expires": expires,
            "message_ttl": message_ttl,
            "max_length": max_length,
            "max_length_bytes": max_length_bytes,
            "max_priority": max_priority,
            "no_declare": no_declare,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def all_bindings(self) -> tuple[Binding, ...]:
        """Every binding to make, the queue's own exchange first. None for the default exchange, which needs none."""
        own = ()
        if self.exchange.name:
            own = (Binding(self.exchange, self.routing_key, self.binding_arguments),)
        return own + tuple(each for each in self.bindings if each.exchange.name)

    def clone(self, **changes: Any) -> Queue:
        """Return a copy with some attributes replaced."""
        return replace(self, **changes)
