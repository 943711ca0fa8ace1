"""Whose turn it is under a rate limit: pure functions of time."""

from __future__ import annotations

import heapq
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.worker.rate_limits import HOLD_S, MAX_PARK_S, Bucket, Hold, Park, interval_of


@pytest.mark.parametrize(
    ("rate", "interval_s"),
    [
        (None, None), ("", None), (0, None), ("0/s", None), ("10/s", 0.1), ("10/m", 6.0), ("100/h", 36.0),
        ("0.5/s", 2.0), (4, 0.25), (0.5, 2.0), ("5", 0.2),
    ],
)  # fmt: skip
def test_a_rate_is_read_as_celery_reads_it(rate: Any, interval_s: float | None) -> None:
    # Given a rate, When it is read, Then it is the time from one task to the next
    assert interval_of(rate) == interval_s


@pytest.mark.parametrize("rate", ["fast", "10/d", "-1/s", -1, "nan", "inf/s", True, [10], object()])
def test_what_is_no_rate_is_refused_with_what_was_expected(rate: Any) -> None:
    # Given what is no rate, When it is read, Then the error shows a rate
    with pytest.raises(ImproperlyConfigured, match="expected a rate limit to be like '10/s'"):
        interval_of(rate)


def run_line(bucket: Bucket, arrivals: list[float], late_s: float, can_hold: bool) -> list[float]:
    """Let calls come, be held or parked and come back `late_s` late; return when each began, in order."""
    begun: list[float] = []
    events = [(moment, number, False) for number, moment in enumerate(arrivals)]
    heapq.heapify(events)
    while events:
        now, number, is_held = heapq.heappop(events)
        decision = None if is_held else bucket.admit(now, can_hold)
        if decision is None:
            begun.append(now)
        elif isinstance(decision, Hold):
            assert 0 < decision.wait_s <= HOLD_S
            heapq.heappush(events, (now + decision.wait_s, number, True))
        else:
            assert isinstance(decision, Park)
            assert 0 < decision.wait_s <= MAX_PARK_S
            heapq.heappush(events, (now + decision.wait_s + late_s, number, False))
    return begun


@given(
    arrivals=st.lists(st.floats(0, 30), min_size=1, max_size=40),
    interval_s=st.floats(0.01, 10),
    late_s=st.floats(0, 0.08),
    can_hold=st.booleans(),
)
def test_no_window_holds_more_calls_than_the_rate_allows(
    arrivals: list[float], interval_s: float, late_s: float, can_hold: bool
) -> None:
    # Given calls that come as they like
    # When each begins as it is told to
    begun = run_line(Bucket(interval_s), arrivals, late_s, can_hold)

    # Then all begin, and any n+1 of them take n intervals, but for the tenth that a late one leaves to the next
    assert len(begun) == len(arrivals)
    for first in range(len(begun)):
        for last in range(first + 1, len(begun)):
            assert begun[last] - begun[first] >= (last - first - 0.1) * interval_s - 1e-6


def test_a_line_of_parked_calls_is_worked_off_at_the_rate_without_going_round_in_circles() -> None:
    # Given a hundred calls at once, one a second allowed, and a broker that gives back 50 ms late
    bucket, turns = Bucket(1.0), 0
    admit = bucket.admit

    def counted(now: float, can_hold: bool) -> Hold | Park | None:
        nonlocal turns
        turns += 1
        return admit(now, can_hold)

    bucket.admit = counted  # type: ignore[method-assign]

    # When they are run
    begun = run_line(bucket, [0.0] * 100, 0.05, False)

    # Then a call is parked about once, apart from those whose turn is more than a minute away
    assert begun[-1] <= 99 * 1.1
    assert turns <= 100 + 99 + 40 + 10
