"""What bodies may be written in, through a real worker: every format and compression, one's own included, and none that
the worker does not accept."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from amqptasks.exceptions import ContentDisallowed, ImproperlyConfigured
from amqptasks.serialization import register, unregister
from tests.running import Workshop

SOURCE = """
from amqptasks.serialization import register
import json
register("backwards", lambda value: json.dumps(value)[::-1], lambda body: json.loads(body.decode()[::-1]),
         "text/backwards", "utf-8")
app.conf.accept_content = os.environ.get("READS", "json").split(",")

@app.task
def echo(value):
    return repr(value)

@app.task(serializer="backwards", compression="bz2")
def turned(value):
    return value
"""


class Plain:
    """A value that only pickle carries."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return str, ("pickled",)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A worker that reads JSON alone."""
    with Workshop(tmp_path_factory.mktemp("strict"), broker_url, SOURCE) as made:
        made.start("-c", "1")
        made.app.conf.result_accept_content = ["json"]
        yield made


@pytest.fixture(scope="module")
def open_minded(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A worker that reads everything."""
    with Workshop(tmp_path_factory.mktemp("open"), broker_url, SOURCE) as made:
        made.start("-c", "1", env={"READS": "json,msgpack,yaml,pickle,backwards"})
        made.app.conf.result_accept_content = ["json"]
        yield made


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml", "pickle", "backwards"])
@pytest.mark.parametrize("compression", [None, "gzip", "bz2", "zstd"])
def test_every_format_and_compression_gets_through(
    open_minded: Workshop, serializer: str, compression: str | None
) -> None:
    value = {"list": [1, 2.5, None, True], "text": "x" * 1000}
    result = open_minded.tasks.echo.apply_async((value,), serializer=serializer, compression=compression)
    assert result.get(timeout=20) == repr(value)


def test_what_a_format_alone_can_carry_gets_through(open_minded: Workshop) -> None:
    moment = datetime(2024, 2, 29, tzinfo=timezone.utc)
    for value, serializer, seen in (
        (Plain(), "pickle", "'pickled'"), ({1: {2}}, "pickle", "{1: {2}}"), ({1: 2}, "yaml", "{1: 2}"),
        (moment, "json", repr(moment)), (b"\xff", "msgpack", repr(b"\xff")),
    ):  # fmt: skip
        assert open_minded.tasks.echo.apply_async((value,), serializer=serializer).get(timeout=20) == seen


def test_a_task_may_have_a_format_and_a_compression_of_its_own(open_minded: Workshop) -> None:
    assert open_minded.tasks.turned.delay(["a", 1]).get(timeout=20) == ["a", 1]


@pytest.mark.parametrize("serializer", ["msgpack", "yaml", "pickle", "backwards"])
def test_what_is_not_accepted_is_not_opened(strict: Workshop, serializer: str) -> None:
    # Given a worker that reads JSON alone / When a call comes in another format, though the worker knows it
    result = strict.tasks.echo.apply_async((["value"],), serializer=serializer, task_id=str(uuid.uuid4()))
    # Then it is a dead letter, and its caller is told which setting says so
    letter = strict.dead_letter_of(result.id)
    assert letter.headers["x-amqptasks-reason"] == "unreadable"
    assert "accepted are application/json" in letter.headers["x-amqptasks-detail"]
    with pytest.raises(Exception, match="accept_content"):
        result.get(timeout=20)


def test_results_are_read_in_what_is_accepted_only(open_minded: Workshop) -> None:
    # Given a reader of JSON / When an answer is a pickle / Then it is not opened
    from amqptasks.wire.serializers import accepted, dumps, loads

    content_type, encoding, body = dumps(Plain(), "pickle")
    with pytest.raises(ContentDisallowed):
        loads(body, content_type, encoding, accepted(open_minded.app.conf.result_accept_content))


def test_a_format_is_registered_as_with_kombu(open_minded: Workshop) -> None:
    # Given kombu's words for it / When it is registered, by position or by name / Then it may be used, until it is gone
    name = f"own-{uuid.uuid4().hex[:6]}"
    register(name, str, eval, content_type="text/own", content_encoding="utf-8")
    try:
        result = open_minded.tasks.echo.apply_async((1,), serializer=name)
        assert "text/own" in str(open_minded.dead_letter_of(result.id).headers["x-amqptasks-detail"])
    finally:
        unregister(name)
    with pytest.raises(ImproperlyConfigured, match="no serializer named"):
        open_minded.tasks.echo.apply_async((1,), serializer=name)
