"""Graphs of results, drawn for Graphviz as Celery draws them. Loaded when a graph is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any, ClassVar

__all__ = ["CycleError", "DependencyGraph", "GraphFormatter"]


class CycleError(Exception):
    """A graph that must not have cycles has one."""


class DependencyGraph:
    """A directed graph of hashable objects without cycles.

    Args:
        it: Pairs of an object and those it points at.
        formatter: How `to_dot` draws it.
    """

    def __init__(
        self, it: Iterable[tuple[Any, Iterable[Any]]] | None = None, formatter: GraphFormatter | None = None
    ) -> None:
        self.formatter = formatter or GraphFormatter()
        #: Each object, with those it points at.
        self.adjacent: dict[Any, list[Any]] = {}
        if it is not None:
            self.update(it)

    def add_arc(self, obj: Any) -> None:
        """Add an object, unless it is there."""
        self.adjacent.setdefault(obj, [])

    def add_edge(self, A: Any, B: Any) -> None:
        """Let A point at B. A must be there."""
        self.adjacent[A].append(B)

    def connect(self, graph: DependencyGraph) -> None:
        """Add all of another graph."""
        self.adjacent.update(graph.adjacent)

    def update(self, it: Iterable[tuple[Any, Iterable[Any]]]) -> None:
        """Add pairs of an object and those it points at."""
        pairs = [(obj, list(targets)) for obj, targets in it]
        for obj, _ in pairs:
            self.add_arc(obj)
        for obj, targets in pairs:
            self.adjacent[obj] += targets

    def edges(self) -> Iterator[Any]:
        """Yield each object that points at any."""
        return (obj for obj, targets in self.adjacent.items() if targets)

    def topsort(self) -> list[Any]:
        """Return the objects in an order in which each comes after all that it points at.

        Raises:
            CycleError: There is none.
        """
        pointed_at = Counter(target for targets in self.adjacent.values() for target in targets)
        # From the end, so that those who came first stay in front where the graph leaves a choice.
        ready = [obj for obj in self._from_the_bottom() if not pointed_at[obj]]
        order: list[Any] = []
        while ready:
            obj = ready.pop()
            order.append(obj)
            for target in self.adjacent.get(obj, ()):
                pointed_at[target] -= 1
                if not pointed_at[target]:
                    ready.append(target)
        if len(order) < len(self.adjacent):
            raise CycleError("the graph has a cycle")
        return order[::-1]

    def _from_the_bottom(self) -> Iterator[Any]:
        """Yield every object after all that it points at, depth first."""
        seen: set[Any] = set()
        for root in self.adjacent:
            # A loop, not recursion: a chain may be longer than the stack is deep.
            stack = [] if root in seen else [(root, iter(self.adjacent[root]))]
            seen.add(root)
            while stack:
                obj, targets = stack[-1]
                target = next((each for each in targets if each not in seen), None)
                if target is None:
                    yield stack.pop()[0]
                else:
                    seen.add(target)
                    stack.append((target, iter(self.adjacent.get(target, ()))))

    def valency_of(self, obj: Any) -> int:
        """Count the edges of all ways that lead on from an object; 0 for one that is not here.

        Raises:
            CycleError: A way leads back.
        """
        return self._valencies().get(obj, 0)

    def _valencies(self) -> dict[Any, int]:
        self.topsort()
        found: dict[Any, int] = {}
        for obj in self._from_the_bottom():
            targets = self.adjacent.get(obj, ())
            found[obj] = len(targets) + sum(found[target] for target in targets)
        return found

    def to_dot(self, fh: IO[str], formatter: GraphFormatter | None = None) -> None:
        """Write the graph in the DOT language of Graphviz to an open text file."""
        draw = formatter or self.formatter
        seen: set[Any] = set()

        def once(text: str, obj: Any) -> None:
            if draw.label(obj) not in seen:
                seen.add(draw.label(obj))
                print(text, file=fh)

        print(draw.head(), file=fh)
        for obj, targets in self.adjacent.items():
            if not targets:
                once(draw.terminal_node(obj), obj)
            for target in targets:
                once(draw.node(obj), obj)
                print(draw.edge(obj, target), file=fh)
        print(draw.tail(), file=fh)

    def items(self) -> Any:
        """Each object, with those it points at."""
        return self.adjacent.items()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.adjacent)

    def __getitem__(self, node: Any) -> list[Any]:
        return self.adjacent[node]

    def __len__(self) -> int:
        return len(self.adjacent)

    def __contains__(self, obj: object) -> bool:
        return obj in self.adjacent

    def __repr__(self) -> str:
        valencies = self._valencies()
        lines: list[str] = []
        for root in self.adjacent:
            stack = [(root, 0)]
            while stack:
                obj, level = stack.pop()
                lines.append(f"{'     ' * level}{obj}({valencies.get(obj, 0)})")
                stack += [(target, level + 1) for target in reversed(self.adjacent.get(obj, ()))]
        return "\n".join(lines)


class GraphFormatter:
    """How a graph is drawn. Subclass it, and override `label` or the schemes, to draw otherwise.

    Args:
        root: What stands for the whole graph.
        type: ``digraph`` or ``graph``.
        id: Its name.
        indent: How far it is indented, in steps of `inw`.
        **scheme: Attributes of all nodes and edges.
    """

    scheme: dict[str, Any] = {
        "shape": "box", "arrowhead": "vee", "style": "filled", "fontname": "HelveticaNeue",
    }  # fmt: skip
    edge_scheme: ClassVar[dict[str, Any]] = {"color": "darkseagreen4", "arrowcolor": "black", "arrowsize": 0.7}
    node_scheme: ClassVar[dict[str, Any]] = {"fillcolor": "palegreen3", "color": "palegreen4"}
    term_scheme: ClassVar[dict[str, Any]] = {"fillcolor": "palegreen1", "color": "palegreen2"}
    graph_scheme: dict[str, Any] = {"bgcolor": "mintcream"}

    def __init__(
        self, root: Any = None, type: str | None = None, id: str | None = None, indent: int = 0, inw: str = " " * 4,
        **scheme: Any,
    ) -> None:  # fmt: skip
        self.id = id or "dependencies"
        self.root = root
        self.type = type or "digraph"
        self.direction = {"graph": "--", "digraph": "->"}[self.type]
        self.IN = inw * indent
        self.INp = self.IN + inw
        self.scheme = self.scheme | scheme
        self.graph_scheme = self.graph_scheme | {"root": self.label(root)}

    def label(self, obj: Any) -> Any:
        """Return the name of an object in the drawing."""
        return obj

    def attrs(self, attributes: dict[str, Any], scheme: dict[str, Any] | None = None) -> str:
        """Write attributes, over those of a scheme and of the whole."""
        merged = self.scheme | (scheme or {}) | attributes
        return ", ".join(f"{name}={_quoted(value)}" for name, value in merged.items())

    def head(self, **attrs: Any) -> str:
        """Write the beginning."""
        return f"{self.IN}{self.type} {self.id} {{\n{self.INp}graph [{self.attrs(attrs, self.graph_scheme)}]"

    def tail(self) -> str:
        """Write the end."""
        return f"{self.IN}}}"

    def node(self, obj: Any, **attrs: Any) -> str:
        """Write an object that points at others."""
        return self.draw_node(obj, self.node_scheme, attrs)

    def terminal_node(self, obj: Any, **attrs: Any) -> str:
        """Write an object that points at none."""
        return self.draw_node(obj, self.term_scheme, attrs)

    def draw_node(self, obj: Any, scheme: dict[str, Any] | None = None, attrs: dict[str, Any] | None = None) -> str:
        """Write an object."""
        return f"{self.INp}{_quoted(self.label(obj))} [{self.attrs(attrs or {}, scheme)}]"

    def edge(self, a: Any, b: Any, **attrs: Any) -> str:
        """Write that one object points at another."""
        return self.draw_edge(a, b, self.edge_scheme, attrs)

    def draw_edge(
        self, a: Any, b: Any, scheme: dict[str, Any] | None = None, attrs: dict[str, Any] | None = None
    ) -> str:
        """Write that one object points at another."""
        ends = f"{_quoted(self.label(a))} {self.direction} {_quoted(self.label(b))}"
        return f"{self.INp}{ends} [{self.attrs(attrs or {}, scheme or self.edge_scheme)}]"


def _quoted(value: Any) -> str:
    # An id can be any text, and must not end its own quotes.
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
