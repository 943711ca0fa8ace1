"""The no-op task in Celery; see `tasks_amqptasks` for the interface."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery import chain as chains
from celery import group as groups

app = Celery("bench", broker=os.environ["BENCH_URL"].replace("%2F", "/"), backend=os.environ["BENCH_BACKEND"])
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]
app.conf.broker_transport_options = {"confirm_publish": bool(os.environ["BENCH_CONFIRM"])}
if os.environ.get("BENCH_PREFETCH"):
    app.conf.worker_prefetch_multiplier = int(os.environ["BENCH_PREFETCH"])
app.conf.broker_connection_retry_on_startup = True


def _nothing() -> None:
    """Do nothing."""


def _number(number: int) -> int:
    """Hand a number on."""
    return number


noop = app.task(name="noop")(_nothing)
step = app.task(name="step")(_number)
silent = app.task(name="silent", ignore_result=True)(_nothing)


def send(*, wanted: bool = False) -> Any:
    """Send one task."""
    return noop.delay() if wanted else silent.delay()


def burst(count: int, *, wanted: bool = False) -> list[Any]:
    """Send many tasks."""
    return [send(wanted=wanted) for _ in range(count)]


def chain(count: int) -> Any:
    """Send a chain."""
    return chains(step.s(0), *(step.s() for _ in range(count - 1))).delay()


def group(count: int) -> Any:
    """Send a group. (Its results come by rpc, and then Celery has no chords.)"""
    return groups(noop.s() for _ in range(count)).delay()


def get(result: Any) -> Any:
    """Wait for a result."""
    return result.get(timeout=60)


def flush() -> None:
    """Let everything that was sent reach the broker: it has, sends are synchronous."""
