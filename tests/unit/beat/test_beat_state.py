"""What the leader writes for the next one, and how that reads it, whoever wrote it."""

from __future__ import annotations

import json
import random
from datetime import timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.beat.state import (
    BASE,
    BID,
    CHANGES,
    EntryState,
    Journal,
    Record,
    State,
    assemble,
    from_us,
    read_record,
    to_us,
    write_record,
)
from amqptasks.exceptions import DecodeError

MAX = 1 << 20
moments = st.datetimes(timezones=st.just(timezone.utc), min_value=from_us(0).replace(tzinfo=None))
states = st.builds(
    EntryState, st.integers(0, 1 << 52), st.none() | st.integers(0, 1 << 52), st.integers(0, 1 << 40),
    st.text(max_size=12), st.booleans(),
)  # fmt: skip
entries = st.dictionaries(st.text(min_size=1, max_size=20), states, max_size=5)


@given(moments)
def test_moments_are_kept_to_the_microsecond(moment: Any) -> None:
    assert from_us(to_us(moment)) == moment


@given(entries, st.sampled_from([BASE, CHANGES]), st.integers(0, 1 << 40))
def test_a_record_is_read_as_it_was_written(known: dict[str, EntryState], kind: str, number: int) -> None:
    # Given a record / When it is written and read / Then it is the same
    record = Record(kind, "beat@here", "term", "lineage", number, 5, known, {"added": {"task": "a"}}, ("gone",))
    assert read_record(write_record(record), MAX) == record


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(
        st.sampled_from(["v", "kind", "entries", "number", "at", "who", "gone", "added", "x"]), each, max_size=6),
    max_leaves=12,
).map(lambda each: json.dumps(each).encode()))  # fmt: skip
def test_whatever_is_there_is_read_or_refused(body: bytes) -> None:
    # Given anything / When it is read / Then it is a record, or refused in words
    try:
        assert isinstance(read_record(body, MAX), Record)
    except DecodeError as error:
        assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"kind": "theft"}, {"number": -1}, {"number": True}, {"at": 1e300}, {"entries": [1]},
        {"entries": {"a": 5}}, {"entries": {"a": [1, 2]}}, {"entries": {"a": ["x", None, 0, "", 0]}},
        {"entries": {"a": [1, None, 0, "m" * 200, 0]}}, {"entries": {"": [1, None, 0, "", 0]}},
        {"entries": {"n" * 2000: [1, None, 0, "", 0]}}, {"entries": {"a": [10**30, None, 0, "", 0]}},
        {"gone": "abc"}, {"gone": [5]}, {"added": []}, {"added": {"a": 5}}, {"who": 5}, {"lineage": "x" * 2000},
    ],
)  # fmt: skip
def test_a_record_with_something_wrong_is_refused(change: dict[str, Any]) -> None:
    # Given a good record / When one thing in it is changed / Then it is refused
    good = json.loads(write_record(Record(BASE, "w", "t", "l", 1, 1, {"a": EntryState(1)})))
    assert read_record(json.dumps(good).encode(), MAX).kind == BASE
    with pytest.raises(DecodeError):
        read_record(json.dumps(good | change).encode(), MAX)


def test_nesting_and_size_are_bounded() -> None:
    for body in (b"[" * 100_000, b'"' + b"x" * MAX + b'"'):
        with pytest.raises(DecodeError):
            read_record(body, MAX)


@given(st.integers(1, 12), st.integers(0, 5), st.randoms())
def test_records_are_put_together_in_any_order(count: int, base_at: int, chance: random.Random) -> None:
    # Given a base, older records, and the changes since, as a leader left them
    base_number = min(base_at, count)
    records = [Record(CHANGES, "", "t", "l", n, n, {"a": EntryState(n), f"e{n}": EntryState(n)}) for n in range(count)]
    whole = {f"e{n}": EntryState(n) for n in range(base_number + 1)} | {"a": EntryState(base_number)}
    records[base_number:base_number] = [Record(BASE, "", "t", "l", base_number, base_number, whole)]
    records = [each for each in records if each.kind == BASE or each.number != base_number]
    records.append(Record(BID, "another"))
    chance.shuffle(records)

    # When they are put together
    state, is_torn = assemble(records)

    # Then the last word on each entry counts, and nothing is missing
    last = max(count - 1, base_number)
    assert state is not None and not is_torn
    assert state.number == last and state.entries["a"] == EntryState(last)
    assert state.entries.keys() == {"a", *(f"e{n}" for n in range(last + 1))}


def test_what_is_missing_is_noticed() -> None:
    # Given changes without the one before, or without a base / When they are put together / Then that is told
    base = Record(BASE, "", "t", "l", 1, 1, {"a": EntryState(1)})
    assert assemble([base, Record(CHANGES, "", "t", "l", 3, 3, {"a": EntryState(3)})])[1]
    assert assemble([Record(CHANGES, "", "t", "l", 3, 3)]) == (None, True)
    assert assemble([Record(BID)]) == (None, False)
    # And of two schedules that began without a memory the later counts
    other = Record(BASE, "", "u", "m", 1, 9, {"b": EntryState(9)})
    found = assemble([other, base, Record(CHANGES, "", "t", "l", 2, 2)])[0]
    assert found is not None and found.lineage == "m" and found.entries.keys() == {"b"}


def test_entries_that_went_are_gone() -> None:
    state = State("l", entries={"a": EntryState(1), "b": EntryState(1)}, added={"b": {}})
    state.apply(Record(CHANGES, "", "t", "l", 1, 1, {"c": EntryState(2)}, {"c": {"task": "t"}}, ("b",)))
    assert state.entries.keys() == {"a", "c"} and state.added == {"c": {"task": "t"}}


def test_the_newer_memory_is_believed() -> None:
    # Given two memories of one schedule / Then the one that was written later counts, by its number
    assert State("l", 5, at=1).is_newer(State("l", 4, at=9))
    # And of two schedules by the time
    assert State("l", 1, at=9).is_newer(State("m", 5, at=1))


def test_a_small_schedule_is_written_whole_and_a_large_one_in_pieces() -> None:
    # Given journals / When bases of different sizes were written
    small, large = Journal(), Journal()
    assert small.wants_base(0) and large.wants_base(0)
    small.wrote(BASE, 4000, 0)
    large.wrote(BASE, 50_000, 0)

    # Then the small one is always written whole
    assert small.wants_base(1)
    # And of the large one what changed, until that is as much again, or many pieces, or old
    assert not large.wants_base(1)
    large.wrote(CHANGES, 50_001, 1)
    assert large.wants_base(1)
    large.wrote(BASE, 50_000, 1)
    for _ in range(400):
        assert not large.wants_base(1)
        large.wrote(CHANGES, 10, 1)
    assert large.wants_base(1)
    large.wrote(BASE, 50_000, 1)
    assert not large.is_old(120) and large.is_old(121) and large.wants_base(121)
