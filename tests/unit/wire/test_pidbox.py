"""Commands and their answers as they travel: what is read of what anybody may send."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from amqptasks.clock import MAX_CLOCK, LamportClock
from amqptasks.exceptions import ContentDisallowed, DecodeError
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.pidbox import (
    ControlReply,
    ControlRequest,
    encode_reply,
    encode_request,
    matches,
    name_matches,
    read_reply,
    read_request,
)
from amqptasks.wire.serializers import DEFAULT_LIMITS, Limits

JSON = frozenset({"application/json"})


def read(body: Any, headers: Any = None, content_type: str = "application/json") -> ControlRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(headers, content_type, "utf-8", data, JSON, DEFAULT_LIMITS)


def plain(message: EncodedMessage) -> Any:
    return json.loads(message.body)


def test_a_command_is_written_as_celery_writes_it() -> None:
    # Given a command that wants answers
    request = ControlRequest(
        "rate_limit", {"task_name": "a", "rate_limit": "1/s"}, ("w@h",), ticket="t", reply_to=("reply.x.pidbox", "key"),
        clock=7,
    )  # fmt: skip
    # When it is written
    message = encode_request(request, "x", "json")
    # Then its address and its fields are those of kombu's mailbox
    assert (message.exchange, message.routing_key) == ("x.pidbox", "")
    assert plain(message) == {
        "method": "rate_limit", "arguments": {"task_name": "a", "rate_limit": "1/s"}, "destination": ["w@h"],
        "pattern": None, "matcher": None, "ticket": "t",
        "reply_to": {"exchange": "reply.x.pidbox", "routing_key": "key"},
    }  # fmt: skip
    # And what is read of it is what was written
    assert read(message.body, {"clock": 7}) == request


def test_a_command_without_an_answer_names_no_address() -> None:
    assert set(plain(encode_request(ControlRequest("shutdown"), "celery", "json"))) == {
        "method", "arguments", "destination", "pattern", "matcher",
    }  # fmt: skip


def test_an_answer_survives_the_way() -> None:
    message = encode_reply(ControlReply("t", {"w@h": {"ok": "pong"}}, 3), ("reply.celery.pidbox", "key"), "json")
    headers = {"ticket": "t", "clock": 3}
    assert (message.exchange, message.routing_key) == ("reply.celery.pidbox", "key")
    assert read_reply(
        headers, "application/json", "utf-8", message.body, JSON, DEFAULT_LIMITS
    ) == ControlReply("t", {"w@h": {"ok": "pong"}}, 3)  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\x00", [], "ping", 5, None, {}, {"method": None}, {"method": ""}, {"method": 5},
        {"method": "x" * 256}, {"method": "ping", "arguments": [1]}, {"method": "ping", "arguments": "a"},
        {"method": "ping", "destination": 5}, {"method": "ping", "destination": [5]},
        {"method": "ping", "destination": {"a": 1}}, {"method": "ping", "pattern": 5},
        {"method": "ping", "matcher": []},
        {"method": "ping", "ticket": 5}, {"method": "ping", "reply_to": "x"}, {"method": "ping", "reply_to": [1]},
        {"method": "ping", "reply_to": {"exchange": 5}}, {"method": "ping", "reply_to": {"routing_key": "x" * 256}},
        {"method": "ping", "destination": ["w@h"] * 10_001},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_command_is_refused(body: Any) -> None:
    with pytest.raises(DecodeError):
        read(body)


def test_a_command_in_a_form_that_is_not_accepted_is_not_read() -> None:
    with pytest.raises(ContentDisallowed):
        read(b"cos\nsystem\n(S'true'\ntR.", content_type="application/x-python-serialize")


def test_a_command_of_too_many_bytes_is_refused_even_where_tasks_may_be_larger() -> None:
    big = {"method": "revoke", "arguments": {"task_id": "x" * (5 << 20)}}
    with pytest.raises(DecodeError, match="at most"):
        read_request(None, "application/json", "utf-8", json.dumps(big).encode(), JSON, Limits(max_bytes=64 << 20))


def test_the_settings_of_a_celery_worker_are_read_though_they_are_no_json() -> None:
    body = b'{"w@h": {"result_chord_join_timeout": 3.0, "endless": Infinity, "text": "To Infinity"}}'
    read = read_reply({}, "application/json", "utf-8", body, JSON, DEFAULT_LIMITS)
    assert read.nodes["w@h"] == {"result_chord_join_timeout": 3.0, "endless": "Infinity", "text": "To Infinity"}


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"5", b'{"w": ": Infinity,"}x', b'{"w": NaN, "v": Infinity}'])
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read_reply({}, "application/json", "utf-8", body, JSON, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("fields", "is_meant"),
    [
        ({}, True), ({"destination": ("w@h",)}, True), ({"destination": ("v@h",)}, False),
        # A destination counts before a pattern.
        ({"destination": ("v@h",), "pattern": "w*", "matcher": "glob"}, False),
        ({"pattern": "w*", "matcher": "glob"}, True), ({"pattern": "v*", "matcher": "glob"}, False),
        ({"pattern": "w.h", "matcher": "pcre"}, True), ({"pattern": "h", "matcher": "pcre"}, False),
        # As in Celery: one without the other says nothing.
        ({"pattern": "v*"}, True), ({"matcher": "glob"}, True),
    ],
)  # fmt: skip
def test_a_worker_heeds_what_is_meant_for_it(fields: dict[str, Any], is_meant: bool) -> None:
    assert matches(ControlRequest("ping", **fields), "w@h") is is_meant


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(.*)*x", ".*.*.*.*x", "(a*)\\1*x", "[", "(?P<x", "a" * 256, "(a{1,9}){1,9}$"]
)
def test_an_expression_that_may_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(DecodeError):
        name_matches("a" * 200, pattern, "pcre")


def test_an_unknown_way_to_match_is_refused() -> None:
    with pytest.raises(DecodeError, match="matcher"):
        name_matches("w@h", "w*", "sql")


def test_wildcards_are_quick_whatever_they_are() -> None:
    # When a pattern is made to be tried in as many ways as can be
    begun = time.thread_time()
    assert not name_matches("a" * 255, "*a" * 120 + "b", "glob")
    # Then it is answered all the same: this would take years, one by one
    assert time.thread_time() - begun < 5


def test_the_clock_counts_what_is_sent_and_jumps_to_what_is_received() -> None:
    clock = LamportClock()
    assert [clock.forward(), clock.adjust(10), clock.adjust(3), clock.forward()] == [1, 11, 12, 13]


@pytest.mark.parametrize("other", [None, "5", -1, 5.0, True, MAX_CLOCK + 1, 10**400])
def test_a_clock_passes_over_what_is_no_time(other: Any) -> None:
    clock = LamportClock(4)
    assert clock.adjust(other) == 5
