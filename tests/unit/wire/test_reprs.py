"""Short texts: bounded in length and in work, and never raising."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amqptasks.wire.reprs import DEFAULT_LENGTH, printable, short_repr

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Broken:
    """Its repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Odd:
    """Its repr is no text."""

    def __repr__(self) -> str:
        return 5  # type: ignore[return-value]


@pytest.mark.parametrize(
    "value",
    [
        (), [], {}, (1,), (2, 2), ["a", None, True, 1.5], {"a": 1}, "text", 5, None, b"bytes", {1, 2}, (1, [2, (3,)]),
        "it's", 2**255,
    ],
)  # fmt: skip
def test_what_is_short_is_shown_as_python_does(value: Any) -> None:
    assert short_repr(value) == repr(value)


@given(anything, st.integers(20, 2000))
@example(-(10**19), 20)
@example("\U000e0001" * 120, 200)
def test_it_never_raises_and_is_never_longer(value: Any, length: int) -> None:
    assert len(short_repr(value, length)) <= length
    assert len(short_repr(value)) <= DEFAULT_LENGTH


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        ["x" * 1000] * 1000,
        list(range(1_000_000)),
        {str(number): number for number in range(100_000)},
        [[[[[[[[1]]]]]]]],
        b"x" * 1_000_000,
        {"k" * 100_000: "v"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_large_is_cut(value: Any) -> None:
    assert len(short_repr(value)) <= DEFAULT_LENGTH
    assert "..." in short_repr(value)


@pytest.mark.parametrize("value", [10**4000, 10**100_000, (2, 10**5000)], ids=["long", "longer", "inside"])
def test_a_number_with_more_digits_than_python_prints_is_no_error(value: Any) -> None:
    assert 0 < len(short_repr(value)) <= DEFAULT_LENGTH


def test_a_ring_is_shown_once() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert len(short_repr(ring)) < 100


@pytest.mark.parametrize("value", [Broken(), [Broken()], {"a": (Broken(),)}, Odd(), (Odd(), 1)])
def test_a_value_that_cannot_be_shown_does_not_stop_a_task(value: Any) -> None:
    assert short_repr(value)


# ---- Text from the wire in a log line


@given(st.text(), st.integers(10, 300))
def test_text_from_the_wire_is_one_line_without_control_characters(text: str, length: int) -> None:
    shown = printable(text, length)
    assert shown.isprintable()
    assert len(shown) <= length * 10


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Ünïcode", "plain Ünïcode"),
        ("a\nCRITICAL b", "a\\nCRITICAL b"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
        ("\x00", "\\x00"),
        (5, "5"),
        (None, "None"),
    ],
)
def test_what_could_trick_a_terminal_is_escaped(text: Any, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_from_the_wire_is_cut() -> None:
    assert printable("x" * 1000, 10) == "xxxxxxxxx…"
    assert printable("x" * 10, 10) == "x" * 10
