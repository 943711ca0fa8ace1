"""Bodies, compression and failures, against the real kombu and Celery, in both directions."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import celery
import celery.exceptions
import kombu.compression
import kombu.exceptions
import kombu.serialization
import pytest
from celery.backends.base import BaseBackend

from amqptasks import exceptions
from amqptasks.wire import compression, failures, serializers
from amqptasks.wire.failures import RemoteError, from_plain, to_plain

TYPED = [
    datetime(2024, 2, 29, 12, 30, 15, 123456),
    datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    date(1, 1, 1),
    time(23, 59, 59, 999999),
    Decimal("1.10"),
    Decimal("NaN"),
    uuid.UUID("5f2ad1b8-2f0c-4a4b-a5f5-2a6a1c1c1c1c"),
    b"text",
    b"\xff\x00",
    b"",
]
PLAIN = [
    None,
    True,
    0,
    -(2**63),
    2**64 - 1,
    1.5,
    1e300,
    "",
    "a\0b",
    "naïve 🐇 \u2028 \x1b",
    [],
    {},
    [[1], {"a": [None]}],
]
BODY = [[2, "x", 1.5, PLAIN], {"k": None}, {"callbacks": None, "errbacks": None, "chain": [], "chord": None}]


@pytest.fixture(autouse=True)
def kombu_reads_everything() -> Iterator[None]:
    kombu.serialization.enable_insecure_serializers(["json", "msgpack", "pickle"])
    yield
    kombu.serialization.disable_insecure_serializers(["json"])


@pytest.fixture
def backend() -> Iterator[BaseBackend]:
    """A result backend of Celery, to read and write failures."""
    with celery.Celery("theirs", set_as_current=False) as app:
        yield BaseBackend(app)


def ours_to_kombu(value: Any, name: str) -> Any:
    content_type, encoding, body = serializers.dumps(value, name)
    return kombu.serialization.loads(body, content_type, encoding, accept={content_type})


def kombu_to_ours(value: Any, name: str) -> Any:
    content_type, encoding, body = kombu.serialization.dumps(value, name)
    body = body.encode(encoding) if isinstance(body, str) else body
    return serializers.loads(body, content_type, encoding, serializers.accepted([name]))


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and repr(left) == repr(right)


@pytest.mark.parametrize("name", ["json", "msgpack", "pickle"])
def test_a_task_body_means_the_same_to_both(name: str) -> None:
    assert ours_to_kombu(BODY, name) == BODY
    assert kombu_to_ours(BODY, name) == BODY


@pytest.mark.parametrize("name", ["json", "msgpack", "yaml", "pickle"])
def test_a_format_has_the_same_name_type_and_encoding_in_both(name: str) -> None:
    ours = serializers.by_name(name)
    assert kombu.serialization.registry.name_to_type[name] == ours.content_type
    if name in kombu.serialization.registry._encoders:  # kombu has none for YAML where PyYAML is missing
        assert kombu.serialization.registry._encoders[name].content_encoding == ours.content_encoding


@pytest.mark.parametrize("value", TYPED, ids=repr)
def test_a_typed_value_in_json_means_the_same_to_both(value: Any) -> None:
    assert same(ours_to_kombu([value, {"at": value}], "json"), [value, {"at": value}])
    assert same(kombu_to_ours([value, {"at": value}], "json"), [value, {"at": value}])


@pytest.mark.parametrize("value", TYPED, ids=repr)
def test_a_typed_value_is_written_in_json_as_kombu_writes_it(value: Any) -> None:
    ours = serializers.dumps(value, "json")[2]
    assert json.loads(ours) == json.loads(kombu.serialization.dumps(value, "json")[2])


@pytest.mark.parametrize("value", [value for value in TYPED if not isinstance(value, bytes)], ids=repr)
def test_a_typed_value_in_msgpack_reaches_kombu_as_the_map_that_json_has(value: Any) -> None:
    # kombu has no typed values in msgpack: it gets plain data that it can read
    assert ours_to_kombu(value, "msgpack") == json.loads(serializers.dumps(value, "json")[2])


def test_bytes_in_msgpack_are_bytes_to_both() -> None:
    assert ours_to_kombu([b"\xff", b"a"], "msgpack") == kombu_to_ours([b"\xff", b"a"], "msgpack") == [b"\xff", b"a"]


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_what_kombus_reader_would_refuse_is_not_written(name: str) -> None:
    refused: list[Any] = [{"__type__": "nothing", "__value__": 1}] if name == "json" else [{1: 2}]
    content_type, encoding, body = kombu.serialization.dumps(refused, name)
    with pytest.raises(kombu.exceptions.DecodeError):
        kombu.serialization.loads(body, content_type, encoding, accept={content_type})
    with pytest.raises(exceptions.EncodeError):
        serializers.dumps(refused, name)


@pytest.mark.parametrize("name", ["jsn", "", "application/x-python-serialize"])
def test_both_refuse_content_that_is_not_accepted(name: str) -> None:
    accept = serializers.accepted(["json"])
    with pytest.raises(kombu.exceptions.ContentDisallowed):
        kombu.serialization.loads(b"x", name or "x", "utf-8", accept=accept)
    with pytest.raises(exceptions.ContentDisallowed):
        serializers.loads(b"x", name, "utf-8", accept)


@pytest.mark.parametrize("name", sorted(set(compression.names()) & set(kombu.compression._aliases)))
def test_a_compressed_body_means_the_same_to_both(name: str) -> None:
    body = serializers.dumps(BODY, "json")[2]
    theirs, their_mime = kombu.compression.compress(body, name)
    our_mime, ours = compression.compress(body, name)
    assert our_mime == their_mime
    assert compression.decompress(theirs, their_mime, 10_000) == body
    assert kombu.compression.decompress(ours, our_mime) == body


# ---- failures


@pytest.mark.parametrize("exc", [ValueError("bad", 3), KeyError("k"), OSError(2, "no"), Exception({1})], ids=repr)
def test_a_failure_is_written_as_celery_writes_it(exc: Exception, backend: BaseBackend) -> None:
    theirs = backend.prepare_exception(exc, "json")
    ours = to_plain(exc)
    assert {**ours, "exc_message": tuple(ours["exc_message"])} == theirs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ValueError("bad", 3), ValueError),
        (KeyError("k"), KeyError),
        (exceptions.NotRegistered("x"), celery.exceptions.NotRegistered),
        (exceptions.TaskRevokedError("expired"), celery.exceptions.TaskRevokedError),
        (exceptions.WorkerLostError("gone"), celery.exceptions.WorkerLostError),
        (exceptions.TimeLimitExceeded(3), celery.exceptions.TimeLimitExceeded),
        (exceptions.DecodeError("x"), kombu.exceptions.DecodeError),
    ],
    ids=lambda part: getattr(part, "__name__", type(part).__name__),
)
def test_a_failure_of_ours_is_raised_as_celerys(ours: Exception, theirs: type, backend: BaseBackend) -> None:
    rebuilt = backend.exception_to_python(ours_to_kombu(to_plain(ours), "json"))
    assert type(rebuilt) is theirs
    assert rebuilt.args == ours.args


def test_every_error_that_travels_under_celerys_name_is_there() -> None:
    for name, module in failures.THEIR_HOMES.items():
        assert issubclass(getattr(importlib.import_module(module), name), BaseException)
        assert to_plain(getattr(exceptions, name)())["exc_module"] == module


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (ValueError("bad", 3), ValueError),
        (celery.exceptions.NotRegistered("x"), exceptions.NotRegistered),
        (celery.exceptions.TaskRevokedError("revoked"), exceptions.TaskRevokedError),
        (celery.exceptions.ChordError("x"), exceptions.ChordError),
        (celery.exceptions.WorkerLostError("gone"), exceptions.WorkerLostError),
        (celery.exceptions.TimeLimitExceeded(3), exceptions.TimeLimitExceeded),
        (celery.exceptions.SoftTimeLimitExceeded(), exceptions.SoftTimeLimitExceeded),
        (celery.exceptions.MaxRetriesExceededError("x"), exceptions.MaxRetriesExceededError),
        (kombu.exceptions.OperationalError("x"), exceptions.OperationalError),
    ],
    ids=lambda part: getattr(part, "__name__", type(part).__name__),
)
def test_a_failure_of_celerys_is_raised_as_ours(theirs: Exception, ours: type, backend: BaseBackend) -> None:
    rebuilt = from_plain(kombu_to_ours(backend.prepare_exception(theirs, "json"), "json"), "Traceback …")
    assert type(rebuilt) is ours
    assert rebuilt.args == theirs.args


def test_celerys_worker_shutdown_named_in_a_result_stops_nobody(backend: BaseBackend) -> None:
    plain = kombu_to_ours(backend.prepare_exception(celery.exceptions.WorkerShutdown(0), "json"), "json")
    assert isinstance(from_plain(plain), RemoteError)
