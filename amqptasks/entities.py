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
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise ImproperlyConfigured(f"the name of {kind} cannot be written in UTF-8: {name!r}") from error
    if length > MAX_NAME_BYTES:
        raise ImproperlyConfigured(
            f"the name of {kind} {name[:40]!r}… is longer than the {MAX_NAME_BYTES} bytes of AMQP"
        )
    return name


def _checked_arguments(queue: Any, what: str, arguments: Any) -> dict[str, Any] | None:
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ImproperlyConfigured(f"expected {what} of queue {queue!r} to be a mapping, got: {arguments!r}")
    return dict(arguments) if arguments else None


def _checked_number(queue: Any, what: str, number: Any, whole: bool = False, most: int | None = None) -> Any:
    if number is None:
        return None
    if (
        isinstance(number, bool)
        or not isinstance(number, int if whole else (int, float))
        or not 0 <= number < float("inf")
    ):
        raise ImproperlyConfigured(f"expected {what} of queue {queue!r} to be a number >= 0, got: {number!r}")
    if most is not None and number > most:
        raise ImproperlyConfigured(f"expected {what} of queue {queue!r} to be at most {most}, got: {number!r}")
    return number


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
                f"expected the type of exchange {self.name!r} to be one of {', '.join(EXCHANGE_TYPES)}, "
                f"or a plug-in's, such as x-consistent-hash; got: {self.type!r}"
            )
        if self.delivery_mode not in (None, 1, 2, "transient", "persistent"):
            raise ImproperlyConfigured(
                f"expected the delivery_mode of exchange {self.name!r} to be 2 or 'persistent', or 1 or 'transient', "
                f"got: {self.delivery_mode!r}"
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
        values: dict[str, Any] = {
            "name": _checked_name("a queue", name),
            "exchange": _as_exchange(exchange),
            "routing_key": _checked_name("a routing key", routing_key or ""),
            "bindings": tuple(bindings or ()),
            "durable": durable,
            # AMQP ties the two: an exclusive queue ends with its connection.
            "exclusive": exclusive,
            "auto_delete": auto_delete or exclusive,
            "alias": alias,
            "queue_arguments": _checked_arguments(name, "queue_arguments", queue_arguments),
            "binding_arguments": _checked_arguments(name, "binding_arguments", binding_arguments),
            "consumer_arguments": _checked_arguments(name, "consumer_arguments", consumer_arguments),
            "expires": _checked_number(name, "expires", expires),
            "message_ttl": _checked_number(name, "message_ttl", message_ttl),
            "max_length": _checked_number(name, "max_length", max_length, whole=True),
            "max_length_bytes": _checked_number(name, "max_length_bytes", max_length_bytes, whole=True),
            "max_priority": _checked_number(name, "max_priority", max_priority, whole=True, most=255),
            "no_declare": no_declare,
        }
        for each in values["bindings"]:
            if not isinstance(each, Binding):
                raise ImproperlyConfigured(f"expected the bindings of queue {name!r} to be Bindings, got: {each!r}")
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def all_bindings(self) -> tuple[Binding, ...]:
        """Every binding to make, the queue's own exchange first. None for the default exchange, which needs none."""
        own: tuple[Binding, ...] = ()
        if self.exchange.name:
            own = (Binding(self.exchange, self.routing_key, self.binding_arguments),)
        return own + tuple(each for each in self.bindings if each.exchange.name)

    def clone(self, **changes: Any) -> Queue:
        """Return a copy with some attributes replaced."""
        return replace(self, **changes)
