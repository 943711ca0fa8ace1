"""The language of crontab fields: ``*/15``, ``mon-fri``, ``22-3``, ``1-7,15-21``, ``10-50/5``.

A field is a list of parts between commas. A part is ``*``, a value or a range, of numbers or names; ``*`` and ranges
may have a step. A range whose end comes before its beginning goes on past the end of the field: ``sat-tue``, ``22-3``.
White space does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any, Final, TypeAlias

#: What a field may be given as: a number, a text, or any iterable of those.
Cronspec: TypeAlias = "int | str | Iterable[int | str]"

WEEKDAYS: Final = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip

_PART = re.compile(
    r"(?P<begin>\*|\w{1,16})(\s*-\s*(?P<end>\w{1,16}))?(?P<stepped>\s*/\s*(?P<step>\w{1,16})?)?", re.ASCII
)


class ParseException(ValueError):
    """A crontab field, or a line of five of them, cannot be read. The text says what, where, and what was expected."""


@dataclass(frozen=True, slots=True)
class Field:
    """One of the five fields of a crontab.

    Args:
        name: What the field is called, for errors.
        first: Its smallest value.
        last: Its largest value.
        names: The names of its values, from the first on; three letters of one are enough.
        sunday_is_7: Whether one more than the last value is another way to say the first.
    """

    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()
    sunday_is_7: bool = False

    @property
    def all(self) -> range:
        """Every value."""
        return range(self.first, self.last + 1)

    @property
    def expected(self) -> str:
        """What is expected of a value, for errors."""
        names = f" or a name such as {self.names[0][:3]!r} or {self.names[-1]!r}" if self.names else ""
        return f"{self.first}-{self.last}{names}"


MINUTE: Final = Field("minute", 0, 59)
HOUR: Final = Field("hour", 0, 23)
DAY_OF_WEEK: Final = Field("day_of_week", 0, 6, WEEKDAYS, sunday_is_7=True)
DAY_OF_MONTH: Final = Field("day_of_month", 1, 31)
MONTH_OF_YEAR: Final = Field("month_of_year", 1, 12, MONTHS)


@dataclass(frozen=True, slots=True)
class Values:
    """What a field was expanded to: the values, and whether it is ``like_interval``.

    A field is like an interval if it was written with a ``*`` (``*/20``) or holds every value, and is no single value.
    The others are a choice of certain times.
    """

    numbers: frozenset[int]
    like_interval: bool


def expand(spec: Any, field: Field) -> Values:
    """Return the values that a specification stands for. What equal specifications return is shared.

    Args:
        spec: A number, a text in the language of this module, or an iterable of such.
        field: The field that it is for.

    Raises:
        ParseException: A text cannot be read.
        ValueError: A number is out of range, or there are no values.
        TypeError: It is none of these types.
    """
    if isinstance(spec, str):
        return _expand_text(spec, field)
    if not isinstance(spec, Iterable):
        return _values(_item(spec, field), False, field)
    items = list(spec)
    numbers = frozenset(number for each in items for number in _item(each, field))
    if not numbers:
        raise ValueError(f"Invalid crontab pattern: no values. ({field.name} {spec!r}: expected {field.expected})")
    return _values(numbers, any(isinstance(each, str) and "*" in each for each in items), field)


@lru_cache(maxsize=4096)
def _expand_text(spec: str, field: Field) -> Values:
    numbers: set[int] = set()
    for part in spec.split(","):
        numbers.update(_expand_part(part, spec, field))
    return _values(frozenset(numbers), "*" in spec, field)


@lru_cache(maxsize=4096)
def _values(numbers: frozenset[int], starred: bool, field: Field) -> Values:
    return Values(numbers, len(numbers) > 1 and (starred or len(numbers) == len(field.all)))


def _item(item: Any, field: Field) -> frozenset[int]:
    if isinstance(item, str):
        return _expand_text(item, field).numbers
    try:
        number = index(item)
    except TypeError:
        raise TypeError(
            "Argument cronspec needs to be of any of the following types: int, str, or an iterable type. "
            f"{type(item)!r} was given. ({field.name}: expected {field.expected})"
        ) from None
    if field.sunday_is_7 and number == field.last + 1:
        number = field.first
    if number not in field.all:
        raise ValueError(
            f"Invalid crontab pattern.  Valid range is {field.first}-{field.last}. '{number}' was found. ({field.name})"
        )
    return frozenset((number,))


def _expand_part(part: str, spec: str, field: Field) -> Iterable[int]:
    text = part.strip()
    if not text:
        raise _error("empty part", spec, field)
    if text.startswith("-"):
        raise _error("negative numbers not supported", spec, field)
    match = _PART.fullmatch(text)
    if match is None or (match["begin"] == "*" and match["end"]):
        raise _error(f"Invalid part {text!r}", spec, field, "*, a value or a range, the first and last with /step")
    if match["begin"] == "*":
        found = list(field.all)
    elif match["end"]:
        found = _span(match["begin"], match["end"], spec, field)
    else:
        found = [_number(match["begin"], spec, field)]
    if not match["stepped"]:
        return found
    if not match["step"]:
        raise _error("empty filter", spec, field, "a step after the slash, such as */5")
    if match["begin"] != "*" and not match["end"]:
        hint = f"a range before the slash, such as {text.partition('/')[0].strip()}-{field.last}/{match['step']}"
        raise _error(f"Invalid step of the single value {text!r}", spec, field, hint)
    if not match["step"].isdecimal() or int(match["step"]) == 0:
        raise _error(f"Invalid step {match['step']!r}", spec, field, "a whole number from 1 after the slash")
    return found[:: int(match["step"])]


def _span(begin: str, end: str, spec: str, field: Field) -> list[int]:
    first, last = _number(begin, spec, field), _number(end, spec, field)
    # 5-7 ends on Sunday as 5-0 does. But 0-7 is the whole week, and 0-0 is not.
    if first == last and _says_7(end, field) and not _says_7(begin, field):
        return list(field.all)
    if last >= first:
        return list(range(first, last + 1))
    return [*range(first, field.last + 1), *range(field.first, last + 1)]


def _says_7(text: str, field: Field) -> bool:
    return field.sunday_is_7 and text.isdecimal() and int(text) == field.last + 1


def _number(text: str, spec: str, field: Field) -> int:
    if not text.isdecimal():
        return _named(text, spec, field)
    number = int(text)
    if _says_7(text, field):
        return field.first
    if number > field.last:
        raise _error(f"Invalid end range: {number} > {field.last}.", spec, field)
    if number < field.first:
        raise _error(f"Invalid beginning range: {number} < {field.first}.", spec, field)
    return number


def _named(text: str, spec: str, field: Field) -> int:
    given = text.lower()
    if len(given) >= 3:
        for number, name in zip(field.all, field.names, strict=False):
            if name.startswith(given):
                return number
    kind = "month" if field.names is MONTHS else "weekday"
    raise _error(f"Invalid {kind} literal {text!r}.", spec, field)


def _error(what: str, spec: str, field: Field, expected: str | None = None) -> ParseException:
    return ParseException(f"{what} ({field.name} {spec!r}: expected {expected or field.expected})")


class crontab_parser:
    """Reads fields of any range, as Celery's class of this name does.

    Args:
        max_: How many values there are.
        min_: The smallest.

    >>> sorted(crontab_parser(24).parse("*/6"))
    [0, 6, 12, 18]
    """

    ParseException = ParseException

    def __init__(self, max_: int = 60, min_: int = 0) -> None:
        self.max_ = max_
        self.min_ = min_
        names = {(7, 0): WEEKDAYS, (12, 1): MONTHS}.get((max_, min_), ())
        self._field = Field("crontab", min_, min_ + max_ - 1, names)

    def parse(self, spec: str) -> set[int]:
        """Return the values that a text stands for.

        Raises:
            ParseException: It cannot be read.
        """
        return set(_expand_text(spec, self._field).numbers)
