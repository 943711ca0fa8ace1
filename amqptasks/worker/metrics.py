"""What a worker has done and does, in the text format of Prometheus: `/metrics` of `worker --http`.

The metrics about tasks have Flower's names and labels, so that what draws them goes on. Those that begin with
``amqptasks_`` are our own. Whatever can be counted when somebody asks is counted then.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

__all__ = ["BUCKETS", "CONTENT_TYPE", "Family", "Histogram", "render"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Upper bounds of run times in seconds: Prometheus's, and so Flower's.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

Labels = tuple[str, ...]


class Family:
    """One metric: its name, what it means, its kind, the names of its labels, and its values by those."""

    def __init__(
        self, name: str, kind: str, help: str, labels: Sequence[str] = (), values: Mapping[Labels, float] | None = None
    ) -> None:
        self.name, self.kind, self.help, self.labels = name, kind, help, tuple(labels)
        self.values: dict[Labels, float] = dict(values or {})

    def lines(self) -> Iterable[str]:
        """The values, a line each."""
        for values, number in self.values.items():
            yield f"{self.name}{_labels(zip(self.labels, values, strict=True))} {_number(number)}"


class Histogram(Family):
    """How often something took so long, by labels."""

    def __init__(self, name: str, help: str, labels: Sequence[str], bounds: Sequence[float] = BUCKETS) -> None:
        super().__init__(name, "histogram", help, labels)
        self._bounds = tuple(bounds)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, values: Labels, number: float) -> None:
        """Count one."""
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * (len(self._bounds) + 1)
            self._sums[values] = 0.0
        counts[bisect.bisect_left(self._bounds, number)] += 1
        self._sums[values] += number

    def lines(self) -> Iterable[str]:
        """The counts up to each bound, then the sum and the count of all."""
        for values, counts in self._counts.items():
            pairs, total = tuple(zip(self.labels, values, strict=True)), 0
            for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_labels((*pairs, ('le', _number(bound))))} {total}"
            yield f"{self.name}_sum{_labels(pairs)} {_number(self._sums[values])}"
            yield f"{self.name}_count{_labels(pairs)} {total}"


def render(families: Iterable[Family]) -> str:
    """Write metrics down."""
    lines: list[str] = []
    for each in families:
        help_text = each.help.replace("\\", "\\\\").replace("\n", "\\n")
        lines += (f"# HELP {each.name} {help_text}", f"# TYPE {each.name} {each.kind}", *each.lines())
    return "\n".join(lines) + "\n"


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(number: float) -> str:
    if number == float("inf"):
        return "+Inf"
    return repr(number) if isinstance(number, float) else str(number)
