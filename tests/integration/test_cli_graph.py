"""``amqptasks graph``: drawings for Graphviz of a worker's parts, and of real workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Shell, environment, here
from tests.running import Workshop

NODE = re.compile(r'^    "(?P<name>[^"]+)" \[(?P<how>.*)\]$', re.MULTILINE)
EDGE = re.compile(r'^    "(?P<a>[^"]+)" -> "(?P<b>[^"]+)" \[', re.MULTILINE)


def read(dot: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Return nodes and edges of a drawing, which must be whole."""
    assert dot.startswith("digraph dependencies {\n") and dot.endswith("}\n")
    found = {each["name"] for each in NODE.finditer(dot)}
    edges = {(each["a"], each["b"]) for each in EDGE.finditer(dot)}
    assert {name for edge in edges for name in edge} <= found
    return found, edges


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path, broker_url, "") as made:
        yield made


def test_real_workers_are_drawn(shop: Workshop) -> None:
    # Given two workers
    first, second = shop.start("-c", "2", "-P", "threads"), shop.start("-P", "solo")
    names = [each.command[each.command.index("-n") + 1] for each in (first, second)]
    shell = Shell(shop.directory)
    # When they are drawn
    words = ("-A", shop.project.name, "graph", "workers", "-t", "10", "-d", ",".join(names))
    nodes, edges = read(shell(*words).stdout)
    # Then each points at broker and backend, and what runs its tasks at it; no password is in there
    broker = next(name for name in nodes if name.startswith("amqp://guest@"))
    assert {(name, to) for name in names for to in (broker, "rpc://")} <= edges
    assert sorted(b for a, b in edges if a.startswith("thr-")) == sorted([names[0]] * 2 + [names[1]])
    # And as JSON
    facts = json.loads(shell(*words, "--json").stdout)
    assert facts == {"workers": {names[0]: 2, names[1]: 1}, "broker": broker, "backend": "rpc://"}


def test_no_worker_is_an_answer_too(broker_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("-b", broker_url, "graph", "workers", "-t", "0.2", "-d", "nobody@nowhere")
    out, errors = here(capfd, *words, code=69)
    (said,) = errors.splitlines()
    assert said.startswith("Error: No nodes replied within time constraint")
    assert out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["nodes:a,b,c,d,e,f", "threads:4,4,4,4,4,4"],
        ["nodes:a,b,c,d,e,f,g", "threads:1,1,1,1,1,1,1", "enumerate"],
    ],
)
def test_workers_that_are_named_are_drawn_as_celery_draws_them(
    tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "broker:amqp://x", "backend:rpc://"]
    # Given what Celery draws
    theirs = subprocess.run(
        [sys.executable, "-m", "celery", "graph", "workers", *words], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    # When ours is drawn / Then there are the same nodes and edges, but for slots of workers that Celery left out
    nodes, edges = read(here(capfd, "graph", "workers", *words)[0])
    expected, their_edges = read(theirs.stdout)
    assert {each for each in nodes if not each.startswith("thr-")} == {
        each for each in expected if not each.startswith("thr-")
    }
    assert {(a, b) for a, b in edges if not a.startswith("thr-")} == {
        (a, b) for a, b in their_edges if not a.startswith("thr-")
    }


def test_few_are_drawn_as_few_as_can_be(capfd: pytest.CaptureFixture[str]) -> None:
    # Where Celery ends with an error: fewer threads than nodes, and less room than three
    words = ("graph", "workers", "nodes:a,b,c,d", "threads:1", "wmax:1", "broker:x")
    nodes, _edges = read(here(capfd, *words)[0])
    assert {"a", "W⎨…₂⎬", "d"} <= nodes


def test_the_parts_of_a_worker_are_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    nodes, edges = read(here(capfd, "graph", "bootsteps")[0])
    # Then what every worker has is there, and what only some have is marked
    assert {"worker.worker", "worker.settlement", "broker.loop", "worker.pools.prefork"} <= {
        each.removeprefix("∘") for each in nodes
    }
    assert "∘worker.control.service" in nodes and "broker.loop" in nodes
    assert ("worker.worker", "broker.loop") in edges
    # And a part of them can be asked for
    only = json.loads(here(capfd, "graph", "bootsteps", "worker", "--json")[0])
    assert all(name.startswith("worker.") for name in only)
    assert "worker.control.service" in only["worker.worker"]["optional"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bootsteps", "wroker"], "expected worker or consumer, got: 'wroker' (did you mean 'worker'?)"),
        (["workers", "nods:a"], "no word 'nods' (did you mean 'nodes'?)"),
        (["workers", "nodes:a", "threads:x"], "threads: expected whole numbers, got: 'x'"),
        (["workers", "nodes:a", "tmax:x"], "tmax: expected whole numbers"),
        (["worker"], "did you mean 'workers'?"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    (said,) = here(capfd, "graph", *words, code=2)[1].splitlines()
    assert says in said
