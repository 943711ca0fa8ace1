"""What is due: the decision for one entry, and for many in order, against schedules gone through one by one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.beat.crontab import crontab
from amqptasks.beat.schedules import BaseSchedule, schedule
from amqptasks.beat.timing import SKIP_AFTER, Firing, Plan, Timetable, decide, step

UTC = timezone.utc
START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def every_due(rule: BaseSchedule, anchor: datetime, now: datetime) -> list[datetime]:
    found = []
    due = rule.next_after(anchor)
    while due is not None and due <= now:
        found.append(due)
        due = rule.next_after(due)
    return found


rules = st.one_of(
    st.integers(1, 7200).map(schedule),
    st.floats(0.05, 20).map(schedule),
    st.integers(60, 90000).map(lambda each: schedule(each, relative=True)),
    st.sampled_from([crontab(), crontab(minute="*/7"), crontab(minute=0, hour="3,17"), crontab(0, 0, day_of_month=31)]),
)


@given(rules, st.sampled_from(["skip", "once", "all"]), st.integers(1, 40), st.floats(0, 100_000))
def test_what_is_sent_is_what_was_due(rule: BaseSchedule, missed: str, most: int, away_s: float) -> None:
    # Given an entry that was dealt with some time ago
    anchor, now = START, at(min(away_s, 2000) if isinstance(rule, schedule) and rule.seconds < 1 else away_s)
    plan = Plan(rule, missed, most)

    # When it is decided what to send
    found = step(plan, anchor, now)

    # Then it is of what came due, never early; and the next is the first that has not come
    due = every_due(rule, anchor, now)
    assert found.anchor == (due[-1] if due else anchor)
    assert found.next == rule.next_after(found.anchor)
    assert found.next is None or found.next > now
    if missed == "all":
        assert list(found.due) == due[-most:]
    elif missed == "once":
        assert list(found.due) == due[-1:]
    else:
        assert list(found.due) == [each for each in due[-1:] if now - each <= SKIP_AFTER]
    # And to decide again gives nothing more
    again = step(plan, found.anchor, now)
    assert again.due == () and again.anchor == found.anchor and again.next == found.next


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(rules, st.sampled_from(["once", "all"])), min_size=1),
    st.lists(st.floats(0, 900), min_size=1, max_size=12),
)
def test_a_timetable_decides_as_the_pure_function_does(
    entries: dict[str, tuple[BaseSchedule, str]], pauses: list[float]
) -> None:
    # Given the same entries in a timetable, and as plain data
    plans = {name: Plan(rule, missed, 3) for name, (rule, missed) in entries.items()}
    anchors = dict.fromkeys(plans, START)
    table = Timetable(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    for name, plan in plans.items():
        table.set(name, plan, START, START)
    now = START

    for pause in pauses:
        # When time goes on
        now += timedelta(seconds=pause)
        taken = []
        while some := table.take(now, 2):
            taken += some
        firings, anchors, wakes_at = decide(plans, anchors, now)

        # Then both send the same, remember the same, and wake at the same time
        assert sorted(taken) == sorted(firings)
        assert {name: table.anchor(name) for name in plans} == anchors
        assert table.wakes_at == wakes_at


def test_a_year_away_is_decided_at_once() -> None:
    # Given entries that were due millions of times
    now = START + timedelta(days=365)
    for rule, last in (
        (schedule(0.1), now), (crontab(), now), (schedule(1, relative=True), now), (crontab(0, 7), now.replace(hour=7)),
    ):  # fmt: skip
        # When it is decided / Then the last of the times counts, or as many as may
        assert step(Plan(rule), START, now).due == (last,)
        assert len(step(Plan(rule, "all", 100), START, now).due) == 100
        assert step(Plan(rule, "skip"), START, now).due == ((last,) if last == now else ())


def test_a_crontab_missed_for_longer_than_the_deadline_is_left_out() -> None:
    # Given a daily task that came due an hour ago
    plan = Plan(crontab(minute=0, hour=13), deadline=timedelta(seconds=600))

    # When it is looked at ten minutes after, and a second later / Then it is sent, and not any more
    assert step(plan, START, at(3600 + 600)).due == (at(3600),)
    late = step(plan, START, at(3600 + 601))
    assert late.due == () and late.missed == 1 and late.anchor == at(3600)
    # And intervals know no deadline
    assert step(Plan(schedule(3600), deadline=timedelta(seconds=1)), START, at(5000)).due == (at(3600),)


def test_a_clock_put_back_neither_repeats_nor_stops_entries() -> None:
    # Given entries that were dealt with at noon / When the clock is put back by an hour
    before = START - timedelta(hours=1)
    interval, wall = step(Plan(schedule(10)), START, before), step(Plan(crontab()), START, before)

    # Then an interval goes on from now, and times of the wall clock that have been are waited for
    assert (interval.due, interval.next) == ((), before + 10 * SECOND)
    assert (wall.due, wall.next) == ((), START + timedelta(minutes=1))
    # And a clock that was wrong by a day is no reason to wait for a day
    assert step(Plan(crontab()), START, START - timedelta(days=1)).next == START - timedelta(days=1) + 60 * SECOND
    # And a moment, as between two machines, changes nothing
    assert step(Plan(schedule(10)), START, at(-0.5)).next == at(10)


def test_a_timetable_notices_that_the_clock_was_put_back() -> None:
    # Given a timetable that was looked at
    table = Timetable(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    table.set("often", Plan(schedule(10)), START, START)
    assert table.take(at(10), 9) == [Firing("often", at(10))]

    # When the clock is put back by an hour / Then the entry is due ten seconds after that
    assert table.take(at(-3600), 9) == []
    assert table.wakes_at == at(-3590)


def test_a_machine_that_slept_makes_up_for_one_run() -> None:
    # Given an entry of each minute / When nothing ran for eight hours
    table = Timetable(lambda name, error: pytest.fail(f"{name}: {error!r}"), lambda *told: missed.append(told))
    missed: list[Any] = []
    table.set("minutely", Plan(crontab()), START, START)
    taken = table.take(at(8 * 3600 + 5), 9)

    # Then the last run is made up for, and it is told that others were not
    assert taken == [Firing("minutely", at(8 * 3600))]
    assert [name for name, count in missed if count > 1] == ["minutely"]


class _Asked:
    """As of a class written for Celery: due each second time it is asked."""

    def __init__(self) -> None:
        self.asked: list[datetime] = []

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        self.asked.append(last_run_at)
        return len(self.asked) % 2 == 0, 5.0


def test_a_schedule_that_must_be_asked_is_asked_when_it_said() -> None:
    # Given a schedule that does not plan ahead
    rule = _Asked()
    table = Timetable(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    table.set("asked", Plan(rule), START, START)

    # When it is asked / Then it says when to ask again, and what is due then
    assert table.take(START, 9) == []
    assert table.wakes_at == at(5)
    assert table.take(at(5), 9) == [Firing("asked", None)]
    assert rule.asked == [START, START]
    table.take(at(10), 9)
    assert rule.asked[-1] == at(5)


def test_an_entry_that_fails_does_not_stop_the_others() -> None:
    # Given a schedule that raises, and one that answers the past, beside a good one
    class Broken(BaseSchedule):
        def next_after(self, moment: datetime) -> datetime | None:
            raise RuntimeError("no ephemeris")

    class Past(BaseSchedule):
        def next_after(self, moment: datetime) -> datetime | None:
            return moment

    failed: list[str] = []
    table = Timetable(lambda name, _error: failed.append(name))
    for name, rule in (("broken", Broken()), ("past", Past()), ("good", schedule(1))):
        table.set(name, Plan(rule), START, START)

    # When they are looked at / Then the good one is due, and the others are tried again a minute later
    assert table.take(at(1), 9) == [Firing("good", at(1))]
    assert sorted(failed) == ["broken", "past"]
    table.take(at(60), 9)
    assert sorted(failed) == ["broken", "broken", "past", "past"]


def test_what_is_left_of_a_full_tick_comes_with_the_next() -> None:
    # Given more due runs than one tick takes
    table = Timetable(lambda name, error: pytest.fail(f"{name}: {error!r}"))
    for name in ("one", "two"):
        table.set(name, Plan(schedule(1), "all"), START, START)

    # When they are taken, two at a time, and the memory of the first takes is all there is
    taken = table.take(at(3), 2)
    anchor = table.anchor("one")

    # Then each comes once, in order, and the memory is that of what was taken
    assert taken == [Firing("one", at(1)), Firing("one", at(2))] and anchor == at(2)
    while some := table.take(at(3), 2):
        taken += some
    assert sorted(taken) == [Firing(name, at(number)) for name in ("one", "two") for number in (1, 2, 3)]
