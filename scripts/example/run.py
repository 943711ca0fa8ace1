"""The main program of the quickstart: start a worker, hand it the standard library file by file, add up the answers.

Run by scripts/quickstart; by hand: ``AMQPTASKS_BROKER_URL=amqp://… python scripts/example/run.py [--limit N]``.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from proj import app, count

from amqptasks.progress import track

HERE = Path(__file__).resolve().parent
STARTUP_S = 30.0
STOP_S = 15.0


def sources() -> list[str]:
    """The standard library's own source files; installed packages are not part of it."""
    top = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(str(path) for path in top.rglob("*.py") if not foreign & set(path.relative_to(top).parts))


@contextmanager
def worker(concurrency: int) -> Iterator[None]:
    """Run ``amqptasks -A proj worker`` while the block runs."""
    command = [sys.executable, "-m", "amqptasks", "-A", "proj", "worker", "-l", "INFO", "-c", str(concurrency)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + STARTUP_S
            while True:
                log.seek(0)
                text = log.read()
                if "ready." in text:
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the worker did not become ready. It printed:\n{text}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Print two columns, the second to the right."""
    left, right = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
    for name, value in rows:
        print(f"  {name:<{left}}  {value:>{right}}")


def main() -> None:
    """Send one task per file, gather the results through rpc, print the totals."""
    parser = argparse.ArgumentParser(description="Count the words of the standard library with a task per file.")
    parser.add_argument("--limit", type=int, default=None, help="only the first N files")
    parser.add_argument("-c", "--concurrency", type=int, default=os.cpu_count() or 2, help="processes of the worker")
    options = parser.parse_args()
    paths = sources()[: options.limit]

    totals: collections.Counter[str] = collections.Counter()
    identifiers: collections.Counter[str] = collections.Counter()
    print(f"Counting {len(paths)} files of Python {sys.version.split()[0]}'s standard library, one task each:")
    with worker(options.concurrency):
        started = time.perf_counter()
        with app.bulk():  # share the round trips to RabbitMQ; every task is confirmed when the block ends
            results = [count.delay(path) for path in paths]
        sent_s = time.perf_counter() - started
        for result in track(results, "files", timeout=600):
            answer = result.get()
            totals.update(lines=answer["lines"], words=answer["words"])
            identifiers.update(answer["identifiers"])
        elapsed_s = time.perf_counter() - started
    print("\nIdentifiers used most:")
    table([(name, f"{times:,}") for name, times in identifiers.most_common(10)])
    print("\nIn all:")
    rows = [("files", len(paths)), ("lines", totals["lines"]), ("words", totals["words"]), ("names", len(identifiers))]
    table(
        [(name, f"{value:,}") for name, value in rows]
        + [
            ("sent and confirmed in", f"{sent_s:.2f} s"),
            ("done in", f"{elapsed_s:.2f} s"),
            ("tasks per second", f"{len(paths) / elapsed_s:,.0f}"),
        ]
    )


if __name__ == "__main__":
    main()
