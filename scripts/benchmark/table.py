"""The rows of the table: what is measured, in which unit, what must be reached; and how it is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COLUMNS = ("amqptasks", "celery", "dramatiq", "raw")
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Limit:
    """A promise: our figure is at least (or at most) so many times that of another column, or than 1 for none."""

    factor: float
    of: str | None = None
    least: bool = False

    def holds(self, figures: Mapping[str, float]) -> bool | None:
        """Whether it holds; None if a figure is missing."""
        if "amqptasks" not in figures or (self.of and self.of not in figures):
            return None
        bound = self.factor * (figures[self.of] if self.of else 1.0)
        return figures["amqptasks"] >= bound if self.least else figures["amqptasks"] <= bound

    def __str__(self) -> str:
        sign = ">=" if self.least else "<="
        return f"{sign} {self.factor:g} x {self.of}" if self.of else f"{sign} {self.factor:,g}"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    title: str
    unit: str
    digits: int
    limits: tuple[Limit, ...] = ()


ROWS = (
    Row("drain", "drain", "tasks/s", 0, (Limit(4, "celery", True), Limit(2, "dramatiq", True))),
    Row("cpu", "worker CPU a task, parent + children", "us", 1, (Limit(60),)),
    Row("drain-default", "drain, default prefetch", "tasks/s", 0),
    Row("cpu-default", "worker CPU a task, default prefetch", "us", 1),
    Row("drain-classic", "drain, classic queue", "tasks/s", 0),
    Row("cpu-classic", "worker CPU a task, classic queue", "us", 1),
    Row("send-cpu", "delay() CPU, confirms off", "us", 1, (Limit(50),)),
    Row("send-wall", "delay() wall, confirmed, one thread, p50", "ms", 3, (Limit(0.55),)),
    Row("bulk", "app.bulk(), confirmed", "tasks/s", 0, (Limit(15_000, None, True),)),
    Row("delayed", "the same with countdowns", "tasks/s", 0),
    Row("delayed-part", "part of the rate without, in the same run", "", 2, (Limit(0.5, None, True),)),
    Row("call", "delay().get() one by one, p50", "ms", 3, (Limit(0.6, "celery"),)),
    Row("in-flight", "2,000 calls in flight", "calls/s", 0, (Limit(6, "celery", True),)),
    Row("call-redis", "delay().get() one by one, results in Redis, p50", "ms", 3, (Limit(1, "celery"),)),
    Row("in-flight-redis", "2,000 calls in flight, results in Redis", "calls/s", 0),
    Row("chain", "chain of 100 with get", "ms", 0, (Limit(0.6, "celery"),)),
    Row("group", "group of 1,000 with get", "ms", 0),
    Row("chord", "chord of 1,000 with get", "ms", 0),
    Row("chord-group", "chord of 1,000, against a group of 1,000", "x", 2, (Limit(2),)),
    Row("memory", "worker -c 2, memory (PSS)", "MB", 1, (Limit(45),)),
    Row("import", "program with an app and one task, wall", "ms", 1, (Limit(1, "celery"),)),
)


def verdict(row: Row, figures: Mapping[str, float]) -> str:
    """``pass``, ``SHORT``, or nothing where nothing was promised or measured."""
    held = [limit.holds(figures) for limit in row.limits]
    if not held or None in held:
        return "SHORT" if False in held else ""
    return "pass" if all(held) else "SHORT"


def render(results: Figures, *, markdown: bool = False) -> str:
    """The table as text, with the ratios of ours to each peer's."""
    head = ("figure", "unit", "amqptasks", "Celery", "Dramatiq", "raw pika", "x Celery", "x Dramatiq", "must reach", "")
    lines: list[tuple[str, ...]] = [head]
    for row in ROWS:
        figures = results.get(row.name)
        if not figures:
            continue
        cells = [f"{figures[column]:,.{row.digits}f}" if column in figures else "-" for column in COLUMNS]
        ratios = [
            f"{figures['amqptasks'] / figures[peer]:.2f}" if "amqptasks" in figures and figures.get(peer) else "-"
            for peer in ("celery", "dramatiq")
        ]
        must = ", ".join(str(limit) for limit in row.limits) or "-"
        lines.append((row.title, row.unit, *cells, *ratios, must, verdict(row, figures)))
    if markdown:
        out = ["| " + " | ".join(line) + " |" for line in lines]
        out.insert(1, "|" + "---|" * len(head))
        return "\n".join(out)
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    right = range(2, 8)
    return "\n".join(
        "  ".join(
            f"{c:>{w}}" if n in right else f"{c:<{w}}" for n, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
