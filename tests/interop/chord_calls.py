"""Chords that a program of ours sends as Celery does (``chord_join = "store"``), over any store.

``on("celery", "add", 1, 2)`` makes a call that one kind of worker will run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amqptasks import chain, chord, group
from amqptasks.exceptions import ChordError
from tests.support import eventually

TIMEOUT_S = 30
BOTH = ("amqptasks", "celery")
OTHER = {"amqptasks": "celery", "celery": "amqptasks"}

On = Callable[..., Any]


def check_values(on: On) -> None:
    """Have chords of many forms run by workers of both kinds, all at once."""
    expected: list[tuple[Any, Any]] = []
    for one, other in OTHER.items():
        add = lambda *args, kind=one: on(kind, "add", *args)  # noqa: E731 - as short as a task's own
        add_there = lambda *args, kind=other: on(kind, "add", *args)  # noqa: E731
        total, echo_there = on(one, "total"), on(other, "echo")
        inner = chord([add(1, 1), add_there(2, 2)], on(other, "total"))
        expected += [
            # A header on one kind alone, with a body on the other; and one spread over both
            (chord([add(number, number) for number in range(3)], echo_there), [[[0, 2, 4]], {}]),
            (chord([add(1, 1), add_there(2, 2), add(3, 3)], total), 12),
            # What follows a chord follows it; a group before a task is one
            (chain(group(add(1, 1), add_there(2, 2)), total, add_there(100)), 106),
            (add(1, 1) | group(add_there(1), add(2)) | total | add_there(5), 12),
            # In the header: chains, chords, chains that end in one or in a group, whose results stay together
            (chord([add(1, 1) | add_there(10), inner, add(5, 5)], total), 28),
            (chord([chain(add(0, 0), group(add_there(1), add(2)), on(other, "total")), add(1, 1)], total), 5),
            (chord([add(1, 1) | group(add_there(4), add(5)), add(3, 3)], echo_there), [[[[6, 7], 6]], {}]),
            # As a body: a chain, a group, a chord
            (chord([add(1, 1), add_there(2, 2)], chain(total, add_there(5))), 11),
            (chord([add(1, 1), add_there(2, 2)], group(total, on(other, "total"))), [6, 6]),
            # Without a header, and with a task that becomes a group
            (chord([], echo_there), [[[]], {}]),
            (chord([on(one, "become", group(add(1, 1), add_there(2, 2))), add(3, 3)], echo_there), [[[[2, 4], 6]], {}]),
        ]  # fmt: skip
    results = [call.apply_async(interval=0.2) if type(call) is chord else call.delay() for call, _value in expected]
    for (call, value), result in zip(expected, results, strict=True):
        assert result.get(timeout=TIMEOUT_S) == value, call


def check_failures(on: On, tmp_path: Path) -> None:
    """Have parts fail: of any form, on either kind, whoever has the body."""
    sent = []
    # A worker of Celery's that has a chord's last part, one that failed, does not tell the chord which that one is in.
    inner = chord([on("amqptasks", "raises", "ValueError", "no"), on("amqptasks", "add", 1, 1)], on("celery", "total"))
    for kind, other in OTHER.items():
        add, bad = on(other, "add", 1, 1), on(kind, "raises", "ValueError", "no")
        for number, header in enumerate(([add, bad, on(kind, "add", 2, 2)], [bad | on(other, "add", 1), add], [inner])):
            told = tmp_path / f"told-{kind}-{number}"
            body = on(other, "echo").on_error(on(kind, "write", str(told)))
            sent.append((chord(header, body).apply_async(interval=0.2), told))
    for result, told in sent:
        with pytest.raises(ChordError, match="ValueError"):
            result.get(timeout=TIMEOUT_S, follow_parents=False)
        eventually(told.exists, TIMEOUT_S)
