"""The delay ladder: messages wait in RabbitMQ, in TTL queues that dead-letter towards the queue they belong to.

Six levels of fifteen queues. The remaining time, in units of 50 ms, is written as six hexadecimal digits into the
routing key; a message enters at its highest non-zero digit and falls level by level, waiting ``digit * 16**level``
units on each, until the exchange ``due`` routes it by queue name. This says what to declare and where to publish.

Quorum queues with at-least-once dead-lettering are the only combination that lost nothing under kill -9 and clean
restarts. The alternate exchange of ``due`` matters: 32 undeliverable messages of one queue would otherwise block every
other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from amqptasks.broker.needs import Need
from amqptasks.broker.topology import BindExchange, BindQueue, DeclareExchange, DeclareQueue, Step
from amqptasks.clock import wall_clock
from amqptasks.exceptions import ImproperlyConfigured

LEVELS = 6
UNIT_MS = 50
MAX_UNITS = 16**LEVELS - 1
#: The longest time one pass through the ladder can hold a message: 9.7 days. Later ones re-enter when they reach a
#: worker.
MAX_DELAY_MS = MAX_UNITS * UNIT_MS
#: The digits and their dots take twelve of AMQP's 255 bytes of routing key.
MAX_QUEUE_NAME_BYTES = 243


@dataclass(frozen=True, slots=True)
class Ladder:
    """The names and the shape of one ladder. ``prefix`` keeps applications with different rights apart.

    ``queue_type`` may be ``classic``: cheaper by a factor of three and without the promise, for classic work queues
    only.
    """

    prefix: str = "amqptasks"
    queue_type: str = "quorum"
    #: Of the levels, and the ways in by level and digit. Every delayed message needs one.
    _exchanges: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _entries: tuple[tuple[str, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_exchanges", tuple(f"{self._base}.x{level}" for level in range(LEVELS)))
        entries = tuple(tuple(f"{self._base}.in{level}.{digit:x}" for digit in range(16)) for level in range(LEVELS))
        object.__setattr__(self, "_entries", entries)

    @property
    def _base(self) -> str:
        # The type is part of the name: arguments of an existing queue never change under users.
        return f"{self.prefix}.delay.v1" if self.queue_type == "quorum" else f"{self.prefix}.delay.v1.{self.queue_type}"

    @property
    def due(self) -> str:
        """The exchange that messages leave by, routed by the name of their queue."""
        return f"{self._base}.due"

    @property
    def unroutable(self) -> str:
        """The exchange and queue that keep messages whose queue has gone."""
        return f"{self.prefix}.unroutable"

    def exchange(self, level: int) -> str:
        """The exchange that feeds a level."""
        return self._exchanges[level]

    def queue(self, level: int, digit: int) -> str:
        """The queue that holds messages for ``digit * 16**level`` units."""
        return f"{self._base}.q{level}.{digit:x}"

    def steps(self) -> tuple[Step, ...]:
        """Everything to declare, in order."""
        steps: list[Step] = [
            DeclareExchange(self.unroutable, "fanout", durable=True, auto_delete=False, arguments={}),
            DeclareQueue(
                self.unroutable,
                durable=True,
                exclusive=False,
                auto_delete=False,
                # Not the ladder's type: ladders of both types share this queue, and its arguments can never change.
                arguments={"x-queue-type": "quorum"},
            ),
            BindQueue(self.unroutable, self.unroutable, "", {}),
            DeclareExchange(
                self.due, "topic", durable=True, auto_delete=False, arguments={"alternate-exchange": self.unroutable}
            ),
        ]
        for level in range(LEVELS):
            steps.append(DeclareExchange(self.exchange(level), "topic", durable=True, auto_delete=False, arguments={}))
            below = self.exchange(level - 1) if level else self.due
            stars = "*." * (LEVELS - 1 - level)
            steps.append(BindExchange(below, self.exchange(level), f"{stars}0.#", {}))
            for digit in range(1, 16):
                name = self.queue(level, digit)
                arguments = self._arguments(level, digit, below)
                steps.append(DeclareQueue(name, durable=True, exclusive=False, auto_delete=False, arguments=arguments))
                steps.append(BindQueue(name, self.exchange(level), f"{stars}{digit:x}.#", {}))
        return tuple(steps)

    def _arguments(self, level: int, digit: int, below: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "x-queue-type": self.queue_type,
            "x-message-ttl": digit * 16**level * UNIT_MS,
            "x-dead-letter-exchange": below,
        }
        if self.queue_type == "quorum":
            # Both are needed: with drop-head the strategy silently falls back to at-most-once.
            arguments["x-dead-letter-strategy"] = "at-least-once"
            arguments["x-overflow"] = "reject-publish"
        return arguments

    def exit_for(self, queue: str) -> Step:
        """The binding that lets messages of one queue leave. Exactly six stars: '#' would match foreign queues too."""
        if not queue or len(queue.encode()) > MAX_QUEUE_NAME_BYTES:
            raise ImproperlyConfigured(
                f"expected the name of a queue with delayed tasks to have 1 to {MAX_QUEUE_NAME_BYTES} "
                f"bytes, got: {queue!r}"
            )
        if any(word in ("*", "#") for word in queue.split(".")):
            raise ImproperlyConfigured(
                f"a queue with delayed tasks cannot have '*' or '#' as a word of its name, got: {queue!r}"
            )
        return BindQueue(queue, self.due, "*." * LEVELS + queue, {})

    def all_of(self, exchange: str) -> str:
        """The name under which messages wait for a broadcast's exchange, as others do under that of their queue."""
        return f"{self.prefix}.broadcast.{exchange}"

    def broadcast_of(self, name: str) -> str | None:
        """The exchange that `all_of` made this name from; None if it is that of a queue."""
        prefix = self.all_of("")
        return name.removeprefix(prefix) if name.startswith(prefix) else None

    def through(self, exchange: str, routing_key: str) -> str:
        """The name under which messages wait that are to go through an exchange, with this key, once they are due.

        It is that of a queue, which hands each message over at once: RabbitMQ gives a message another routing key only
        on its way out of a queue. There is one for each exchange and key, whatever the delays.
        """
        return f"{self._base}.to.{quote(exchange, safe='')}/{quote(routing_key, safe='')}"

    def _relay(self, name: str) -> tuple[Step, ...]:
        exchange, routing_key = map(unquote, name.removeprefix(f"{self._base}.to.").split("/"))
        arguments = self._arguments(0, 0, exchange) | {"x-dead-letter-routing-key": routing_key}
        return (
            # Only to see that it is there: a slip in its name would come out much later, and to nobody.
            DeclareExchange(exchange, "direct", durable=True, auto_delete=False, arguments={}, passive=True),
            DeclareQueue(name, durable=True, exclusive=False, auto_delete=False, arguments=arguments),
            self.exit_for(name),
        )

    def exits_for(self, name: str) -> tuple[Step, ...]:
        """What lets messages leave that wait under a name: of a queue, or of what `all_of` or `through` made."""
        way_out = self.exit_for(name)
        if name.startswith(f"{self._base}.to."):
            return self._relay(name)
        exchange = self.broadcast_of(name)
        if exchange is None:
            return (way_out,)
        # A message that leaves must reach a queue, or it stops all others. Where nobody listens any more, that is one
        # which keeps nothing.
        nobody = f"{self.prefix}.nobody"
        arguments = {"x-queue-type": "quorum", "x-message-ttl": 0, "x-max-length": 1}
        key = "*." * LEVELS + name
        return (
            DeclareQueue(nobody, durable=True, exclusive=False, auto_delete=False, arguments=arguments),
            BindQueue(nobody, self.due, key, {}),
            BindExchange(exchange, self.due, key, {}),
        )

    def entry_steps(self, entry: str) -> tuple[Step, ...]:
        """What to declare for an exchange that `enter` names, beside the ladder itself."""
        level, _dot, digit = entry.rpartition(".in")[2].partition(".")
        return (
            DeclareExchange(entry, "fanout", durable=True, auto_delete=False, arguments={}),
            BindQueue(self.queue(int(level), int(digit, 16)), entry, "", {}),
        )

    def enter(self, delay_ms: float, queue: str) -> tuple[str, str]:
        """Return the same as `address`, but the exchange of one queue of the ladder alone, which must be declared.

        It looks at no key. A topic exchange splits a key into its words and matches them: that is half of the work that
        a delayed message is for RabbitMQ.
        """
        units = _units(delay_ms)
        return self._entry(units), f"{_digits(units)}.{queue}"

    def readdress(self, entry: str, routing_key: str, due_at: float) -> Callable[[], tuple[str, str]]:
        """Return what computes a message's address anew when it is written.

        By then part of its delay may be over, spent on declaring queues, on a lost connection, or among many others.

        Args:
            entry: The exchange of `enter` that is declared. Where the rest of the time needs another one, the message
                goes by that of its level.
            due_at: When it is due, seconds since 1970. Not the time that the key says: that is rounded up, and would be
                once more.
        """
        queue = routing_key[2 * LEVELS :]

        def again() -> tuple[str, str]:
            units = _units((due_at - wall_clock()) * 1000)
            exchange = entry if self._entry(units) == entry else self._exchanges[_level(units)]
            return exchange, f"{_digits(units)}.{queue}"

        return again

    def address(self, delay_ms: float, queue: str) -> tuple[str, str]:
        """Return the exchange and routing key that bring a message to ``queue`` after at least ``delay_ms``.

        The time is rounded up to the unit and cut at `MAX_DELAY_MS`.
        """
        units = _units(delay_ms)
        return self._exchanges[_level(units)], f"{_digits(units)}.{queue}"

    def _entry(self, units: int) -> str:
        level = _level(units)
        return self._entries[level][units >> 4 * level]


class Waiting:
    """What must be declared before messages can wait in a ladder, made once for each queue and each way in."""

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        steps = ladder.steps()
        self._ladder_need = Need(ladder.due, lambda _version: steps)
        self._exits: dict[str, Need] = {}
        self._entries: dict[str, Need] = {}

    def needs(self, queue: str) -> tuple[Need, ...]:
        """Return what messages need that wait for a queue: the ladder, and their way out."""
        need = self._exits.get(queue)
        if need is None:
            steps = self.ladder.exits_for(queue)
            need = self._exits[queue] = Need(f"{self.ladder.due}>{queue}", lambda _version: steps)
        return self._ladder_need, need

    def enter(self, delay_ms: float, queue: str) -> tuple[str, str, tuple[Need, ...]]:
        """Return the exchange, the routing key and all that must be declared for one message."""
        entry, routing_key = self.ladder.enter(delay_ms, queue)
        need = self._entries.get(entry)
        if need is None:
            steps = self.ladder.entry_steps(entry)
            need = self._entries[entry] = Need(entry, lambda _version: steps)
        return entry, routing_key, (*self.needs(queue), need)


def _units(delay_ms: float) -> int:
    units: int = min(max(1, -int(-delay_ms // UNIT_MS)), MAX_UNITS)
    return units


def _level(units: int) -> int:
    return (units.bit_length() - 1) >> 2


def _digits(units: int) -> str:
    return ".".join(f"{units:0{LEVELS}x}")
