"""Moments: aware, in UTC, whatever they were given as."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.clock import as_utc, parse_moment, seconds_until, utcnow

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


def test_now_is_aware() -> None:
    before = datetime.now(timezone.utc)
    assert before <= utcnow() <= datetime.now(timezone.utc)
    assert utcnow().tzinfo is timezone.utc


@pytest.mark.parametrize(
    ("moment", "zone", "expected"),
    [
        (NOON, BERLIN, NOON),
        (datetime(2030, 1, 1, 12), None, NOON),
        (datetime(2030, 1, 1, 13), BERLIN, NOON),
        (datetime(2030, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))), None, NOON),
        # Summer time begins: 02:30 does not exist there; it ends: 02:30 is there twice, the first is taken.
        (datetime(2030, 3, 31, 2, 30), BERLIN, datetime(2030, 3, 31, 1, 30, tzinfo=timezone.utc)),
        (datetime(2030, 10, 27, 2, 30), BERLIN, datetime(2030, 10, 27, 0, 30, tzinfo=timezone.utc)),
    ],
)
def test_a_naive_moment_is_in_the_zone_given(moment: datetime, zone: ZoneInfo | None, expected: datetime) -> None:
    found = as_utc(moment, zone)
    assert found == expected and found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    [
        "2030-01-01T12:00:00Z", "2030-01-01T12:00:00z", "2030-01-01T12:00:00+00:00", "2030-01-01 12:00:00",
        "2030-01-01T13:00:00+01:00", "2030-01-01T12:00:00.000000+00:00", "2030-01-01T12:00",
    ],
)  # fmt: skip
def test_texts_are_read_in_every_usual_form(text: str) -> None:
    assert parse_moment(text) == NOON


def test_a_text_without_an_offset_is_in_the_zone_given() -> None:
    assert parse_moment("2030-01-01T13:00:00", BERLIN) == NOON
    assert parse_moment("2030-01-01T12:00:00Z", BERLIN) == NOON


zones: st.SearchStrategy[Any] = st.none() | st.timezones()


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones))
def test_what_is_written_is_read_back(moment: datetime) -> None:
    text = as_utc(moment).isoformat()
    assert parse_moment(text) == as_utc(moment)


@given(st.text(max_size=80) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.{0,20}"))
def test_no_text_gives_another_error(text: str) -> None:
    # When any text is read as a moment / Then it is one, aware, or a ValueError
    try:
        assert parse_moment(text).tzinfo is not None
    except ValueError as error:
        assert len(str(error)) < 200


@pytest.mark.parametrize(
    "wrong",
    [
        "", "Z", "soon", "2030-13-01T00:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
        "2030-01-01T12:00:00" + " " * 100, 5, None, b"2030-01-01",
    ],
)  # fmt: skip
def test_what_is_no_moment_is_a_value_error(wrong: object) -> None:
    with pytest.raises(ValueError, match="expected an ISO 8601 date and time"):
        parse_moment(wrong)  # type: ignore[arg-type]


def test_the_time_until_a_moment_is_in_seconds() -> None:
    assert seconds_until(NOON, NOON - timedelta(hours=1, milliseconds=500)) == 3600.5
    assert seconds_until(NOON, NOON + timedelta(seconds=1)) == -1
    assert seconds_until(utcnow() + timedelta(hours=1)) > 3500
