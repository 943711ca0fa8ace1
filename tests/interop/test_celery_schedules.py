"""Schedules are Celery's: real Celery expands the same fields, comes at the same times, and words the same errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from amqptasks import schedules as ours

celery = pytest.importorskip("celery")
theirs = pytest.importorskip("celery.schedules")
celery_time = pytest.importorskip("celery.utils.time")

UTC = timezone.utc
OSLO = ZoneInfo("Europe/Oslo")
FIELDS = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
EVENTS = (
    "dawn_astronomical", "dawn_nautical", "dawn_civil", "sunrise", "solar_noon", "sunset", "dusk_civil",
    "dusk_nautical", "dusk_astronomical",
)  # fmt: skip
BOUNDS = {"minute": (0, 59), "hour": (0, 23), "day_of_week": (0, 6), "day_of_month": (1, 31), "month_of_year": (1, 12)}
NAMES = {
    "day_of_week": ["sun", "Monday", "tue", "wed", "THU", "fri", "saturday"],
    "month_of_year": ["jan", "February", "mar", "apr", "may", "JUN", "jul", "aug", "sep", "oct", "nov", "december"],
}


@pytest.fixture(scope="module")
def their_app() -> Iterator[Any]:
    app = celery.Celery("proj", broker="memory://", set_as_current=False, timezone="Europe/Oslo")
    yield app
    app.close()


@st.composite
def fields(draw: Any, name: str) -> Any:
    """A field in the part of the language that both know."""
    low, high = BOUNDS[name]
    number = st.integers(low, high)
    value = st.one_of(number.map(str), st.sampled_from(NAMES.get(name, ["*"])).filter(lambda each: each != "*"))
    if name not in NAMES:
        value = number.map(str)
    span = st.tuples(value, value).map("-".join)
    stepped = st.tuples(st.one_of(st.just("*"), span), st.integers(1, 20).map(str)).map("/".join)
    part = st.one_of(st.just("*"), value, span, stepped)
    text = st.lists(part, min_size=1, max_size=3).map(",".join)
    numbers = st.lists(number, min_size=1, max_size=4)
    return draw(st.one_of(st.just("*"), text, number, numbers, numbers.map(set)))


SPECS = st.fixed_dictionaries({name: fields(name) for name in FIELDS})


def both(spec: dict[str, Any], app: Any, now: datetime) -> tuple[Any, Any]:
    """Make a crontab of each kind, in the zone of the app. What one refuses the other must refuse."""
    try:
        their = theirs.crontab(**spec, nowfun=lambda: now, app=app)
    except ValueError as error:
        with pytest.raises(ValueError) as caught:
            ours.crontab(**spec)
        assert str(caught.value) == str(error)
        assume(False)
    our = ours.crontab(**spec, nowfun=lambda: now)
    our.tz = OSLO
    return our, their


@given(SPECS, SPECS)
@settings(max_examples=120)
def test_fields_hold_the_same(their_app: Any, spec: dict[str, Any], other: dict[str, Any]) -> None:
    our, their = both(spec, their_app, datetime.now(UTC))
    for name in FIELDS:
        assert getattr(our, name) == getattr(their, name)
    assert repr(our) == repr(their)
    try:
        pair = ours.crontab(**other), theirs.crontab(**other)
    except ValueError:
        return
    assert (ours.crontab(**spec) == pair[0]) == (theirs.crontab(**spec) == pair[1])


@given(SPECS, st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)), st.integers(0, 10**6))
@settings(max_examples=150)
def test_they_come_at_the_same_times(their_app: Any, spec: dict[str, Any], last: datetime, late_s: int) -> None:
    # Given a crontab and a last run / When real Celery and we are asked what remains
    start = last.replace(tzinfo=UTC)
    now = start + timedelta(seconds=late_s)
    our, their = both(spec, their_app, now)
    found, expected = our.remaining_estimate(start), their.remaining_estimate(start)
    # Then the answers are the same, unless clocks are changed around that: there ours are right
    assume(not _near_change(start) and not _near_change(now + expected))
    assert found == expected
    assert our.is_due(start).is_due == their.is_due(start).is_due


def _near_change(moment: datetime) -> bool:
    day = timedelta(days=1)
    return (moment - day).astimezone(OSLO).utcoffset() != (moment + day).astimezone(OSLO).utcoffset()


@given(
    st.one_of(st.integers(1, 10**6), st.sampled_from([60, 3600, 7200, 86400, 604800])), st.booleans(),
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)), st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=200)
def test_intervals_come_at_the_same_times(
    their_app: Any, every: int, relative: bool, last: datetime, late_s: int
) -> None:
    start = last.replace(tzinfo=UTC)
    now = start + timedelta(seconds=late_s)
    their = theirs.schedule(every, relative, nowfun=lambda: now, app=their_app)
    our = ours.schedule(every, relative, nowfun=lambda: now)
    our.tz = OSLO
    # Celery rounds by the clock of the last run, which beat keeps in the app's zone.
    assert our.remaining_estimate(start) == their.remaining_estimate(start.astimezone(OSLO))
    assert our.is_due(start) == their.is_due(start.astimezone(OSLO))
    assert repr(our) == repr(their)
    assert our == every * timedelta(seconds=1) and our == ours.schedule(every)


ERRORS = [
    "minute=''", "minute='1,,2'", "minute='-5'", "minute='60'", "minute='1-60'", "minute=60", "minute=[1, 60]",
    "hour='*/'", "hour='1-5/'", "day_of_month='0'", "day_of_month=0", "day_of_week='xx'", "minute='?'", "minute=None",
    "minute=1.5", "day_of_month=30, month_of_year=2",
]  # fmt: skip


@pytest.mark.parametrize("wrong", ERRORS)
def test_errors_begin_as_celerys(wrong: str) -> None:
    with pytest.raises(Exception) as their:
        eval(f"crontab({wrong})", {"crontab": theirs.crontab})
    with pytest.raises(Exception) as our:
        eval(f"crontab({wrong})", {"crontab": ours.crontab})
    if wrong == "minute='?'":  # Celery takes it for a day of the week.
        assert str(our.value).startswith("Invalid part '?'")
    else:
        assert str(our.value).startswith(str(their.value))
    # Ours can be caught as what it is there.
    assert type(their.value).__name__ in {kind.__name__ for kind in type(our.value).__mro__}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(("lat", "lon"), [(0, 0), (59.91, 10.75), (-33.9, 151.2), (69.65, 18.96), (-78, 166)])
def test_the_sun_is_the_same(their_app: Any, event: str, lat: float, lon: float) -> None:
    for month in (1, 4, 6, 9):
        start = now = datetime(2026, month, 3, tzinfo=UTC)
        their = theirs.solar(event, lat, lon, nowfun=lambda now=now: now, app=their_app)
        our = ours.solar(event, lat, lon, nowfun=lambda now=now: now)
        # Rounded up to a second by us; Celery's search is exact to a tenth.
        assert abs(our.remaining_estimate(start) - their.remaining_estimate(start)) < timedelta(seconds=1.5)
        assert repr(our) == repr(their)


class Custom:
    """Made twice, of Celery's base and of ours: as users' own classes are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.period = timedelta(minutes=7)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        return self.maybe_make_aware(last_run_at) + self.period - self.maybe_make_aware(self.now())  # type: ignore[attr-defined]

    def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
        remaining = max(self.remaining_estimate(last_run_at).total_seconds(), 0)
        return remaining == 0, remaining or self.period.total_seconds()


def test_a_class_of_ones_own_moves_over_unchanged(their_app: Any) -> None:
    now = datetime(2026, 5, 4, 12)  # Naive, as utcnow() was: in UTC.
    their = type("Their", (Custom, theirs.BaseSchedule), {})(nowfun=lambda: now, app=their_app)
    our = type("Our", (Custom, ours.BaseSchedule), {})(nowfun=lambda: now)
    for minutes in (0, 6, 7, 8, 600):
        last = now - timedelta(minutes=minutes)
        assert our.is_due(last) == their.is_due(last)
        assert our.is_due(last.replace(tzinfo=UTC)) == their.is_due(last.replace(tzinfo=UTC))


def test_a_deadline_counts_alike(their_app: Any) -> None:
    from amqptasks import App

    now = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The setting is for beat, which is not there yet.
        app = App("proj", timezone="Europe/Oslo", beat_cron_starting_deadline=3600)
        assert str(app.timezone) == "Europe/Oslo"
    their_app.conf.beat_cron_starting_deadline = 3600
    try:
        for line in ("0 * * * *", "0 13 * * *", "30 13 * * *", "29 13 * * *", "31 14 * * *", "*/7 3 * * *"):
            their = theirs.crontab.from_string(line)
            their.app, their.nowfun = their_app, lambda: now
            our = ours.crontab.from_string(line, app=app, nowfun=lambda: now)
            last = now - timedelta(days=1, hours=1)
            assert our.is_due(last) == their.is_due(last)
    finally:
        their_app.conf.beat_cron_starting_deadline = None
        app.close()
