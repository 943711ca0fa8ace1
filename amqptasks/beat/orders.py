"""What the leader can be asked to do while it runs, and how it is asked.

An order is a message in the queue of orders (`naming`): JSON such as ``{"v": 1, "command": "list", "arguments": {…}}``,
with the queue for the answer in ``reply_to`` and an id in ``correlation_id``. Only the leader consumes that queue. Its
thread carries it out between two ticks (`commands`); what that changes in the scheduler is sent and confirmed, then
the answer, and only then is the order acknowledged. So an order is carried out once, or, should the leader die just
then, once more by the next.

The answer is ``{"v": 1, "ok": …}`` with what the command returned, or ``{"v": 1, "error": "…"}``. Both come from
anybody who may write to the broker: they are checked, bounded, and never run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.exceptions import AmqptasksError, DecodeError
from amqptasks.wire.message import TRANSIENT, EncodedMessage, Message, encode
from amqptasks.wire.reprs import printable

__all__ = ["Order", "OrderError", "read_answer", "read_order", "write_answer", "write_order"]

VERSION: Final = 1
MAX_ORDER_BYTES: Final = 262_144
#: An answer is a page of a list, or one entry.
MAX_ANSWER_BYTES: Final = 16_777_216
_MAX_TEXT: Final = 1000


class OrderError(AmqptasksError):
    """An order cannot be carried out; the text is for whoever gave it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the leader is asked to do.

    Attributes:
        command: Its name.
        arguments: What it is done with.
        reply_to: The queue for the answer; None if nobody waits for one.
        id: What the answer is recognised by.
        is_again: It was handed to a leader before, which may have carried it out and died.
    """

    command: str
    arguments: Mapping[str, Any]
    reply_to: str | None = None
    id: str | None = None
    is_again: bool = False


def write_order(order: Order, queue: str, timeout_s: float) -> EncodedMessage:
    """Encode an order. It lies in the queue no longer than whoever gave it waits: a beat that starts then must not
    carry it out."""
    body = json.dumps({"v": VERSION, "command": order.command, "arguments": dict(order.arguments)}).encode()
    expiration = str(max(1, int(timeout_s * 1000)))
    message = Message(
        body, correlation_id=order.id, reply_to=order.reply_to, delivery_mode=TRANSIENT, expiration=expiration
    )
    return encode(message, "", queue)


def read_order(body: bytes, properties: Any, *, is_again: bool = False) -> Order:
    """Read an order, from anybody.

    Raises:
        DecodeError: It is none.
    """
    if len(body) > MAX_ORDER_BYTES:
        raise DecodeError(f"expected an order of at most {MAX_ORDER_BYTES} bytes, got {len(body)}")
    plain = _read(body, "an order")
    command, arguments = plain.get("command"), plain.get("arguments", {})
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise DecodeError(f"expected a command and its arguments, got: {plain!r:.80}")
    return Order(command, arguments, _text(properties.reply_to), _text(properties.correlation_id), is_again)


def write_answer(order: Order, answer: Mapping[str, Any]) -> EncodedMessage | None:
    """Encode the answer to an order; None if nobody waits for one."""
    if not order.reply_to:
        return None
    body = json.dumps({"v": VERSION, **answer}, default=str).encode()
    return encode(Message(body, correlation_id=order.id, delivery_mode=TRANSIENT), "", order.reply_to)


def read_answer(body: bytes) -> Any:
    """Read an answer; returns what the command returned.

    Raises:
        OrderError: The leader has refused.
        DecodeError: It is no answer.
    """
    if len(body) > MAX_ANSWER_BYTES:
        raise DecodeError(f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, got {len(body)}")
    plain = _read(body, "an answer")
    if "error" in plain:
        raise OrderError(printable(plain["error"], _MAX_TEXT))
    return plain.get("ok")


def _read(body: bytes, what: str) -> dict[str, Any]:
    try:
        # NaN and Infinity, which Python's reader takes, are not JSON: no number of ours is one.
        plain = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"expected JSON: {error}") from error
    if not isinstance(plain, dict) or plain.get("v") != VERSION:
        raise DecodeError(f"expected {what} of version {VERSION}, got: {plain!r:.80}")
    return plain


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _text(value: Any) -> str | None:
    # pika hands over bytes where a text is not UTF-8.
    return value if isinstance(value, str) and value else None
