"""How many slots a pool is to have, and how much is prefetched for them: decided from numbers alone."""

from __future__ import annotations

from typing import Any

import pytest

from amqptasks.entities import Queue
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.settings import Conf
from amqptasks.worker.autoscaling import Bounds, Demand, Load
from amqptasks.worker.prefetching import MAX_PREFETCH, prefetching
from amqptasks.worker.sizing import Sizing


@pytest.fixture
def demand() -> Demand:
    """From 1 to 4 slots, kept for 30 seconds."""
    return Demand(Bounds(4, 1), 30.0, 0.0)


def test_slots_are_added_at_once_for_what_waits(demand: Demand) -> None:
    # Given a busy pool / When tasks wait / Then there is to be a slot for each, up to the bound
    assert demand.wanted(Load(slots=1, busy=1, waiting=2), 1.0) == 3
    assert demand.wanted(Load(slots=3, busy=3, waiting=90), 1.1) == 4
    assert demand.wanted(Load(slots=4, busy=4, waiting=90), 1.2) == 4


def test_idle_slots_are_used_before_any_is_added(demand: Demand) -> None:
    assert demand.wanted(Load(slots=3, busy=1, waiting=2), 1.0) == 3
    assert demand.wanted(Load(slots=3, busy=2, waiting=2), 1.0) == 4


def test_slots_that_were_not_needed_for_a_while_go(demand: Demand) -> None:
    # Given four slots that were all needed last at 10 / When all are idle
    assert demand.wanted(Load(4, 4, 0), 10.0) == 4
    # Then they stay for 30 seconds, and then go, but for the last
    assert demand.wanted(Load(4, 0, 0), 39.9) == 4
    assert demand.wanted(Load(4, 0, 0), 40.0) == 1
    assert demand.wanted(Load(1, 0, 0), 1000.0) == 1


def test_as_many_stay_as_were_needed_at_most(demand: Demand) -> None:
    # Given four slots, of which three were needed in between / When the time is over / Then three stay
    assert demand.wanted(Load(4, 4, 0), 10.0) == 4
    assert demand.wanted(Load(4, 3, 0), 20.0) == 4
    assert demand.wanted(Load(4, 1, 0), 40.0) == 3
    # And what is left of them goes by the same rule
    assert demand.wanted(Load(3, 1, 0), 69.0) == 3
    assert demand.wanted(Load(3, 1, 0), 70.0) == 1


def test_the_time_begins_again_when_all_slots_are_needed(demand: Demand) -> None:
    assert demand.wanted(Load(4, 0, 0), 29.0) == 4
    assert demand.wanted(Load(4, 4, 0), 29.5) == 4
    assert demand.wanted(Load(4, 0, 0), 59.0) == 4


def test_a_pool_outside_of_its_bounds_is_brought_into_them_at_once(demand: Demand) -> None:
    demand.bounds = Bounds(3, 2)
    assert demand.wanted(Load(slots=4, busy=4, waiting=9), 1.0) == 3
    assert demand.wanted(Load(slots=1, busy=0, waiting=0), 1.0) == 2


def test_an_empty_pool_grows_for_the_first_task() -> None:
    demand = Demand(Bounds(4, 0), 30.0, 0.0)
    assert demand.wanted(Load(0, 0, 0), 1.0) == 0
    assert demand.wanted(Load(0, 0, 1), 1.0) == 1


@pytest.mark.parametrize(("most", "least"), [(0, 0), (2, 3), (2, -1), (-1, -2)])
def test_bounds_that_are_none_are_refused(most: int, least: int) -> None:
    with pytest.raises(ImproperlyConfigured, match="expected to autoscale"):
        Bounds(most, least)


# -- prefetch


def test_the_prefetch_follows_the_slots() -> None:
    rule = prefetching(Conf(), None, "prefork", 0)
    assert [rule.count(slots) for slots in (1, 3)] == [4, 12]
    assert [rule.count(slots, is_short=True) for slots in (1, 3)] == [64, 192]
    assert rule.count(100_000) == MAX_PREFETCH


@pytest.mark.parametrize(
    ("settings", "given", "pool"),
    [({"worker_prefetch_multiplier": 4}, None, "prefork"), ({}, 4, "prefork"), ({}, None, "asyncio")],
)
def test_a_multiplier_that_was_given_holds_for_short_tasks_too(
    settings: dict[str, Any], given: int | None, pool: str
) -> None:
    conf = Conf()
    conf.update(settings)
    assert prefetching(conf, given, pool, 0).count(2, is_short=True) == 8


def test_one_more_than_runs_is_fetched_where_it_calls_for_another_slot() -> None:
    # Given as little prefetch as can be, and up to three slots / Then a task can wait, until there are three
    conf = Conf()
    conf.worker_disable_prefetch = True
    rule = prefetching(conf, None, "prefork", 3)
    assert [rule.count(slots) for slots in range(4)] == [1, 2, 3, 3]
    # And no limit stays none
    assert prefetching(Conf(), 0, "prefork", 3).count(1) == 0


# -- orders


@pytest.mark.parametrize("pool", ["solo", "asyncio"])
def test_a_pool_of_a_fixed_size_says_so(pool: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"the {pool} pool has a fixed"):
        Sizing(Conf(), pool, 1, None, (3, 1))
    with pytest.raises(ValueError, match=f"the {pool} pool has a fixed"):
        Sizing(Conf(), pool, 1, None, None).grow(1)


def test_orders_that_make_no_sense_are_refused() -> None:
    fixed, scaled = Sizing(Conf(), "prefork", 2, None, None), Sizing(Conf(), "prefork", 2, None, (3, 1))
    with pytest.raises(ValueError, match="a number above 0, got: 0"):
        fixed.grow(0)
    with pytest.raises(ValueError, match="by less than its 2, got: 2"):
        fixed.shrink(2)
    with pytest.raises(ValueError, match="Autoscale not enabled"):
        fixed.autoscale(3, 1)
    # The sizes of an autoscaled pool begin at the least
    assert (fixed.concurrency, scaled.concurrency) == (2, 1)


@pytest.mark.parametrize(
    "queue", [Queue("q", auto_delete=True), Queue("q", queue_arguments={"x-single-active-consumer": True})]
)
def test_a_queue_whose_consumer_must_stay_is_consumed_for_the_most_from_the_start(queue: Queue) -> None:
    # Given one to three slots and a multiplier of 4 / Then its prefetch is that of three, and another's that of one
    sizing = Sizing(Conf(), "prefork", 1, None, (3, 1))
    assert (sizing.prefetch_of(queue), sizing.prefetch_of(Queue("other"))) == (12, 4)
