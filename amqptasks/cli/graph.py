"""``amqptasks graph``: what a worker is made of, and which workers there are, drawn for Graphviz."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import click

from amqptasks.cli.common import EXIT_UNAVAILABLE, CliError, Globals, commas, did_you_mean
from amqptasks.cli.elements import Group, json_option
from amqptasks.results.graph import DependencyGraph, GraphFormatter

__all__ = ["graph"]

#: Where the parts of a worker are, by the words of Celery: its own, and those that speak to the broker.
PARTS = {"worker": "amqptasks.worker", "consumer": "amqptasks.broker"}
ROOT = "amqptasks.worker.worker"
#: What `graph workers` takes as ``word:value``.
WORDS = ("backend", "broker", "enumerate", "generic", "nodes", "threads", "tmax", "wmax")
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(eq=False, slots=True)
class Node:
    """Something in a drawing. Two of one label are two."""

    label: str
    scheme: dict[str, Any] = field(default_factory=dict)
    #: What is written into it, if that is not its label.
    caption: str = ""


class Drawing(GraphFormatter):
    """Draws nodes as they say themselves."""

    thread: ClassVar[dict[str, Any]] = {
        "fillcolor": "lightcyan4", "fontcolor": "yellow", "shape": "oval", "fontsize": 10, "width": 0.3,
        "color": "black",
    }  # fmt: skip
    backend: ClassVar[dict[str, Any]] = {
        "shape": "folder", "width": 2, "height": 1, "color": "black", "fillcolor": "peachpuff3"
    }  # fmt: skip
    broker: ClassVar[dict[str, Any]] = {
        "shape": "circle", "fillcolor": "cadetblue3", "color": "cadetblue4", "height": 1
    }  # fmt: skip
    optional: ClassVar[dict[str, Any]] = {"style": "filled,dashed"}

    def label(self, obj: Any) -> Any:
        """Return the name of a node."""
        return getattr(obj, "label", obj)

    def node(self, obj: Any, **attrs: Any) -> str:
        """Write a node that points at others."""
        return self.draw_node(obj, self.node_scheme | obj.scheme, attrs | self._caption(obj))

    def terminal_node(self, obj: Any, **attrs: Any) -> str:
        """Write a node that points at none."""
        return self.draw_node(obj, self.term_scheme | obj.scheme, attrs | self._caption(obj))

    def edge(self, a: Any, b: Any, **attrs: Any) -> str:
        """Write that one points at another; a thread only belongs to its worker."""
        own = {"arrowhead": "none", "arrowtail": "tee"} if a.caption else {}
        return super().edge(a, b, **(own | attrs))

    @staticmethod
    def _caption(obj: Any) -> dict[str, str]:
        return {"label": obj.caption} if obj.caption else {}


@click.group(
    cls=Group, short_help="Draw a worker's parts, or all workers, for Graphviz.",
    examples=(
        "amqptasks graph bootsteps | dot -Tsvg > parts.svg",
        "amqptasks -A proj graph workers | dot -Tpng > workers.png",
    ),
)  # fmt: skip
def graph() -> None:
    """Write drawings in the DOT language of Graphviz: `dot -Tsvg` makes pictures of them."""


# -- what a worker is made of


@graph.command(
    "bootsteps", short_help="Draw what a worker is made of.",
    examples=("amqptasks graph bootsteps | dot -Tsvg > parts.svg", "amqptasks graph bootsteps worker --json"),
)  # fmt: skip
@click.argument("parts", nargs=-1, metavar="[worker] [consumer]")
@json_option()
def bootsteps(parts: Sequence[str], as_json: bool) -> None:
    """Draw the parts of a worker and which needs which: its own, and those that speak to the broker.

    It is read from the modules themselves. Dashed are those that are there only when they are asked for. A worker has
    no bootsteps to add to.
    """
    for each in parts:
        if each not in PARTS:
            raise CliError(f"expected worker or consumer, got: {each!r}{did_you_mean(each, PARTS)}")
    packages = tuple(PARTS[each] for each in parts or PARTS)
    needs = dict(_needs(packages))
    if as_json:
        facts = {name: {"needs": sorted(all_), "optional": sorted(late)} for name, (all_, late) in needs.items()}
        click.echo(json.dumps(facts, indent=2))
        return
    always = _always(needs)
    nodes = {
        name: Node(name if name in always else f"∘{name}", {} if name in always else Drawing.optional) for name in needs
    }
    drawn = DependencyGraph(formatter=Drawing())
    for name in needs:
        drawn.add_arc(nodes[name])
    for name, (all_, _late) in needs.items():
        for other in sorted(all_):
            drawn.add_edge(nodes[name], nodes[other])
    drawn.to_dot(sys.stdout)


def _needs(packages: tuple[str, ...]) -> Iterator[tuple[str, tuple[set[str], set[str]]]]:
    """Return each part that a worker reaches, with those that it needs, and those of them that come in late."""
    seen = {ROOT}
    left = [ROOT]
    while left:
        module = left.pop(0)
        found = {name: is_late for name, is_late in _imported(module) if name.startswith(packages)}
        short = {name: name.partition(".")[2] for name in found}
        yield (
            module.partition(".")[2],
            ({short[each] for each in found}, {short[each] for each in found if found[each]}),
        )
        for name in found:
            if name not in seen:
                seen.add(name)
                left.append(name)


def _always(needs: Mapping[str, tuple[set[str], set[str]]]) -> set[str]:
    """Return the parts that every worker has: reached without a late import."""
    found: set[str] = set()
    left = [ROOT.partition(".")[2]]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            all_, late = needs[name]
            left += all_ - late
    return found


def _imported(module: str) -> Iterator[tuple[str, bool]]:
    """Return the modules of ours that a module imports, and whether only when they are needed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    # What only a type checker sees is no need.
    unreal = {
        id(each) for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for each in node.body
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in unreal:
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("amqptasks.") and name not in PARTS.values() and _is_module(name):
                yield name, id(node) not in top


def _is_module(name: str) -> bool:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    return found is not None and not found.submodule_search_locations


# -- which workers there are


@graph.command(
    "workers", short_help="Draw the workers that answer.",
    examples=(
        "amqptasks -A proj graph workers | dot -Tpng > workers.png",
        "amqptasks -A proj graph workers tmax:0 wmax:10",
        "amqptasks graph workers nodes:mail,images threads:2,8",
    ),
)  # fmt: skip
@click.argument("words", nargs=-1, metavar="[WORD:VALUE]...")
@click.option("-d", "--destination", callback=commas, metavar="A,B", help="Only these workers, by their full names.")
@click.option(
    "-t", "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
    metavar="SECONDS", help="Wait so long for answers.",
)  # fmt: skip
@json_option()
@click.pass_obj
def workers(
    obj: Globals, /, words: Sequence[str], destination: tuple[str, ...] | None, timeout_s: float, as_json: bool
) -> None:  # fmt: skip
    """Draw the workers that answer, what runs tasks in each, the broker and the result store.

    Of many only some are drawn: wmax:4 workers and tmax:3 slots of each, 0 for all. nodes:A,B and threads:2,8 draw
    these without asking anybody; broker:URL and backend:URL name other ones. generic leaves hosts out, and enumerate
    writes numbers for names.
    """
    given = _words(words)
    if "nodes" in given:
        counts = [_whole("threads", each) for each in given.get("threads", "").split(",") if each]
        names = [each for each in given["nodes"].split(",") if each]
        counts += [0] * len(names)
        found = dict(zip(names, counts, strict=False))
    else:
        found = _ask(obj, destination, timeout_s)
    if as_json:
        click.echo(json.dumps({"workers": found, **_ends(obj, given)}, indent=2))
        return
    _draw(found, given, _ends(obj, given)).to_dot(sys.stdout)


def _words(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for each in words:
        name, _, value = each.partition(":")
        if name not in WORDS:
            raise CliError(f"no word {name!r}{did_you_mean(name, WORDS)}; there is: {', '.join(WORDS)}")
        found[name] = value
    return found


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise CliError(f"{name}: expected whole numbers, got: {text!r}")
    return int(text)


def _ask(obj: Globals, destination: tuple[str, ...] | None, timeout_s: float) -> dict[str, int]:
    """Return how many tasks each worker runs at once."""
    app = obj.app()
    try:
        replies = app.control.inspect(list(destination) if destination else None, timeout=timeout_s).stats()
    finally:
        app.close()
    if not replies:
        raise CliError("No nodes replied within time constraint; nodes:A,B draws without asking", EXIT_UNAVAILABLE)
    found = {}
    for name, reply in sorted(replies.items()):
        pool = reply.get("pool") if isinstance(reply, dict) else None
        count = pool.get("max-concurrency") if isinstance(pool, dict) else None
        found[name] = count if isinstance(count, int) and 0 <= count < 1_000_000 else 0
    return found


def _ends(obj: Globals, given: Mapping[str, str]) -> dict[str, str]:
    """Return the broker and the result store, without passwords."""
    from amqptasks.urls import mask_url

    broker = mask_url(given["broker"]) if "broker" in given else obj.app().endpoints("graph")[0].label
    backend = mask_url(given["backend"]) if "backend" in given else obj.app().backend.as_uri()
    ends = {"broker": broker, "backend": "" if backend.startswith("disabled") else backend}
    if "generic" in given:
        ends = {
            name: f"{name.capitalize()} ({url.partition('://')[0]}://)" if url else "" for name, url in ends.items()
        }
    return ends


def _draw(found: Mapping[str, int], given: Mapping[str, str], ends: Mapping[str, str]) -> DependencyGraph:
    most = _whole("wmax", given.get("wmax", "4") or "0")
    most_threads = _whole("tmax", given.get("tmax", "3") or "0")
    drawn = DependencyGraph(formatter=Drawing())
    targets = [Node(ends["broker"], Drawing.broker)]
    if ends["backend"]:
        targets.append(Node(ends["backend"], Drawing.backend))
    for target in targets:
        drawn.add_arc(target)
    numbers = itertools.count(1)
    names = list(found)
    for at, label in _shortened(names, "Worker", most, is_counted="enumerate" in given):
        worker = Node(label)
        drawn.add_arc(worker)
        for target in targets:
            drawn.add_edge(worker, target)
        slots = [str(number) for number in range(found[names[at]])]
        for _at, caption in _shortened(slots, "P", most_threads, is_counted="enumerate" in given):
            thread = Node(f"thr-{next(numbers)}", Drawing.thread, caption)
            drawn.add_arc(thread)
            drawn.add_edge(thread, worker)
    return drawn


def _shortened(names: Sequence[str], title: str, most: int, *, is_counted: bool) -> list[tuple[int, str]]:
    """Return what is drawn of many, with its place: the first, one that stands for those in between, the last."""
    shown = [f"{title}{str(at + 1).translate(SUBSCRIPTS)}" if is_counted else name for at, name in enumerate(names)]
    if not most or len(names) <= max(most, 2):
        return list(enumerate(shown))
    most = max(most, 3)
    between = f"{title[0]}⎨…{str(len(names) - most + 1).translate(SUBSCRIPTS)}⎬"
    return [*enumerate(shown[: most - 2]), (most - 2, between), (len(names) - 1, shown[-1])]
