"""Remote control on the wire: Celery's pidbox protocol. Commands go to a fanout exchange, answers to a direct one.

Both are read as what they are: bytes from anyone. What is no command or no answer raises `DecodeError`, never anything
else, and nothing that was read is acted on before its type is known.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from amqptasks.exceptions import DecodeError
from amqptasks.wire.message import TRANSIENT, EncodedMessage, Message, encode
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import Limits, dumps, loads

__all__ = [
    "ControlReply", "ControlRequest", "encode_reply", "encode_request", "matches", "name_matches", "read_reply",
    "read_request", "reply_exchange", "request_exchange",
]  # fmt: skip

#: The longest name that AMQP can carry; tickets and patterns are no longer either.
MAX_TEXT: Final = 255
#: Workers that one command may name.
MAX_DESTINATIONS: Final = 10_000
#: A command is small; a list of ids to revoke is the largest there is. Bytes.
MAX_REQUEST_BYTES: Final = 4 << 20
#: The word as a value of its own, as Celery writes it. Within a text it would be quoted twice: then the answer is no
#: JSON, and is passed over.
_INFINITY: Final = re.compile(rb"(?<=: )Infinity(?=[,}])")
GLOB: Final = "glob"
PCRE: Final = "pcre"
#: Repeats in a regular expression from the wire: more could take longer than anybody waits.
MAX_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """A command to workers.

    Attributes:
        method: Its name.
        arguments: What it is given, by name.
        destination: The workers that are to heed it, by their full names; none: see ``pattern``.
        pattern, matcher: Which workers are to heed it, by the pattern of their names and how that is read (`GLOB` or
            `PCRE`); without both, all.
        ticket: What the answers are to carry.
        reply_to: The exchange and routing key for answers; None if none is wanted.
        clock: The sender's logical clock.
        expires: When nobody waits for answers any more, seconds since 1970; 0: never.
    """

    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    destination: tuple[str, ...] = ()
    pattern: str | None = None
    matcher: str | None = None
    ticket: str | None = None
    reply_to: tuple[str, str] | None = None
    clock: int = 0
    expires: float = 0.0


@dataclass(frozen=True, slots=True)
class ControlReply:
    """What workers have answered to the command with this ticket, by their names: one, as a rule."""

    ticket: str | None
    nodes: Mapping[str, Any]
    clock: int = 0


def request_exchange(namespace: str) -> str:
    """Return the name of the exchange of commands; the namespace is the setting ``control_exchange``."""
    return f"{namespace}.pidbox"


def reply_exchange(namespace: str) -> str:
    """Return the name of the exchange of answers."""
    return f"reply.{namespace}.pidbox"


# ---- Writing


def encode_request(request: ControlRequest, namespace: str, serializer: str) -> EncodedMessage:
    """Return the message of a command.

    Raises:
        EncodeError: An argument cannot be written.
    """
    plain: dict[str, Any] = {
        "method": request.method, "arguments": dict(request.arguments),
        "destination": list(request.destination) or None, "pattern": request.pattern, "matcher": request.matcher,
    }  # fmt: skip
    if request.reply_to is not None:
        plain["ticket"] = request.ticket
        plain["reply_to"] = {"exchange": request.reply_to[0], "routing_key": request.reply_to[1]}
    headers = {"clock": request.clock, "expires": request.expires}
    return _encode(plain, headers, request_exchange(namespace), "", serializer)


def encode_reply(reply: ControlReply, reply_to: tuple[str, str], serializer: str) -> EncodedMessage:
    """Return the message of an answer.

    Raises:
        EncodeError: It cannot be written.
    """
    headers = {"ticket": reply.ticket, "clock": reply.clock}
    return _encode(dict(reply.nodes), headers, *reply_to, serializer)


def _encode(plain: Any, headers: Mapping[str, Any], exchange: str, key: str, serializer: str) -> EncodedMessage:
    content_type, content_encoding, body = dumps(plain, serializer)
    message = Message(body, content_type, content_encoding, headers, delivery_mode=TRANSIENT)
    return encode(message, exchange, key)


# ---- Reading


def read_request(
    headers: Any, content_type: Any, content_encoding: Any, body: bytes, accept: frozenset[str], limits: Limits
) -> ControlRequest:
    """Read a command.

    Raises:
        DecodeError: It is none, or not in a form that is accepted.
    """
    limits = replace(limits, max_bytes=min(limits.max_bytes, MAX_REQUEST_BYTES))
    plain = loads(body, content_type, content_encoding, accept, limits)
    if not isinstance(plain, dict):
        raise DecodeError(f"expected a command to be a map, got: {type(plain).__name__}")
    method = _text(plain, "method", required=True)
    arguments = plain.get("arguments") or {}
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        raise DecodeError(f"expected the arguments of {_shown(method)} to be a map, got: {type(arguments).__name__}")
    head = headers if isinstance(headers, dict) else {}
    return ControlRequest(
        method or "", arguments, _destination(plain.get("destination")), _text(plain, "pattern"),
        _text(plain, "matcher"), _text(plain, "ticket"), _reply_to(plain.get("reply_to")), _clock(head),
        _expires(head),
    )  # fmt: skip


def read_reply(
    headers: Any, content_type: Any, content_encoding: Any, body: bytes, accept: frozenset[str], limits: Limits
) -> ControlReply:
    """Read an answer.

    Raises:
        DecodeError: It is none, or not in a form that is accepted.
    """
    try:
        plain = loads(body, content_type, content_encoding, accept, limits)
    except DecodeError:
        # Celery's workers answer `conf` with defaults of Infinity, which is not JSON.
        if content_type != "application/json" or content_type not in accept or b"Infinity" not in body:
            raise
        plain = loads(_INFINITY.sub(b'"Infinity"', body), content_type, content_encoding, accept, limits)
    if not isinstance(plain, dict):
        raise DecodeError(f"expected an answer to be a map of workers, got: {type(plain).__name__}")
    head = headers if isinstance(headers, dict) else {}
    return ControlReply(_text(head, "ticket"), {str(name): value for name, value in plain.items()}, _clock(head))


def _text(plain: Mapping[str, Any], key: str, *, required: bool = False) -> str | None:
    value = plain.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not len(value) <= MAX_TEXT or (required and not value):
        raise DecodeError(f"expected {key!r} to be a text of at most {MAX_TEXT} characters, got: {_shown(value)}")
    return value


def _destination(value: Any) -> tuple[str, ...]:
    # Some clients name a single worker as it is.
    names: Sequence[Any] = (value,) if isinstance(value, str) and value else value or ()
    if (
        not isinstance(names, (list, tuple))
        or len(names) > MAX_DESTINATIONS
        or not all(isinstance(each, str) for each in names)
    ):
        raise DecodeError(f"expected 'destination' to be a list of names of workers, got: {_shown(value)}")
    return tuple(names)


def _reply_to(value: Any) -> tuple[str, str] | None:
    if not value:
        return None
    if not isinstance(value, dict):
        raise DecodeError(f"expected 'reply_to' to be an exchange and a routing key, got: {_shown(value)}")
    return _text(value, "exchange") or "", _text(value, "routing_key") or ""


def _clock(head: Mapping[str, Any]) -> int:
    clock = head.get("clock")
    return clock if type(clock) is int else 0


def _expires(head: Mapping[str, Any]) -> float:
    expires = head.get("expires")
    is_time = isinstance(expires, (int, float)) and abs(expires) < 1e12
    return float(expires) if is_time and expires is not None else 0.0


def _shown(value: Any) -> str:
    return printable(ascii(value), 80)


# ---- Who is meant


def matches(request: ControlRequest, hostname: str) -> bool:
    """Whether a worker is to heed a command.

    Raises:
        DecodeError: Its pattern cannot be used.
    """
    if request.destination:
        return hostname in request.destination
    if request.pattern and request.matcher:
        return name_matches(hostname, request.pattern, request.matcher)
    return True


def name_matches(name: str, pattern: str, matcher: str | None = None) -> bool:
    """Whether a worker's name fits a pattern: shell wildcards, or a regular expression with the matcher ``pcre``.

    Raises:
        DecodeError: There is no such matcher, or it is no regular expression, or one that may take for ever.
    """
    if len(pattern) > MAX_TEXT:
        raise DecodeError(f"expected a pattern of at most {MAX_TEXT} characters, got {len(pattern)}")
    if matcher in (None, GLOB):
        return fnmatch.fnmatchcase(name[:MAX_TEXT], pattern)
    if matcher == PCRE:
        return _expression(pattern).match(name[:MAX_TEXT]) is not None
    raise DecodeError(f"expected the matcher to be {GLOB!r} or {PCRE!r}, got: {_shown(matcher)}")


@functools.lru_cache(64)
def _expression(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
        repeats = list(_repeats(_parse(pattern)))
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise DecodeError(f"expected the pattern to be a regular expression, got {_shown(pattern)}: {error}") from None
    # A repeat within another, or many side by side, can be tried in more ways than there is time for.
    if len(repeats) > MAX_REPEATS or any(repeats):
        raise DecodeError(
            f"expected a regular expression of at most {MAX_REPEATS} repeats, none of them within another or of "
            f"alternatives, got: {_shown(pattern)}"
        )
    return compiled


def _parse(pattern: str) -> Any:
    # The parser's module was renamed in Python 3.11.
    name = "re._parser" if sys.version_info >= (3, 11) else "sre_parse"
    return importlib.import_module(name).parse(pattern)


def _repeats(parsed: Any, inside: bool = False) -> Iterator[bool]:
    """Name each repeat of a parsed expression: whether something in it can match in several ways."""
    for operation, argument in parsed:
        name = str(operation)
        if name.endswith("REPEAT"):
            yield inside or any(str(each) not in _SINGLE for each, _ in argument[2])
            yield from _repeats(argument[2], True)
        elif isinstance(argument, (list, tuple)):
            for part in _subpatterns(argument):
                yield from _repeats(part, inside)
        elif name in ("GROUPREF", "GROUPREF_EXISTS"):
            yield True


#: What takes one character, in one way.
_SINGLE: Final = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN", "RANGE", "CATEGORY"})


def _subpatterns(argument: Any) -> Iterator[Any]:
    for part in argument:
        if hasattr(part, "getwidth"):
            yield part
        elif isinstance(part, (list, tuple)):
            yield from _subpatterns(part)
