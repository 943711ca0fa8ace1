"""Random canvases over pure arithmetic: as data, as calls, and what they are worth in plain Python.

A canvas is a tuple: ``("add", n)``, ``("total",)``, ``("number", n)``, ``("chain", steps)``, ``("group", members)`` or
``("chord", header, body)``. Each takes a value, the result of the step before it, and gives one.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

from hypothesis import strategies as st

from amqptasks import canvas as kinds

Shape = tuple[Any, ...]

SOURCE = """
    @app.task
    def add(value, n):
        return [add.run(each, n) for each in value] if isinstance(value, list) else value + n

    @app.task
    def total(value):
        return sum(map(total.run, value)) if isinstance(value, list) else value

    @app.task
    def number(n):
        return n
"""


def canvases(most: int = 3) -> st.SearchStrategy[Shape]:
    """Canvases of any shape, of a few calls each.

    Left out is where it matters in Celery how a group is written: one of a single member directly in another group or
    in a chain that begins with a group, and one that is all of a chain but for what is empty.
    """
    numbers = st.integers(-9, 9)
    calls: st.SearchStrategy[Shape] = st.one_of(
        st.tuples(st.just("add"), numbers), st.just(("total",)), st.tuples(st.just("number"), numbers)
    )

    def larger(inner: st.SearchStrategy[Shape]) -> st.SearchStrategy[Shape]:
        members = inner.filter(lambda shape: shape[0] != "group" or len(shape[1]) > 1)
        return st.one_of(
            st.tuples(st.just("chain"), st.lists(inner, min_size=1, max_size=most)).filter(is_clear),
            st.tuples(st.just("group"), st.lists(members, max_size=most)),
            st.tuples(st.just("chord"), st.lists(members, max_size=most), inner.filter(gives)),
        )

    return st.recursive(calls, larger, max_leaves=12).filter(gives)


def is_clear(chain: Shape) -> bool:
    steps = steps_of(chain)
    if len(chain[1]) == 1 or not steps or steps[0][0] != "group":
        return True
    return len(steps) > 1 and not any(step[0] == "group" and len(step[1]) == 1 for step in chain[1])


def has_small_groups(shape: Shape) -> bool:
    if shape[0] not in ("chain", "group", "chord"):
        return False
    return (shape[0] == "group" and len(shape[1]) < 2) or any(map(has_small_groups, [*shape[1], *shape[2:]]))


def gives(shape: Shape) -> bool:
    """Whether it has a result at all."""
    kind = shape[0]
    return any(map(gives, shape[1])) if kind in ("chain", "group") else True


def build(shape: Shape, tasks: Any, *, piped: bool = False) -> Any:
    """The canvas as a call; its chains written with ``|``, if that is wanted and makes no difference."""
    kind, *parts = shape
    if kind == "number":
        return tasks.number.si(*parts)
    if kind in ("add", "total"):
        return getattr(tasks, kind).s(*parts)
    members = [build(each, tasks, piped=piped) for each in parts[0]]
    if kind == "chord":
        return kinds.chord(members, build(parts[1], tasks, piped=piped))
    if kind == "chain" and piped and len(members) > 1 and not has_small_groups(shape):
        return functools.reduce(operator.or_, members)
    return kinds.chain(*members) if kind == "chain" else kinds.group(members)


def value_of(shape: Shape, given: Any) -> Any:
    """What it gives."""
    kind, *parts = shape
    if kind == "number":
        return parts[0]
    if kind == "add":
        return deep_sum(given, parts[0])
    if kind == "total":
        return total(given)
    if kind == "chord":
        return value_of(parts[1], results_of(parts[0], given))
    if kind == "group":
        members = [each for member in parts[0] for each in members_of(member)]
        if len(members) == 1:
            # A list of one list is shown as that list.
            return value_of(members[0], given) if ends_in_group(members[0]) else [value_of(members[0], given)]
        return [value_of(each, given) for each in members]
    *before, last = steps_of(shape)
    for step in before:
        given = what_it_gives(step, given)
    return value_of(last, given)


def results_of(header: list[Shape], given: Any) -> list[Any]:
    """What the header of a chord gives to its body: a list in the list for what ends in a group."""
    return [what_it_gives(each, given) for member in header for each in members_of(member)]


def what_it_gives(shape: Shape, given: Any) -> Any:
    """What it gives to what comes after it, which is a body if it ends in a group."""
    kind, *parts = shape
    if not ends_in_group(shape):
        return value_of(shape, given)
    if kind == "group":
        return results_of(parts[0], given)
    if kind == "chord":
        return what_it_gives(parts[1], results_of(parts[0], given))
    *before, last = steps_of(shape)
    for step in before:
        given = what_it_gives(step, given)
    return what_it_gives(last, given)


def steps_of(chain: Shape) -> list[Shape]:
    """The steps of a chain that do something; a group of one is its member."""
    steps: list[Shape] = []
    for step in chain[1]:
        while step[0] == "group" and len(step[1]) == 1:
            step = step[1][0]
        if step[0] == "chain":
            steps.extend(steps_of(step))
        elif gives(step):
            steps.append(step)
    return steps


def members_of(shape: Shape) -> list[Shape]:
    """The members that a member stands for: a group's, in its place; none if it has no result."""
    if shape[0] == "group":
        return [each for member in shape[1] for each in members_of(member)]
    return [shape] if gives(shape) else []


def ends_in_group(shape: Shape) -> bool:
    if shape[0] == "chain":
        steps = steps_of(shape)
        return bool(steps) and ends_in_group(steps[-1])
    return ends_in_group(shape[2]) if shape[0] == "chord" else shape[0] == "group"


def deep_sum(value: Any, n: int) -> Any:
    return [deep_sum(each, n) for each in value] if isinstance(value, list) else value + n


def total(value: Any) -> int:
    return sum(map(total, value)) if isinstance(value, list) else value
