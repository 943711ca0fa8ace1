"""The sending side of each measurement, in a process of its own: ``python -m benchmark.client SIDE MEASUREMENT COUNT``.

Prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from typing import Any

#: How often delayed and undelayed tasks are sent in turn.
DELAYED_TURNS = 5


def fill(side: Any, count: int) -> dict[str, float]:
    """Send many and say how long it took."""
    side.send()
    started = time.perf_counter()
    side.burst(count - 1)
    elapsed_s = time.perf_counter() - started
    side.flush()
    return {"per_s": (count - 1) / elapsed_s}


def delayed(side: Any, count: int) -> dict[str, float]:
    """Send many that wait and many that do not, in turns, and compare."""
    side.burst_delayed(1)
    side.send()
    plain: list[float] = []
    waiting: list[float] = []
    for _ in range(DELAYED_TURNS):
        for send, rates in ((side.burst, plain), (side.burst_delayed, waiting)):
            started = time.perf_counter()
            send(count)
            rates.append(count / (time.perf_counter() - started))
    side.clear_delayed()
    side.flush()
    return {"per_s": statistics.median(waiting), "part": statistics.median(waiting) / statistics.median(plain)}


def send_cpu(side: Any, count: int) -> dict[str, float]:
    """CPU of one send: all threads of this process, until everything has left it."""
    for _ in range(200):
        side.send()
    started = time.process_time()
    for _ in range(count):
        side.send()
    side.flush()
    return {"us": (time.process_time() - started) / count * 1e6}


def send_wall(side: Any, count: int) -> dict[str, float]:
    """Wall time of one send."""
    times = []
    for turn in range(count + 100):
        started = time.perf_counter()
        side.send()
        if turn >= 100:
            times.append(time.perf_counter() - started)
    side.flush()
    return {"ms": statistics.median(times) * 1e3, "p99_ms": statistics.quantiles(times, n=100)[98] * 1e3}


def call(side: Any, count: int) -> dict[str, float]:
    """Wall time of one call and its answer, one at a time."""
    times = []
    for turn in range(count + 50):
        started = time.perf_counter()
        side.get(side.send(wanted=True))
        if turn >= 50:
            times.append(time.perf_counter() - started)
    side.flush()
    return {"ms": statistics.median(times) * 1e3, "p99_ms": statistics.quantiles(times, n=100)[98] * 1e3}


def in_flight(side: Any, count: int) -> dict[str, float]:
    """Calls a second when all are sent before the first answer is taken."""
    side.get(side.send(wanted=True))
    started = time.perf_counter()
    for result in side.burst(count, wanted=True):
        side.get(result)
    elapsed_s = time.perf_counter() - started
    side.flush()
    return {"per_s": count / elapsed_s}


def group(side: Any, count: int) -> dict[str, float]:
    """Wall time of a group and its answers."""
    return {"ms": _wall(side, lambda: side.group(count))}


def chain(side: Any, count: int) -> dict[str, float]:
    """Wall time of a chain, until its last step's answer is there."""
    _wall(side, lambda: side.chain(2))
    return {"ms": statistics.median(_wall(side, lambda: side.chain(count)) for _ in range(5))}


def chord(side: Any, count: int) -> dict[str, float]:
    """Wall time of a chord and its body's answer, and of a group as large, in turn."""
    turns = [(_wall(side, lambda: side.chord(count)), _wall(side, lambda: side.group(count))) for _ in range(5)]
    chord_ms, group_ms = (statistics.median(times) for times in zip(*turns, strict=True))
    return {"ms": chord_ms, "ratio": chord_ms / group_ms}


def _wall(side: Any, act: Any) -> float:
    side.get(side.send(wanted=True))
    started = time.perf_counter()
    side.get(act())
    return (time.perf_counter() - started) * 1e3


_ALL = (fill, delayed, send_cpu, send_wall, call, in_flight, chain, group, chord)
MEASUREMENTS = {each.__name__: each for each in _ALL}


def main() -> None:
    """Run one measurement."""
    name, measurement, count = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[measurement](importlib.import_module(f"tasks_{name}"), int(count))))


if __name__ == "__main__":
    main()
