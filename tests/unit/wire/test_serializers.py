"""Values survive the wire, what cannot is refused where it is sent, and only what is accepted is read."""

from __future__ import annotations

import enum
import re
import subprocess
import sys
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from amqptasks.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from amqptasks.wire import serializers
from amqptasks.wire.serializers import Limits

FORMATS = ["json", "msgpack"]
TYPED = [
    datetime(2024, 2, 29, 12, 30, 15, 123456),
    datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc),
    datetime(1, 1, 1),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-11, minutes=-30))),
    date(2024, 2, 29),
    time(23, 59, 59, 999999),
    time(1, 2, tzinfo=timezone.utc),
    Decimal("1.10"),
    Decimal("-1E+1000"),
    Decimal("Infinity"),
    uuid.UUID("5f2ad1b8-2f0c-4a4b-a5f5-2a6a1c1c1c1c"),
    b"text",
    b"\xff\x00\xfe",
    b"",
]


def round_trip(value: Any, name: str) -> Any:
    content_type, encoding, body = serializers.dumps(value, name)
    return serializers.loads(body, content_type, encoding, serializers.accepted([name]))


@pytest.fixture
def upside_down() -> Iterator[str]:
    """A serializer of a user's own: text backwards."""
    serializers.register("upside", lambda value: value[::-1], lambda body: body.decode()[::-1], "text/upside")
    yield "upside"
    serializers.unregister("upside")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**63 - 1, 1.5, "", "a\0b", "naïve 🐇 \u2028", [], {}, [[1], {"a": [None]}], {"": ""}],
    ids=repr,
)
def test_a_plain_value_arrives_as_it_was(value: Any, name: str) -> None:
    assert round_trip(value, name) == value


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", TYPED, ids=repr)
def test_a_typed_value_arrives_as_it_was_wherever_it_stands(value: Any, name: str) -> None:
    # Given a value that the format itself lacks / When it travels as an argument, in a list and in a map
    arrived = round_trip([[value], {"at": value}, {"in": [{"deep": value}]}], name)
    # Then it is equal and of the same type
    assert arrived == [[value], {"at": value}, {"in": [{"deep": value}]}]
    assert type(arrived[0][0]) is type(value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_moment_keeps_its_offset_and_a_naive_one_stays_naive(name: str) -> None:
    berlin = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    aware, naive = round_trip([berlin, datetime(2024, 7, 1, 12)], name)
    assert aware == berlin
    assert aware.utcoffset() == timedelta(hours=2)
    assert naive.tzinfo is None


@pytest.mark.parametrize("name", FORMATS)
def test_kinds_of_known_types_travel_as_those_types(name: str) -> None:
    class Colour(str, enum.Enum):
        RED = "red"

    class Moment(datetime):
        pass

    point = namedtuple("point", "x y")
    value = [
        (1, 2),
        point(3, 4),
        OrderedDict(a=1),
        Colour.RED,
        Moment(2024, 1, 1),
        bytearray(b"\xff"),
        memoryview(b"m"),
    ]
    assert round_trip(value, name) == [[1, 2], [3, 4], {"a": 1}, "red", datetime(2024, 1, 1), b"\xff", b"m"]


@pytest.mark.parametrize("name", FORMATS)
def test_an_object_may_say_how_it_is_written(name: str) -> None:
    class Money:
        def __json__(self) -> dict[str, Any]:
            return {"amount": Decimal("1.5"), "currency": "EUR"}

    assert round_trip([Money()], name) == [{"amount": Decimal("1.5"), "currency": "EUR"}]


@pytest.mark.parametrize("name", FORMATS)
def test_a_map_that_only_resembles_a_typed_one_arrives_as_it_was(name: str) -> None:
    value = [{"__type__": "datetime"}, {"__type__": "x", "__value__": 1, "more": 2}, "__type__", {"__value__": 1}]
    assert round_trip(value, name) == value


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "value",
    [
        object(), {1, 2}, 1j, timedelta(1), len, int, "\ud800", {"\udfff": 1}, {(1, 2): 3},
        {b"\xff".decode("latin1"): {3}},
        {"__type__": "os.system", "__value__": "ls"}, {"__type__": "uuid", "__value__": "no"},
        {"__type__": [], "__value__": 1},
    ],
    ids=ascii,
)  # fmt: skip
def test_what_cannot_travel_is_refused_where_it_is_sent(value: Any, name: str) -> None:
    with pytest.raises(EncodeError, match=f"{name} cannot carry"):
        serializers.dumps([[value], {}, {}], name)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**5000], ids=["nan", "inf", "-inf", "big"]
)
def test_numbers_that_json_lacks_are_refused_where_they_are_sent(value: Any) -> None:
    with pytest.raises(EncodeError):
        serializers.dumps([value], "json")


def test_msgpack_carries_infinities_but_neither_long_integers_nor_keys_that_are_not_text() -> None:
    assert round_trip([float("inf")], "msgpack") == [float("inf")]
    for value in (2**64, {1: 2}, {None: 1}):
        with pytest.raises(EncodeError):
            serializers.dumps([value], "msgpack")


def test_json_makes_text_of_the_keys_that_celery_makes_text_of() -> None:
    value = {2: "a", None: "b", True: "c", 1.5: "d"}
    assert round_trip(value, "json") == {"2": "a", "null": "b", "true": "c", "1.5": "d"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_value_that_contains_itself_is_refused(name: str) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="refers to itself"):
        serializers.dumps(endless, name)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_reader_with_the_same_limits_would_refuse_can_be_refused_where_it_is_sent(name: str) -> None:
    limits = Limits(max_bytes=1000, max_items=20, max_depth=3)
    serializers.dumps([[[1]]], name, limits)
    for value in ([[[[1]]]], [[]] * 20, ["x" * 1001]):
        with pytest.raises(EncodeError, match="its reader would refuse"):
            serializers.dumps(value, name, limits)


class Foreign:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((1, Foreign()), {}, r"argument 2 of args, a .*Foreign"),
        ((1,), {"x": Foreign()}, r"kwargs\['x'\], a .*Foreign"),
        (({"a": [0, {"b": {1}}]},), {}, r"argument 1 of args\['a'\]\[1\]\['b'\], a builtins.set"),
        (({(1, 2): 3},), {}, r"argument 1 of args, a builtins.dict"),
        ((), {"text": "\ud800"}, r"kwargs\['text'\], a builtins.str"),
    ],
)
def test_the_error_names_the_argument(args: Any, kwargs: Any, where: str, name: str) -> None:
    explanation = serializers.explain_unencodable(args, kwargs, name)
    assert re.search(where, explanation)
    assert explanation.isascii()


def test_the_error_says_so_when_the_arguments_are_not_to_blame() -> None:
    assert "options of the call" in serializers.explain_unencodable((1,), {"x": 2}, "json")


# ---- which content is read


@pytest.mark.parametrize("content_type", ["application/x-msgpack", "application/x-yaml", "text/plain", "", "JSON"])
def test_content_that_is_not_accepted_is_refused_unread(content_type: str) -> None:
    with pytest.raises(ContentDisallowed, match="accept_content"):
        serializers.loads(b"1", content_type, "utf-8", serializers.accepted(["json"]))


@pytest.mark.parametrize("content_type", [None, 1, b"application/json", ["application/json"], {"a": 1}])
def test_a_content_type_that_is_no_text_is_refused(content_type: Any) -> None:
    with pytest.raises(ContentDisallowed):
        serializers.loads(b"1", content_type, "utf-8", serializers.accepted(["json"]))


def test_the_refusal_of_a_content_type_shows_no_control_characters() -> None:
    with pytest.raises(ContentDisallowed) as refused:
        serializers.loads(b"1", "x\n\x1b[31mCRITICAL\u202e" + "y" * 10_000, "utf-8", frozenset())
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_accepted_takes_names_and_mime_types_together() -> None:
    assert serializers.accepted(["json", "application/x-own", "msgpack"]) == {
        "application/json", "application/x-own", "application/x-msgpack",
    }  # fmt: skip
    with pytest.raises(ImproperlyConfigured, match="did you mean 'json'"):
        serializers.accepted(["jsn"])
    with pytest.raises(ImproperlyConfigured, match="expected a list"):
        serializers.accepted("json")


def test_an_accepted_type_without_a_serializer_is_an_error_of_the_message() -> None:
    with pytest.raises(DecodeError, match="no serializer is registered"):
        serializers.loads(b"1", "application/x-own", "utf-8", frozenset({"application/x-own"}))


@pytest.mark.parametrize("name", ["jsom", "", None, 3, []])
def test_an_unknown_serializer_is_named(name: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="no serializer named"):
        serializers.dumps(1, name)


def test_a_serializer_of_the_users_own_is_used_once_registered(upside_down: str) -> None:
    assert serializers.dumps("abc", upside_down) == ("text/upside", "utf-8", b"cba")
    assert round_trip("abc", upside_down) == "abc"


def test_a_serializer_that_is_unregistered_is_gone() -> None:
    serializers.register("gone", lambda value: b"", lambda body: None, "text/gone")
    serializers.unregister("gone")
    with pytest.raises(ImproperlyConfigured):
        serializers.by_name("gone")
    with pytest.raises(DecodeError):
        serializers.loads(b"", "text/gone", "utf-8", frozenset({"text/gone"}))


def test_an_error_in_a_users_serializer_becomes_one_of_ours(upside_down: str) -> None:
    with pytest.raises(EncodeError):
        serializers.dumps(object(), upside_down)
    with pytest.raises(DecodeError):
        serializers.loads(b"\xff", "text/upside", "utf-8", frozenset({"text/upside"}))


def test_pickle_is_read_where_it_is_accepted_and_nowhere_else() -> None:
    content_type, encoding, body = serializers.dumps({1, 2}, "pickle")
    assert (content_type, encoding) == ("application/x-python-serialize", "binary")
    assert serializers.loads(body, content_type, encoding, serializers.accepted(["json", "pickle"])) == {1, 2}
    with pytest.raises(ContentDisallowed):
        serializers.loads(body, content_type, encoding, serializers.accepted(["json", "msgpack", "yaml"]))


def test_yaml_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImproperlyConfigured, match="pip install PyYAML"):
        serializers.dumps([1], "yaml")
    with pytest.raises(DecodeError, match="pip install PyYAML"):
        serializers.loads(b"- 1", "application/x-yaml", "utf-8", serializers.accepted(["yaml"]))


def test_yaml_is_written_as_its_reader_wants_it_and_runs_nothing() -> None:
    pytest.importorskip("yaml", reason="PyYAML is not among our dependencies: users who want YAML install it")
    shared = [1, "é"]
    assert round_trip([shared, {"a": shared}], "yaml") == [shared, {"a": shared}]
    for body in (
        b"a: &x [1]\nb: [*x, *x]",
        b"!!python/object/apply:os.getcwd []",
        b"[" * 5000,
        b"\xff",
        b"\0",
        b"a: b: c",
    ):
        with pytest.raises(DecodeError):
            serializers.loads(body, "application/x-yaml", "utf-8", serializers.accepted(["yaml"]))


def test_importing_the_serializers_loads_no_library_that_is_not_used() -> None:
    program = (
        "import sys, amqptasks; before = set(sys.modules);"
        "import amqptasks.wire.serializers, amqptasks.wire.compression, amqptasks.wire.failures;"
        "late = ('msgpack', 'yaml', 'pickle', 'lzma', 'bz2', 'difflib', 'asyncio', 'traceback');"
        "print([name for name in late if name in set(sys.modules) - before])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
