"""Which attempts run here, and which were finished here: what a redelivery is held against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amqptasks.broker.loop import Loop
from amqptasks.worker.ledger import MIN_FINISHED, UNBOUNDED_FINISHED, Ledger
from tests.requests import Deliverer


@pytest.fixture
def deliverer() -> Iterator[Deliverer]:
    loop = Loop()
    yield Deliverer(loop)
    loop.close()


def test_an_attempt_runs_and_then_is_finished(deliverer: Deliverer) -> None:
    ledger, request = Ledger(), deliverer.request("1")
    assert ledger.running(request.key) is None and not ledger.is_finished(request.key)
    ledger.begin(request)
    assert ledger.running(request.key) is request and not ledger.is_finished(request.key)
    ledger.end(request)
    assert ledger.running(request.key) is None and ledger.is_finished(request.key)


def test_another_retry_is_another_attempt(deliverer: Deliverer) -> None:
    # Given an attempt that was finished / When the next one of the same task comes / Then it is not known
    ledger = Ledger()
    first, second = deliverer.request("1"), deliverer.request("1", headers={"retries": 1})
    assert deliverer.request("1", headers={"retries": None}).key == first.key
    ledger.begin(first)
    ledger.end(first)
    assert not ledger.is_finished(second.key)


def test_what_went_back_is_to_be_run_when_it_comes_again(deliverer: Deliverer) -> None:
    ledger, request = Ledger(), deliverer.request("1")
    ledger.begin(request)
    ledger.forget(request)
    assert ledger.running(request.key) is None and not ledger.is_finished(request.key)


def test_a_copy_of_a_running_attempt_neither_ends_nor_replaces_it(deliverer: Deliverer) -> None:
    # Given two deliveries of one attempt, the later one noted / When the earlier is forgotten or ends
    ledger, first, second = Ledger(), deliverer.request("1"), deliverer.request("1")
    ledger.begin(first)
    ledger.begin(second)
    ledger.forget(first)
    assert ledger.running(first.key) is second
    ledger.end(first)
    # Then the other still runs, and the attempt was finished once
    assert ledger.running(first.key) is second and ledger.is_finished(first.key)


def test_memory_is_bounded_and_the_newest_are_kept(deliverer: Deliverer) -> None:
    ledger = Ledger(limit=3)
    requests = [deliverer.request(str(number)) for number in range(5)]
    for each in requests:
        ledger.begin(each)
        ledger.end(each)
    assert [ledger.is_finished(each.key) for each in requests] == [False, False, True, True, True]


def test_copies_take_no_room_from_others(deliverer: Deliverer) -> None:
    # Given an attempt whose message came many times / When it ends each time / Then the others are still known
    ledger = Ledger(limit=3)
    other, copied = deliverer.request("other"), deliverer.request("copied")
    ledger.end(other)
    for _ in range(10):
        ledger.end(copied)
    assert ledger.is_finished(other.key) and ledger.is_finished(copied.key)
    ledger.end(deliverer.request("third"))
    ledger.end(deliverer.request("fourth"))
    assert not ledger.is_finished(other.key) and ledger.is_finished(copied.key)


@pytest.mark.parametrize(
    ("outstanding", "remembered"), [((8,), MIN_FINISHED), ((3_000,), 6_000), ((3_000, 8), 6_000), ((0,), 10_000)]
)
def test_it_remembers_more_than_one_lost_connection_brings_back(
    deliverer: Deliverer, outstanding: tuple[int, ...], remembered: int
) -> None:
    # Given the prefetch counts of the consumers, one after another; 0: none / When more than that many attempts end
    assert UNBOUNDED_FINISHED == 10_000
    ledger = Ledger()
    for count in outstanding:
        ledger.expect(count)
    requests = [deliverer.request(str(number)) for number in range(remembered + 1)]
    for each in requests:
        ledger.end(each)
    # Then the newest are known
    assert not ledger.is_finished(requests[0].key) and all(ledger.is_finished(each.key) for each in requests[1:])
