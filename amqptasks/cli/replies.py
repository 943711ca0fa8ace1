"""How the answers of workers look on a terminal: in the shapes that Celery's users know.

Pure: what was asked, and how, is `amqptasks.cli.remote`. Everything here came over the wire, so no character that could
move a cursor or hide something gets through.
"""

from __future__ import annotations

import json
import textwrap
from pprint import pformat
from typing import Any

import click

from amqptasks.cli.common import plain, plural, visible
from amqptasks.wire.reprs import printable

__all__ = ["body_of", "count_line", "is_error", "reply_lines", "to_json"]

INDENT = " " * 4


def reply_lines(node: str, reply: Any, *, with_body: bool, arrow: bool = True) -> str:
    """Return one worker's answer: ``->  celery@host: OK``, and what it said below.

    Args:
        with_body: Show what it said.
        arrow: Begin with the arrow.
    """
    status = click.style("ERROR", fg="red", bold=True) if is_error(reply) else click.style("OK", fg="green", bold=True)
    head = f"{click.style('->', fg='white', bold=True)}  " if arrow else ""
    line = f"{head}{click.style(printable(node, 255) + ':', fg='cyan', bold=True)} {status}"
    return f"{line}\n{textwrap.indent(body_of(reply), INDENT)}" if with_body else line


def is_error(reply: Any) -> bool:
    """Tell whether a worker could not do what it was told: ``{"error": text}``."""
    return isinstance(reply, dict) and "error" in reply and "ok" not in reply


def body_of(reply: Any) -> str:
    """Return what a worker said: a list as points, ``{"ok": text}`` as the text, any other map as JSON."""
    if isinstance(reply, dict) and len(reply) == 1 and not reply.keys().isdisjoint(("ok", "error")):
        return textwrap.indent(_body(next(iter(reply.values()))), INDENT)
    return _body(reply)


def _body(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        points = (f"{click.style('*', fg='white')} {visible(str(each))}" for each in value)
        return "\n".join(points) if value else "- empty -"
    if isinstance(value, dict):
        return _pretty(value)
    return visible(value if isinstance(value, str) else pformat(value)).rstrip("\n")


def _pretty(value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value, sort_keys=True, indent=4, default=plain)
    except TypeError:
        # Keys of several kinds, which msgpack can carry.
        return visible(pformat(value))


def to_json(value: Any) -> str:
    """Return JSON on one line, as Celery's ``--json`` prints it."""
    try:
        return json.dumps(value, default=plain)
    except TypeError:
        return json.dumps(_text_keys(value), default=plain)


def _text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _text_keys(each) for key, each in value.items()}
    return [_text_keys(each) for each in value] if isinstance(value, (list, tuple)) else value


def count_line(count: int) -> str:
    """Return ``2 nodes online.``"""
    return f"{plural(count, 'node')} online."
