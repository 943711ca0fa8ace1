"""What the messages of a collector amount to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from amqptasks.wire.chord import Addition, Manifest, PartEnd
from amqptasks.worker.gathered import Gathered
from amqptasks.worker.joining import FIRST_SWEEP_S, LONGEST_SWEEP_S, MAX_SWEEPS, next_sweep_s

CHORD = "amqptasks.chord.c"


def manifest(size: int, until: float = 1e12) -> Manifest:
    return Manifest(CHORD, size, {"task": "body"}, "c", until)


def end(index: int, value: object = None, *, ok: bool = True) -> PartEnd:
    return PartEnd(CHORD, index, f"id-{index}", ok, value)


def added(index: int, key: str, value: object = None) -> tuple[Addition, PartEnd]:
    return Addition(CHORD, index, key), PartEnd(CHORD, index, f"id-{key}", True, value, added=key)


def gathered(*messages: Manifest | PartEnd | Addition, max_bytes: int = 10_000, size: int = 100) -> Gathered:
    made = Gathered(max_bytes)
    for each in messages:
        made.add(each, size)
    return made


def test_nothing_is_complete_without_its_manifest() -> None:
    assert not gathered().is_complete
    assert not gathered(end(0), end(1)).is_complete
    assert gathered(end(0), end(1), manifest(2)).is_complete


def test_the_first_end_of_a_part_counts() -> None:
    # Given parts of which some ended twice, differently / Then the first is what counts
    found = gathered(manifest(2), end(0, "first"), end(0, "second"), end(1, "one"), end(1, ok=False))
    assert (found.is_complete, found.values, found.failed) == (True, ["first", "one"], None)
    # And the same holds of manifests
    assert gathered(manifest(2), manifest(9)).size == 2


def test_a_part_beyond_the_number_does_not_count() -> None:
    found = gathered(manifest(2), end(0), end(7), end(2, ok=False))
    assert (found.is_complete, found.missing, found.failed) == (False, [1], None)


def test_the_first_of_several_failures_is_told() -> None:
    found = gathered(manifest(3), end(2, ok=False), end(0), end(1, "it", ok=False))
    assert found.failed == end(1, "it", ok=False)


def test_results_have_the_form_that_the_manifest_says() -> None:
    plan = Manifest(CHORD, 4, {"task": "body"}, "c", 1e12, None, [None, [None, [None]], None])
    found = gathered(plan, *added(1, "k", "more"), *(end(index, index) for index in range(4)))
    assert found.values == [0, [1, "more", [2]], 3]


@given(some.integers(1, 8).flatmap(lambda size: some.tuples(some.just(size), some.lists(some.integers(0, size + 1)))))
def test_complete_is_when_every_index_was_seen(case: tuple[int, list[int]]) -> None:
    size, indexes = case
    found = gathered(*(end(index, index) for index in indexes), manifest(size))
    assert found.is_complete == (set(range(size)) <= set(indexes))
    assert found.missing == sorted(set(range(size)) - set(indexes))
    if found.is_complete:
        assert found.values == list(range(size))


def test_an_added_part_is_waited_for_and_stands_after_the_one_that_added_it() -> None:
    # Given a header of two, whose first part adds two / When the second one's end is not there yet
    first, first_end = added(0, "k1", "first")
    second, second_end = added(0, "k2", "second")
    messages = [manifest(2), first, second, end(0, 0), end(1, 1), second_end]
    found = gathered(*messages)
    # Then it is waited for
    assert (found.is_complete, found.size, found.missing) == (False, 4, [0])
    # And once it is there, all stand in order, in whatever order they ended; what is said twice is said once
    found = gathered(*messages, first, second_end, first_end)
    assert (found.is_complete, found.values) == (True, [0, "first", "second", 1])
    # And the end of one that nobody has added counts for nothing
    assert not gathered(manifest(2), end(0), second_end).is_complete


def test_what_is_too_much_for_a_message_is_not_kept() -> None:
    # Given results that are larger together than a message may be
    found = gathered(manifest(5), *(end(index, "x" * 4_000) for index in range(5)), max_bytes=10_000, size=4_300)
    # Then that is known, and the rest is only counted
    assert found.is_too_large and found.is_complete
    assert found.values[-1] is None
    # And many small ones are no trouble: what their messages say besides does not count
    assert not gathered(manifest(50), *(end(index) for index in range(50)), max_bytes=10_000, size=200).is_too_large


def test_the_deadline() -> None:
    assert not gathered().is_overdue(5.0)
    assert not gathered(manifest(1, until=5.0)).is_overdue(4.9)
    assert gathered(manifest(1, until=5.0)).is_overdue(5.0)
    # One that is no number is over too
    assert gathered(manifest(1, until=float("nan"))).is_overdue(5.0)


def test_sweeps_grow_rarer_until_the_deadline_and_end() -> None:
    far = manifest(1, until=1e12)
    waits = [next_sweep_s(count, far, False, 0.0) for count in range(9)]
    assert waits == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0]
    # The last is at the deadline, and one that is late comes at once
    assert next_sweep_s(5, manifest(1, until=100.0), False, 70.0) == 30.05
    assert next_sweep_s(5, manifest(1, until=100.0), False, 200.0) == 0.05
    # Without a manifest there are three; where nothing could be read it is tried for longer
    assert [next_sweep_s(count, None, False, 0.0) for count in (0, 3)] == [FIRST_SWEEP_S, None]
    assert [next_sweep_s(count, None, True, 0.0) for count in (0, 30, MAX_SWEEPS)] == [60.0, LONGEST_SWEEP_S, None]
