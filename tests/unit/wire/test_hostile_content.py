"""Whatever bytes arrive, reading ends in a value or in a refusal, in bounded memory (reliability I3, I4, X1)."""

from __future__ import annotations

import json
import os
import pickle
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amqptasks.exceptions import ContentDisallowed, DecodeError, EncodeError
from amqptasks.wire import compression, failures, serializers
from amqptasks.wire.serializers import Limits

LIMITS = Limits()
ACCEPT = serializers.accepted(["json", "msgpack"])
JSON, MSGPACK = "application/json", "application/x-msgpack"
quick = settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def read(body: bytes, content_type: Any = JSON, limits: Limits = LIMITS) -> Any:
    return serializers.loads(body, content_type, "utf-8", ACCEPT, limits)


@contextmanager
def peak_below(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= limit_bytes


# ---- any bytes, any headers

PIECES_OF_JSON = [
    *(bytes([byte]) for byte in b'[]{}"\\,:1- \n\x00\xff'),
    *(b"e9", b"1e999", b"NaN", b"-Infinity", b"null", b"true"),
    *(b"\\ud800", b"\\udfff", b"\\u0000", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b'"__type__":"', b'"__value__":"', b'{"__type__":"datetime","__value__":"2024-01-01"}', b"uuid", b"decimal"),
]
PIECES_OF_MSGPACK = [
    *(bytes([byte]) for byte in b"\x80\x81\x90\x91\x9f\xa1\xc0\xc1\xc7\xca\xcf\xd4\xd6\xdc\xdd\xde\xdf\x01\xff"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\x00\x00\x00\x01"),
    *(b"\xa8__type__", b"\xa9__value__", b"\xa8datetime", b"\xd6\xff\x00\x00\x00\x00", b"\xd7\xff" + b"\xff" * 8),
]
bytes_near_json = st.lists(st.sampled_from(PIECES_OF_JSON), max_size=40).map(b"".join)
bytes_near_msgpack = st.lists(st.sampled_from(PIECES_OF_MSGPACK), max_size=40).map(b"".join)
anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers()), st.just({})
)
content_types = st.one_of(
    st.sampled_from([JSON, MSGPACK, "application/x-yaml", "application/x-python-serialize"]), anything
)


@quick
@given(
    body=st.one_of(st.binary(), bytes_near_json, bytes_near_msgpack, st.text().map(str.encode)),
    content_type=content_types,
    encoding=st.one_of(st.sampled_from(["utf-8", "utf-16", "binary", "gzip"]), anything),
)
def test_any_bytes_and_headers_end_in_a_value_or_a_refusal(body: bytes, content_type: Any, encoding: Any) -> None:
    try:
        value = serializers.loads(body, content_type, encoding, ACCEPT, LIMITS)
    except ContentDisallowed:
        assert content_type not in (JSON, MSGPACK)
    except DecodeError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1000
    else:
        repr(value)


@quick
@given(body=bytes_near_json)
def test_any_near_json_ends_in_a_value_or_a_refusal(body: bytes) -> None:
    try:
        value = read(body)
    except DecodeError:
        return
    assert serializers.dumps(value, "json")  # what was read can be passed on


@quick
@given(body=bytes_near_msgpack)
def test_any_near_msgpack_ends_in_a_value_or_a_refusal(body: bytes) -> None:
    try:
        read(body, MSGPACK)
    except DecodeError:
        return


@quick
@given(body=st.binary(), mime=st.one_of(st.sampled_from(compression.names()), anything), data=st.binary(max_size=2000))
def test_any_compressed_bytes_end_in_at_most_the_limit_or_a_refusal(body: bytes, mime: Any, data: bytes) -> None:
    for candidate in (body, zlib.compress(data), zlib.compress(data) + body, zlib.compress(data)[: len(body)]):
        try:
            inflated = compression.decompress(candidate, mime, 1000)
        except DecodeError:
            continue
        assert len(inflated) <= 1000


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False),
        st.text(), st.binary(), st.datetimes(), st.dates(), st.times(), st.uuids(), st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(), inner, max_size=5)),
    max_leaves=20,
)  # fmt: skip


@quick
@given(value=plain)
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_whatever_is_written_is_read_back_equal(value: Any, name: str) -> None:
    content_type, _, body = serializers.dumps(value, name)
    assert read(body, content_type) == value


@quick
@given(
    value=st.one_of(
        plain, anything, st.floats(), st.text(st.characters(categories=["Cs", "Lu"])), st.sets(st.integers())
    )
)
@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_what_was_written_without_an_error_is_read_without_one(value: Any, name: str) -> None:
    try:
        content_type, _, body = serializers.dumps(value, name)
    except EncodeError:
        return
    read(body, content_type)


@quick
@given(
    data=st.one_of(
        plain, anything, st.fixed_dictionaries({"exc_type": anything, "exc_message": plain, "exc_module": anything})
    )
)
def test_any_result_of_a_failure_becomes_an_exception(data: Any) -> None:
    assert isinstance(failures.from_plain(data, "Traceback …"), Exception)


# ---- I3: too large, too many, too deep


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_a_body_of_100_mb_is_refused_without_being_decoded(content_type: str) -> None:
    body = bytes(100 * 1024 * 1024)
    with peak_below(64 * 1024), pytest.raises(DecodeError, match="104857600 bytes, at most 16777216"):
        read(body, content_type)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b"[" + b",".join([b"{}"] * 2_700_000) + b"]"),
        (JSON, b"[" + b",".join([b"[]"] * 2_700_000) + b"]"),
        (MSGPACK, b"\xdd" + (8_000_000).to_bytes(4, "big") + b"\x80" * 8_000_000),
        (MSGPACK, b"\x9f" + b"\x80" * 8_000_000),
    ],
    ids=["json maps", "json lists", "msgpack maps", "msgpack maps too many for their list"],
)
def test_8_mb_of_empty_maps_are_refused_in_bounded_memory(content_type: str, body: bytes) -> None:
    with peak_below(4 * LIMITS.max_bytes), pytest.raises(DecodeError):
        read(body, content_type)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b"[" * 100_000),
        (JSON, b"[" * 100_000 + b"]" * 100_000),
        (JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        (JSON, b"[" * 101 + b"]" * 101),
        (MSGPACK, b"\x91" * 100_000 + b"\xc0"),
        (MSGPACK, b"\x81\xa0" * 100_000 + b"\xc0"),
        (MSGPACK, b"\x91" * 101 + b"\xc0"),
    ],
    ids=["json open", "json closed", "json maps", "json 101", "msgpack lists", "msgpack maps", "msgpack 101"],
)
def test_deep_nesting_is_refused(content_type: str, body: bytes) -> None:
    with peak_below(4 * LIMITS.max_bytes), pytest.raises(DecodeError, match="deeper than the 100 levels"):
        read(body, content_type)


def test_brackets_in_a_long_text_are_text() -> None:
    value = ["[" * 200_000, '"' * 70_001, "{" * 200_000]
    assert read(json.dumps(value).encode()) == value


def test_a_long_integer_is_refused_even_where_the_interpreter_takes_it() -> None:
    digits = getattr(sys, "get_int_max_str_digits", lambda: None)()
    if digits is not None:  # since Python 3.10.7 the interpreter has a limit of its own
        sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(DecodeError, match="5000 characters, at most 4300"):
            read(b"[1," + b"9" * 5000 + b"]")
    finally:
        if digits is not None:
            sys.set_int_max_str_digits(digits)


def test_nesting_up_to_the_limit_is_read() -> None:
    assert read(b"[" * 100 + b"]" * 100)
    assert read(b"\x91" * 99 + b"\x90", MSGPACK)


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("value", "is_read"),
    [
        ([[]] * 9, True),
        ([[]] * 10, False),
        ([{}] * 9, True),
        ([{}] * 10, False),
        (["[{" * 100, 'a"]\\' * 50, "\\"], True),
    ],
    ids=["10 lists", "11 lists", "10 maps", "11 maps", "brackets in text"],
)
def test_lists_and_maps_are_counted_exactly(value: Any, is_read: bool, name: str) -> None:
    content_type, _, body = serializers.dumps(value, name)
    if is_read:
        assert read(body, content_type, Limits(max_items=10, max_depth=3)) == value
    else:
        with pytest.raises(DecodeError, match="more lists and maps than the 10 allowed"):
            read(body, content_type, Limits(max_items=10, max_depth=3))


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


awkward = st.recursive(
    st.one_of(st.text(st.sampled_from('[]{}"\\a')), st.integers(0, 300), st.binary(max_size=40)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.sampled_from('[{"\\')), inner, max_size=4)
    ),
    max_leaves=30,
)


@quick
@given(value=st.lists(awkward, max_size=3), depth=st.integers(1, 6))
def test_the_depth_seen_in_the_bytes_is_the_depth_of_the_value(value: Any, depth: int) -> None:
    text = json.dumps(value, default=lambda data: data.decode("latin1"))
    for body, content_type in ((text.encode(), JSON), (msgpack.packb(value), MSGPACK)):
        is_read = True
        try:
            read(body, content_type, Limits(max_depth=depth))
        except DecodeError as error:
            assert "deeper" in str(error)  # noqa: PT017 - both ends are compared below
            is_read = False
        assert is_read == (depth_of(value) <= depth)


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\x00\xe4\xe1\xc0" * 90 + b"\x00" * 15_000_000,
        b"\xdd\x7f\xff\xff\xff",
        b"\xdf\x7f\xff\xff\xff",
        b"\xdc\xff\xff" * 90,
        b"\xdb\xff\xff\xff\xffabc",
        b"\xc6\xff\xff\xff\xffabc",
        b"\xc9\xff\xff\xff\xff\x01abc",
    ],
    ids=["nested lists of 15 million", "list", "map", "nested lists of 65535", "str", "bin", "ext"],
)
def test_msgpack_that_promises_more_than_it_holds_reserves_nothing(body: bytes) -> None:
    with peak_below(4 * LIMITS.max_bytes), pytest.raises(DecodeError):
        read(body, MSGPACK)


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma"])
def test_an_inflate_bomb_stops_at_the_limit(name: str) -> None:
    # Given a few kB that inflate to 200 MB / When they are decompressed
    # Then that is refused, and memory stays within four times the limit
    mime, bomb = compression.compress(bytes(200 * 1024 * 1024), name)
    assert len(bomb) < 250_000
    with peak_below(4 * LIMITS.max_bytes), pytest.raises(DecodeError, match="more than the 16777216 bytes"):
        compression.decompress(bomb, mime, LIMITS.max_bytes)


# ---- I4: odd values


@pytest.mark.parametrize(
    "body",
    [
        b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b'[{"a":1e400}]', b"9" * 5000,
        b"[" + b"-" + b"1" * 5000 + b"]",
        b'"\\ud800"', b'"\\uDFFF"', b'{"\\udead":1}', b'"\xed\xa0\x80"', b'"\\\\\\ud800"',
        '"é"'.encode("latin1"), b'"\xff"',
        "[1]".encode("utf-16"), "[1]".encode("utf-16-le"), "[1]".encode("utf-32"), b"\xef\xbb\xbf[1]", b"",
        b" ", b"\0", b"[1]\0",
        b"[1,]", b"{'a':1}", b"[1][2]", b"nul", b"01", b"]", b'"', b"\x1f\x8b",
    ],
    ids=lambda body: ascii(body[:20]),
)  # fmt: skip
def test_json_that_no_reader_agrees_upon_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'"\\ud83d\\udc07"', "🐇"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"a\\u0000b"', "a\0b"),
        (b" \t\r\n[1] \n", [1]),
        (b"1" * 4300, int("1" * 4300)),
        (b'"' + b"1" * 5000 + b'"', "1" * 5000),
        (b'{"__type__":"datetime","__value__":"2024-01-01T00:00:00"}', datetime(2024, 1, 1)),
        (b'{"__type__":"datetime","__value__":"9999-12-31T23:59:59.999999"}', datetime.max),
    ],
    ids=lambda part: ascii(part)[:30],
)
def test_json_that_is_odd_but_clear_is_read(body: bytes, value: Any) -> None:
    assert read(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"\xa3\xed\xa0\x80", b"\xa1\xff", b"\x81\x01\x02", b"\x81\xc0\x02", b"\x81\x90\x02",
        b"\x81\xca\x7f\xc0\x00\x00\x01",
        b"\xc1", b"", b"\x92\x01", b"\x01\x01", b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12,
    ],
    ids=ascii,
)  # fmt: skip
def test_msgpack_that_is_malformed_or_keyed_by_numbers_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read(body, MSGPACK)


# ---- X1: what must not be looked at


class _Run:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.putenv, ("AMQPTASKS_PWNED", "1")


@pytest.mark.parametrize(
    "content_type", ["application/x-python-serialize", "application/x-yaml", "application/data", "application/unknown"]
)
def test_a_body_of_another_type_is_refused_before_it_is_looked_at(content_type: str) -> None:
    def explode(_body: bytes) -> Any:
        raise AssertionError("the body was looked at")

    # Given a registered serializer that would notice / When its type is not accepted / Then it is not called
    known = {s.content_type: s.name for s in map(serializers.by_name, ("pickle", "yaml"))}
    original = serializers.by_name(known[content_type]) if content_type in known else None
    name = original.name if original else "strange"
    serializers.register(name, lambda value: b"", explode, content_type)
    try:
        with pytest.raises(ContentDisallowed):
            read(pickle.dumps(_Run()), content_type)
    finally:
        serializers.unregister(name)
        if original:
            serializers.register(name, original.dumps, original.loads, original.content_type, original.content_encoding)


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_pickle_dressed_as_another_type_is_only_malformed(content_type: str) -> None:
    with pytest.raises(DecodeError):
        read(pickle.dumps(_Run()), content_type)


@pytest.mark.parametrize("code", [0x00, 0x05, 0x7F, 0xFE, 0x80])
def test_an_unknown_extension_type_is_refused(code: int) -> None:
    for body in (bytes([0xD4, code, 0]), bytes([0x91, 0xC7, 3, code, 1, 2, 3])):
        with pytest.raises(DecodeError, match="extension type"):
            read(body, MSGPACK)


def test_the_standard_timestamp_is_an_aware_moment() -> None:
    value = read(b"\xd6\xff\x00\x00\x00\x00", MSGPACK)
    assert value.isoformat() == "1970-01-01T00:00:00+00:00"


TRICKS: list[Any] = [
    {"__type__": "os.system", "__value__": "ls"},
    {"__type__": "object", "__value__": {}},
    {"__type__": "", "__value__": ""},
    {"__type__": None, "__value__": None},
    {"__type__": ["datetime"], "__value__": "2024-01-01"},
    {"__type__": {"a": 1}, "__value__": 1},
    {"__type__": "__class__", "__value__": "x"},
    {"__type__": "datetime", "__value__": 1},
    {"__type__": "datetime", "__value__": None},
    {"__type__": "datetime", "__value__": "yesterday"},
    {"__type__": "datetime", "__value__": "10000-01-01"},
    {"__type__": "date", "__value__": "2023-02-29"},
    {"__type__": "time", "__value__": "25:00"},
    {"__type__": "decimal", "__value__": "1e"},
    {"__type__": "decimal", "__value__": [0, [1], 1]},
    {"__type__": "decimal", "__value__": 1.1},
    {"__type__": "uuid", "__value__": "not hex"},
    {"__type__": "uuid", "__value__": {"int": 1}},
    {"__type__": "uuid", "__value__": {"hex": "00", "version": 4}},
    {"__type__": "uuid", "__value__": {"hex": 1}},
    {"__type__": "uuid", "__value__": {"bytes_le": "aaaaaaaaaaaaaaaa"}},
    {"__type__": "bytes", "__value__": 10_000_000_000},
    {"__type__": "bytes", "__value__": [1]},
    {"__type__": "base64", "__value__": "=x="},
    {"__type__": "base64", "__value__": "a"},
    {"__type__": "base64", "__value__": "YW!Jj"},
    {"__type__": "datetime", "__value__": {"__type__": "datetime", "__value__": "2024-01-01"}},
]


@pytest.mark.parametrize("trick", TRICKS, ids=ascii)
def test_a_typed_value_that_is_none_is_refused(trick: Any) -> None:
    for wrapped in (trick, [[trick], {}, {}], {"a": {"b": trick}}):
        for body, content_type in ((json.dumps(wrapped).encode(), JSON), (msgpack.packb(wrapped), MSGPACK)):
            with pytest.raises(DecodeError):
                read(body, content_type)


def test_a_typed_name_hidden_by_escapes_stays_plain_data() -> None:
    value = read(b'{"\\u005f_type__":"datetime","__value__":"2024-01-01"}')
    assert value == {"__type__": "datetime", "__value__": "2024-01-01"}


@pytest.mark.parametrize("value", [Decimal("sNaN"), Decimal("1e99999"), date.min, time.max, UUID(int=0)], ids=repr)
def test_extreme_typed_values_do_no_harm(value: Any) -> None:
    for name in ("json", "msgpack"):
        content_type, _, body = serializers.dumps([value], name)
        assert repr(read(body, content_type)[0]) == repr(value)
