"""Exchanges, queues and bindings as plain data, with kombu's constructor arguments.

A settings module declares its queues with these. They know nothing of connections: `broker/topology.py` turns them
into AMQP declarations.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured

__all__ = ["Binding", "Broadcast", "Exchange", "Queue", "binding", "worker_direct"]

EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")
#: AMQP 0-9-1 short strings: names and routing keys.
MAX_NAME_BYTES = 255
#: The end of the name of a queue that only one worker consumes. Celery's, so that programs of either can send to the
#: other's workers.
DIRECT_SUFFIX = ".dq2"
#: How long the queue of a broadcast outlives its worker's connection, seconds: long enough to connect again.
BROADCAST_EXPIRES_S = 60.0


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
        made = copy.copy(self)
        # Not by the class: what makes a Broadcast takes other arguments.
        Queue.__init__(made, **{each.name: getattr(self, each.name) for each in fields(Queue)} | changes)
        return made


class Broadcast(Queue):
    """Tasks sent here run in every worker that consumes it: an exchange of type fanout, and a queue for each process.

    It is chosen, in routes and by ``-Q``, by its name, which is that of its exchange. The name of this process's queue
    is made up. The queue is deleted when its worker stops, or a minute after its connection was lost.

    Args:
        name: Name of the exchange, and what the broadcast is called unless ``alias`` says otherwise.
        queue: Name of the queue. Workers that use the same share the tasks, each of which one of them runs.
        unique: Add something to that name which makes it this process's own.
        auto_delete: Delete the queue as soon as nobody consumes it, a lost connection included.
        exchange: Another exchange than the one of that name, as an `Exchange` or a name.
        **options: As for `Queue`.
    """

    #: Whether each process has a queue of its own.
    is_own: bool

    def __init__(
        self,
        name: str | None = None,
        queue: str | None = None,
        unique: bool = False,
        auto_delete: bool = False,
        exchange: Exchange | str | None = None,
        alias: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(exchange, Exchange):
            if not (exchange or name):
                raise ImproperlyConfigured("expected Broadcast to have a name, which is that of its exchange")
            exchange = Exchange(exchange or name or "", "fanout")
        own = unique or not queue
        queue_name = f"{queue or 'bcast'}.{uuid.uuid4()}" if own else queue or ""
        if options.get("expires") is None:
            options["expires"] = BROADCAST_EXPIRES_S
        # As short-lived as it is, it gains nothing from being replicated.
        arguments = {"x-queue-type": "classic", **(options.pop("queue_arguments", None) or {})}
        super().__init__(
            queue_name, exchange, auto_delete=auto_delete, alias=alias or name or exchange.name,
            queue_arguments=arguments, **options,
        )  # fmt: skip
        object.__setattr__(self, "is_own", own)

    @property
    def title(self) -> str:
        """What it is called, in all processes alike."""
        return self.alias or self.exchange.name


def worker_direct(hostname: str | Queue) -> Queue:
    """Return the queue that only one worker consumes, while ``worker_direct`` is set: ``apply_async(queue=…)``.

    Args:
        hostname: The worker's full name, such as ``celery@host``. A `Queue` is returned as it is.
    """
    if isinstance(hostname, Queue):
        return hostname
    return Queue(f"{hostname}{DIRECT_SUFFIX}", Exchange("C.dq2"), hostname)
