"""Run the rows and print their table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.rows import NEEDS, ROWS
from tests.chaos.scene import Scene, Verdict
from tests.support import PrivateBroker

HEADINGS = (
    "row", "sent", "unsure", "lost", "twice", "allowed", "worker back", "sender back", "longest send", "", "",
)  # fmt: skip


def line(name: str, verdict: Verdict) -> tuple[str, ...]:
    """Make a row's line."""
    times = (verdict.recovered_s, verdict.sends_again_s, verdict.longest_s)
    counts = (verdict.sent, verdict.unsure, verdict.lost, verdict.twice, verdict.allowed)
    return (
        name, *map(str, counts), *("-" if each is None else f"{each:.2f} s" for each in times),
        "kept" if verdict.is_kept else "BROKEN", "; ".join([*verdict.faults, *verdict.notes]),
    )  # fmt: skip


def main() -> int:
    """Run what was asked for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full measure (default: 1.0)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    options = parser.parse_args()
    lines: list[tuple[str, ...]] = [HEADINGS]
    is_kept = True
    with tempfile.TemporaryDirectory(prefix="amqptasks-chaos-") as place:
        broker = PrivateBroker(Path(place) / "broker")
        broker.start()
        try:
            for name in options.rows:
                started = time.monotonic()
                missing = NEEDS[name]() if name in NEEDS else ""
                if missing:
                    lines.append((name, *("-",) * 8, "not run", missing))
                    continue
                verdict = ROWS[name](Scene(Path(place) / name, broker, options.scale))
                is_kept = is_kept and verdict.is_kept
                lines.append(line(name, verdict))
                print(f"  {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        finally:
            broker.delete()
    widths = [max(len(each[column]) for each in lines) for column in range(len(HEADINGS))]
    for number, each in enumerate(lines):
        cells = [text.ljust(width) for text, width in zip(each, widths, strict=True)]
        print(f"| {' | '.join(cells)} |" if options.markdown else "  ".join(cells).rstrip())
        if options.markdown and number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
