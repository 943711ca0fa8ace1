"""Notes of delayed calls as they travel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amqptasks.exceptions import DecodeError
from amqptasks.wire.delayed import MAX_NOTES, MAX_TEXT, Delayed, encode_notes, read_notes

CALL = Delayed("an id", "a.task", 1_800_000_000.5, "a queue", "(1,)", "{}")


def test_notes_survive_the_way() -> None:
    assert read_notes(encode_notes([CALL, CALL._replace(args=None, kwargs=None)])).calls == (
        CALL, CALL._replace(args=None, kwargs=None),
    )  # fmt: skip
    assert read_notes(encode_notes([], "a marker")).marker == "a marker"


def test_long_arguments_are_cut() -> None:
    (read,) = read_notes(encode_notes([CALL._replace(args="x" * 5000, kwargs="y" * 5000)])).calls
    assert (read.args, read.kwargs) == ("x" * MAX_TEXT, "y" * MAX_TEXT)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"{}", b'{"calls": {}}', b"\xff", b'{"calls": 1}'])
def test_what_is_no_note_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read_notes(body)


@pytest.mark.parametrize(
    "row",
    [
        5, [], ["id"], ["", "n", 1.0, "q", None, None], ["x" * 256, "n", 1.0, "q", None, None],
        ["id", 5, 1.0, "q", None, None], ["id", "n", "soon", "q", None, None], ["id", "n", -1, "q", None, None],
        ["id", "n", 1e300, "q", None, None], ["id", "n", True, "q", None, None], ["id", "n", 1.0, "", None, None],
        ["id", "n", 1.0, "q", 5, None], ["id", "n", 1.0, "q", None, "x" * 101],
    ],
    ids=str,
)  # fmt: skip
def test_a_note_that_is_wrong_leaves_the_others(row: Any) -> None:
    body = json.dumps({"calls": [row, list(CALL)], "marker": 5}).encode()
    assert read_notes(body).calls == (CALL,) and read_notes(body).marker is None


def test_of_too_many_notes_the_first_are_read() -> None:
    body = json.dumps({"calls": [list(CALL)] * (MAX_NOTES + 5)}).encode()
    assert len(read_notes(body).calls) == MAX_NOTES
