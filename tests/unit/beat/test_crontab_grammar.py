"""The language of crontab fields."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.beat.crontab_grammar import (
    DAY_OF_MONTH,
    DAY_OF_WEEK,
    HOUR,
    MINUTE,
    MONTH_OF_YEAR,
    Field,
    ParseException,
    expand,
)
from amqptasks.schedules import crontab, crontab_parser

FIELDS = (MINUTE, HOUR, DAY_OF_WEEK, DAY_OF_MONTH, MONTH_OF_YEAR)


@pytest.mark.parametrize(
    ("field", "spec", "expected"),
    [
        (MINUTE, "*", set(range(60))),
        (MINUTE, "*/15", {0, 15, 30, 45}),
        (MINUTE, "*/90", {0}),
        (MINUTE, "7", {7}),
        (MINUTE, "07", {7}),
        (MINUTE, 7, {7}),
        (MINUTE, [7, 9], {7, 9}),
        (MINUTE, {7, 9}, {7, 9}),
        (MINUTE, range(0, 60, 20), {0, 20, 40}),
        (MINUTE, ["1-3", 7, "*/30"], {0, 1, 2, 3, 7, 30}),
        (MINUTE, "10-50/5", set(range(10, 51, 5))),
        (MINUTE, "1,13,30-45,50-59/2", {1, 13, *range(30, 46), 50, 52, 54, 56, 58}),
        (MINUTE, " 1 , 2 - 4,\t10 - 20 / 5 ", {1, 2, 3, 4, 10, 15, 20}),
        (MINUTE, "5-5", {5}),
        (HOUR, "22-3", {22, 23, 0, 1, 2, 3}),
        (HOUR, "22-3/2", {22, 0, 2}),
        (HOUR, "*/2,*/3", {0, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21, 22}),
        (DAY_OF_MONTH, "*/3", {1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31}),
        (DAY_OF_MONTH, "28-3", {28, 29, 30, 31, 1, 2, 3}),
        (MONTH_OF_YEAR, "*/2", {1, 3, 5, 7, 9, 11}),
        (MONTH_OF_YEAR, "2-12/2", {2, 4, 6, 8, 10, 12}),
        (MONTH_OF_YEAR, "jan", {1}),
        (MONTH_OF_YEAR, "January", {1}),
        (MONTH_OF_YEAR, "SEPT,dec", {9, 12}),
        (MONTH_OF_YEAR, "nov-feb", {11, 12, 1, 2}),
        (MONTH_OF_YEAR, ["may", 7], {5, 7}),
        (DAY_OF_WEEK, "sunday", {0}),
        (DAY_OF_WEEK, "mon-fri", {1, 2, 3, 4, 5}),
        (DAY_OF_WEEK, "Sat-Tues", {6, 0, 1, 2}),
        (DAY_OF_WEEK, "fri-sun", {5, 6, 0}),
        (DAY_OF_WEEK, "thu,fri", {4, 5}),
        (DAY_OF_WEEK, "*/2", {0, 2, 4, 6}),
        # Sunday is 0 and 7.
        (DAY_OF_WEEK, 7, {0}),
        (DAY_OF_WEEK, "7", {0}),
        (DAY_OF_WEEK, [5, 7], {5, 0}),
        (DAY_OF_WEEK, "5-7", {5, 6, 0}),
        (DAY_OF_WEEK, "5-0", {5, 6, 0}),
        (DAY_OF_WEEK, "7-2", {0, 1, 2}),
        (DAY_OF_WEEK, "0-7", set(range(7))),
        (DAY_OF_WEEK, "1-7", set(range(7))),
        (DAY_OF_WEEK, "1-7/2", {1, 3, 5, 0}),
        (DAY_OF_WEEK, "0-0", {0}),
        (DAY_OF_WEEK, "7-7", {0}),
        (DAY_OF_WEEK, "7-0", {0}),
    ],
)
def test_a_field_holds_what_it_says(field: Field, spec: Any, expected: set[int]) -> None:
    assert expand(spec, field).numbers == expected


@pytest.mark.parametrize(
    ("spec", "like"),
    [
        ("*", True), ("*/20", True), ("*/20,5", True), (["*/20", 5], True), ("0-59", True), (range(60), True),
        ("0,20,40", False), ("10-50/5", False), (7, False), ([0, 30], False), ("*/60", False),
    ],
)  # fmt: skip
def test_a_field_with_a_star_or_with_everything_is_like_an_interval(spec: Any, like: bool) -> None:
    assert expand(spec, MINUTE).like_interval is like


@pytest.mark.parametrize(
    ("field", "spec", "what"),
    [
        (MINUTE, "", "empty part (minute '': expected 0-59)"),
        (MINUTE, "1,,2", "empty part (minute '1,,2': expected 0-59)"),
        (MINUTE, "1, ", "empty part (minute '1, ': expected 0-59)"),
        (MINUTE, "-5", "negative numbers not supported (minute '-5': expected 0-59)"),
        (MINUTE, "60", "Invalid end range: 60 > 59. (minute '60': expected 0-59)"),
        (DAY_OF_MONTH, "0", "Invalid beginning range: 0 < 1. (day_of_month '0': expected 1-31)"),
        (HOUR, "1-24", "Invalid end range: 24 > 23. (hour '1-24': expected 0-23)"),
        (DAY_OF_WEEK, "8", "Invalid end range: 8 > 6."),
        (DAY_OF_WEEK, "mo", "Invalid weekday literal 'mo'. (day_of_week 'mo': expected 0-6 or a name such as 'sun'"),
        (DAY_OF_WEEK, "monkey", "Invalid weekday literal 'monkey'."),
        (DAY_OF_WEEK, "may", "Invalid weekday literal 'may'."),
        (MONTH_OF_YEAR, "mon", "Invalid month literal 'mon'. (month_of_year 'mon': expected 1-12 or a name such as"),
        (MINUTE, "mon", "Invalid weekday literal 'mon'. (minute 'mon': expected 0-59)"),
        (MINUTE, "*/", "empty filter (minute '*/': expected a step after the slash, such as */5)"),
        (MINUTE, "1-5/", "empty filter"),
        (MINUTE, "*/0", "Invalid step '0' (minute '*/0': expected a whole number from 1 after the slash)"),
        (MINUTE, "*/x", "Invalid step 'x'"),
        (MINUTE, "5/10", "Invalid step of the single value '5/10' (minute '5/10': expected a range before the "
                         "slash, such as 5-59/10)"),
        (MINUTE, "1-2-3", "Invalid part '1-2-3'"),
        (MINUTE, "*/15/2", "Invalid part '*/15/2'"),
        (MINUTE, "*-5", "Invalid part '*-5'"),
        (MINUTE, "1-5 6", "Invalid part '1-5 6'"),
        (MINUTE, "?", "Invalid part '?'"),
        (MINUTE, "1" * 5000, "Invalid part"),
        (MINUTE, ["5", "x"], "Invalid weekday literal 'x'. (minute 'x': expected 0-59)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_the_place_and_what_was_expected(
    field: Field, spec: Any, what: str
) -> None:
    with pytest.raises(ParseException) as caught:
        expand(spec, field)
    assert str(caught.value).startswith(what)


@pytest.mark.parametrize(
    ("field", "spec", "kind", "what"),
    [
        (MINUTE, 60, ValueError, "Invalid crontab pattern.  Valid range is 0-59. '60' was found. (minute)"),
        (DAY_OF_MONTH, [0], ValueError, "Invalid crontab pattern.  Valid range is 1-31. '0' was found. (day_of_month)"),
        (MINUTE, -1, ValueError, "Invalid crontab pattern.  Valid range is 0-59. '-1' was found."),
        (MINUTE, [], ValueError, "Invalid crontab pattern: no values. (minute []: expected 0-59)"),
        (MINUTE, None, TypeError, "Argument cronspec needs to be of any of the following types: int, str, or an "
                                  "iterable type. <class 'NoneType'> was given. (minute: expected 0-59)"),
        (MINUTE, 1.5, TypeError, "Argument cronspec needs to be of any of the following types"),
        (MINUTE, [1.5], TypeError, "Argument cronspec needs to be of any of the following types"),
    ],
)  # fmt: skip
def test_values_of_no_use_are_refused(field: Field, spec: Any, kind: type[Exception], what: str) -> None:
    with pytest.raises(kind) as caught:
        expand(spec, field)
    assert str(caught.value).startswith(what)


@pytest.mark.parametrize("line", ["", "* * * *", "* * * * * *", "*\u2003* * * *  * x"])
def test_a_line_must_have_five_fields(line: str) -> None:
    with pytest.raises(ParseException, match="expected five fields"):
        crontab.from_string(line)


def test_a_line_may_have_any_white_space() -> None:
    assert crontab.from_string(" 1\t2  3   apr \n mon ") == crontab(1, 2, "mon", 3, "apr")


def test_the_general_parser_reads_any_range() -> None:
    assert crontab_parser(60).parse("*/15") == {0, 15, 30, 45}
    assert crontab_parser(31, 1).parse("*/10") == {1, 11, 21, 31}
    assert crontab_parser(7).parse("mon-wed") == {1, 2, 3}
    assert crontab_parser(12, 1).parse("jan,dec") == {1, 12}
    with pytest.raises(crontab_parser.ParseException):
        crontab_parser(7).parse("7")


@given(st.sampled_from(FIELDS), st.text(alphabet="0123456789*/-, monjasu", max_size=12))
def test_any_text_is_read_or_refused_and_nothing_else(field: Field, text: str) -> None:
    try:
        numbers = expand(text, field).numbers
    except ParseException:
        return
    assert numbers and numbers <= set(field.all)
