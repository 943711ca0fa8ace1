"""Whatever is composed of whatever: it gives what plain Python gives."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings

from amqptasks import App
from amqptasks.canvas import maybe_signature
from amqptasks.wire.serializers import Limits, dumps, loads
from tests import canvases


@pytest.fixture(scope="module")
def tasks() -> SimpleNamespace:
    """Tasks that run where they are called."""
    app = App("arithmetic", task_always_eager=True, set_as_current=False)
    return SimpleNamespace(
        app=app,
        add=app.task(name="add")(canvases.deep_sum),
        total=app.task(name="total")(canvases.total),
        number=app.task(name="number")(lambda n: n),
    )


def travelled(call: Any, name: str) -> Any:
    """What arrives of a canvas that is sent."""
    content_type, encoding, body = dumps(call, name)
    return loads(body, content_type, encoding, frozenset([content_type]), Limits())


@settings(max_examples=150)
@given(shape=canvases.canvases())
def test_a_canvas_is_worth_what_python_says(tasks: SimpleNamespace, shape: canvases.Shape) -> None:
    # Given a canvas, and what it is worth
    call = canvases.build(shape, tasks)
    expected = canvases.value_of(shape, 1)
    before = json.dumps(call)

    # When it runs, twice, written with |, and when it has been on a journey
    first, second = call.apply_async((1,)), call.clone((1,)).apply_async()
    copies = [maybe_signature(travelled(call, name), app=tasks.app) for name in ("json", "msgpack")]
    copies.append(canvases.build(shape, tasks, piped=True))
    others = [copy.apply_async((1,)).get() for copy in copies]

    # Then all give that, and the canvas is as it was
    assert [first.get(), second.get(), *others] == [expected] * 5
    assert json.dumps(call) == before
