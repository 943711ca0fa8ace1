"""The messages of chords, and the marks on their parts: what is written, and what is believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from amqptasks.exceptions import ContentDisallowed, ContentError
from amqptasks.wire.chord import (
    Addition,
    Manifest,
    Mark,
    PartEnd,
    collector_name,
    encode_addition,
    encode_manifest,
    encode_part,
    is_collector,
    read_mark,
    read_message,
)
from amqptasks.wire.serializers import Limits, accepted, by_name, dumps

QUEUE = "amqptasks.chord.c1"
LIMITS = Limits()
ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
)


def read(body: bytes, name: str = "json", queue: str = QUEUE, limits: Limits = LIMITS) -> Any:
    kind = by_name(name)
    return read_message(queue, body, kind.content_type, kind.content_encoding, accepted(("json", "msgpack")), limits)


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_what_is_written_is_read(serializer: str) -> None:
    body = {"task": "total", "args": [], "kwargs": {}, "options": {"task_id": "b"}}
    for message in (
        PartEnd(QUEUE, 3, "id", True, [1, {"a": None}]),
        PartEnd(QUEUE, 0, "id", True, None),
        PartEnd(QUEUE, 1, "id", False, {"exc_type": "ValueError"}, "Traceback: …"),
        PartEnd(QUEUE, 1, "id", True, 5, added="key"),
    ):
        encoded = encode_part(message, serializer)
        assert (encoded.exchange, encoded.routing_key) == ("", QUEUE)
        assert read(encoded.body, serializer) == message
    more = Addition(QUEUE, 1, "key")
    assert read(encode_addition(more, serializer).body, serializer) == more
    assert read_mark(Mark(QUEUE, 2, 1, "key").to_plain()) == Mark(QUEUE, 2, 1, "key")
    for form in (None, [[None, [None]]]):
        manifest = Manifest(QUEUE, 2, body, "c1", 12.5, "root", form)
        assert read(encode_manifest(manifest, serializer).body, serializer) == manifest


def test_a_message_of_another_chord_is_none_of_this_one() -> None:
    encoded = encode_part(PartEnd("amqptasks.chord.other", 0, "id", True, 1), "json")
    with pytest.raises(ContentError, match="message of this chord"):
        read(encoded.body)


GOOD = {"v": 1, "chord": QUEUE, "index": 0, "task_id": "a", "result": 1}
PLAN = {"v": 1, "chord": QUEUE, "size": 2, "body": {}, "group": "g", "until": 1.0}


@pytest.mark.parametrize(
    "plain",
    [
        {**GOOD, "v": 2}, {**GOOD, "index": -1}, {**GOOD, "index": True}, {**GOOD, "index": 10**9},
        {**GOOD, "task_id": 5}, {**GOOD, "error": 1}, {"v": 1, "chord": QUEUE, "index": 0, "task_id": "a"},
        {**PLAN, "size": 0}, {**PLAN, "size": "2"}, {**PLAN, "body": None}, {**PLAN, "group": None},
        {**PLAN, "until": "soon"}, {**PLAN, "form": [None]}, {**PLAN, "form": [None, 1]}, {**PLAN, "form": 2},
        [], None, 5,
    ],
)  # fmt: skip
def test_what_is_no_message_of_a_chord_is_refused(plain: Any) -> None:
    with pytest.raises(ContentError):
        read(dumps(plain, "json")[2])


def test_limits_and_accepted_content_hold_here_too() -> None:
    encoded = encode_part(PartEnd(QUEUE, 0, "id", True, "x" * 5000), "json")
    with pytest.raises(ContentError, match="at most 1000 bytes"):
        read(encoded.body, limits=Limits(max_bytes=1000))
    with pytest.raises(ContentDisallowed):
        read_message(QUEUE, encoded.body, "application/x-yaml", "utf-8", accepted(("json",)), LIMITS)


@given(ANYTHING | some.fixed_dictionaries(dict.fromkeys((*GOOD, *PLAN, "error"), ANYTHING)))
def test_no_content_raises_anything_else(plain: Any) -> None:
    try:
        found = read(dumps(plain, "json")[2])
    except ContentError:
        return
    assert isinstance(found, (Manifest, PartEnd))


@given(ANYTHING | some.fixed_dictionaries(dict.fromkeys(("v", "collector", "size", "index"), ANYTHING)))
def test_no_mark_raises(value: Any) -> None:
    assert read_mark(value) is None or isinstance(read_mark(value), Mark)


def test_marks() -> None:
    mark = Mark(QUEUE, 5, 4)
    assert read_mark(mark.to_plain()) == mark
    # Celery's is the body itself
    assert read_mark({"task": "total", "args": [], "kwargs": {}, "options": {}, "chord_size": 2}) is None
    for wrong in ({"size": 0}, {"size": 4}, {"index": -1}, {"collector": "work"}, {"size": 10**9}, {"v": 2}):
        assert read_mark({**mark.to_plain(), **wrong}) is None


def test_no_other_queue_is_taken_for_a_collector() -> None:
    assert is_collector(QUEUE) and is_collector("my.own.chord.x")
    for name in (
        "celery",
        "amqptasks.chord.join.v1",
        "amqptasks.chord.",
        ".chord.x",
        "a.chord.x\n",
        "x" * 300,
        None,
        5,
    ):
        assert not is_collector(name), name
    # Whatever the id, the name is one that AMQP takes
    for chord_id in ("c1", "x" * 300, "é" * 200, "a\nb"):
        name = collector_name("amqptasks", chord_id)
        assert is_collector(name) and name == collector_name("amqptasks", chord_id)
