"""What is wrong in a canvas is named, by its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from amqptasks import App
from amqptasks.canvas import Signature, chain, chord, group
from amqptasks.exceptions import EncodeError, InvalidTaskError

BAD = object()


@pytest.fixture
def app() -> App:
    """An app that is not connected."""
    return App("tasks", broker="amqp://localhost:1", set_as_current=False)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda s: s("a", 1, BAD), r"^json cannot carry argument 2 of args, a builtins.object: [^(]*$"),
        (lambda s: s("a") | s("b", 1, y=BAD) | s("c"), r"kwargs\['y'\].*\(step 2 of the chain, b\)"),
        (lambda s: s("a") | s("b") | s("c", BAD), r"argument 1 of args.*\(step 3 of the chain, c\)"),
        (lambda s: s("a") | group([s("b"), s("c", BAD)]), r"\(member 2 of step 2 of the chain, c\)"),
        (lambda s: s("a") | chord([s("b"), s("c", BAD)], s("d")), r"\(header 2 of step 2 of the chain, c\)"),
        (lambda s: s("a") | chord([s("b"), s("c")], s("d", BAD)), r"\(body of step 2 of the chain, d\)"),
        (lambda s: s("a") | s("b").on_error(s("c", BAD)), r"\(errback of step 2 of the chain, c\)"),
        (lambda s: linked(s("a"), s("b") | s("c", BAD)), r"\(step 2 of a callback, c\)"),
        (lambda s: s("a").on_error(s("b", BAD)), r"\(an errback, b\)"),
        (lambda s: group([s("a"), s("b", BAD)]), r"argument 1 of args.*\(member 2 of 2, b\(<object"),
    ],
)
def test_an_argument_that_cannot_travel_is_named_with_its_call(
    app: App, make: Callable[..., Any], place: str
) -> None:  # fmt: skip
    # Given a canvas with an argument that JSON cannot carry
    call = make(lambda name, *args, **kwargs: app.signature(name, args, kwargs))
    # When it is sent, as if by a worker / Then the error says which it is
    with app.sender.collecting(None), pytest.raises(EncodeError, match=place):
        call.apply_async()


def linked(call: Signature, callback: Signature) -> Signature:
    call.link(callback)
    return call


def test_a_type_that_nobody_has_registered_is_named() -> None:
    with pytest.raises(InvalidTaskError, match=r"'mine'.*not registered.*known: chain, chord, chunks, group, xmap"):
        Signature.from_dict({"task": "a", "subtask_type": "mine"})


def test_a_type_of_ones_own_is_read_back(app: App) -> None:
    @Signature.register_type()
    class mine(Signature):
        @classmethod
        def from_dict(cls, d, app=None):
            return cls(d, app=app)

    try:
        made = Signature.from_dict({"task": "a", "subtask_type": "mine"}, app=app)
        assert type(made) is mine
        assert type(chain(made, made.clone()).clone().tasks[1]) is mine
    finally:
        del Signature.TYPES["mine"]


@pytest.mark.parametrize("option", ["link", "link_error"])
def test_a_group_cannot_be_linked_when_it_is_sent(app: App, option: str) -> None:
    call = group([app.signature("a"), app.signature("b")])
    with pytest.raises(TypeError, match="Cannot add link to group"):
        call.apply_async(**{option: app.signature("c")})


@pytest.mark.parametrize("other", [5, "a", None, {"task": "a"}, [1]])
def test_what_is_no_call_is_not_chained(app: App, other: object) -> None:
    for call in (app.signature("a"), app.signature("a") | app.signature("b"), group([app.signature("a")])):
        with pytest.raises(TypeError, match="unsupported operand"):
            call | other
