"""Schedules by the sun."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys
from datetime import datetime, timedelta, timezone

import ephem
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amqptasks.beat.descriptions import rebuild
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.schedules import solar

UTC = timezone.utc
EVENTS = {
    "dawn_astronomical": -18, "dawn_nautical": -12, "dawn_civil": -6, "sunrise": -34 / 60, "sunset": -34 / 60,
    "dusk_civil": -6, "dusk_nautical": -12, "dusk_astronomical": -18,
}  # fmt: skip
JUNE = datetime(2026, 6, 1, tzinfo=UTC)


def height(event: str, lat: float, lon: float, moment: datetime) -> float:
    """Degrees of the sun over the event's height, counted in the event's direction."""
    place = ephem.Observer()
    place.lat, place.lon, place.pressure, place.date = str(lat), str(lon), 0, moment.replace(tzinfo=None)
    sun = ephem.Sun(place)
    edge = sun.radius if event in ("sunrise", "sunset") else 0
    over = math.degrees(sun.alt + edge) - EVENTS[event]
    return over if event.startswith(("dawn", "sunrise")) else -over


@given(st.sampled_from(sorted(EVENTS)), st.floats(-40, 40), st.floats(-180, 180), st.integers(0, 20_000))
@settings(max_examples=30)
def test_where_days_are_ordinary_it_comes_when_ephems_own_search_says(
    event: str, lat: float, lon: float, hours: int
) -> None:
    moment = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    place = ephem.Observer()
    place.lat, place.lon, place.pressure, place.horizon = str(lat), str(lon), 0, str(EVENTS[event])
    search = place.next_rising if event.startswith(("dawn", "sunrise")) else place.next_setting
    by_centre = event not in ("sunrise", "sunset")
    expected = search(ephem.Sun(), start=ephem.Date(moment.replace(tzinfo=None)), use_center=by_centre)
    found = solar(event, lat, lon).next_after(moment)
    assert found is not None
    assert abs(found - expected.datetime().replace(tzinfo=UTC)) <= timedelta(seconds=2)


@pytest.mark.parametrize("lon", [-180, -70.5, 0, 10.75, 180])
def test_noon_is_when_the_sun_is_highest(lon: float) -> None:
    found = solar("solar_noon", 59.91, lon).next_after(JUNE)
    assert found is not None and JUNE < found < JUNE + timedelta(hours=25)
    around = [found + timedelta(minutes=minutes) for minutes in (-20, 0, 20)]
    before, noon, after = (height("sunrise", 59.91, lon, each) for each in around)
    assert before < noon > after


@given(
    st.sampled_from(sorted(EVENTS)),
    st.one_of(st.floats(-90, 90), st.sampled_from([90, -90, 89.9, 66.5, -66.5, 0])),
    st.floats(-180, 180),
    st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1)),
)
@settings(max_examples=40)
def test_it_comes_at_the_first_passage_anywhere_on_earth(event: str, lat: float, lon: float, naive: datetime) -> None:
    # Given any place and moment, the poles included / When the next time is asked for
    moment = naive.replace(tzinfo=UTC)
    schedule = solar(event, lat, lon)
    found = schedule.next_after(moment)
    # Then there is one, within a year; the sun then is where the event says
    assert found is not None and moment < found <= moment + timedelta(days=367)
    assert found.microsecond == 0 and abs(height(event, lat, lon, found)) < 0.01
    # And it passed that height at no time between
    begin = max(moment, found - timedelta(days=30))
    probes = [begin + (found - begin) * share / 300 for share in range(300)]
    heights = [height(event, lat, lon, each) for each in probes]
    passages = [
        (before, after)
        for before, after in zip(heights, heights[1:], strict=False)
        # A touch of the height, where it is highest in its day, is below what is asked of it.
        if before < -0.05 and after > 0.05
    ]
    assert passages == []


@pytest.mark.parametrize("event", [*sorted(EVENTS), "solar_noon"])
@pytest.mark.parametrize("lat", [0, 59.9, 69.6, 78.2, -78.5])
def test_what_comes_does_not_depend_on_when_one_asks(event: str, lat: float) -> None:
    # Given the times of some days, each found from the one before
    schedule = solar(event, lat, 18.9)
    moment, chain = JUNE, []
    for _ in range(4):
        due = schedule.next_after(moment)
        assert due is not None
        chain.append(due)
        moment = due
    # Then each is later, and found again to the second from any moment between
    for earlier, due in zip([JUNE, *chain], chain, strict=False):
        assert earlier < due
        for share in (1, 2, 5, 9):
            assert schedule.next_after(earlier + (due - earlier) * share / 10) == due
        assert schedule.next_after(due - timedelta(microseconds=1)) == due


def test_where_the_sun_does_not_set_the_next_sunset_is_in_another_season() -> None:
    # Given Longyearbyen in June / Then the sun next sets in August
    found = solar("sunset", 78.22, 15.65).next_after(JUNE)
    assert found is not None and (found.year, found.month) == (2026, 8)
    # And at the poles once a year, at the equinoxes
    found = solar("sunrise", 90, 0).next_after(JUNE)
    assert found is not None and (found.year, found.month) == (2027, 3)
    found = solar("sunrise", -90, 0).next_after(JUNE)
    assert found is not None and (found.year, found.month) == (2026, 9)


@pytest.mark.parametrize("event", ["sunrise", "sunset"])
def test_next_to_a_pole_the_sun_goes_up_and_down_for_some_days(event: str) -> None:
    # Given a place where the sun's way through a day is as steep as that through the season
    begin, end = datetime(2026, 9, 10, tzinfo=UTC), datetime(2026, 10, 5, tzinfo=UTC)
    probes = [begin + timedelta(minutes=10) * count for count in range(25 * 144)]
    heights = [height(event, 89.9, 20, each) for each in probes]
    expected = [
        later for later, before, after in zip(probes[1:], heights, heights[1:], strict=False) if before < 0 <= after
    ]
    # Then every passage is found
    found = []
    moment = solar(event, 89.9, 20).next_after(begin)
    while moment is not None and moment < end:
        found.append(moment)
        moment = solar(event, 89.9, 20).next_after(moment)
    assert len(found) == len(expected) >= 1
    assert all(
        timedelta(0) <= late - exact < timedelta(minutes=11) for exact, late in zip(found, expected, strict=True)
    )


def test_it_is_due_once_the_sun_is_there() -> None:
    now = JUNE
    schedule = solar("sunrise", 59.91, 10.75, nowfun=lambda: now)
    rise = schedule.next_after(JUNE)
    assert rise is not None
    assert schedule.is_due(JUNE) == (False, (rise - JUNE).total_seconds())
    now = rise
    due, wait_s = schedule.is_due(JUNE)
    assert due and 23.9 < wait_s / 3600 < 24.1


def test_what_never_comes_in_the_days_looked_at_is_said_plainly() -> None:
    schedule = solar("sunset", 78.22, 15.65, nowfun=lambda: JUNE)
    schedule.max_search_days = 5
    assert schedule.next_after(JUNE) is None
    assert schedule.remaining_estimate(JUNE) == timedelta.max


@pytest.mark.parametrize(
    ("event", "lat", "lon", "what"),
    [
        ("midnight", 1, 2, 'Argument event "midnight" is invalid, must be one of dawn_astronomical, dawn_civil, '
                           "dawn_nautical, dusk_astronomical, dusk_civil, dusk_nautical, solar_noon, sunrise, sunset."),
        ("sunset", 90.1, 2, "Argument latitude 90.1 is invalid, must be between -90 and 90."),
        ("sunset", math.nan, 2, "Argument latitude nan is invalid, must be between -90 and 90."),
        ("sunset", 1, -181, "Argument longitude -181 is invalid, must be between -180 and 180."),
    ],
)  # fmt: skip
def test_there_must_be_such_an_event_and_place(event: str, lat: float, lon: float, what: str) -> None:
    with pytest.raises(ValueError) as caught:
        solar(event, lat, lon)
    assert str(caught.value) == what


def test_it_can_be_copied_pickled_described_and_compared() -> None:
    sunset = solar("sunset", 59.91, 10.75)
    assert repr(sunset) == "<solar: sunset at latitude 59.91, longitude: 10.75>"
    for other in (
        pickle.loads(pickle.dumps(sunset)),
        copy.deepcopy(sunset),
        rebuild(json.loads(json.dumps(sunset.describe()))),
    ):
        assert other == sunset and hash(other) == hash(sunset) and repr(other) == repr(sunset)
    assert sunset != solar("sunset", 59.92, 10.75) and sunset != 1


def test_without_ephem_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ephem", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'amqptasks\[solar\]'"):
        solar("sunset", 1, 2)
