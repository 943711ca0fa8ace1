"""Revocations as they stand in the stream: what was written is read back, and nothing else does any harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.app.control import Control
from amqptasks.exceptions import DecodeError
from amqptasks.wire.revocation import MAX_IDS, SIGNALS, Revocation, read_revocation
from amqptasks.worker.revoked import RevokedTasks, names

short = st.text(min_size=1, max_size=50)
revocations = st.builds(
    Revocation,
    ids=st.lists(short, max_size=5).map(tuple),
    stamps=st.dictionaries(short, st.lists(short, max_size=3).map(tuple), max_size=3),
    terminate=st.booleans(),
    signal=st.sampled_from(sorted(SIGNALS)),
    at=st.floats(0, 4e9),
    marker=st.none() | short,
    destinations=st.lists(short, max_size=3).map(tuple),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
#: A good entry in which some fields are something else.
nearly = st.builds(
    lambda good, bad: {**json.loads(good.to_body()), **bad},
    revocations,
    st.dictionaries(
        st.sampled_from(["ids", "stamps", "terminate", "signal", "at", "marker", "destinations"]), anything, max_size=3
    ),
)


@given(revocations)
def test_what_was_written_is_read_back(revocation: Revocation) -> None:
    assert read_revocation(revocation.to_body()) == revocation


@given(st.binary(max_size=300) | (anything | nearly).map(lambda value: json.dumps(value).encode()))
def test_any_entry_is_a_revocation_or_refused(entry: bytes) -> None:
    # When anything stands in the stream / Then it is a revocation that a worker can keep and compare, or one error
    try:
        revocation = read_revocation(entry)
    except DecodeError as error:
        assert len(str(error)) < 1000
        return
    kept = RevokedTasks(10, 60.0)
    kept.add(revocation)
    for headers in ({}, {"stamped_headers": ["a"], "stamps": {"a": 1}}, {"stamped_headers": [[]], "stamps": {"": []}}):
        names(revocation, "an id", headers)
        kept.covers("an id", headers)


def test_too_much_in_one_entry_is_refused() -> None:
    many: list[dict[str, Any]] = [
        {"ids": ["x"] * (MAX_IDS + 1)}, {"stamps": {"a": ["x"] * (MAX_IDS + 1)}}, {"destinations": ["x"] * 1001},
        {"stamps": {str(number): ["x"] for number in range(21)}}, {"ids": ["x" * 100_000]},
    ]  # fmt: skip
    for fields in many:
        with pytest.raises(DecodeError):
            read_revocation(json.dumps({**json.loads(Revocation(at=1.0).to_body()), **fields}).encode())


@pytest.mark.parametrize("destination", ["celery@host", {"celery@host": 1}, [], [""], [5], ["x"] * 1001])
def test_what_is_no_list_of_workers_is_no_destination(destination: Any) -> None:
    app: Any = None
    with pytest.raises(ValueError, match="expected the destination to be a list"):
        Control(app).revoke("id", destination)
