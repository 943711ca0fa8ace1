"""Entries that are added at run time: what they may say, checked by who adds them, and by the leader.

A definition is plain data: as in ``beat_schedule``, but the schedule as its ``describe`` has it, and the options only
those that make sense each time an entry is sent. It may come over the wire, from anybody.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

from amqptasks.beat.descriptions import rebuild
from amqptasks.beat.state import MAX_DEFINITION
from amqptasks.beat.timing import MISSED
from amqptasks.exceptions import AmqptasksError
from amqptasks.wire.compression import compress
from amqptasks.wire.message import Message, encode
from amqptasks.wire.serializers import by_name, dumps

__all__ = ["checked", "checked_name", "nearest", "room_left", "size_of", "warnings_of"]

#: The longest name of an entry or a task, in characters.
MAX_NAME: Final = 255
#: The part of the largest message that additions may take: the whole state travels in one.
SHARE: Final = 4
_KEYS: Final = ("task", "schedule", "args", "kwargs", "options", "missed")
#: Names that differ more than this in length, characters, are not taken for slips of each other.
MOST_APART: Final = 4
#: So many names are compared with a wrong one.
MOST_COMPARED: Final = 2000
#: What an entry takes of the state besides its name and its definition, bytes.
_STATE_BYTES: Final = 100


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e10


def _is_priority(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_headers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


_TEXT = (_is_text, "a text")
_SECONDS = (_is_seconds, "a number of seconds above 0")
#: The options that an entry may have, and what they must be.
OPTIONS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "queue": _TEXT, "exchange": _TEXT, "routing_key": _TEXT, "serializer": _TEXT, "compression": _TEXT,
    "shadow": _TEXT, "expires": _SECONDS, "countdown": _SECONDS, "time_limit": _SECONDS, "soft_time_limit": _SECONDS,
    "priority": (_is_priority, "a whole number from 0 to 255"),
    "ignore_result": (lambda value: isinstance(value, bool), "true or false"),
    "delivery_mode": (
        lambda value: value in ("transient", "persistent") or (type(value) is int and value in (1, 2)),
        "transient or persistent",
    ),
    "headers": (_is_headers, "an object of headers by name"),
}  # fmt: skip


def checked_name(name: Any) -> str:
    """Return the name of an entry.

    Raises:
        ValueError: It cannot be one.
    """
    if not _is_text(name) or name != name.strip():
        raise ValueError(
            f"expected the name of an entry to be 1 to {MAX_NAME} characters that can be seen, got: {name!r:.80}"
        )
    return str(name)


def checked(definition: Any) -> dict[str, Any]:
    """Return a definition with everything in it that it may have.

    Raises:
        ValueError, ImproperlyConfigured: It is none.
    """
    if not isinstance(definition, Mapping):
        raise ValueError(f"expected the definition of an entry to be an object, got: {definition!r:.80}")
    for key in definition:
        if key not in _KEYS:
            raise ValueError(f"an entry has no {key!r:.80}{nearest(key, _KEYS)}; it has: {', '.join(_KEYS)}")
    task, missed = definition.get("task"), definition.get("missed")
    if not _is_text(task):
        raise ValueError(f"expected task to be the name of one, at most {MAX_NAME} characters, got: {task!r:.80}")
    if missed is not None and missed not in MISSED:
        raise ValueError(f"expected missed to be one of {', '.join(MISSED)}, got: {missed!r:.80}")
    args, kwargs = definition.get("args") or [], definition.get("kwargs") or {}
    if not isinstance(args, list):
        raise ValueError(f"expected args to be a list, got: {args!r:.80}")
    if not isinstance(kwargs, dict):
        raise ValueError(f"expected kwargs to be an object, got: {kwargs!r:.80}")
    made = {
        "task": task, "schedule": rebuild(definition.get("schedule")).describe(), "args": args, "kwargs": kwargs,
        "options": _options(definition.get("options") or {}), "missed": missed,
    }  # fmt: skip
    size = len(json.dumps(made))
    if size > MAX_DEFINITION:
        raise ValueError(f"expected an entry of at most {MAX_DEFINITION} bytes of JSON, got {size}")
    return made


def _options(options: Any) -> dict[str, Any]:
    if not isinstance(options, dict):
        raise ValueError(f"expected options to be an object, got: {options!r:.80}")
    made = {name: value for name, value in options.items() if value is not None}
    for name, value in made.items():
        known = OPTIONS.get(name)
        if known is None:
            raise ValueError(
                f"an entry has no option {name!r:.80}{nearest(name, OPTIONS)}; it has: {', '.join(sorted(OPTIONS))}"
            )
        is_right, expected = known
        if not is_right(value):
            raise ValueError(f"expected the option {name} to be {expected}, got: {value!r:.80}")
    hard, soft = made.get("time_limit"), made.get("soft_time_limit")
    if hard is not None and soft is not None and soft > hard:
        raise ValueError(f"expected soft_time_limit to be at most time_limit, got: {soft} > {hard}")
    if "serializer" in made:
        by_name(made["serializer"])
    if "compression" in made:
        compress(b"", made["compression"])
    return made


def warnings_of(app: Any, definition: Mapping[str, Any]) -> list[str]:
    """Check a definition by what an app knows; returns what is strange, and yet may be meant.

    Raises:
        ValueError: It could never be sent: the task does not take these arguments, there is no such queue, or a message
            cannot hold it.
    """
    name, options = definition["task"], definition["options"]
    task = app.tasks.get(name)
    try:
        if task is not None and task.typing is not False:
            task._check(tuple(definition["args"]), definition["kwargs"])
        if "queue" in options:
            app.sender.routing.queue(options["queue"])
        body = (definition["args"], definition["kwargs"])
        dumps(body, options.get("serializer") or app.conf.task_serializer, app.limits())
        address = options.get("exchange") or "", options.get("queue") or options.get("routing_key") or ""
        encode(Message(b"", headers=options.get("headers") or {}), *address)
    except (TypeError, AmqptasksError) as error:
        raise ValueError(str(error)) from error
    if task is None:
        return [f"beat knows no task {name!r}{nearest(name, app.tasks)}; it is sent all the same"]
    return []


def size_of(name: str, definition: Mapping[str, Any]) -> int:
    """Return how many bytes an addition takes of the state."""
    return 2 * len(json.dumps(name)) + len(json.dumps(definition)) + _STATE_BYTES


def room_left(added: Mapping[str, Mapping[str, Any]], name: str, most_bytes: int) -> int:
    """Return how many bytes there are for an entry, beside those that were added: all of them, with what is remembered
    of every entry, must fit into one message."""
    return most_bytes // SHARE - sum(size_of(each, added[each]) for each in added if each != name)


def nearest(name: Any, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, or nothing."""
    text = str(name)[:MAX_NAME]
    # To compare takes time, and what is due must not wait for it.
    alike = islice((each for each in known if abs(len(each) - len(text)) <= MOST_APART), MOST_COMPARED)
    near = difflib.get_close_matches(text, alike, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
