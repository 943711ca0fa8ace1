"""What a chord says over the wire: the mark on each counted task, and the messages in its collector.

A chord's collector is a queue that holds one manifest (the body, and how many parts there are), one message for each
part that has ended, and one for each that a part has added. Pure: names and plain data. Whatever comes in is checked
here, and refused as content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.exceptions import DecodeError
from amqptasks.wire.message import PERSISTENT, EncodedMessage, Message, encode
from amqptasks.wire.serializers import Limits, dumps, loads

__all__ = [
    "JOIN_TASK", "MAX_PARTS", "UNLOCK_TASK", "Addition", "Manifest", "Mark", "PartEnd", "collector_name",
    "encode_addition", "encode_manifest", "encode_part", "is_collector", "read_mark", "read_message",
]  # fmt: skip

#: The task that a poke and a sweep are calls of.
JOIN_TASK: Final = "amqptasks.join_chord"
#: Celery's name of the task that asks for a chord's results where nothing counts them.
UNLOCK_TASK: Final = "celery.chord_unlock"
#: More than this many parts no chord has: a mark that says so is not believed.
MAX_PARTS: Final = 10_000_000
_VERSION: Final = 1
_INFIX: Final = ".chord."
_MAX_QUEUE_BYTES: Final = 255
_MAX_KEY: Final = 300


def collector_name(prefix: str, chord_id: str) -> str:
    """Return the name of a chord's collector."""
    name = f"{prefix}{_INFIX}{chord_id}"
    if len(name.encode("utf-8", "replace")) <= _MAX_QUEUE_BYTES and chord_id.isprintable():
        return name
    # Here, for it takes 2 ms to load, and ids are short.
    import hashlib

    return f"{prefix}{_INFIX}{hashlib.sha256(chord_id.encode('utf-8', 'replace')).hexdigest()}"


def is_collector(name: Any) -> bool:
    """Whether this may be a collector's name: no other queue is read or written as one, whatever a message says."""
    if type(name) is not str or not name.isprintable() or len(name.encode("utf-8", "replace")) > _MAX_QUEUE_BYTES:
        return False
    prefix, infix, chord_id = name.rpartition(_INFIX)
    return bool(prefix and infix and chord_id) and not chord_id.startswith("join.v")


@dataclass(frozen=True, slots=True)
class Mark:
    """What a counted task carries as its ``chord``: where its end is to be told, and as which part.

    Attributes:
        collector: The queue.
        size: How many parts the chord had at first; 0 if that is not known.
        index: Which of them this is, or added it.
        added: What tells an added part from others; None for one that was there at first.
    """

    collector: str
    size: int
    index: int
    added: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return what travels among what is embedded in a task's body."""
        plain = {"v": _VERSION, "collector": self.collector, "size": self.size, "index": self.index}
        return plain if self.added is None else {**plain, "added": self.added}


def read_mark(value: Any) -> Mark | None:
    """Read a task's ``chord``; None if it is not ours (Celery's is the body itself), or no good."""
    if not isinstance(value, Mapping) or value.get("v") != _VERSION or not is_collector(value.get("collector")):
        return None
    size, index = value.get("size"), value.get("index")
    added = value.get("added")
    if type(size) is not int or type(index) is not int or not 0 <= index < size <= MAX_PARTS:
        return None
    return Mark(value["collector"], size, index, added) if added is None or _is_key(added) else None


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_KEY


@dataclass(frozen=True, slots=True)
class Manifest:
    """The first message of a collector.

    Attributes:
        body: The call to make with the parts' results: plain, its ids fixed.
        group_id: The header's id.
        until: When the chord has failed if it is not complete by then, seconds since 1970.
        form: A list like that of the results, with None in the place of each; None where that is flat.
    """

    collector: str
    size: int
    body: Mapping[str, Any]
    group_id: str
    until: float
    root_id: str | None = None
    form: list[Any] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the map that travels."""
        plain = {
            "v": _VERSION, "chord": self.collector, "size": self.size, "body": self.body, "group": self.group_id,
            "until": self.until, "root_id": self.root_id,
        }  # fmt: skip
        return plain if self.form is None else {**plain, "form": self.form}


@dataclass(frozen=True, slots=True)
class PartEnd:
    """How one part ended: with a result, or with the plain form of an error."""

    collector: str
    index: int
    task_id: str
    is_success: bool
    value: Any
    traceback: str | None = None
    added: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the map that travels."""
        plain = {"v": _VERSION, "chord": self.collector, "index": self.index, "task_id": self.task_id}
        if self.added is not None:
            plain["added"] = self.added
        if self.is_success:
            return {**plain, "result": self.value}
        return {**plain, "error": self.value, "traceback": self.traceback}


@dataclass(frozen=True, slots=True)
class Addition:
    """One more part, added by a part while it runs. It is in the collector before that one's end.

    Attributes:
        index: Which part has added it.
        added: What tells it from others.
    """

    collector: str
    index: int
    added: str

    def to_plain(self) -> dict[str, Any]:
        """Return the map that travels."""
        return {"v": _VERSION, "chord": self.collector, "index": self.index, "add": self.added}


def encode_addition(addition: Addition, serializer: str) -> EncodedMessage:
    """Make the message of one more part."""
    return _encode(addition.to_plain(), addition.collector, addition.added[:200], serializer)


def encode_manifest(manifest: Manifest, serializer: str) -> EncodedMessage:
    """Make the message of a manifest.

    Raises:
        EncodeError: The body cannot be serialized.
    """
    return _encode(manifest.to_plain(), manifest.collector, f"manifest {manifest.group_id}"[:200], serializer)


def encode_part(part: PartEnd, serializer: str) -> EncodedMessage:
    """Make the message that tells of a part's end.

    Raises:
        EncodeError: Its result cannot be serialized.
    """
    return _encode(part.to_plain(), part.collector, part.task_id[:200], serializer)


def _encode(plain: Mapping[str, Any], collector: str, correlation_id: str, serializer: str) -> EncodedMessage:
    content_type, content_encoding, body = dumps(plain, serializer)
    message = Message(
        body, content_type, content_encoding, correlation_id=correlation_id, delivery_mode=PERSISTENT
    )  # fmt: skip
    return encode(message, "", collector)


def read_message(
    collector: str, body: bytes, content_type: Any, content_encoding: Any, accept: frozenset[str], limits: Limits
) -> Manifest | PartEnd | Addition:
    """Read a message of a collector.

    Raises:
        ContentError: It is neither a manifest nor a part of this chord, is not accepted, or cannot be read.
    """
    if len(body) > limits.max_bytes:
        raise DecodeError(f"expected a message of at most {limits.max_bytes} bytes, got {len(body)}")
    plain = loads(body, content_type, content_encoding, accept, limits)
    if not isinstance(plain, Mapping) or plain.get("v") != _VERSION or plain.get("chord") != collector:
        # Signed ones too: what was signed for another chord is nothing in this one.
        raise DecodeError("expected a message of this chord")
    if "add" in plain:
        return _addition(collector, plain)
    return _manifest(collector, plain) if "body" in plain else _part(collector, plain)


def _addition(collector: str, plain: Mapping[Any, Any]) -> Addition:
    index, added = plain.get("index"), plain["add"]
    if type(index) is not int or not 0 <= index < MAX_PARTS or not _is_key(added):
        raise DecodeError(f"expected one more part of a chord to have an index and a key, got: {index!r:.80}")
    return Addition(collector, index, added)


def _manifest(collector: str, plain: Mapping[Any, Any]) -> Manifest:
    size, body, group_id, until = plain.get("size"), plain["body"], plain.get("group"), plain.get("until")
    root_id = plain.get("root_id")
    if type(size) is not int or not 0 < size <= MAX_PARTS:
        raise DecodeError(f"expected the number of parts, got: {size!r:.80}")
    if not isinstance(body, Mapping) or not isinstance(group_id, str) or not isinstance(until, (int, float)):
        raise DecodeError("expected the manifest of a chord to have a body, a group and a deadline")
    form = plain.get("form")
    if form is not None and (not isinstance(form, list) or _size_of(form) != size):
        raise DecodeError(f"expected the form of a chord's results to have {size} places, got: {form!r:.80}")
    return Manifest(collector, size, body, group_id, float(until), root_id if isinstance(root_id, str) else None, form)


def _size_of(form: list[Any]) -> int:
    """Count the places in the form of results, which is as deep as any message may be; -1 if it is none."""
    size, waiting = 0, [form]
    while waiting:
        for each in waiting.pop():
            if isinstance(each, list):
                waiting.append(each)
            elif each is None:
                size += 1
            else:
                return -1
    return size


def _part(collector: str, plain: Mapping[Any, Any]) -> PartEnd:
    index, task_id, traceback = plain.get("index"), plain.get("task_id"), plain.get("traceback")
    if type(index) is not int or not 0 <= index < MAX_PARTS or not isinstance(task_id, str):
        raise DecodeError(f"expected the part of a chord to have an index and an id, got: {index!r:.80}")
    added = plain.get("added")
    if added is not None and not _is_key(added):
        raise DecodeError(f"expected an added part of a chord to have a key, got: {added!r:.80}")
    if ("result" in plain) == ("error" in plain):
        raise DecodeError("expected the part of a chord to have either a result or an error")
    text = traceback if isinstance(traceback, str) else None
    is_success = "result" in plain
    return PartEnd(collector, index, task_id, is_success, plain["result" if is_success else "error"], text, added)
