"""What the leader can be asked to do while it runs, and how it is asked.

An order is a message in the queue of orders (`naming`): JSON such as ``{"v": 1, "command": "list", "arguments": {…}}``,
with the queue for the answer in ``reply_to`` and an id in ``correlation_id``. Only the leader consumes that queue. Its
thread calls the `Command` of that name between two ticks; what the command changes in the scheduler is sent, as one
batch with the answer, and confirmed, before the order is acknowledged. So an order is carried out once, or, should the
leader die just then, once more by the next: commands must be such that doing them again does no harm.

The answer is ``{"v": 1, "ok": …}`` with what the command returned, or ``{"v": 1, "error": "…"}``.

To add a command, put a function into `COMMANDS`. It gets the scheduler and the arguments, and may

- read ``scheduler.schedule`` (entries by name), ``scheduler.next_run(name)``, ``scheduler.added``;
- send an entry now: ``scheduler.run_now(name)``;
- hold an entry back or let it go: set ``entry.is_paused``, then ``scheduler.touch(name)``;
- add an entry: ``scheduler.schedule[name] = scheduler.define(name, definition)``, ``scheduler.added[name] =
  definition``, ``scheduler.touch(name)``; remove one: delete it from both, and ``touch`` it;
- raise `OrderError` to refuse.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.beat.scheduler import Scheduler
from amqptasks.exceptions import AmqptasksError, DecodeError
from amqptasks.wire.message import TRANSIENT, EncodedMessage, Message, encode
from amqptasks.wire.reprs import printable

__all__ = ["COMMANDS", "Command", "Order", "OrderError", "carry_out", "read_order"]

logger = logging.getLogger("amqptasks.beat")

VERSION: Final = 1
MAX_ORDER_BYTES: Final = 262_144

Command = Callable[[Scheduler, Mapping[str, Any]], Any]


class OrderError(AmqptasksError):
    """An order cannot be carried out; the text is for whoever gave it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the leader is asked to do."""

    command: str
    arguments: Mapping[str, Any]
    reply_to: str | None
    id: str | None


def read_order(body: bytes, properties: Any) -> Order:
    """Read an order, from anybody.

    Raises:
        DecodeError: It is none.
    """
    if len(body) > MAX_ORDER_BYTES:
        raise DecodeError(f"expected an order of at most {MAX_ORDER_BYTES} bytes, got {len(body)}")
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"expected JSON: {error}") from error
    if not isinstance(plain, dict) or plain.get("v") != VERSION:
        raise DecodeError(f"expected an order of version {VERSION}, got: {plain!r:.80}")
    command, arguments = plain.get("command"), plain.get("arguments", {})
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise DecodeError(f"expected a command and its arguments, got: {plain!r:.80}")
    return Order(command, arguments, properties.reply_to, properties.correlation_id)


def carry_out(scheduler: Scheduler, body: bytes, properties: Any) -> EncodedMessage | None:
    """Carry out an order; returns the answer, if there is anybody to answer. Never raises."""
    try:
        order = read_order(body, properties)
    except DecodeError as error:
        logger.error("beat: threw away what is no order: %s", printable(str(error), 300))
        return None
    shown = printable(order.command, 80)
    command = COMMANDS.get(order.command)
    if command is None:
        return _answer(order, {"error": f"the beat that leads does not know the order {shown!r}"})
    try:
        answer = {"ok": command(scheduler, order.arguments)}
    except (AmqptasksError, ValueError) as error:
        answer = {"error": printable(str(error), 1000)}
    except Exception as error:
        logger.exception("beat: the order %s failed", shown)
        answer = {"error": printable(f"{type(error).__name__}: {error}", 1000)}
    else:
        logger.info("beat: carried out the order %s", shown)
    return _answer(order, answer)


def _answer(order: Order, answer: dict[str, Any]) -> EncodedMessage | None:
    if not order.reply_to:
        return None
    body = json.dumps({"v": VERSION, **answer}, default=str).encode()
    return encode(Message(body, correlation_id=order.id, delivery_mode=TRANSIENT), "", order.reply_to)


def _ping(scheduler: Scheduler, _arguments: Mapping[str, Any]) -> Any:
    return {"entries": len(scheduler.schedule)}


#: What can be ordered, by name.
COMMANDS: dict[str, Command] = {"ping": _ping}
