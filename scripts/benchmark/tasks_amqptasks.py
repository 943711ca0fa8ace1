"""The no-op task in amqptasks. `send`, `burst`, `get`, `flush` are what the clients call on every side."""

from __future__ import annotations

import os
from typing import Any

from amqptasks import App
from amqptasks import chain as chains
from amqptasks import chord as chords
from amqptasks import group as groups

app = App("bench", broker=os.environ["BENCH_URL"], backend=os.environ["BENCH_BACKEND"])
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]
if os.environ.get("BENCH_PREFIX"):
    # A ladder of its own for delayed tasks: it can be deleted.
    app.conf.task_queue_prefix = os.environ["BENCH_PREFIX"]
app.conf.task_default_queue_type = os.environ["BENCH_QUEUE_TYPE"]
app.conf.broker_publish_confirm = bool(os.environ["BENCH_CONFIRM"])
if os.environ.get("BENCH_PREFETCH"):
    app.conf.worker_prefetch_multiplier = int(os.environ["BENCH_PREFETCH"])


@app.task(name="noop")
def noop() -> None:
    """Do nothing."""


@app.task(name="accept")
def accept(_values: list[None]) -> None:
    """Do nothing with a list of results."""


@app.task(name="step")
def step(number: int) -> int:
    """Hand a number on."""
    return number


@app.task(name="silent", ignore_result=True)
def silent() -> None:
    """Do nothing and keep no result."""


def send(*, wanted: bool = False) -> Any:
    """Send one task; with ``wanted`` its result will be asked for."""
    return noop.delay() if wanted else silent.delay()


def burst(count: int, *, wanted: bool = False) -> list[Any]:
    """Send many tasks as the system's users would, and be sure that they were sent."""
    with app.bulk():
        return [send(wanted=wanted) for _ in range(count)]


def chain(count: int) -> Any:
    """Send a chain."""
    return chains(step.s(0), *(step.s() for _ in range(count - 1))).delay()


def group(count: int) -> Any:
    """Send a group."""
    return groups(noop.s() for _ in range(count)).delay()


def chord(count: int) -> Any:
    """Send a chord whose body does nothing."""
    return chords(noop.s() for _ in range(count))(accept.s())


def burst_delayed(count: int) -> None:
    """Send many tasks that are to wait."""
    with app.bulk():
        for number in range(count):
            silent.apply_async(countdown=1000 + number % 1009)


def clear_delayed() -> None:
    """Delete what they wait in."""
    from amqptasks.broker.admin import Admin
    from amqptasks.broker.topology import DeclareQueue

    with Admin(app.endpoints("benchmark")) as admin:
        for step in app.sender.ladder.steps():
            if isinstance(step, DeclareQueue):
                admin.delete(step.queue)


def get(result: Any) -> Any:
    """Wait for a result."""
    return result.get(timeout=60)


def flush() -> None:
    """Let everything that was sent reach the broker."""
    app.close()
