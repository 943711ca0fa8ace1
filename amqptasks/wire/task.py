"""Reading a task message that may come from anyone: Celery's protocol 2, tolerantly, and protocol 1.

The parent looks at properties and headers only (`read_head`); the child decodes the body (`read_body`). Every header
that
is used is checked for its type before anything acts on it. What does not fit raises `InvalidTaskError` or a
`DecodeError`,
never anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.exceptions import InvalidTaskError
from amqptasks.wire.binding import SIGNED_TYPE
from amqptasks.wire.binding import check as check_binding
from amqptasks.wire.compression import decompress
from amqptasks.wire.reprs import printable, short_repr
from amqptasks.wire.serializers import Limits, loads

MAX_ID_CHARACTERS: Final = 255
MAX_NAME_CHARACTERS: Final = 255
#: Most retries or nesting a message may claim: beyond, arithmetic on it has no meaning.
MAX_COUNT: Final = 1 << 31


def _is_short_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_ID_CHARACTERS


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_index(value: Any) -> bool:
    return type(value) is int and -1 <= value <= MAX_COUNT


def _is_bool(value: Any) -> bool:
    return value is True or value is False or value in (0, 1)


def _is_seconds(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and value == value and 0 <= value < 1e10)


def _is_time_limit(value: Any) -> bool:
    return type(value) in (list, tuple) and len(value) == 2 and all(_is_seconds(each) for each in value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


# None is fine everywhere: Celery writes every header, with null for "not given".
_CHECKS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "shadow": (_is_short_text, "a text of at most 255 characters"),
    "eta": (_is_short_text, "a date and time as text"),
    "expires": (_is_short_text, "a date and time as text"),
    "group": (_is_short_text, "a text of at most 255 characters"),
    "group_index": (_is_index, "a whole number"),
    "retries": (_is_count, "a whole number from 0"),
    "timelimit": (_is_time_limit, "a pair of seconds"),
    "root_id": (_is_short_text, "a text of at most 255 characters"),
    "parent_id": (_is_short_text, "a text of at most 255 characters"),
    "argsrepr": (_is_text, "text"),
    "kwargsrepr": (_is_text, "text"),
    "origin": (_is_text, "text"),
    "ignore_result": (_is_bool, "true or false"),
    "replaced_task_nesting": (_is_count, "a whole number from 0"),
    "stamped_headers": (_is_list, "a list"),
    "stamps": (_is_mapping, "a table"),
    "compression": (_is_short_text, "a text"),
    "x-amqptasks-crashes": (_is_count, "a whole number from 0"),
}


_BROKER_HEADERS: Final = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")


@dataclass(frozen=True, slots=True)
class TaskHead:
    """What the properties and headers of a message say. For protocol 1, headers made of the body."""

    id: str
    task: str
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskBody:
    """The decoded body: arguments, and what is embedded with them."""

    args: list[Any]
    kwargs: dict[str, Any]
    callbacks: list[Any] | None = None
    errbacks: list[Any] | None = None
    chain: list[Any] | None = None
    chord: Any = None


def read_head(
    headers: Any, content_type: Any, content_encoding: Any, body: bytes, accept: frozenset[str], limits: Limits
) -> TaskHead:
    """Check a message's headers, and tell which task it is for.

    Raises:
        InvalidTaskError: A header is missing or has the wrong type, or the message is no task.
        DecodeError: The body had to be read (protocol 1) and could not.
    """
    if not isinstance(headers, dict) or "task" not in headers:
        return _read_version_1(headers, content_type, content_encoding, body, accept, limits)
    task_id, name = _identity(headers.get("id"), headers["task"])
    has_foreign = False
    for key, value in headers.items():
        known = _CHECKS.get(key)
        if known is None:
            has_foreign = has_foreign or key[:2] == "x-"
        elif value is not None and not known[0](value):
            raise InvalidTaskError(f"expected header {key!r} to be {known[1]}, got: {printable(ascii(value), 80)}")
    return TaskHead(task_id, name, without_broker_headers(headers) if has_foreign else headers)


def without_broker_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers without those of the broker. Sent back to it, they make some versions drop the message."""
    return {key: value for key, value in headers.items() if not str(key).startswith(_BROKER_HEADERS)}


def _identity(task_id: Any, name: Any) -> tuple[str, str]:
    if type(task_id) is not str or not 0 < len(task_id) <= MAX_ID_CHARACTERS:
        raise InvalidTaskError(
            f"expected the task's id to be a text of 1 to {MAX_ID_CHARACTERS} characters, got: "
            f"{printable(ascii(task_id), 80)}"
        )
    if type(name) is not str or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise InvalidTaskError(
            f"expected the task's name to be a text of 1 to {MAX_NAME_CHARACTERS} characters, got: "
            f"{printable(ascii(name), 80)}"
        )
    if not task_id.isprintable() or not name.isprintable():
        raise InvalidTaskError("expected the task's id and name to be printable text")
    return task_id, name


def _decode(
    headers: Mapping[str, Any],
    content_type: Any,
    content_encoding: Any,
    body: bytes,
    accept: frozenset[str],
    limits: Limits,
) -> Any:
    compression = headers.get("compression")
    if compression:
        body = decompress(body, compression, limits.max_bytes)
    return loads(body, content_type, content_encoding, accept, limits)


def read_body(
    headers: Mapping[str, Any],
    content_type: Any,
    content_encoding: Any,
    body: bytes,
    accept: frozenset[str],
    limits: Limits,
) -> TaskBody:
    """Decode the body of a message of either protocol.

    Raises:
        ContentDisallowed: Its content type is not accepted; it was not looked at.
        DecodeError: It cannot be read.
        UntrustedContent: It is signed, but not by anybody trusted, or for something else.
        InvalidTaskError: It is not ``[args, kwargs, embed]``.
    """
    value = _decode(headers, content_type, content_encoding, body, accept, limits)
    if content_type == SIGNED_TYPE:
        check_binding(value, headers)
    if isinstance(value, dict) and ("args" in value or "task" in value):
        # Protocol 1. Celery reads such a body under the headers of protocol 2 too.
        return _body_of_mapping(value)
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        shape = (
            f"{type(value).__name__} of {len(value)}"
            if isinstance(value, (list, tuple, dict))
            else type(value).__name__
        )
        raise InvalidTaskError(f"expected the body to be [args, kwargs, embed], got: a {shape}")
    args, kwargs, embed = value
    embed = {} if embed is None else embed
    if not isinstance(embed, dict):
        raise InvalidTaskError(f"expected what is embedded to be a map, got: {type(embed).__name__}")
    return _checked_body(args, kwargs, embed)


def _checked_body(args: Any, kwargs: Any, embed: Mapping[str, Any]) -> TaskBody:
    args = [] if args is None else args
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(args, (list, tuple)):
        raise InvalidTaskError(f"expected the arguments to be a list, got: {type(args).__name__}")
    if not isinstance(kwargs, dict):
        raise InvalidTaskError(f"expected the keyword arguments to be a map, got: {type(kwargs).__name__}")
    for key in kwargs:
        if not isinstance(key, str):
            raise InvalidTaskError(
                f"expected the names of keyword arguments to be text, got: {printable(ascii(key), 80)}"
            )
    chord = embed.get("chord")
    if chord is not None and not isinstance(chord, Mapping):
        raise InvalidTaskError(f"expected the chord to be a map, got: {type(chord).__name__}")
    return TaskBody(
        list(args),
        kwargs,
        _signatures(embed, "callbacks"),
        _signatures(embed, "errbacks"),
        _signatures(embed, "chain"),
        chord,
    )


def _signatures(embed: Mapping[str, Any], key: str) -> list[Any] | None:
    value = embed.get(key)
    if not value:
        return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, Mapping) and "task" in each for each in value):
        raise InvalidTaskError(f"expected {key!r} to be a list of signatures, got: {printable(ascii(value), 80)}")
    return list(value)


def _body_of_mapping(value: Mapping[str, Any]) -> TaskBody:
    return _checked_body(value.get("args"), value.get("kwargs"), value)


def _read_version_1(
    given: Any, content_type: Any, content_encoding: Any, body: bytes, accept: frozenset[str], limits: Limits
) -> TaskHead:
    headers = without_broker_headers(given) if isinstance(given, Mapping) else {}
    _check_header("compression", headers.get("compression"))
    value = _decode(headers, content_type, content_encoding, body, accept, limits)
    if not isinstance(value, Mapping) or "task" not in value:
        raise InvalidTaskError("the message is no task: it has neither a 'task' header nor a body that names one")
    task_id, name = _identity(value.get("id"), value["task"])
    # Only headers are made of it: the child decodes the body again, for typed values do not survive the way there.
    parsed = _body_of_mapping(value)
    headers |= {
        "id": task_id,
        "task": name,
        "argsrepr": short_repr(parsed.args),
        "kwargsrepr": short_repr(parsed.kwargs),
    }
    for key in ("eta", "expires", "retries", "timelimit", "group", "group_index"):
        if value.get(key) is not None:
            headers[key] = value[key]
    if value.get("taskset") is not None:
        headers["group"] = value["taskset"]
    for key, header in headers.items():
        _check_header(key, header)
    return TaskHead(task_id, name, headers)


def _check_header(key: str, value: Any) -> None:
    known = _CHECKS.get(key)
    if known is not None and value is not None and not known[0](value):
        raise InvalidTaskError(f"expected header {key!r} to be {known[1]}, got: {printable(ascii(value), 80)}")
