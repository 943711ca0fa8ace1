"""Chords: a body that is called once, with the results of all parts of its header, in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amqptasks import chain, chord, group
from amqptasks.exceptions import ChordError, EncodeError
from tests.running import Workshop

pytestmark = pytest.mark.broker

SOURCE = """
    app.conf.task_queue_prefix = "chords"

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def total(values):
        return sum(values)

    @app.task
    def collect(values):
        return values

    @app.task
    def fail(text):
        raise ValueError(text)

    @app.task
    def told(task_id):
        note(f"told {task_id}")
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("chords"), broker_url, SOURCE) as made:
        made.start("-c", "2")
        yield made


def test_the_body_gets_the_results_in_the_headers_order(shop: Workshop) -> None:
    # Given a header of many calls / When it is sent with a body, in any of the ways
    add, collect = shop.tasks.add, shop.tasks.collect
    expected = [2 * number for number in range(40)]
    for result in (
        chord(add.s(number, number) for number in range(40))(collect.s()),
        chord([add.s(number, number) for number in range(40)], collect.s())(),
        (group(add.s(number, number) for number in range(40)) | collect.s()).delay(),
        chord([add.s(number) for number in range(40)], collect.s()).apply_async((0,), interval=1, max_retries=None),
    ):
        # Then the body has run with the list, in order
        values = result.get(timeout=20)
        assert values == expected or values == list(range(40))
        # And the header's results stand above it
        assert result.parent.get(timeout=20) == values


def test_chords_stand_wherever_a_call_may(shop: Workshop) -> None:
    add, total, collect = shop.tasks.add, shop.tasks.total, shop.tasks.collect
    inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
    for call, expected in (
        # In a chain, with the result of the step before
        (add.s(1, 1) | group(add.s(1), add.s(2)) | collect.s() | total.s(), 7),
        # In a header, beside chains, one of which ends in a group
        (chord([inner, add.s(3, 3), chain(add.s(0, 0), group(add.s(7), add.s(8)))], collect.s()), [6, 6, [7, 8]]),
        (chord([chain(add.s(0, 0), group(add.s(7), add.s(8) | group(add.s(1))))], collect.s()), [[7, 9]]),
        # As a body
        (chord([add.s(1, 1)], group(collect.s(), total.s())), [[2], 2]),
        (chord([add.s(1, 1), add.s(2, 2)], chain(total.s(), add.s(5))), 11),
        # Without a header
        (chord([], collect.s()), []),
        # With a body that ignores the results
        (chord([add.s(1, 1), add.s(2, 2)], add.si(5, 5)), 10),
    ):
        assert call.delay().get(timeout=20) == expected, call


def test_a_part_that_fails_fails_the_body(shop: Workshop) -> None:
    # Given a header of which one call fails, and a body with an error callback
    add, total, fail, told = shop.tasks.add, shop.tasks.total, shop.tasks.fail, shop.tasks.told
    result = chord([add.s(1, 1), fail.s("no")], total.s().on_error(told.s()) | add.s(1)).delay()
    # When its caller waits
    with pytest.raises(ChordError, match=r"Dependency \S+ raised ValueError\('no'\)") as caught:
        result.get(timeout=20, follow_parents=False)
    # Then the error names the part, and its traceback is the cause
    assert result.parent.parent.results[1].id in str(caught.value)
    assert "raise ValueError(text)" in str(caught.value.__cause__)
    # And the error callback is called, with the body's id
    shop.noted(f"told {result.parent.id}")


def test_nothing_of_a_chord_is_sent_if_a_call_of_it_cannot_be_made(shop: Workshop) -> None:
    # Given a chord within a chord, whose last call cannot be serialized / When it is sent
    add, total, told = shop.tasks.add, shop.tasks.total, shop.tasks.told
    inner = chord([told.s("inner"), told.s("inner")], total.s())
    with pytest.raises(EncodeError, match=r"argument 2 of args.*\(header 3 of 3"):
        chord([told.s("outer"), inner, add.s(1, object())], total.s()).delay()
    # Then none of its calls runs: not before one that is sent after them, in the same queue
    with shop.app.bulk():
        shop.tasks.told.delay("after")
        last = add.delay(1, 1)
    assert last.get(timeout=20) == 2
    shop.noted("told after")
    assert not {"told inner", "told outer"} & set(shop.ledger())
    # And one in a block of sends goes with it
    with shop.app.bulk():
        result = chord([add.s(1, 1), chord([add.s(2, 2)], total.s())], total.s()).delay()
    assert result.get(timeout=20) == 6


def test_what_is_linked_to_the_errors_of_any_body_is_called(shop: Workshop) -> None:
    # Given chords with bodies of each kind, and error callbacks of the whole / When their headers fail
    add, total, told = shop.tasks.add, shop.tasks.total, shop.tasks.told
    for body in (total.s() | add.s(1), group(total.s()), chord([total.s()], total.s())):
        result = chord([shop.tasks.fail.s("no")], body).apply_async(link_error=told.s())
        first = result.parent if result.parent.parent is not None and body.subtask_type == "chain" else result
        # Then those are called, with the id of what would have been the first
        shop.noted(f"told {next(first.leaves()).id}")


def test_a_thousand_parts_are_counted(shop: Workshop) -> None:
    add, total = shop.tasks.add, shop.tasks.total
    assert chord(add.s(number, 1) for number in range(1000))(total.s()).get(timeout=40) == 500500


def test_a_chord_whose_time_is_over_fails(shop: Workshop) -> None:
    # Given a chord of which one part is not run, and whose time is short
    add, total = shop.tasks.add, shop.tasks.total
    nowhere = f"{shop.queue}-nowhere"
    shop.also_delete(nowhere)
    parts = [add.s(1, 1), add.s(2, 2).set(queue=nowhere), add.s(3, 3)]
    for by_setting in (False, True):
        if by_setting:
            shop.app.conf.result_chord_expires = 0.2
        result = chord(parts, total.s()).apply_async(chord_expires=None if by_setting else 0.2)
        # When the time is over / Then the body fails, and names what is missing
        missing = r"1 of the chord's 3 parts did not end in time .*: index 1 of the header.*set chord_join = 'store'"
        with pytest.raises(ChordError, match=missing):
            result.get(timeout=20)
    shop.app.conf.result_chord_expires = None
