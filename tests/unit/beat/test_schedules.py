"""Schedules: every so often, by the clock, of one's own."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks import App
from amqptasks.beat.descriptions import rebuild
from amqptasks.beat.schedules import plans_ahead
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.schedules import BaseSchedule, crontab, maybe_schedule, schedstate, schedule, solar
from tests.support import ROOT
from tests.zones import RULES, zone

UTC = timezone.utc
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
NEW_YORK = zone(RULES["New York"])


@pytest.fixture
def app() -> Iterator[App]:
    made = App("proj", timezone="Europe/Oslo")
    yield made
    made.close()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# -- every so often


@pytest.mark.parametrize("every", [10, 10.0, timedelta(seconds=10)])
def test_it_comes_so_long_after_the_last_run(every: Any) -> None:
    now = NOON
    plain = schedule(every, nowfun=lambda: now)
    assert plain.next_after(NOON) == NOON + timedelta(seconds=10)
    assert plain.is_due(NOON - timedelta(seconds=4)) == (False, 6.0)
    assert plain.is_due(NOON - timedelta(seconds=10)) == (True, 10.0)
    assert plain.is_due(NOON - timedelta(days=4)) == (True, 10.0)
    assert plain.remaining_estimate(NOON - timedelta(seconds=15)) == timedelta(seconds=-5)
    # What is naive is in UTC.
    assert plain.is_due(datetime(2026, 5, 4, 11, 59, 56)) == (False, 6.0)


def test_hours_pass_when_clocks_are_changed() -> None:
    plain = schedule(timedelta(hours=1))
    plain.tz = NEW_YORK
    begin = datetime(2026, 11, 1, 1, 30, tzinfo=NEW_YORK)
    due = plain.next_after(begin)
    assert due is not None and due - begin.astimezone(UTC) == timedelta(hours=1)


@pytest.mark.parametrize(
    ("every", "last", "due"),
    [
        (timedelta(days=1), "2026-05-04T10:17:30.500", "2026-05-05T00:00"),
        (timedelta(days=1.5), "2026-05-04T18:00", "2026-05-06T00:00"),
        (timedelta(hours=2), "2026-05-04T10:17:30.500", "2026-05-04T12:00"),
        (timedelta(hours=1), "2026-05-04T10:00", "2026-05-04T11:00"),
        (timedelta(minutes=90), "2026-05-04T10:00", "2026-05-04T11:00"),
        (timedelta(minutes=5), "2026-05-04T10:17:30.500", "2026-05-04T10:22"),
        (timedelta(seconds=10), "2026-05-04T10:17:30.500", "2026-05-04T10:17:40"),
        (timedelta(seconds=0.25), "2026-05-04T10:17:30.500", "2026-05-04T10:17:30.750"),
    ],
)
def test_by_the_clock_it_comes_on_the_full_unit(every: timedelta, last: str, due: str) -> None:
    relative = schedule(every, relative=True)
    relative.tz = UTC
    assert relative.next_after(at(last)) == at(due)


@pytest.mark.parametrize(
    ("rule", "every", "last", "due"),
    [
        # New York: clocks go from 02:00 EST (07:00 UTC) to 03:00 EDT, and from 02:00 EDT (06:00 UTC) to 01:00 EST.
        ("New York", timedelta(days=1), "2026-03-08T04:59", "2026-03-08T05:00"),
        ("New York", timedelta(days=1), "2026-03-08T05:00", "2026-03-09T04:00"),
        ("New York", timedelta(days=1), "2026-11-01T04:00", "2026-11-02T05:00"),
        ("New York", timedelta(hours=1), "2026-03-08T06:30", "2026-03-08T07:00"),
        ("New York", timedelta(hours=1), "2026-11-01T05:30", "2026-11-01T06:00"),
        ("New York", timedelta(hours=1), "2026-11-01T06:30", "2026-11-01T07:00"),
        # From 02:00, 15:00 UTC, back to 01:30: no full hour is within an hour. From 02:45, 14:00 UTC, on to 03:45:
        # 03:00 is skipped and would come as late as 14:15, after the interval; 02:00 is in time.
        ("Lord Howe, by half an hour", timedelta(hours=1), "2026-04-04T14:10", "2026-04-04T15:30"),
        ("Chatham, quarters of an hour", timedelta(hours=1), "2026-09-26T13:03", "2026-09-26T13:15"),
        # Midnight is skipped: the day begins at 01:00, 05:00 UTC. Midnight is there twice: the first counts.
        ("Havana, at midnight", timedelta(days=1), "2026-03-07T12:00", "2026-03-08T05:00"),
        ("Havana, at midnight", timedelta(days=1), "2026-10-31T12:00", "2026-11-01T04:00"),
        ("Havana, at midnight", timedelta(days=1), "2026-11-01T04:00", "2026-11-02T05:00"),
        # From 00:30 on Sunday back to 23:30 on Saturday: in that second half-hour midnight comes again.
        ("nowhere, back past midnight", timedelta(days=1), "2026-10-24T20:45", "2026-10-24T21:00"),
        ("nowhere, back past midnight", timedelta(days=1), "2026-10-24T21:45", "2026-10-24T22:00"),
    ],
)
def test_by_the_clock_of_a_zone(rule: str, every: timedelta, last: str, due: str) -> None:
    relative = schedule(every, relative=True)
    relative.tz = zone(RULES[rule])
    assert relative.next_after(at(last)) == at(due)


@given(
    st.sampled_from(sorted(RULES.values())),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
    st.timedeltas(timedelta(microseconds=1), timedelta(days=3)),
)
def test_by_the_clock_it_always_comes_after_the_last_run_and_not_long_after_the_interval(
    rule: str, last: datetime, every: timedelta
) -> None:
    relative = schedule(every, relative=True)
    relative.tz = zone(rule)
    due = relative.next_after(last)
    assert due is not None
    # A day that is skipped or repeated is the longest that clocks are changed by.
    assert timedelta(0) < due - last.replace(tzinfo=UTC) <= every + timedelta(days=1)


@pytest.mark.parametrize(
    ("every", "text"),
    [
        (1, "1.00 second"), (30, "30.00 seconds"), (90.5, "1.51 minutes"), (3600, "1.00 hour"), (129600, "1.50 days"),
        (0.001, "0.001 seconds"),
    ],
)  # fmt: skip
def test_it_is_shown_in_units_for_people(every: float, text: str) -> None:
    assert repr(schedule(every)) == f"<freq: {text}>"


@pytest.mark.parametrize("every", [0, -1, timedelta(0), float("nan"), float("inf"), 10**30])
def test_an_interval_must_be_more_than_zero(every: Any) -> None:
    with pytest.raises(ValueError, match="expected run_every to be"):
        schedule(every)


@pytest.mark.parametrize("every", ["10", True, [10]])
def test_an_interval_must_be_a_time(every: Any) -> None:
    with pytest.raises(TypeError, match="expected run_every to be seconds or a timedelta"):
        schedule(every)


def test_an_interval_that_ends_after_the_last_year_never_comes() -> None:
    for relative in (False, True):
        assert schedule(timedelta.max, relative).next_after(NOON) is None


def test_intervals_that_are_as_long_are_equal() -> None:
    assert schedule(60) == schedule(timedelta(minutes=1)) == timedelta(minutes=1)
    assert schedule(60) != schedule(61) and schedule(60) != "60"
    assert hash(schedule(60)) == hash(timedelta(minutes=1))


def test_it_can_be_copied_pickled_and_described() -> None:
    relative = schedule(0.1, relative=True)
    for other in (
        pickle.loads(pickle.dumps(relative)),
        copy.deepcopy(relative),
        rebuild(json.loads(json.dumps(relative.describe()))),
    ):
        assert (other.run_every, other.relative) == (timedelta(seconds=0.1), True)
    assert schedule(1).describe() != schedule(1, relative=True).describe()


# -- what a schedule may be given as


def test_seconds_timedeltas_and_schedules_become_schedules(app: App) -> None:
    made = maybe_schedule(10, relative=True, app=app)
    assert isinstance(made, schedule) and made.relative and made.app is app
    assert maybe_schedule(timedelta(seconds=10)) == maybe_schedule(10.0) == schedule(10)
    cron = crontab()
    assert maybe_schedule(cron, app=app) is cron and cron.app is app
    assert maybe_schedule(None) is None


@pytest.mark.parametrize("wrong", ["10", [10], crontab, object(), {"minute": 5}])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a schedule: seconds, a timedelta"):
        maybe_schedule(wrong)


# -- the clock and the zone


def test_the_zone_is_that_of_the_app(app: App) -> None:
    cron = crontab(30, 7, app=app)
    assert str(cron.tz) == "Europe/Oslo" and str(cron.now().tzinfo) == "Europe/Oslo"
    assert cron.next_after(at("2026-07-01T00:00")) == at("2026-07-01T05:30")
    # When the app's changes, or the schedule gets one of its own, that counts.
    app.conf.timezone = "UTC"
    assert cron.next_after(at("2026-07-01T00:00")) == at("2026-07-01T07:30")
    cron.tz = NEW_YORK
    assert cron.next_after(at("2026-07-01T00:00")) == at("2026-07-01T11:30")


def test_a_naive_moment_is_in_utc_or_in_the_zone(app: App) -> None:
    cron = crontab(app=app)
    assert cron.maybe_make_aware(datetime(2026, 7, 1, 12)).isoformat() == "2026-07-01T14:00:00+02:00"
    assert (
        cron.maybe_make_aware(datetime(2026, 7, 1, 12), naive_as_utc=False).isoformat() == "2026-07-01T12:00:00+02:00"
    )
    assert cron.maybe_make_aware(NOON) is NOON
    assert cron.to_local(NOON).isoformat() == "2026-05-04T14:00:00+02:00"


def test_a_schedule_needs_no_app() -> None:
    code = """
from datetime import datetime, timezone
from amqptasks.schedules import crontab
cron = crontab(30, 7)
print(cron.next_after(datetime(2026, 7, 1, tzinfo=timezone.utc)), cron.is_due(cron.now()).is_due, cron.now().tzinfo)
try:
    cron.app
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n")[:2] == ["2026-07-01 07:30:00+00:00 False UTC", ImproperlyConfigured.__name__]


def test_the_package_does_not_load_schedules_until_they_are_asked_for() -> None:
    code = """
import sys
import amqptasks
amqptasks.App("proj").task(lambda: None)
print(sorted(name for name in sys.modules if name.startswith(("amqptasks.beat", "amqptasks.schedules", "ephem"))))
from amqptasks.schedules import crontab, solar
print("ephem" in sys.modules, "pika" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\nFalse False\n"


# -- schedules of one's own


class Primes(BaseSchedule):
    """At the minutes whose number is prime: the way of this package."""

    def next_after(self, moment: datetime) -> datetime | None:
        minute = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        while minute.minute not in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59):
            minute += timedelta(minutes=1)
        return minute


class CelerysOwn(BaseSchedule):
    """Celery's way: answers for itself."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def is_due(self, last_run_at: datetime) -> schedstate:
        return schedstate(self.now() - self.maybe_make_aware(last_run_at) > timedelta(seconds=self.wait_s), 1.0)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return self.maybe_make_aware(last_run_at) + timedelta(seconds=self.wait_s) - self.now()


class OfficeHours(crontab):
    """A zone of its own and an answer of its own, as in django-celery-beat."""

    def __init__(self, minute: Any, hour: Any, tz: Any) -> None:
        self.tz = tz
        super().__init__(minute=minute, hour=hour, nowfun=lambda: NOON)

    def is_due(self, last_run_at: datetime) -> schedstate:
        remaining = self.remaining_estimate(last_run_at.astimezone(self.tz)).total_seconds()
        return schedstate(remaining <= 0, max(remaining, 0))


class Later(schedule):
    """Celery's interval with another estimate."""

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return super().remaining_estimate(last_run_at) + timedelta(seconds=5)


def test_a_class_of_ones_own_says_when_it_comes_next() -> None:
    primes = Primes(nowfun=lambda: NOON)
    assert primes.next_after(NOON) == NOON + timedelta(minutes=2)
    assert primes.is_due(NOON) == (False, 120.0)
    assert primes.is_due(NOON - timedelta(minutes=10)) == (True, 120.0)
    assert primes.remaining_estimate(NOON - timedelta(minutes=10)) == timedelta(minutes=-7)


def test_classes_written_for_celery_answer_for_themselves() -> None:
    own = CelerysOwn(10)
    assert own.is_due(own.now() - timedelta(seconds=11)).is_due
    assert not own.is_due(own.now()).is_due
    assert OfficeHours(30, 7, NEW_YORK).is_due(NOON - timedelta(days=2)).is_due
    assert OfficeHours(30, 9, NEW_YORK).is_due(NOON) == (False, 5400.0)
    assert Later(10, nowfun=lambda: NOON).is_due(NOON - timedelta(seconds=12)) == (False, 3.0)
    assert Later(10, nowfun=lambda: NOON).is_due(NOON - timedelta(seconds=15)) == (True, 10.0)


def test_it_is_known_which_must_be_asked() -> None:
    asked = [CelerysOwn(1), OfficeHours(1, 1, UTC), Later(1), BaseSchedule(), object()]
    planned = [Primes(), crontab(), schedule(1), solar("sunset", 1, 1), type("Mine", (crontab,), {"colour": 1})()]
    assert [plans_ahead(each) for each in (*asked, *planned)] == [False] * 5 + [True] * 5


def test_one_that_says_nothing_is_told_so() -> None:
    with pytest.raises(NotImplementedError, match="BaseSchedule defines neither next_after nor is_due"):
        BaseSchedule().is_due(NOON)


def test_two_of_ones_own_are_equal_if_made_alike(app: App) -> None:
    assert CelerysOwn(1) == CelerysOwn(1) != CelerysOwn(2)
    assert Primes() == Primes(app=app) and hash(Primes()) == hash(Primes())
    assert Primes() != CelerysOwn(1) and Primes() != 5


def test_only_our_own_kinds_are_read_from_descriptions() -> None:
    described = OfficeHours(1, 1, UTC).describe()
    assert described["type"].endswith(".OfficeHours") and "crontab" in described["repr"]
    with pytest.raises(ValueError, match="expected the description of one of schedule, crontab, solar"):
        rebuild(described)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (None, "expected the description of one of"),
        ({}, "expected the description of one of"),
        ({"type": ["schedule"]}, "expected the description of one of"),
        ({"type": "schedule"}, "this describes no schedule: 'every' is missing"),
        ({"type": "schedule", "every": "1"}, "expected run_every to be seconds"),
        ({"type": "schedule", "every": 0}, "more than zero"),
        ({"type": "schedule", "every": 1, "relative": 1}, "expected relative to be True or False"),
        ({"type": "crontab", "minute": 0}, "'hour' is missing"),
        (crontab("*").describe() | {"minute": "61"}, "Invalid end range: 61 > 59"),
        (crontab("*").describe() | {"minute": None}, "expected a number, a text or a list of those"),
        (crontab("*").describe() | {"minute": "1," * 10**6}, "expected at most 500 characters"),
        (crontab("*").describe() | {"minute": [1] * 1000}, "expected at most 100 items"),
        (crontab("*").describe() | {"minute": [[1]]}, "Argument cronspec needs to be"),
        (solar("sunset", 1, 1).describe() | {"event": []}, "expected event to be a text"),
        (solar("sunset", 1, 1).describe() | {"lat": "1"}, "expected lat and lon to be numbers"),
        (solar("sunset", 1, 1).describe() | {"lat": float("nan")}, "Argument latitude nan is invalid"),
    ],
)
def test_a_description_of_no_use_is_refused(data: Any, what: str) -> None:
    with pytest.raises(ValueError) as caught:
        rebuild(data)
    assert what in str(caught.value) and len(str(caught.value)) < 1000
