"""Our calls are Celery's calls: real Celery reads ours, we read its, and both make the same dicts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amqptasks import canvas
from amqptasks.results.handles import AsyncResult, GroupResult, result_from_tuple
from amqptasks.results.memory import MemoryBackend

celery = pytest.importorskip("celery")
pytest.importorskip("celery.canvas")
pytest.importorskip("celery.result")

NAMES = ("a", "b", "c", "d")


class OurApp:
    """Just enough of an app to freeze calls."""

    tasks: dict[str, Any] = {}

    def __init__(self) -> None:
        self.backend = MemoryBackend()

    def AsyncResult(self, id: str) -> AsyncResult:
        return AsyncResult(id, app=self)


@pytest.fixture
def their_app():
    """A real Celery app with the tasks proj.a to proj.d."""
    app = celery.Celery("proj", broker="memory://", backend="cache+memory://", set_as_current=False)
    for name in NAMES:
        app.task(name=f"proj.{name}")(arguments)
    app.finalize()
    yield app
    app.close()


def arguments(*args: Any, **kwargs: Any) -> Any:
    return args


@pytest.fixture
def their(their_app):
    """A function that makes Celery's call of one of the tasks."""
    return lambda name, *args, **kwargs: their_app.tasks[f"proj.{name}"].s(*args, **kwargs)


def our(name: str, *args: Any, **kwargs: Any) -> canvas.Signature:
    return canvas.Signature(f"proj.{name}", args, kwargs, app=OurApp())


# Groups as lists: Celery shows tuples and generators by their Python kind, we show the list that travels.
CANVASES = {
    "a call": lambda s, c: s("a", 1, y=2),
    "options": lambda s, c: s("a").set(queue="slow", countdown=3, priority=1),
    "immutable": lambda s, c: s("a", 1).set(immutable=True),
    "links": lambda s, c: linked(s),
    "a clone": lambda s, c: s("a", 2, x=1).clone((1,), {"x": 2}, queue="q"),
    "a chain": lambda s, c: s("a", 1, 1) | s("b", 2) | s("c"),
    "chain()": lambda s, c: c.chain(s("a", 1, 1), s("b", 2), s("c")),
    "a chain of chains": lambda s, c: c.chain(s("a", 1, 1), c.chain(s("b", 2), s("c"))) | s("a"),
    "a group": lambda s, c: c.group([s("a", i) for i in range(3)]),
    "a group of groups": lambda s, c: c.group([s("a", 1), c.group([s("b"), s("c")])]),
    "a group of chains": lambda s, c: c.group([s("a", 1) | s("b"), s("c")]),
    "a chain into a group": lambda s, c: s("a", 1) | c.group([s("b"), s("c")]),
    "a chain into a group of one": lambda s, c: s("a", 1) | c.group([s("b")]),
    "a chord": lambda s, c: c.group([s("a", 1), s("a", 2)]) | s("b"),
    "chord()": lambda s, c: c.chord([s("a", 1), s("a", 2)], s("b")),
    "a chord in a chain": lambda s, c: s("c") | c.group([s("a", 1), s("a", 2)]) | s("b"),
    "a chord and then a task": lambda s, c: c.group([s("a", 1), s("a", 2)]) | s("b") | s("c"),
    "a chain with links, and more": lambda s, c: chain_with_links(s) | s("c") | (s("a") | s("b")).on_error(s("c", "x")),
    # By the shapes of what is composed: t is a task, g a group.
    "t | group of none": lambda s, c: s("a", 1) | c.group([]),
    "t | group of one": lambda s, c: s("a", 1) | c.group([s("b")]),
    "group of none | t": lambda s, c: c.group([]) | s("b"),
    "group of one | t": lambda s, c: c.group([s("a", 1)]) | s("b"),
    "g | g": lambda s, c: c.group([s("a", 1), s("a", 2)]) | c.group([s("b"), s("c")]),
    "g | group of none": lambda s, c: c.group([s("a", 1), s("a", 2)]) | c.group([]),
    "g | g | t": lambda s, c: c.group([s("a", 1), s("a", 2)]) | c.group([s("b"), s("c")]) | s("d"),
    "g | chain": lambda s, c: c.group([s("a", 1), s("a", 2)]) | (s("b") | s("c")),
    "g | chord": lambda s, c: c.group([s("a", 1), s("a", 2)]) | c.chord([s("b"), s("c")], s("d")),
    "chord | t": lambda s, c: c.chord([s("b"), s("c")], s("d")) | s("a"),
    "chord | chain": lambda s, c: c.chord([s("b"), s("c")], s("d")) | (s("a") | s("b")),
    "chord | g": lambda s, c: c.chord([s("b"), s("c")], s("d")) | c.group([s("a"), s("b")]),
    "chord | group of one": lambda s, c: c.chord([s("b"), s("c")], s("d")) | c.group([s("a")]),
    "chord | chord": lambda s, c: c.chord([s("b"), s("c")], s("d")) | c.chord([s("a"), s("b")], s("c")),
    "t | chord": lambda s, c: s("a", 1) | c.chord([s("b"), s("c")], s("d")),
    "t | chord | t": lambda s, c: s("a", 1) | c.chord([s("b"), s("c")], s("d")) | s("a"),
    "t | chord | g": lambda s, c: s("a", 1) | c.chord([s("b"), s("c")], s("d")) | c.group([s("a"), s("b")]),
    "t | chord | chord": lambda s, c: s("a", 1) | c.chord([s("b"), s("c")], s("d")) | c.chord([s("a"), s("b")], s("c")),
    "t | g | g": lambda s, c: s("a", 1) | c.group([s("a"), s("b")]) | c.group([s("b"), s("c")]),
    "t | g | g | t": lambda s, c: s("a", 1) | c.group([s("a"), s("b")]) | c.group([s("b"), s("c")]) | s("d"),
    "t | g | t | g | t": lambda s, c: (
        s("a", 1) | c.group([s("a"), s("b")]) | s("c") | c.group([s("b"), s("c")]) | s("d")
    ),
    "chain(t, g, t, g, t)": lambda s, c: c.chain(
        s("a", 1), c.group([s("a"), s("b")]), s("c"), c.group([s("b"), s("c")]), s("d")
    ),
    "chain(g, t)": lambda s, c: c.chain(c.group([s("a", 1), s("b", 1)]), s("c")),
    "chain(g, g)": lambda s, c: c.chain(c.group([s("a", 1), s("b", 1)]), c.group([s("a"), s("b")])),
    "chain(g, g, t)": lambda s, c: c.chain(c.group([s("a", 1), s("b", 1)]), c.group([s("a"), s("b")]), s("c")),
    "chain(t, g, g)": lambda s, c: c.chain(s("d"), c.group([s("a", 1), s("b", 1)]), c.group([s("a"), s("b")])),
    "chain(group of none, t)": lambda s, c: c.chain(c.group([]), s("c", 1)),
    "chain(t, group of none, t)": lambda s, c: c.chain(s("a", 1), c.group([]), s("c", 1)),
    "chain(t, group of none)": lambda s, c: c.chain(s("a", 1), c.group([])),
    "chain(group of one, t)": lambda s, c: c.chain(c.group([s("a", 1)]), s("c", 1)),
    "chain(g)": lambda s, c: c.chain(c.group([s("a", 1), s("b", 1)])),
    "chain([g])": lambda s, c: c.chain([c.group([s("a", 1), s("b", 1)])]),
    "chain(t)": lambda s, c: c.chain(s("a", 1)),
    "chain(chord, t)": lambda s, c: c.chain(c.chord([s("b"), s("c")], s("d")), s("a")),
    "chain(chord, g, t)": lambda s, c: c.chain(c.chord([s("b"), s("c")], s("d")), c.group([s("a"), s("b")]), s("c")),
    "chain(chord, chord)": lambda s, c: c.chain(c.chord([s("b"), s("c")], s("d")), c.chord([s("a"), s("b")], s("c"))),
    "chain(chain, chain)": lambda s, c: c.chain(s("a", 1) | s("b"), s("c") | s("d")),
    "chain(chain+g, t)": lambda s, c: c.chain(s("a", 1) | c.group([s("b"), s("c")]), s("d")),
    "chain(t, chain(g, t))": lambda s, c: c.chain(s("a", 1), c.chain(c.group([s("b"), s("c")]), s("d"))),
    "skew": lambda s, c: c.group([s("a", i) for i in range(5)]).skew(1, 3, 0.5),
}


def linked(s: Any) -> Any:
    call = s("a", 1)
    call.link(s("b"))
    call.link(s("b"))
    call.link_error(s("c", "failed"))
    return call


# On the wire these are calls of tasks as any others.
MAPS = {
    "map": lambda s, c: c.xmap(s("a"), [1, 2]),
    "starmap": lambda s, c: c.xstarmap(s("a"), [(1, 2), (3, 4)]),
    "map | t": lambda s, c: c.xmap(s("a"), [1, 2]) | s("b"),
    "t | map": lambda s, c: s("b") | c.xmap(s("a"), [1, 2]),
    "g(map)": lambda s, c: c.group([c.xmap(s("a"), [1, 2]), s("b")]),
}
ALL = CANVASES | MAPS


def chain_with_links(s: Any) -> Any:
    chain = s("a", 1) | s("b")
    chain.link(s("c"))
    chain.link_error(s("d"))
    return chain


def through_json(call: Any) -> Any:
    return json.loads(json.dumps(call))


@pytest.mark.parametrize("name", ALL)
def test_both_make_the_same_dict(name, their):
    # Given the same canvas, written for Celery and for us / Then what travels is the same
    assert through_json(ALL[name](our, canvas)) == through_json(ALL[name](their, celery.canvas))


@pytest.mark.parametrize("name", ALL)
def test_both_show_the_same_text(name, their):
    assert repr(ALL[name](our, canvas)) == repr(ALL[name](their, celery.canvas))


@pytest.mark.parametrize("name", CANVASES)
def test_celery_reads_ours(name, their, their_app):
    # Given our canvas / When real Celery reads its JSON
    plain = through_json(CANVASES[name](our, canvas))
    read = celery.canvas.Signature.from_dict(through_json(plain), app=their_app)
    # Then it has its own class for it, the same calls in it, and writes it as it was
    expected = CANVASES[name](their, celery.canvas)
    assert type(read).__name__.lstrip("_") == type(expected).__name__.lstrip("_")
    assert repr(read) == repr(expected)
    assert through_json(read) == plain


@pytest.mark.parametrize("name", CANVASES)
def test_we_read_celerys(name, their):
    plain = through_json(CANVASES[name](their, celery.canvas))
    read = canvas.maybe_signature(through_json(plain))
    expected = CANVASES[name](our, canvas)
    assert type(read) is type(expected)
    assert repr(read) == repr(expected)
    assert through_json(read) == plain


def stamped(canvas_: Any, *args: Any, **stamps: Any) -> Any:
    canvas_.stamp(*args, **stamps)
    return canvas_


def visitor(c: Any) -> Any:
    """A visitor that marks each part of a canvas in another way."""

    class Visitor(c.StampingVisitor):
        seen = 0

        def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
            self.seen += 1
            return {"place": f"no. {self.seen}", "unnamed": 1, "stamped_headers": ["place"]}

        def on_group_start(self, group: Any, **headers: Any) -> dict[str, Any]:
            return {"in_group": len(group.tasks)}

        def on_chain_start(self, chain: Any, **headers: Any) -> dict[str, Any]:
            return {"in_chain": len(chain.tasks)}

        def on_callback(self, callback: Any, **headers: Any) -> dict[str, Any]:
            return {"callback": True}

        def on_errback(self, errback: Any, **headers: Any) -> dict[str, Any]:
            return {"errback": True}

    return Visitor()


STAMPED = {
    "once": lambda s, c: stamped(s("a", 1), stamp="x"),
    "twice": lambda s, c: stamped(stamped(s("a", 1), stamp="x"), stamp="y", more=1),
    "both kept": lambda s, c: stamped(stamped(s("a", 1), stamp="x"), append_stamps=True, stamp="y", more=1),
    "lists and dicts": lambda s, c: stamped(stamped(s("a"), x=[1], y={"a": 1}), x=[2], y={"b": 2}),
    "links": lambda s, c: stamped(linked(s), stamp="x"),
    "a chain": lambda s, c: stamped(s("a", 1) | s("b"), stamp="x"),
    "a group": lambda s, c: stamped(c.group([s("a", 1), s("b")]), stamp="x"),
    "visited": lambda s, c: stamped(s("a", 1), visitor(c)),
    "a visited chain": lambda s, c: stamped(s("a", 1) | s("b"), visitor(c), own="stamp"),
    "a visited group": lambda s, c: stamped(c.group([s("a", 1), s("b")]), visitor(c)),
    "visited links": lambda s, c: stamped(linked(s), visitor(c)),
    "links visited twice": lambda s, c: stamped(stamped(linked(s), visitor(c)), visitor(c), own="stamp"),
    "all kept": lambda s, c: stamped(stamped(linked(s), visitor(c)), visitor(c), append_stamps=True, place="q"),
    "deep": lambda s, c: stamped(s("a", 1) | c.group([s("b") | s("c"), s("d")]), visitor(c)),
}


@pytest.mark.parametrize("name", STAMPED)
def test_stamps_are_put_together_alike(name, their):
    ours, theirs = STAMPED[name](our, canvas), STAMPED[name](their, celery.canvas)
    assert with_sorted_names(through_json(ours)) == with_sorted_names(through_json(theirs))


def with_sorted_names(plain: Any) -> Any:
    """A canvas whose stamps are named in order: Celery gives them in that of a set."""
    if isinstance(plain, list):
        return [with_sorted_names(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: sorted(value) if key == "stamped_headers" else with_sorted_names(value) for key, value in plain.items()
    }


FROZEN = ["a chain", "a chain of chains", "a chain into a group", "a group", "a group of chains"]


@pytest.mark.parametrize("name", FROZEN)
def test_freezing_writes_the_same_options(name, their):
    """Ids differ; which calls get which kinds of options, and how results hang together, must not."""
    ours, theirs = CANVASES[name](our, canvas), CANVASES[name](their, celery.canvas)
    our_result, their_result = ours.freeze(), theirs.freeze()
    assert shape(our_result.as_tuple()) == shape(their_result.as_tuple())
    assert [call["task"] for call in calls(ours)] == [call["task"] for call in calls(theirs)]
    for mine, its in zip(calls(ours), calls(theirs), strict=True):
        # reply_to is ours only where answers come as messages; the group's id Celery adds when it sends the group.
        differ = {"reply_to", "group_id"}
        assert mine["options"].keys() - differ == its["options"].keys() - differ


@pytest.mark.parametrize("name", ["a chain", "a chain into a group", "a group", "a group of chains"])
def test_a_canvas_frozen_by_either_is_run_under_its_ids_by_the_other(name, their, their_app):
    # Given a canvas that was frozen, as the rest of a chain is / When the other side reads and freezes it
    ours, theirs = CANVASES[name](our, canvas), CANVASES[name](their, celery.canvas)
    our_ids, their_ids = ids(ours.freeze().as_tuple()), ids(theirs.freeze().as_tuple())
    read_by_them = celery.canvas.Signature.from_dict(through_json(ours), app=their_app)
    read_by_us = canvas.maybe_signature(through_json(theirs), app=OurApp())
    # Then the ids of all tasks stay
    assert our_ids <= ids(read_by_them.freeze().as_tuple()) | {ours.id}
    assert their_ids <= ids(read_by_us.freeze().as_tuple()) | {theirs.id}


def test_celery_reads_our_result_tuples_and_we_read_its(their_app):
    first = AsyncResult("first", backend=MemoryBackend())
    group = GroupResult("g", [AsyncResult("x"), AsyncResult("y")], parent=first)
    read = celery.result.result_from_tuple(through_json(group.as_tuple()), app=their_app)
    assert isinstance(read, celery.result.GroupResult)
    assert [member.id for member in read] == ["x", "y"]
    assert read.parent.id == "first"
    back = result_from_tuple(through_json(read.as_tuple()))
    assert back == GroupResult("g", [AsyncResult("x"), AsyncResult("y")], parent=AsyncResult("first"))


def calls(call: Any) -> list[Any]:
    """All calls of one task in a canvas, in order."""
    if call.get("subtask_type") in ("chain", "group"):
        return [found for inner in call["kwargs"]["tasks"] for found in calls(inner)]
    return [call]


def shape(plain: Any) -> Any:
    """A result tuple without its ids."""
    if isinstance(plain, (list, tuple)):
        return [shape(item) for item in plain]
    return None if plain is None else "id"


def ids(plain: Any) -> set[str]:
    if isinstance(plain, (list, tuple)):
        return {found for item in plain for found in ids(item)}
    return set() if plain is None else {plain}
