"""The no-op task in Dramatiq; see `tasks_amqptasks` for the interface."""

from __future__ import annotations

import logging
import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url=os.environ["BENCH_URL"], confirm_delivery=bool(os.environ["BENCH_CONFIRM"]))
dramatiq.set_broker(broker)
logging.disable(logging.WARNING)


def _nothing() -> None:
    """Do nothing."""


silent = dramatiq.actor(actor_name="silent", queue_name=os.environ["BENCH_QUEUE"])(_nothing)


def send(*, wanted: bool = False) -> Any:
    """Send one task."""
    return silent.send()


def burst(count: int, *, wanted: bool = False) -> list[Any]:
    """Send many tasks."""
    return [send() for _ in range(count)]


def flush() -> None:
    """Let everything that was sent reach the broker: at a sudden end of the process some of it would not."""
    broker.close()
