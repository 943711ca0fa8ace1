"""How answers of workers look, beside what Celery's own command prints of them."""

from __future__ import annotations

import datetime
import json
import textwrap
from typing import Any

import click
import pytest
from celery.bin.base import CLIContext

from amqptasks.cli.replies import body_of, count_line, is_error, reply_lines, to_json

REPLIES = {
    "a list": ["shop.add [rate_limit=10/m]", "shop.nap"],
    "tasks": [{"id": "4b6e", "name": "shop.add", "args": [1, "a\x00b"], "time_start": None}],
    "nothing": [],
    "fine": {"ok": "pong"},
    "not fine": {"error": "unknown task"},
    "several lines": {"ok": "one\n  two\nthree"},
    "a list that is fine": {"ok": ["one", "two"]},
    "a map": {"uptime": 14, "pool": {"processes": [1, 2], "timeouts": []}, "broker": {"ssl": False}},
    "an empty map": {},
    "no words": None,
    "a number": 7,
    "a text": "rss: 20MB",
}


def printed_by_celery(reply: Any) -> tuple[str, str]:
    context = CLIContext(app=object(), no_color=True, workdir=None)
    status, body = context.pretty(reply)
    return status, textwrap.indent(body, "    ", lambda _line: True)


@pytest.mark.parametrize("name", REPLIES)
def test_an_answer_looks_as_celerys_command_shows_it(name: str) -> None:
    # Given what a worker said
    reply = REPLIES[name]

    # When it is printed
    text = click.unstyle(reply_lines("celery@host", reply, with_body=True))

    # Then it is what Celery prints
    status, body = printed_by_celery(reply)
    assert text == f"->  celery@host: {status}\n{body}"
    assert click.unstyle(reply_lines("celery@host", reply, with_body=False)) == f"->  celery@host: {status}"


def test_without_the_arrow_the_name_comes_first() -> None:
    assert click.unstyle(reply_lines("celery@host", {"ok": 1}, with_body=False, arrow=False)) == "celery@host: OK"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [({"error": "x"}, True), ({"error": "x", "ok": "y"}, False), ({"ok": "x"}, False), (["error"], False)],
)
def test_an_error_is_one(reply: Any, expected: bool) -> None:
    assert is_error(reply) is expected


def test_nothing_that_was_said_beside_an_error_is_lost() -> None:
    # When a command of the user's own says more than Celery's do, then it is shown whole
    assert json.loads(body_of({"error": "no", "reason": [1]})) == {"error": "no", "reason": [1]}


@pytest.mark.parametrize(
    "reply", ["a\x1b[2Jb", ["a\x1b[2Jb"], {"ok": "a\x1b[2Jb"}, {"a\x1b[2Jb": "\x9b2J"}, {1: "\x1b[2J", "b": 2}]
)
def test_a_terminal_is_not_tricked(reply: Any) -> None:
    # When a worker, or who pretends to be one, sends what moves a cursor, then it is shown and does nothing
    for text in (click.unstyle(reply_lines("x\x1b[1A@y", reply, with_body=True)), to_json({"x\x1b[1A@y": reply})):
        assert all(each.isprintable() or each == "\n" for each in text)


def test_json_is_one_line_whatever_came() -> None:
    # Given an answer with a time, and keys that JSON has not
    reply = {"eta": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), "more": [{(1, 2): b"x"}]}

    # When it is printed as JSON, then it can be read
    text = to_json({"celery@host": reply})
    assert "\n" not in text
    assert json.loads(text)["celery@host"]["eta"] == "2026-01-02T00:00:00+00:00"


def test_nodes_are_counted() -> None:
    assert [count_line(1), count_line(2)] == ["1 node online.", "2 nodes online."]
