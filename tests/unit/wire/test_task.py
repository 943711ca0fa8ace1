"""Reading task messages from anyone: what fits is read, and what does not is refused by two kinds of error only."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.exceptions import ContentDisallowed, DecodeError, InvalidTaskError
from amqptasks.wire.serializers import Limits
from amqptasks.wire.task import TaskBody, TaskHead, read_body, read_head, without_broker_headers

ACCEPT = frozenset({"application/json"})
LIMITS = Limits(max_bytes=100_000, max_items=1000, max_depth=20)
GOOD: dict[str, Any] = {"id": "1", "task": "proj.add"}

# What AMQP's header tables can carry, and so what anyone can send.
header_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=300)
    | st.binary(max_size=20) | st.just(Decimal("1.5")) | st.just(datetime(2030, 1, 1, tzinfo=timezone.utc)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
HEADER_NAMES = [
    "id", "task", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps",
    "compression", "lang", "x-amqptasks-crashes", "x-death", "x-delivery-count", "mine",
]  # fmt: skip
header_tables = st.dictionaries(st.sampled_from(HEADER_NAMES) | st.text(max_size=10), header_values, max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def head(headers: Any, body: bytes = b"", content_type: Any = "application/json", encoding: Any = "utf-8") -> TaskHead:
    return read_head(headers, content_type, encoding, body, ACCEPT, LIMITS)


def body(value: Any, headers: Any = GOOD, content_type: Any = "application/json", encoding: Any = "utf-8") -> TaskBody:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read_body(headers, content_type, encoding, data, ACCEPT, LIMITS)


# ---- Any headers, any bodies


@given(st.none() | header_values | header_tables | header_tables.map(lambda table: {**table, **GOOD}),
       header_values, header_values, st.binary(max_size=100))  # fmt: skip
def test_no_headers_and_no_body_raise_another_error(headers: Any, kind: Any, encoding: Any, data: bytes) -> None:
    # When anything arrives / Then it is a task, or one of the two errors that send it to the dead letters
    try:
        found = head(headers, data, kind, encoding)
    except (InvalidTaskError, DecodeError) as error:
        assert len(str(error)) < 1000
    else:
        assert isinstance(found.id, str) and 0 < len(found.id) <= 255 and found.id.isprintable()
        assert isinstance(found.task, str) and 0 < len(found.task) <= 255 and found.task.isprintable()


@given(json_values | st.lists(json_values, min_size=3, max_size=3), header_tables)
def test_no_decoded_body_raises_another_error(value: Any, headers: dict[str, Any]) -> None:
    try:
        found = body(value, {**headers, **GOOD})
    except (InvalidTaskError, DecodeError):
        return
    assert isinstance(found.args, list) and isinstance(found.kwargs, dict)
    assert all(isinstance(key, str) for key in found.kwargs)
    for signatures in (found.callbacks, found.errbacks, found.chain):
        assert signatures is None or all("task" in each for each in signatures)


@given(st.binary(max_size=300), st.sampled_from([None, "application/json", "application/x-msgpack", "text/plain"]))
def test_no_bytes_raise_another_error(data: bytes, kind: str | None) -> None:
    for compression in (None, "application/x-gzip", "nonsense"):
        try:
            body(data, {**GOOD, "compression": compression}, kind)
        except (InvalidTaskError, DecodeError):
            pass
        except RecursionError:
            pytest.fail("it went too deep")


@given(json_values)
def test_protocol_1_raises_no_other_error_either(value: Any) -> None:
    data = {"id": "1", "task": "proj.add", **value} if isinstance(value, dict) else value
    try:
        head(None, json.dumps(data).encode())
    except (InvalidTaskError, DecodeError):
        pass


# ---- What is read


def test_a_message_of_celery_is_read() -> None:
    # Given the headers and the body that Celery writes, null for what was not given
    headers: dict[str, Any] = {
        "lang": "py", "task": "proj.add", "id": "1", "shadow": None, "eta": None, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": "1", "parent_id": None,
        "argsrepr": "(2, 2)", "kwargsrepr": "{}", "origin": "gen1@host", "ignore_result": False,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    found = head(headers)
    assert (found.id, found.task) == ("1", "proj.add") and found.headers == headers
    embed = {"callbacks": [{"task": "a"}], "errbacks": None, "chain": [], "chord": None}
    assert body([[2, 2], {"c": 3}, embed], headers) == TaskBody([2, 2], {"c": 3}, [{"task": "a"}], None, None, None)


def test_the_least_message_is_read() -> None:
    assert head(GOOD).headers == GOOD
    assert body([None, None, None]) == body([[], {}, {}]) == TaskBody([], {})


def test_one_signature_may_stand_without_a_list() -> None:
    assert body([[], {}, {"callbacks": {"task": "a"}}]).callbacks == [{"task": "a"}]


def test_protocol_1_is_read_and_turned_into_headers() -> None:
    # Given a message of Celery before 4: everything in the body
    value = {
        "id": "1", "task": "proj.add", "args": [2], "kwargs": {"b": 3}, "retries": 2, "eta": "2030-01-01T00:00:00",
        "expires": None, "timelimit": [10, None], "taskset": "group", "callbacks": [{"task": "a"}], "utc": True,
    }  # fmt: skip
    data = json.dumps(value).encode()
    variants: tuple[Any, ...] = (None, {}, {"x-death": []})
    for headers in variants:
        found = head(headers, data)
        assert (found.id, found.task) == ("1", "proj.add")
        assert found.headers["retries"] == 2 and found.headers["group"] == "group"
        assert found.headers["eta"] == "2030-01-01T00:00:00" and "expires" not in found.headers
        assert not any(key.startswith("x-death") for key in found.headers)
        assert body(data, found.headers) == TaskBody([2], {"b": 3}, [{"task": "a"}])


def test_a_compressed_body_is_inflated_within_the_limit() -> None:
    headers = {**GOOD, "compression": "application/x-gzip"}
    assert body(zlib.compress(b"[[1],{},{}]"), headers).args == [1]
    with pytest.raises(DecodeError, match="100000"):
        body(zlib.compress(b"[[" + b"1," * 1_000_000 + b"1],{},{}]"), headers)
    # And a bomb is not inflated to see how large it is
    bomb = zlib.compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            body(bomb, headers)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_brokers_own_headers_are_left_out() -> None:
    # Sent back to the broker they make some versions drop the message.
    theirs = {
        "x-death": [], "x-first-death-queue": "q", "x-last-death-reason": "r", "x-delivery-count": 1,
        "x-acquired-count": 2,
    }  # fmt: skip
    ours = {**GOOD, "x-amqptasks-crashes": 1, "x-mine": 2}
    assert head({**theirs, **ours}).headers == ours
    assert without_broker_headers({**theirs, **ours}) == ours


# ---- What is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": {}}, {"id": None}, {"id": ""}, {"id": 5}, {"id": "x" * 256}, {"id": "a\nb"}, {"id": "\x1b[31m"},
        {"id": b"bytes"}, {"task": None}, {"task": 5}, {"task": ""}, {"task": "x" * 256}, {"task": "a\nb"},
        {"task": ["proj.add"]}, {"eta": 5}, {"eta": []}, {"expires": {}}, {"retries": "1"}, {"retries": -1},
        {"retries": 2**40}, {"retries": 1.5}, {"retries": True}, {"timelimit": 5}, {"timelimit": [1]},
        {"timelimit": ["a", None]}, {"timelimit": [float("nan"), None]}, {"timelimit": [-1, None]},
        {"timelimit": [True, None]}, {"group": 5}, {"group_index": "0"}, {"shadow": {}}, {"root_id": 5},
        {"parent_id": []}, {"ignore_result": "yes"}, {"stamps": []}, {"stamped_headers": "x"}, {"compression": 5},
        {"x-amqptasks-crashes": "many"}, {"x-amqptasks-crashes": -1}, {"argsrepr": 5}, {"origin": b"x"},
        {"replaced_task_nesting": "x"},
    ],
)  # fmt: skip
def test_a_header_of_the_wrong_kind_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        head({**GOOD, **wrong})
    text = str(caught.value)
    (name,) = wrong
    assert name in text.replace("the task's name", "task")
    assert text.isprintable() and len(text) < 300


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "expected the body to be"), ([], "a list of 0"), ([[], {}], "a list of 2"), ({}, "a dict of 0"),
        ("text", "expected the body to be"), (None, "NoneType"), ([5, {}, {}], "the arguments to be a list"),
        ([{}, {}, {}], "the arguments to be a list"), ([[], [], {}], "keyword arguments to be a map"),
        ([[], {}, []], "embedded to be a map"), ([[], {}, {"callbacks": "x"}], "'callbacks'"),
        ([[], {}, {"errbacks": [5]}], "'errbacks'"), ([[], {}, {"chain": [{}]}], "'chain'"),
        ([[], {}, {"chord": 5}], "the chord to be a map"),
    ],
)  # fmt: skip
def test_a_body_of_the_wrong_shape_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(InvalidTaskError, match=problem):
        body(value)


@pytest.mark.parametrize("key", [1, None, b"key", 1.5, True])
def test_the_names_of_arguments_are_text_in_every_serializer(key: Any) -> None:
    # Given a body in MessagePack, where keys may be of any kind / When one is no text / Then no task gets it
    data = msgpack.packb([[], {key: 1}, {}])
    with pytest.raises((InvalidTaskError, DecodeError)):
        read_body(GOOD, "application/x-msgpack", "binary", data, frozenset({"application/x-msgpack"}), LIMITS)


@pytest.mark.parametrize("kind", ["application/x-python-serialize", "application/x-yaml", "application/x-msgpack"])
def test_content_that_is_not_accepted_is_not_looked_at(kind: str) -> None:
    with pytest.raises(ContentDisallowed, match=kind):
        body(b"anything", content_type=kind)
    with pytest.raises(ContentDisallowed):
        head(None, b"anything", content_type=kind)


@pytest.mark.parametrize("kind", [5, [], {"a": 1}, b"application/json", "\ud800"])
def test_a_content_type_of_the_wrong_kind_is_refused(kind: Any) -> None:
    with pytest.raises((DecodeError, InvalidTaskError)):
        body([[], {}, {}], content_type=kind)


@pytest.mark.parametrize("headers", [None, {}, [], 5, "x", {"mine": 1}])
def test_a_message_that_names_no_task_is_none(headers: Any) -> None:
    with pytest.raises(InvalidTaskError, match="the message is no task"):
        head(headers, b"[[], {}, {}]")


def test_bodies_beyond_the_limits_are_refused() -> None:
    for data in (b"[" * 100_000, b"[[" + b"{}," * 2000 + b"{}],{},{}]", b" " * 200_000, b"[[" + b"[" * 50 + b"]" * 50):
        with pytest.raises(DecodeError):
            body(data)
