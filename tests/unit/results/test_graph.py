"""Graphs where Celery's know no answer: deep ones, ones with cycles, and names that are not plain."""

from __future__ import annotations

import io

import pytest

from amqptasks.utils.graph import CycleError, DependencyGraph


def test_a_very_deep_graph_breaks_no_stack() -> None:
    names = [f"n{number}" for number in range(5000)]
    graph = DependencyGraph(
        [(name, [after]) for name, after in zip(names, names[1:], strict=False)] + [(names[-1], [])]
    )
    assert graph.topsort() == names[::-1] and graph.valency_of("n0") == 4999
    assert len(repr(graph.adjacent)) > 0 and len(list(graph.edges())) == 4999


def test_a_cycle_is_found() -> None:
    graph = DependencyGraph([("a", ["b"]), ("b", ["a"])])
    for look in (graph.topsort, lambda: graph.valency_of("a"), lambda: repr(graph)):
        with pytest.raises(CycleError):
            look()


def test_names_cannot_break_out_of_their_quotes() -> None:
    text = io.StringIO()
    DependencyGraph([('a"];}\\', [])]).to_dot(text)
    assert '"a\\"];}\\\\" [' in text.getvalue()


def test_a_wide_graph_is_sorted_with_all_it_points_at_first() -> None:
    graph = DependencyGraph([("top", ["a", "b"]), ("a", ["c"]), ("b", ["c"]), ("c", []), ("alone", [])])
    order = graph.topsort()
    assert sorted(order) == ["a", "alone", "b", "c", "top"]
    assert all(order.index(target) < order.index(name) for name, targets in graph.items() for target in targets)
