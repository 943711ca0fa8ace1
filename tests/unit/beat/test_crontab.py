"""Crontab schedules: when they come, in any zone, and what is known of them."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from amqptasks import App
from amqptasks.beat.descriptions import rebuild
from amqptasks.schedules import crontab
from tests.zones import RULES, zone

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
NEW_YORK = zone(RULES["New York"])


def at(text: str, where: tzinfo = UTC) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=where).astimezone(UTC)


def within(zoned: tzinfo, cron: crontab) -> crontab:
    cron.tz = zoned
    return cron


def times(cron: crontab, begin: datetime, end: datetime) -> list[datetime]:
    """Every time from one moment to another, both included, one after the other."""
    found = []
    due = cron.next_after(begin - timedelta(microseconds=1))
    while due is not None and due <= end:
        found.append(due)
        due = cron.next_after(due)
    return found


# -- the table of the user's guide

SEED: list[tuple[crontab, Callable[[datetime], bool]]] = [
    (crontab(), lambda t: True),
    (crontab(minute=0, hour=0), lambda t: (t.hour, t.minute) == (0, 0)),
    (crontab(minute=0, hour="*/3"), lambda t: t.hour in (0, 3, 6, 9, 12, 15, 18, 21) and t.minute == 0),
    (crontab(minute=0, hour="0,3,6,9,12,15,18,21"), lambda t: t.hour % 3 == 0 and t.minute == 0),
    (crontab(minute="*/15"), lambda t: t.minute in (0, 15, 30, 45)),
    (crontab(day_of_week="sunday"), lambda t: t.isoweekday() == 7),
    (crontab(minute="*", hour="*", day_of_week="sun"), lambda t: t.isoweekday() == 7),
    (
        crontab(minute="*/10", hour="3,17,22", day_of_week="thu,fri"),
        lambda t: t.minute % 10 == 0 and t.hour in (3, 17, 22) and t.isoweekday() in (4, 5),
    ),
    (crontab(minute=0, hour="*/2,*/3"), lambda t: t.minute == 0 and t.hour not in (1, 5, 7, 11, 13, 17, 19, 23)),
    (crontab(minute=0, hour="*/5"), lambda t: t.minute == 0 and t.hour in (0, 5, 10, 15, 20)),
    (crontab(minute=0, hour="*/3,8-17"), lambda t: t.minute == 0 and (t.hour % 3 == 0 or 8 <= t.hour <= 17)),
    (crontab(0, 0, day_of_month="2"), lambda t: (t.day, t.hour, t.minute) == (2, 0, 0)),
    (crontab(0, 0, day_of_month="2-30/2"), lambda t: t.day % 2 == 0 and (t.hour, t.minute) == (0, 0)),
    (crontab(0, 0, day_of_month="2-30/3"), lambda t: t.day % 3 == 2 and (t.hour, t.minute) == (0, 0)),
    (
        crontab(0, 0, day_of_month="1-7,15-21"),
        lambda t: (1 <= t.day <= 7 or 15 <= t.day <= 21) and (t.hour, t.minute) == (0, 0),
    ),
    (
        crontab(0, 0, day_of_month="11", month_of_year="5"),
        lambda t: (t.month, t.day, t.hour, t.minute) == (5, 11, 0, 0),
    ),
    (crontab(0, 0, month_of_year="*/3"), lambda t: t.month in (1, 4, 7, 10) and (t.hour, t.minute) == (0, 0)),
    (crontab(hour=7, minute=30, day_of_week=1), lambda t: (t.isoweekday(), t.hour, t.minute) == (1, 7, 30)),
]


@pytest.mark.parametrize(("cron", "comes"), SEED, ids=[repr(cron) for cron, _ in SEED])
def test_the_table_of_the_users_guide(cron: crontab, comes: Callable[[datetime], bool]) -> None:
    # Given a row of the table / When three weeks are gone through
    begin = at("2026-04-27T00:00")
    minutes = [begin + count * MINUTE for count in range(21 * 1440)]
    # Then it comes at the minutes the table says, and at no others
    assert times(within(UTC, cron), begin, minutes[-1]) == [each for each in minutes if comes(each)]


@pytest.mark.parametrize(("cron", "comes"), SEED[11:], ids=[repr(cron) for cron, _ in SEED[11:]])
def test_the_tables_days_through_years(cron: crontab, comes: Callable[[datetime], bool]) -> None:
    begin = at("2027-01-01T00:00")
    minutes = [begin + count * timedelta(minutes=30) for count in range(48 * 800)]
    assert times(within(UTC, cron), begin, minutes[-1]) == [each for each in minutes if comes(each)]


# -- days


@pytest.mark.parametrize(
    ("line", "after", "expected"),
    [
        # Both days must match.
        ("0 0 13 * fri", "2026-01-01T00:00", "2026-02-13T00:00"),
        ("0 0 1-7 * mon", "2026-01-06T00:00", "2026-02-02T00:00"),
        ("0 0 31 * *", "2026-01-31T00:00", "2026-03-31T00:00"),
        ("0 0 31 4,6,7 *", "2026-01-31T00:00", "2026-07-31T00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00", "2028-02-29T00:00"),
        ("0 0 29 2 *", "2096-03-01T00:00", "2104-02-29T00:00"),
        ("0 0 29 2 wed", "2068-03-01T00:00", "2096-02-29T00:00"),
        # 2100 is no leap year: forty years without.
        ("0 0 29 2 mon", "2072-03-01T00:00", "2112-02-29T00:00"),
        ("59 23 31 12 *", "2026-12-31T23:59", "2027-12-31T23:59"),
        ("* * * * *", "2026-12-31T23:59:59.999999", "2027-01-01T00:00"),
        ("* * * * *", "2026-12-31T23:59", "2027-01-01T00:00"),
        ("30 * * * *", "2026-01-01T12:29:59.999999", "2026-01-01T12:30"),
        ("30 * * * *", "2026-01-01T12:30:00.000001", "2026-01-01T13:30"),
    ],
)
def test_days_that_are_rare(line: str, after: str, expected: str) -> None:
    assert within(UTC, crontab.from_string(line)).next_after(at(after)) == at(expected)


def test_either_day_will_do_if_asked_for() -> None:
    # Given the rule of cron / Then it comes on the 13th and on Fridays
    found = times(within(UTC, crontab(0, 0, "fri", 13, day_or=True)), at("2026-01-01"), at("2026-01-31"))
    assert [each.day for each in found] == [2, 9, 13, 16, 23, 30]
    # And where one of them is every day, the other counts alone
    assert [
        each.day for each in times(within(UTC, crontab(0, 0, "fri", day_or=True)), at("2026-01-01"), at("2026-01-15"))
    ] == [2, 9]
    found = times(within(UTC, crontab(0, 0, day_of_month=13, day_or=True)), at("2026-01-01"), at("2026-01-31"))
    assert [each.day for each in found] == [13]


@pytest.mark.parametrize(("day", "month"), [(30, 2), (31, "2,4,6,9,11"), ("30-31", "feb"), ([31], 4)])
def test_a_date_that_never_comes_is_refused(day: Any, month: Any) -> None:
    with pytest.raises(ValueError, match=r"Invalid crontab: day_of_month .* never occurs in month_of_year"):
        crontab(0, 0, day_of_month=day, month_of_year=month)
    with pytest.raises(ValueError, match="never occurs"):
        crontab(0, 0, day_of_month=day, month_of_year=month, day_or=True)
    assert within(UTC, crontab(0, 0, "mon", 30, 2, day_or=True)).next_after(at("2026-01-01")) == at("2026-02-02")


def test_after_the_last_year_nothing_comes() -> None:
    now = at("9999-12-31T23:59")
    for where in (UTC, NEW_YORK, zone(RULES["Sydney, summer at New Year"])):
        cron = within(where, crontab(59, 23, month_of_year=12, day_of_month=31, nowfun=lambda: now))
        assert cron.next_after(now) is None
        assert cron.remaining_estimate(now) == timedelta.max
        due, wait_s = cron.is_due(now)
        assert not due and wait_s > 10**13


# -- clocks put forward and back


def local(found: list[datetime], where: tzinfo) -> list[str]:
    return [each.astimezone(where).strftime("%d. %H:%M %Z") for each in found]


def test_an_interval_goes_on_through_an_hour_that_comes_twice() -> None:
    found = times(within(NEW_YORK, crontab("*/20")), at("2026-11-01T00:40", NEW_YORK), at("2026-11-01T02:00", NEW_YORK))
    assert local(found, NEW_YORK) == [
        "01. 00:40 EDT", "01. 01:00 EDT", "01. 01:20 EDT", "01. 01:40 EDT", "01. 01:00 EST", "01. 01:20 EST",
        "01. 01:40 EST", "01. 02:00 EST",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("30 1 * * *", ["31. 01:30 EDT", "01. 01:30 EDT", "02. 01:30 EST"]),
        ("0,30 1 * * *", ["31. 01:00 EDT", "31. 01:30 EDT", "01. 01:00 EDT", "01. 01:30 EDT", "02. 01:00 EST",
                          "02. 01:30 EST"]),
        ("*/30 1 * * *", ["31. 01:00 EDT", "31. 01:30 EDT", "01. 01:00 EDT", "01. 01:30 EDT", "01. 01:00 EST",
                          "01. 01:30 EST", "02. 01:00 EST", "02. 01:30 EST"]),
        ("30 1,13 * * *", ["31. 01:30 EDT", "31. 13:30 EDT", "01. 01:30 EDT", "01. 13:30 EST", "02. 01:30 EST",
                           "02. 13:30 EST"]),
    ],
)  # fmt: skip
def test_a_fixed_time_comes_once_when_clocks_are_put_back(line: str, expected: list[str]) -> None:
    found = times(
        within(NEW_YORK, crontab.from_string(line)), at("2026-10-31", NEW_YORK), at("2026-11-02T23:00", NEW_YORK)
    )
    assert local(found, NEW_YORK) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("30 2 * * *", ["07. 02:30 EST", "08. 03:30 EDT", "09. 02:30 EDT"]),
        ("30 2,3 8 * *", ["08. 03:30 EDT"]),
        ("*/30 2 8 * *", ["08. 03:00 EDT", "08. 03:30 EDT"]),
        ("*/30 1-3 8 * *", ["08. 01:00 EST", "08. 01:30 EST", "08. 03:00 EDT", "08. 03:30 EDT"]),
        ("0 */2 8 * *", ["08. 00:00 EST", "08. 03:00 EDT", *[f"08. {hour:02}:00 EDT" for hour in range(4, 24, 2)]]),
    ],
)
def test_a_time_that_clocks_skip_comes_as_much_later(line: str, expected: list[str]) -> None:
    found = times(
        within(NEW_YORK, crontab.from_string(line)), at("2026-03-07", NEW_YORK), at("2026-03-09T23:00", NEW_YORK)
    )
    assert local(found, NEW_YORK) == expected


def holds(cron: crontab, wall: datetime) -> bool:
    """Whether the fields hold a minute."""
    if wall.minute not in cron.minute or wall.hour not in cron.hour or wall.month not in cron.month_of_year:
        return False
    both = [wall.day in cron.day_of_month, wall.isoweekday() % 7 in cron.day_of_week]
    restricted = len(cron.day_of_month) < 31 and len(cron.day_of_week) < 7
    return any(both) if cron.day_or and restricted else all(both)


def test_a_fixed_time_does_not_come_again_for_who_asks_in_the_second_of_two_hours() -> None:
    # Given 01:10 EST, half an hour after 01:40 EDT
    second_hour = at("2026-11-01T06:10")
    found = within(NEW_YORK, crontab(30, 1)).next_after(second_hour)
    assert found == at("2026-11-02T06:30")
    assert within(NEW_YORK, crontab("*/30", 1)).next_after(second_hour) == at("2026-11-01T06:30")


def walk(cron: crontab, begin: datetime, end: datetime, where: tzinfo) -> Iterator[datetime]:
    """Every time between two moments, found by looking at a clock each minute.

    It knows nothing of offsets: clocks that jump ahead have skipped times, which come as many minutes after the jump as
    they lie after its beginning; clocks that go back show times again.
    """

    def starred(spec: Any, numbers: frozenset[int], size: int) -> bool:
        return len(numbers) > 1 and (len(numbers) == size or (isinstance(spec, str) and "*" in spec))

    twice = starred(cron._orig_minute, cron.minute, 60) or starred(cron._orig_hour, cron.hour, 24)
    made_up: set[datetime] = set()
    moment = first = begin - timedelta(hours=26)
    before = latest = moment.astimezone(where).replace(tzinfo=None)
    while moment <= end:
        wall = moment.astimezone(where).replace(tzinfo=None)
        skipped = before + MINUTE
        while skipped < wall:
            if holds(cron, skipped):
                made_up.add(moment + (skipped - before - MINUTE))
            skipped += MINUTE
        shown_before = wall <= latest and moment > first
        if moment >= begin and ((holds(cron, wall) and (twice or not shown_before)) or moment in made_up):
            yield moment
        before, latest = wall, max(wall, latest)
        moment += MINUTE


def changes(where: tzinfo, year: int) -> list[datetime]:
    """The moments of a year at which clocks are changed, to the minute."""
    found = []
    step = timedelta(days=1)
    day = datetime(year, 1, 1, tzinfo=UTC)
    while day.year == year:
        if day.astimezone(where).utcoffset() != (day + step).astimezone(where).utcoffset():
            low, high = day, day + step
            while high - low > MINUTE:
                middle = low + (high - low) // 2 // MINUTE * MINUTE
                if middle.astimezone(where).utcoffset() == low.astimezone(where).utcoffset():
                    low = middle
                else:
                    high = middle
            found.append(high)
        day += step
    return found


MINUTES = st.one_of(
    st.sampled_from(["*", "*/20", "*/7", "*/30", "0-59", "10-50/5", "0,30", "50-10", "*/15,7"]),
    st.integers(0, 59),
    st.lists(st.integers(0, 59), min_size=1, max_size=5),
)
HOURS = st.one_of(
    st.sampled_from(["*", "*/2", "*/3", "0-23", "22-3", "1-5/2", "1,13", "0", "*/12", "*/24"]),
    st.integers(0, 4),
    st.integers(0, 23),
    st.lists(st.integers(0, 23), min_size=1, max_size=4),
)
DAYS = st.one_of(st.just("*"), st.sampled_from(["mon-fri", "sat,sun", "7", "0", "4-5", 6]))
DATES = st.one_of(st.just("*"), st.sampled_from(["*/2", "1-7", "25-31", "8-14,1"]))
CRONS = st.builds(crontab, MINUTES, HOURS, DAYS, DATES, day_or=st.booleans())
SHIFTS = st.sampled_from([20, 30, 60, 60, 60, 90, 120])


def _posix(minutes: int) -> str:
    return f"{'-' if minutes < 0 else ''}{abs(minutes) // 60}:{abs(minutes) % 60:02}"


@st.composite
def made_rules(draw: Any) -> str:
    """Rules that nobody follows: any offset, clocks changed by anything at any time, summer here or there."""
    offset, shift = draw(st.integers(-44, 52)) * 15, draw(SHIFTS)
    months = draw(st.tuples(st.integers(2, 5), st.integers(8, 11)).flatmap(st.permutations))
    week, day, quarter = st.integers(1, 5), st.integers(0, 6), st.integers(0, 96)
    dates = [f"M{month}.{draw(week)}.{draw(day)}/{_posix(draw(quarter) * 15)}" for month in months]
    return f"<AAA>{_posix(-offset)}<BBB>{_posix(-offset - shift)},{','.join(dates)}"


ANY_RULE = st.one_of(st.sampled_from(sorted(RULES.values())), made_rules())


def check_against_walk(cron: crontab, where: tzinfo, around: datetime) -> None:
    begin, end = around - timedelta(hours=30), around + timedelta(hours=30)
    expected = list(walk(cron, begin, end, where))
    assert times(within(where, cron), begin, end) == expected


@given(ANY_RULE, CRONS, st.integers(2000, 2090), st.integers(0, 1))
@settings(max_examples=60)
@example(RULES["a day skipped and a day repeated"], crontab("*/7", 3), 2026, 0)
@example(RULES["a day skipped and a day repeated"], crontab("*/7", 3), 2026, 1)
@example(RULES["Havana, at midnight"], crontab(30, 0), 2026, 0)
@example(RULES["Havana, at midnight"], crontab(30, "*/12"), 2026, 1)
def test_around_changes_of_clocks_it_comes_when_a_walk_through_the_minutes_says(
    rule: str, cron: crontab, year: int, which: int
) -> None:
    where = zone(rule)
    around = [*changes(where, year), datetime(year, 3, 29, 1, tzinfo=UTC), datetime(year, 10, 25, 1, tzinfo=UTC)]
    check_against_walk(cron, where, around[which])


@given(ANY_RULE, CRONS, st.integers(2000, 2090), st.integers(0, 1), st.timedeltas(-HOUR, 2 * HOUR))
def test_from_any_moment_near_a_change_of_clocks_it_comes_next_what_comes_first(
    rule: str, cron: crontab, year: int, which: int, offset: timedelta
) -> None:
    where = zone(rule)
    around = [*changes(where, year), datetime(year, 3, 29, 1, tzinfo=UTC), datetime(year, 10, 25, 1, tzinfo=UTC)][which]
    moment, end = around + offset, around + 30 * HOUR
    expected = next((each for each in walk(cron, around - HOUR, end, where) if each > moment), None)
    found = within(where, cron).next_after(moment)
    assert found == expected or (expected is None and found is not None and found > end)


@given(ANY_RULE, st.integers(0, 59), st.integers(0, 23), st.integers(2000, 2090))
def test_a_fixed_time_comes_once_a_day_never_twice_never_not_at_all(
    rule: str, minute: int, hour: int, year: int
) -> None:
    # Given a time of day / When a year is gone through, with both changes of clocks
    where = zone(rule)
    begin, end = datetime(year, 1, 2, tzinfo=UTC), datetime(year + 1, 1, 2, tzinfo=UTC)
    found, days = times(within(where, crontab(minute, hour)), begin, end), (end - begin).days
    # Then it comes as often as there are days, one day after the other, and but for one skipped time when it is shown
    walls = [each.astimezone(where) for each in found]
    shown = [(wall.hour, wall.minute) == (hour, minute) for wall in walls]
    assert shown.count(False) <= 1
    if rule == RULES["a day skipped and a day repeated"]:
        assert len(found) in (days - 1, days)
        return
    assert days - 1 <= len(found) <= days + 1
    gaps = [later - earlier for earlier, later in zip(found, found[1:], strict=False)]
    assert timedelta(hours=22) <= min(gaps) and max(gaps) <= timedelta(hours=26)


@pytest.mark.parametrize("year", [2011, 2025])
def test_every_zone_this_machine_knows(year: int) -> None:
    # Given all zones, each kind of them once; of 2011, when Samoa had no 30 December, those that are peculiar
    zones = [zoneinfo.ZoneInfo(name) for name in sorted(zoneinfo.available_timezones())]
    kinds = {(tuple(changes(where, year)), datetime(year, 7, 1, tzinfo=where).utcoffset()): where for where in zones}
    around = [(change, where) for (moments, _), where in kinds.items() for change in moments]
    if year == 2011:
        around = [(change, where) for change, where in around if changed_by(change, where) not in (HOUR, -HOUR)]
    # Then around their changes of clocks it comes when a walk through the minutes says
    for change, where in around:
        begin, end = change - 4 * HOUR, change + 27 * HOUR
        for line in ("*/20 * * * *", "30 2 * * *", "0 0 * * *"):
            cron = within(where, crontab.from_string(line))
            assert times(cron, begin, end) == list(walk(cron, begin, end, where)), where.key


def changed_by(moment: datetime, where: tzinfo) -> timedelta:
    before, after = ((moment + days * 24 * HOUR).astimezone(where).utcoffset() for days in (-1, 1))
    assert before is not None and after is not None
    return after - before


@given(
    DAYS, st.one_of(DATES, st.integers(29, 31)), st.sampled_from(["*", 2, "feb,4", "*/5"]), st.booleans(), st.dates()
)
def test_the_next_day_is_the_first_that_the_fields_hold(
    weekday: Any, monthday: Any, month: Any, either: bool, after: date
) -> None:
    assume(not (monthday in (30, 31) and month in (2, "feb,4")))
    cron = within(UTC, crontab(0, 0, weekday, monthday, month, day_or=either))
    found = cron.next_after(datetime(after.year, after.month, after.day, tzinfo=UTC))
    day = after
    while day < datetime.max.date() and (day - after).days < 4000:
        day += timedelta(days=1)
        if holds(cron, datetime(day.year, day.month, day.day)):
            assert found == datetime(day.year, day.month, day.day, tzinfo=UTC)
            return
    assert found is None or (found.date() - after).days >= 4000


def test_zones_of_pytz_are_read_by_todays_rules() -> None:
    # pytz's zones mean local mean time wherever they are not used through pytz's own methods.
    pytz = pytest.importorskip("pytz")
    cron = within(pytz.timezone("Europe/Oslo"), crontab(30, 7))
    assert cron.next_after(at("2026-07-01")) == at("2026-07-01T05:30")


# -- Celery's way to ask


@pytest.fixture
def clock() -> list[datetime]:
    """What time it is: its only item."""
    return [at("2026-05-04T12:00")]


@pytest.fixture
def app() -> Iterator[App]:
    made = App("proj", timezone="Europe/Oslo")
    yield made
    made.close()


def test_it_is_due_once_its_time_has_come(app: App, clock: list[datetime]) -> None:
    cron = crontab(30, 7, app=app, nowfun=lambda: clock[0])
    # Given the last run of yesterday / When it is not 07:30 in Oslo yet
    clock[0] = at("2026-05-04T05:29:30")
    assert cron.is_due(at("2026-05-03T05:30")) == (False, 30.0)
    assert cron.remaining_estimate(at("2026-05-03T05:30")) == timedelta(seconds=30)
    # Then it is due from then on, and next tomorrow
    clock[0] = at("2026-05-04T05:30")
    assert cron.is_due(at("2026-05-03T05:30")) == (True, 86400.0)
    clock[0] = at("2026-05-04T06:30")
    state = cron.is_due(at("2026-05-03T05:30"))
    assert state.is_due and state.next == 82800.0
    # And what is naive is in UTC
    assert cron.is_due(datetime(2026, 5, 3, 5, 30)) == state


def test_a_run_missed_by_more_than_the_deadline_is_not_due(app: App, clock: list[datetime]) -> None:
    cron = crontab(30, 7, app=app, nowfun=lambda: clock[0])
    last = at("2026-05-03T05:30")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The setting is for beat, which is not there yet.
        app.conf.beat_cron_starting_deadline = 3600
    clock[0] = at("2026-05-04T06:30")
    assert cron.is_due(last) == (True, 82800.0)
    clock[0] = at("2026-05-04T06:30:00.000001")
    assert cron.is_due(last) == (False, pytest.approx(82800.0))


def test_the_delta_leads_from_the_last_run_to_the_next(app: App, clock: list[datetime]) -> None:
    cron = crontab(30, 7, app=app, nowfun=lambda: clock[0])
    last, delta, now = cron.remaining_delta(at("2026-05-03T05:30"))
    assert (last + delta, now) == (at("2026-05-04T05:30"), clock[0])
    last, delta, now = cron.remaining_delta(at("2026-05-03T05:30"), tz="UTC")
    assert last + delta == at("2026-05-03T07:30")


# -- what is known of it


def test_it_shows_its_fields_as_they_were_given() -> None:
    assert repr(crontab("*/5", [1, 2], "mon", {3}, "jan")) == "<crontab: */5 [1, 2] {3} jan mon (m/h/dM/MY/d)>"
    assert repr(crontab(day_or=True)) == "<crontab: * * * * * (m/h/dM/MY/d), day_or>"


def test_it_equals_what_holds_the_same() -> None:
    assert crontab(minute="*/15") == crontab(minute="0,15,30,45") == crontab(minute={0, 15, 30, 45})
    assert hash(crontab(minute="*/15")) == hash(crontab(minute="0,15,30,45"))
    assert crontab(day_of_week="sun") == crontab(day_of_week=7)
    assert crontab() != crontab(hour=1) and crontab() != crontab(nowfun=lambda: at("2026-01-01"))
    assert crontab() != crontab(day_or=True) and crontab() != "* * * * *"


SAMPLES = [
    crontab(), crontab("*/5", "8-17", "mon-fri", "1-7", "jan-mar"), crontab(iter([1, 2]), {3}, (4, "sat"), range(1, 8)),
    crontab(0, 0, "mon", 30, 2, day_or=True),
]  # fmt: skip


@pytest.mark.parametrize("cron", SAMPLES, ids=repr)
def test_it_can_be_copied_pickled_and_described(cron: crontab) -> None:
    # Given a schedule / When it is read from its pickle, its copy, its description as JSON
    others = [pickle.loads(pickle.dumps(cron)), copy.deepcopy(cron), rebuild(json.loads(json.dumps(cron.describe())))]
    for other in others:
        # Then it is the same
        assert other == cron and other.describe() == cron.describe()
        assert within(NEW_YORK, other).next_after(at("2026-02-27")) == within(NEW_YORK, cron).next_after(
            at("2026-02-27")
        )
    assert repr(others[0]) == repr(cron)


def test_what_it_was_made_of_can_change_without_it() -> None:
    minutes = [0, 30]
    cron = crontab(minutes)
    minutes.append(15)
    assert cron == crontab("0,30") and repr(cron) == "<crontab: [0, 30] * * * * (m/h/dM/MY/d)>"


def test_misspelt_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        crontab(minutes=5)  # type: ignore[call-arg]
