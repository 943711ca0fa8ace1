"""What to declare on the broker, as plain data: queues, exchanges and bindings become steps; a refusal becomes words.

Pure: nothing here talks to a broker. `declarer.py` and `admin.py` carry the steps out. The rules about queue types and
broker versions that were learnt by measurement live here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from amqptasks.entities import MAX_NAME_BYTES, Exchange, Queue
from amqptasks.exceptions import ImproperlyConfigured, TopologyConflict

__all__ = [
    "BindExchange", "BindQueue", "DeclareExchange", "DeclareQueue", "Step", "caution", "conflict", "dead_letter_queue",
    "dead_queue", "exchanges", "plan", "queue_type", "server_version",
]  # fmt: skip

QUEUE_TYPES: Final = ("quorum", "classic")
#: How often a dead letter may be looked at. Measured on 3.10, 4.0 and 4.3: all take it.
DEAD_LETTER_DELIVERIES: Final = 1_000_000

# Quorum queues answer these with 406: a queue that asks for one is meant to be classic.
_CLASSIC_ONLY: Final = ("x-max-priority", "x-queue-mode", "x-queue-version")
_DELAYED_RETRY: Final = ("x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max")
_QUORUM_ONLY: Final = ("x-delivery-limit", "x-dead-letter-strategy", "x-quorum-initial-group-size", *_DELAYED_RETRY)

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeclareExchange:
    """Declare an exchange, or with ``passive`` only look whether it is there."""

    method: ClassVar[str] = "exchange.declare"

    exchange: str
    type: str = "direct"
    durable: bool = True
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    passive: bool = False


@dataclass(frozen=True, slots=True)
class DeclareQueue:
    """Declare a queue, or with ``passive`` only look whether it is there. Times in ``arguments`` are milliseconds."""

    method: ClassVar[str] = "queue.declare"

    queue: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    passive: bool = False


@dataclass(frozen=True, slots=True)
class BindQueue:
    """Bind a queue to an exchange."""

    method: ClassVar[str] = "queue.bind"

    queue: str
    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class BindExchange:
    """Bind an exchange to another: what ``source`` routes by that key goes to ``destination`` too."""

    method: ClassVar[str] = "exchange.bind"

    destination: str
    source: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


Step = DeclareExchange | DeclareQueue | BindQueue | BindExchange


def server_version(properties: Mapping[str, Any]) -> Version:
    """Return RabbitMQ's version from the properties it greets with; ``()`` for any other server."""
    product = _text(properties.get("product", "RabbitMQ"))
    text = _text(properties.get("version", ""))
    match = re.match(r"\d+(?:\.\d+)*", text)
    if product != "RabbitMQ" or match is None:
        # The version gates know RabbitMQ's history only; an unknown server gets the cautious answer of each.
        return ()
    return tuple(int(part) for part in match.group().split("."))


def caution(version: Version | None) -> str:
    """Return what a user of this version of the broker should be told, if anything."""
    if version is not None and (3, 13) <= version < (3, 13, 3):
        return (
            "RabbitMQ 3.13.0 to 3.13.2 may drop messages that are dead-lettered more than once "
            "(rabbitmq-server #11159): delayed tasks may be lost. Upgrade to 3.13.3"
        )
    return ""


def plan(queue: Queue, *, default_type: str, version: Version | None) -> tuple[Step, ...]:
    """Return what must be declared, in order, before messages reach this queue. Empty for ``no_declare`` queues.

    Args:
        default_type: The type of a queue that does not choose one, ``quorum`` or ``classic``.
        version: What `server_version` returned; None or ``()`` if not known.

    Raises:
        ImproperlyConfigured: The broker would refuse this queue, or would take it and lose messages.
    """
    if queue.no_declare:
        return ()
    steps: list[Step] = [*exchanges(queue)]
    steps.append(
        DeclareQueue(
            queue.name, durable=queue.durable, exclusive=queue.exclusive, auto_delete=queue.auto_delete,
            arguments=_arguments(queue, default_type, version or ()),
        )
    )  # fmt: skip
    for each in queue.all_bindings():
        steps.append(BindQueue(queue.name, each.exchange.name, each.routing_key, dict(each.arguments or {})))
    return tuple(steps)


def exchanges(queue: Queue) -> tuple[Step, ...]:
    """Return what declares the exchanges that a queue is bound to."""
    found = dict.fromkeys(each.exchange for each in queue.all_bindings())
    # Exchanges named amq.* are the broker's own; declaring them is refused.
    return tuple(declare_exchange(each) for each in found if not each.no_declare and not each.name.startswith("amq."))


def dead_letter_queue(
    queue: Queue | str, suffix: str, default_type: str, version: Version | None, *, ttl_s: float | None = None,
    max_length: int | None = None,
) -> DeclareQueue:  # fmt: skip
    """Return the queue that keeps the messages of ``queue`` that cannot be run. It is durable whatever ``queue`` is.

    Args:
        ttl_s: How long a message is kept, seconds; for ever without.
        max_length: How many are kept; then the oldest makes room. No limit without.
    """
    name = (queue if isinstance(queue, str) else queue.name) + suffix
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise ImproperlyConfigured(
            f"the name {name[:60]!r}… of a queue for dead letters is longer than the {MAX_NAME_BYTES} bytes of AMQP: "
            f"shorten the queue's name or task_dead_letter_suffix"
        )
    arguments: dict[str, Any] = {}
    if default_type == "quorum":
        # Looking at a message and putting it back is a delivery, and RabbitMQ 4 deletes what was delivered 21 times.
        # Not -1: that means "no limit" from 4.0 and "delete at once" before, and a cluster may be upgraded.
        arguments["x-delivery-limit"] = DEAD_LETTER_DELIVERIES
    if max_length is not None:
        # Said aloud: a policy of refusing what is too much would keep workers from burying anything.
        arguments["x-overflow"] = "drop-head"
    dead = Queue(name, message_ttl=ttl_s, max_length=max_length, queue_arguments=arguments)
    return DeclareQueue(name, arguments=_arguments(dead, default_type, version or ()))


def dead_queue(conf: Any, queue: Queue | str, version: Version | None) -> DeclareQueue:
    """Return the declaration of the queue that keeps the dead letters of ``queue``, by these settings."""
    return dead_letter_queue(
        queue, conf.task_dead_letter_suffix, conf.task_default_queue_type, version,
        ttl_s=conf.task_dead_letter_ttl, max_length=conf.task_dead_letter_max_length,
    )  # fmt: skip


def queue_type(queue: Queue, default_type: str) -> str:
    """Return the type this queue is declared with: its own choice, else ``classic`` if it needs that, else the default.

    Raises:
        ImproperlyConfigured: The chosen type cannot do what the queue asks for.
    """
    arguments = dict(queue.queue_arguments or {})
    if queue.max_priority is not None:
        arguments["x-max-priority"] = queue.max_priority
    if queue.exclusive:
        classic_reason = "exclusive=True"
    elif queue.auto_delete:
        classic_reason = "auto_delete=True"
    elif not queue.durable:
        classic_reason = "durable=False"
    else:
        classic_reason = next((name for name in _CLASSIC_ONLY if arguments.get(name) is not None), "")
    chosen = arguments.get("x-queue-type")
    if chosen is None:
        _check_type(default_type, "task_default_queue_type")
        chosen = "classic" if classic_reason else default_type
    _check_type(chosen, f"x-queue-type of queue {queue.name!r}")
    if chosen == "quorum" and classic_reason:
        raise ImproperlyConfigured(
            f"queue {queue.name!r} asks for {classic_reason} and for x-queue-type='quorum'; only classic queues can do "
            f"that. Leave out one of the two"
        )
    return str(chosen)


def _check_type(value: object, what: str) -> None:
    if value not in QUEUE_TYPES:
        hint = ": a stream never lets go of a task that is done" if value == "stream" else ""
        raise ImproperlyConfigured(f"expected {what} to be 'quorum' or 'classic', got: {value!r}{hint}")


def declare_exchange(exchange: Exchange) -> DeclareExchange:
    """Return the step that declares an exchange."""
    return DeclareExchange(
        exchange.name, exchange.type, durable=exchange.durable, auto_delete=exchange.auto_delete,
        arguments=dict(exchange.arguments or {}),
    )  # fmt: skip


def _arguments(queue: Queue, default_type: str, version: Version) -> dict[str, Any]:
    kind = queue_type(queue, default_type)
    # Always sent, `classic` too: a vhost may have a default type that would turn an untyped queue into a quorum queue.
    arguments: dict[str, Any] = {**(queue.queue_arguments or {}), "x-queue-type": kind}
    if queue.expires is not None:
        arguments["x-expires"] = _milliseconds(queue, "expires", queue.expires, least=1)
    if queue.message_ttl is not None:
        arguments["x-message-ttl"] = _milliseconds(queue, "message_ttl", queue.message_ttl, least=0)
    for name, value, most in (
        ("x-max-length", queue.max_length, None),
        ("x-max-length-bytes", queue.max_length_bytes, None),
        ("x-max-priority", queue.max_priority, 255),
    ):
        if value is not None:
            arguments[name] = _whole(queue, name, value, most)
    _refuse_traps(queue, kind, arguments)
    return {name: value for name, value in arguments.items() if not _left_out(name, value, kind, version)}


def _refuse_traps(queue: Queue, kind: str, arguments: Mapping[str, Any]) -> None:
    for name in _QUORUM_ONLY:
        if kind == "classic" and name in arguments:
            raise ImproperlyConfigured(
                f"queue {queue.name!r} is classic and asks for {name}, which only quorum queues know. Leave it out, or "
                f"make the queue quorum"
            )
    if str(arguments.get("x-overflow", "")).startswith("reject-publish"):
        # Measured: 32 refused messages stop the delay queues for every other queue (at-least-once dead-lettering).
        raise ImproperlyConfigured(
            f"queue {queue.name!r} asks for x-overflow={arguments['x-overflow']!r}: a full queue that refuses messages "
            f"would stop the delayed tasks and retries of every queue. Use x-overflow='drop-head', or no limit"
        )


def _left_out(name: str, value: Any, kind: str, version: Version) -> bool:
    """Whether this version of the broker would refuse, or misread, an argument that other versions need."""
    if name == "x-delivery-limit":
        # "No limit" from 4.0; before, a message is deleted at its first redelivery.
        return value == -1 and not version >= (4, 0)
    if name == "x-consumer-timeout":
        return not version >= (3, 12) or (kind == "classic" and version >= (4, 3))
    if name in _DELAYED_RETRY:
        # Sent to an older broker it would stay on the queue, and be in the way when that is upgraded.
        return not version >= (4, 3)
    if name == "x-queue-leader-locator":
        return kind == "classic" and not version >= (4, 0)
    if name == "x-queue-master-locator":
        return kind == "quorum" or not version or version >= (4, 0)
    return False


def _milliseconds(queue: Queue, name: str, seconds: object, least: int) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not least <= seconds * 1000 < 2**53:
        raise ImproperlyConfigured(
            f"expected {name} of queue {queue.name!r} to be seconds, at least {least / 1000:g}, got: {seconds!r}"
        )
    return round(seconds * 1000)


def _whole(queue: Queue, name: str, value: object, most: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (most is not None and value > most):
        limit = f"from 0 to {most}" if most is not None else "of 0 or more"
        raise ImproperlyConfigured(
            f"expected {name} of queue {queue.name!r} to be a whole number {limit}, got: {value!r}"
        )
    return value


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# -- a refusal in words

_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?:queue|exchange) '.*' in vhost '(?P<vhost>.*)': "
    r"received (?P<ours>.+) but current is (?P<theirs>.+)$",
    re.DOTALL,
)


def conflict(reply_text: str, step: Step) -> TopologyConflict:
    """Return the error for a declaration that the broker refused with 406: both sides, and how to mend it.

    `reply_text` is the broker's. RabbitMQ names only the first argument that differs.
    """
    match = _INEQUIVALENT.search(reply_text)
    what = _subject(step)
    if match is None or not isinstance(step, (DeclareExchange, DeclareQueue)):
        return TopologyConflict(
            f"the broker refused {step.method} of {what}: {reply_text.strip()}. Declared here: "
            + ", ".join(f"{name}={value!r}" for name, value in _declared(step).items())
        )
    differing = match["name"]
    theirs = _value(match["theirs"])
    ours = _declared(step)
    ours.setdefault(differing, "(not set)")
    rows = [("", "declared here", "on the broker")]
    for name in sorted(ours, key=lambda each: (each != differing, each)):
        rows.append((name, _shown(ours[name]), theirs if name == differing else "(not told)"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = "\n".join(f"  {name:<{widths[0]}}  {left:<{widths[1]}}  {right}".rstrip() for name, left, right in rows)
    vhost = match["vhost"]
    return TopologyConflict(
        f"{what} already exists in vhost {vhost!r} with another {differing} than this program declares.\n{table}\n"
        f"{_remedy(step, differing, theirs)}"
    )


def _subject(step: Step) -> str:
    if isinstance(step, DeclareQueue):
        return f"queue {step.queue!r}"
    if isinstance(step, DeclareExchange):
        return f"exchange {step.exchange!r}"
    if isinstance(step, BindQueue):
        return f"queue {step.queue!r} to exchange {step.exchange!r}"
    return f"exchange {step.destination!r} to exchange {step.source!r}"


def _declared(step: Step) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if isinstance(step, DeclareExchange):
        values = {"type": step.type, "durable": step.durable, "auto_delete": step.auto_delete}
    elif isinstance(step, DeclareQueue):
        values = {"durable": step.durable, "exclusive": step.exclusive, "auto_delete": step.auto_delete}
    else:
        values = {"routing_key": step.routing_key}
    return {**values, **step.arguments}


def _shown(value: object) -> str:
    if value == "(not set)":
        return "(not set)"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _value(text: str) -> str:
    """Turn the broker's ``the value 'classic' of type 'longstr'`` into ``'classic'``."""
    text = text.strip()
    if text == "none":
        return "(not set)"
    match = re.match(r"the value '(.*)' of type '(\w+)'$", text, re.DOTALL)
    if match is None:
        return text.strip("'") if text in ("'true'", "'false'") else text
    return repr(match[1]) if match[2] == "longstr" else match[1]


def _remedy(step: DeclareExchange | DeclareQueue, differing: str, theirs: str) -> str:
    if isinstance(step, DeclareExchange):
        return (
            "To mend it: declare the exchange as the broker has it, or delete it there while nothing publishes to it, "
            "or use another name."
        )
    match_it = f"declare it as the broker has it ({differing}={theirs})"
    if theirs == "(not set)":
        match_it = f"declare it without {differing}"
    if differing == "x-queue-type":
        match_it += " in task_queues or by task_default_queue_type"
    return (
        f"To mend it: {match_it}; or let workers empty the queue, delete it with "
        f"`amqptasks queues delete {step.queue}` and declare it anew; or use another name. Messages in a queue are "
        f"lost when it is deleted."
    )
