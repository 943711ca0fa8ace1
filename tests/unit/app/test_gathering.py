"""Blocks whose sends are gathered: what one that cannot be finished leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from amqptasks import App, chord
from amqptasks.exceptions import EncodeError, ResultUnreachable
from amqptasks.results.backend import NoResultBackend


@pytest.fixture
def app() -> Iterator[Any]:
    """An app whose broker nobody can reach: whatever it sends fails, and only what it does not send does not."""
    made = App("nowhere", broker="amqp://127.0.0.1:1//", backend="rpc://", set_as_current=False)
    made.conf.broker_publish_timeout = 0.1

    @made.task(name="add")
    def add(x: Any, y: Any) -> Any:
        return x + y

    @made.task(name="total")
    def total(numbers: Any) -> Any:
        return sum(numbers)

    yield made
    made.close()


@pytest.mark.parametrize("place", ["header", "deep in the header", "body"])
def test_a_chord_that_cannot_be_made_is_not_begun(app: Any, place: str) -> None:
    # Given a chord of which one call cannot be serialized
    add, total = app.tasks["add"], app.tasks["total"]
    bad = add.s(1, object())
    header = {"header": bad, "deep in the header": chord([add.s(2, 2), bad], total.s())}.get(place, add.s(2, 2))
    call = chord([add.s(1, 1), header], total.s(object()) if place == "body" else total.s())
    result = call.freeze()
    # When it is sent / Then that is said, and nothing was sent: the broker was not even looked for
    with pytest.raises(EncodeError):
        call.apply_async()
    # And nobody waits for what will never be
    for each in (result, result.parent.results[0]):
        with pytest.raises(ResultUnreachable):
            each.get(timeout=0)


@pytest.mark.parametrize("backend", ["rpc://", None])
def test_a_store_is_needed_where_the_store_is_to_join_chords(app: Any, backend: str | None) -> None:
    app.conf.update(result_backend=backend, chord_join="store")
    with pytest.raises(NoResultBackend, match="chord_join is 'store', but .* keeps no results"):
        chord([app.tasks["add"].s(1, 1)])(app.tasks["total"].s())
